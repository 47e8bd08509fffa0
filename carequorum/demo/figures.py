"""What the answers of all writers say together: how fast, how late, how long nothing came."""

import itertools
import math
from collections.abc import Sequence

import msgspec

from carequorum.demo.plan import Answer


class Figures(msgspec.Struct, frozen=True):
    """`seconds_without_commit` is the longest time between two successive answers, of whatever writers."""

    committed: int
    tx_per_s: float
    commit_ms_p50: float
    commit_ms_p99: float
    seconds_without_commit: float
    in_flight_max: int


def figures(answers: Sequence[Answer]) -> Figures:
    """The figures of at least two answers."""
    answered = sorted(answer.answered_ns for answer in answers)
    latencies = sorted((answer.answered_ns - answer.submitted_ns) / 1e6 for answer in answers)
    span_s = (answered[-1] - min(answer.submitted_ns for answer in answers)) / 1e9
    gaps = [later - earlier for earlier, later in itertools.pairwise(answered)]
    return Figures(
        committed=len(answers),
        tx_per_s=round(len(answers) / span_s, 1),
        commit_ms_p50=round(_quantile(latencies, 0.50), 1),
        commit_ms_p99=round(_quantile(latencies, 0.99), 1),
        seconds_without_commit=round(max(gaps, default=0) / 1e9, 3),
        in_flight_max=_overlap(answers),
    )


def _quantile(ascending: Sequence[float], share: float) -> float:
    """Nearest rank: the smallest value that at least `share` of all do not exceed."""
    return ascending[max(0, math.ceil(share * len(ascending)) - 1)]


def _overlap(answers: Sequence[Answer]) -> int:
    """The most transactions that were submitted and not yet answered at one moment."""
    # An answer at the very moment of a submission ends first.
    moments = sorted(
        [(answer.submitted_ns, 1) for answer in answers] + [(answer.answered_ns, -1) for answer in answers]
    )
    flying = highest = 0
    for _, step in moments:
        flying += step
        highest = max(highest, flying)
    return highest
