"""Where a node's processor time goes, stage by stage, for `/metrics`.

Nothing is timed for one transaction alone: each pass through a stage is a frame, a batch or a block.

stage     one pass
receive   a message of a peer: put together and decoded
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
from types import TracebackType
from typing import Literal, get_args

from prometheus_client import Histogram

Stage = Literal["receive", "admit", "inspect", "decide", "persist", "execute", "settle", "write"]


class Stages:
    """`histogram` has one label, the stage. A stage within a stage is counted once, where it is."""

    def __init__(self, histogram: Histogram) -> None:
        self._observe = {stage: histogram.labels(stage).observe for stage in get_args(Stage)}
        self._inside_s = 0.0

    def timed(self, stage: Stage) -> "_Pass":
        """Times the block that it is entered for. For the event loop's thread; the block must not wait."""
        return _Pass(self, stage)

    def spent(self, stage: Stage, seconds: float) -> None:
        """One pass took `seconds` of a processor: for another thread, which has one stage at a time."""
        self._observe[stage](seconds)

    def enter(self) -> float:
        """What the pass around the new one has spent inside others so far."""
        outer_s, self._inside_s = self._inside_s, 0.0
        return outer_s

    def leave(self, stage: Stage, seconds: float, outer_s: float) -> None:
        self._observe[stage](max(0.0, seconds - self._inside_s))
        self._inside_s = outer_s + seconds


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
