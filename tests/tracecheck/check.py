"""The whole network: each trace replayed, then what must hold between them."""

from collections.abc import Sequence
from dataclasses import dataclass

from tests.tracecheck.lines import Forbidden, Json, from_start
from tests.tracecheck.member import Member
from tests.tracecheck.network import Facts


@dataclass(frozen=True)
class Report:
    nodes: int
    lines: int
    leaders: int
    certificates: int

    def __str__(self) -> str:
        return (
            f"{self.nodes} nodes, {self.lines} transitions, {self.leaders} terms led, "
            f"{self.certificates} certificates"
        )


def check(traces: Sequence[Sequence[Json]], *, between: bool = True) -> Report:
    """Raises Forbidden at the first line, or pair of lines, that Raft forbids.

    `between`: also judge what must hold between nodes; pass False where some of them are not what they seem.
    """
    facts = Facts()
    lines = 0
    for trace in traces:
        kept, complete = from_start(list(trace))
        if not kept:
            raise Forbidden(trace[0] if trace else {}, "there is no start in this trace")
        member = Member(kept[0]["node"], facts)
        if complete:
            facts.since[member.name] = kept[0]["input"]["term"]
        for line in kept:
            lines += 1
            try:
                member.replay(line)
            except (KeyError, TypeError, ValueError, IndexError, StopIteration, AttributeError) as error:
                raise Forbidden(line, f"this is no line of a trace: {error!r}") from error
    if between:
        facts.judge()
    return Report(len(traces), lines, len(facts.leaders), len(facts.certificates))
