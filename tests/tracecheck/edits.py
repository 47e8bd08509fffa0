"""Single edits of good traces. Whatever is edited, the trace must be rejected: the judge leaves nothing free.

Each edit is a function from the traces of a network to every place where it could be made; `applied` makes one of
them, chosen by a seeded generator.
"""

import random
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

from tests.tracecheck.lines import Json

Traces = list[list[Json]]
# An edit names the places where it is possible, each as what to do to a copy of the traces.
Change = Callable[[Traces], None]
Edit = Callable[[Traces], Iterator[Change]]

OTHER_HASH = "ff" * 32


def _lines(traces: Traces) -> Iterator[tuple[int, int, Json]]:
    for number, trace in enumerate(traces):
        for position, line in enumerate(trace):
            yield number, position, line


def _state(key: str, change: Callable[[Any], Any], where: Callable[[Json], bool] = lambda _: True) -> Edit:
    def edit(traces: Traces) -> Iterator[Change]:
        for number, position, line in _lines(traces):
            if where(line):

                def apply(copy: Traces, n: int = number, p: int = position) -> None:
                    copy[n][p]["state"][key] = change(copy[n][p]["state"][key])

                yield apply

    return edit


def _sent(kind: str, change: Callable[[Json], None], where: Callable[[Json], bool] = lambda _: True) -> Edit:
    """Change a message in the line of the node that sent it."""

    def edit(traces: Traces) -> Iterator[Change]:
        for number, position, line in _lines(traces):
            for index, (_, message) in enumerate(line["left"]["messages"]):
                if message["kind"] == kind and where(message):

                    def apply(copy: Traces, n: int = number, p: int = position, i: int = index) -> None:
                        change(copy[n][p]["left"]["messages"][i][1])

                    yield apply

    return edit


def _heard(kind: str, change: Callable[[Json], None], where: Callable[[Json], bool] = lambda _: True) -> Edit:
    """Change a message in the line of the node that received it."""

    def edit(traces: Traces) -> Iterator[Change]:
        for number, position, line in _lines(traces):
            message = line["input"].get("message")
            if message is not None and message["kind"] == kind and where(message):

                def apply(copy: Traces, n: int = number, p: int = position) -> None:
                    change(copy[n][p]["input"]["message"])

                yield apply

    return edit


def _write(change: Callable[[Json], None], where: Callable[[Json], bool]) -> Edit:
    def edit(traces: Traces) -> Iterator[Change]:
        for number, position, line in _lines(traces):
            for index, write in enumerate(line["left"]["writes"]):
                if where(write):

                    def apply(copy: Traces, n: int = number, p: int = position, i: int = index) -> None:
                        change(copy[n][p]["left"]["writes"][i])

                    yield apply

    return edit


def _whole(change: Callable[[list[Json], int], None], where: Callable[[list[Json], int], bool]) -> Edit:
    """Change the order or number of lines."""

    def edit(traces: Traces) -> Iterator[Change]:
        for number, position, _ in _lines(traces):
            if where(traces[number], position):

                def apply(copy: Traces, n: int = number, p: int = position) -> None:
                    change(copy[n], p)

                yield apply

    return edit


def _to(**values: object) -> Callable[[Json], None]:
    return lambda message: message.update(values)


def _plus(key: str, amount: int) -> Callable[[Json], None]:
    def change(message: Json) -> None:
        message[key] += amount

    return change


def _item(key: str, *path: int, value: Any) -> Callable[[Json], None]:
    def change(message: Json) -> None:
        target = message[key]
        for step in path[:-1]:
            target = target[step]
        target[path[-1]] = value(target[path[-1]]) if callable(value) else value

    return change


def _has(key: str) -> Callable[[Json], bool]:
    return lambda value: bool(value.get(key))


def _role(*roles: str) -> Callable[[Json], bool]:
    return lambda line: line["state"]["role"] in roles


def _swap(trace: list[Json], position: int) -> None:
    trace[position], trace[position + 1] = trace[position + 1], trace[position]


def _swap_contents(trace: list[Json], position: int) -> None:
    """The other line's content under this one's number."""
    one, two = trace[position], trace[position + 1]
    one["line"], two["line"] = two["line"], one["line"]
    _swap(trace, position)


