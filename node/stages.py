"""Where a node's processor time goes, stage by stage, for `/metrics`.

Nothing is timed for one transaction alone: each pass through a stage is a frame, a batch or a block.

stage     one pass
receive   transactions of a peer: put together and decoded
admit     what came together, from a client or a peer: decoded, verified, pooled
inspect   blocks of the leader: certificate, headers, transactions against the pool
decide    the consensus core, and what it says, packed and queued for peers
persist   the log: blocks and bodies (writer thread)
execute   a certified block: results, state, tree, roots
settle    after it: the pool, and whoever waits
write     what blocks left, put on the disk (writer thread)

What is missing to the whole is the event loop itself, TLS and WebSockets, HTTP, and LevelDB's own thread.
"""

import time
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate
from types import TracebackType
from typing import Literal, get_args

from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

Stage = Literal["receive", "admit", "inspect", "decide", "persist", "execute", "settle", "write"]


class Stages(Collector):
    """One histogram with the stage as its label; a stage within a stage is counted once, where it is.

    Not prometheus_client's own Histogram, whose locks cost more than some passes: each stage belongs to one thread.
    """

    def __init__(self, name: str, text: str, buckets: Sequence[float]) -> None:
        self._name = name
        self._text = text
        self._buckets = buckets
        self._counts: dict[Stage, list[int]] = {stage: [0] * (len(buckets) + 1) for stage in get_args(Stage)}
        self._sums_s: dict[Stage, float] = dict.fromkeys(self._counts, 0.0)
        self._inside_s = 0.0

    def timed(self, stage: Stage) -> "_Pass":
        """Times the block that it is entered for. For the event loop's thread; the block must not wait."""
        return _Pass(self, stage)

    def spent(self, stage: Stage, seconds: float) -> None:
        """One pass took `seconds` of a processor."""
        self._counts[stage][bisect_left(self._buckets, seconds)] += 1
        self._sums_s[stage] += seconds

    def enter(self) -> float:
        """What the pass around the new one has spent inside others so far."""
        outer_s, self._inside_s = self._inside_s, 0.0
        return outer_s

    def leave(self, stage: Stage, seconds: float, outer_s: float) -> None:
        self.spent(stage, max(0.0, seconds - self._inside_s))
        self._inside_s = outer_s + seconds

    def collect(self) -> Iterable[HistogramMetricFamily]:
        family = HistogramMetricFamily(self._name, self._text, labels=["stage"])
        bounds = [*map(str, self._buckets), "+Inf"]
        for stage, counts in self._counts.items():
            family.add_metric([stage], list(zip(bounds, accumulate(counts), strict=True)), self._sums_s[stage])
        yield family


class _Pass:
    __slots__ = ("_begun_s", "_outer_s", "_stage", "_stages")

    def __init__(self, stages: Stages, stage: Stage) -> None:
        self._stages = stages
        self._stage: Stage = stage

    def __enter__(self) -> None:
        self._outer_s = self._stages.enter()
        self._begun_s = time.thread_time()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stages.leave(self._stage, time.thread_time() - self._begun_s, self._outer_s)