def _differ(trace: list[Json], position: int) -> bool:
    """Two lines whose order matters: the second one wrote or ended elsewhere."""
    if position + 1 >= len(trace) or "start" in (
        trace[position]["input"]["kind"],
        trace[position + 1]["input"]["kind"],
    ):
        return False
    return (
        bool(trace[position + 1]["left"]["writes"])
        or trace[position]["state"]["term"] != trace[position + 1]["state"]["term"]
    )


def _brings(write: Json) -> bool:
    return bool(write["blocks"]) and write["blocks"][0][4] is not None


def _another_voter(write: Json) -> None:
    made = write["blocks"][0][4]
    write["blocks"][0][4] = {**made, "voters": [*made["voters"], "n8", "n9"]}


def _one_signer(message: Json) -> None:
    message["certificate"][3] = message["certificate"][3][:1]


EDITS: dict[str, Edit] = {
    # what a node became
    "the term one higher": _state("term", lambda term: term + 1),
    "the term one lower": _state("term", lambda term: term - 1, lambda line: line["state"]["term"] > 0),
    "a vote for another": _state("vote", lambda _: "n9", lambda line: line["state"]["vote"] is not None),
    "a vote forgotten": _state("vote", lambda _: None, lambda line: line["state"]["vote"] is not None),
    "a follower leads": _state("role", lambda _: "leader", _role("follower")),
    "a follower stands": _state("role", lambda _: "candidate", _role("follower")),
    "a candidate leads": _state("role", lambda _: "leader", _role("candidate", "pre_candidate")),
    "another is followed": _state("leader", lambda _: "n9", lambda line: line["state"]["leader"] is not None),
    "nobody is followed": _state("leader", lambda _: None, lambda line: line["state"]["leader"] is not None),
    "the log one longer": _state("last", lambda last: [last[0] + 1, *last[1:]]),
    "the log one shorter": _state(
        "last", lambda last: [last[0] - 1, *last[1:]], lambda line: line["state"]["last"][0] > 0
    ),
    "another newest block": _state("last", lambda last: [*last[:2], OTHER_HASH]),
    "another newest term": _state("last", lambda last: [last[0], last[1] + 1, last[2]]),
    "more is durable": _state("durable", lambda height: height + 1),
    "less is durable": _state("durable", lambda height: height - 1, lambda line: line["state"]["durable"] > 0),
    "more is committed": _state("commit", lambda height: height + 1),
    "less is committed": _state("commit", lambda height: height - 1, lambda line: line["state"]["commit"] > 0),
    "another voter": _state("configuration", lambda made: {**made, "voters": [*made["voters"], "n9"]}),
    # what it handed to its disk
    "a batch is numbered anew": _write(_plus("seq", 1), lambda _: True),
    "a block with another hash": _write(_item("blocks", 0, 3, value=OTHER_HASH), _has("blocks")),
    "a block with another parent": _write(_item("blocks", 0, 2, value=OTHER_HASH), _has("blocks")),
    "a block of another term": _write(_item("blocks", 0, 1, value=lambda term: term + 1), _has("blocks")),
    "a block at another height": _write(_item("blocks", 0, 0, value=lambda height: height + 1), _has("blocks")),
    "a block is not written": _write(lambda write: write["blocks"].pop(), _has("blocks")),
    "blocks are removed": _write(lambda write: write.update(truncate_from=write["blocks"][0][0] - 1), _has("blocks")),
    "a vote for another is written": _write(_item("hard_state", 1, value="n9"), _has("hard_state")),
    "another term is written": _write(_item("hard_state", 0, value=lambda term: term + 1), _has("hard_state")),
    "two voters more in one block": _write(_another_voter, _brings),
    "a change of membership hidden": _write(_item("blocks", 0, 4, value=None), _brings),
    # what it told
    "a read of the past": lambda traces: _read(traces, -1),
    "a read of the future": lambda traces: _read(traces, 1),
    "another block is told committed": lambda traces: _told(traces, 2, OTHER_HASH),
    "a certificate with one signer": lambda traces: _told(traces, 3, ["n1"]),
    # what it sent
    "a vote request for another term": _sent("Vote", _plus("term", 1)),
    "a vote request for a longer log": _sent("Vote", _plus("last_height", 1)),
    "a vote request for a newer log": _sent("Vote", _plus("last_term", 1), lambda vote: vote["last_height"] > 0),
    "a refused vote is granted": _sent("VoteReply", _to(granted=True), lambda reply: not reply["granted"]),
    "a vote in another term": _sent("VoteReply", _plus("term", 1), _has("granted")),
    "a pre-vote for another term": _sent("PreVote", _plus("term", 1)),
    "blocks in another term": _sent("Append", _plus("term", 1)),
    "blocks after another": _sent("Append", _item("prev", 2, value=OTHER_HASH), lambda m: m["prev"][0] > 0),
    "another block is sent": _sent("Append", _item("blocks", 0, 3, value=OTHER_HASH), _has("blocks")),
    "a block is left out": _sent("Append", lambda message: message["blocks"].pop(0), lambda m: len(m["blocks"]) > 1),
    "a certificate without a quorum": _sent("Append", _one_signer, _has("certificate")),
    "leadership is handed to a stranger": lambda traces: _sent_to(traces, "TimeoutNow", "n9"),
    "a read is answered too high": _sent("ReadIndexReply", _plus("height", 1), _has("height")),
    "a read is answered too low": _sent("ReadIndexReply", _plus("height", -1), _has("height")),
    "more is accepted": _sent("AppendReply", _plus("height", 1), lambda reply: reply["answer"] == "accepted"),
    "another block is acknowledged": _sent(
        "AppendReply", _item("acknowledges", 0, 1, value=OTHER_HASH), _has("acknowledges")
    ),
    "accepted in another term": _sent("AppendReply", _plus("term", 1)),
    "a round nobody began is echoed": _sent("AppendReply", _plus("round", 1_000)),
    # what it received
    "what nobody sent is heard": _heard("AppendReply", _plus("height", 100)),
    "a vote is heard that was refused": _heard("VoteReply", _to(granted=True), lambda reply: not reply["granted"]),
    "a block is heard that nobody sent": _heard("Append", _item("blocks", 0, 3, value=OTHER_HASH), _has("blocks")),
    "an acknowledgement nobody gave": _heard(
        "AppendReply", _item("acknowledges", 0, 1, value=OTHER_HASH), _has("acknowledges")
    ),
    # the lines themselves
    "a line is missing": _whole(lambda trace, p: trace.pop(p).clear(), lambda trace, p: 0 < p < len(trace) - 1),
    "a line comes twice": _whole(lambda trace, p: trace.insert(p, deepcopy(trace[p])), lambda trace, p: True),
    "two lines change places": _whole(_swap, lambda trace, p: p + 1 < len(trace)),
    "two lines change contents": _whole(_swap_contents, _differ),
    "a line of another node": _whole(lambda trace, p: trace[p].update(node="n9"), lambda trace, p: p > 0),
}


def _told(traces: Traces, field: int, value: object) -> Iterator[Change]:
    for number, position, line in _lines(traces):
        if line["left"]["committed"]:

            def apply(copy: Traces, n: int = number, p: int = position) -> None:
                copy[n][p]["left"]["committed"][0][field] = value

            yield apply


def _read(traces: Traces, amount: int) -> Iterator[Change]:
    for number, position, line in _lines(traces):
        if any(height is not None for _, height in line["left"]["reads"]):

            def apply(copy: Traces, n: int = number, p: int = position) -> None:
                copy[n][p]["left"]["reads"][0][1] += amount

            yield apply


def _sent_to(traces: Traces, kind: str, other: str) -> Iterator[Change]:
    for number, position, line in _lines(traces):
        for index, (_, message) in enumerate(line["left"]["messages"]):
            if message["kind"] == kind:

                def apply(copy: Traces, n: int = number, p: int = position, i: int = index) -> None:
                    copy[n][p]["left"]["messages"][i][0] = other

                yield apply


def applied(traces: Traces, kind: str, chance: random.Random) -> Traces | None:
    """A copy with one edit of this kind, or None where there is no place for it."""
    places = list(EDITS[kind](traces))
    if not places:
        return None
    copy = deepcopy(traces)
    chance.choice(places)(copy)
    return copy
