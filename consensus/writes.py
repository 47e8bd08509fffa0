"""What is on its way to the disk. The core changes its memory first; this remembers how much of it is durable.

    taken by Ready:   1   2   3 | open batch
    persisted:        ^             durable_height: the log up to here is on the disk, with today's content

A truncation takes blocks out of every batch still on its way: the batch that deletes them is later in order, so
what an earlier batch still writes above the cut must not count as durable.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from consensus.errors import require
from consensus.messages import Entry, HardState


@dataclass(slots=True)
class _Batch:
    """`top`: the newest height whose present content this batch, or one before it, writes."""

    seq: int
    top: int
    tick: int


class Writes:
    """Batches in order of `seq`, which begins at 1; `persisted_seq` covers all up to it.

    Invariants: persisted_seq < every outstanding seq < next_seq; durable_height never exceeds the log.
    """

    def __init__(self, hard_state: HardState, durable_height: int) -> None:
        self.hard_state = hard_state
        self.hard_state_seq = 0
        self.durable_height = durable_height
        self.persisted_seq = 0
        self._next_seq = 1
        self._outstanding: deque[_Batch] = deque()
        self._truncate_from: int | None = None
        self._entries: list[Entry] = []
        self._hard_state_changed = False

    @property
    def dirty(self) -> bool:
        return bool(self._entries) or self._truncate_from is not None or self._hard_state_changed

    @property
    def hard_state_durable(self) -> bool:
        return self.hard_state_seq <= self.persisted_seq

    def remember(self, hard_state: HardState) -> None:
        """Replace term and vote. Neither a term nor, within one, a vote is ever taken back."""
        old = self.hard_state
        require(hard_state.term >= old.term, "the term never falls")
        require(hard_state.term > old.term or old.vote in (None, hard_state.vote), "a vote in a term never changes")
        if hard_state != old:
            self.hard_state = hard_state
            self.hard_state_seq = self._next_seq
            self._hard_state_changed = True

    def put(self, entries: Iterable[Entry]) -> None:
        self._entries.extend(entries)

    def truncate(self, height: int) -> None:
        """Delete `height` and above."""
        self._entries = [entry for entry in self._entries if entry.height < height]
        self._truncate_from = height if self._truncate_from is None else min(self._truncate_from, height)
        self.durable_height = min(self.durable_height, height - 1)
        for batch in self._outstanding:
            batch.top = min(batch.top, height - 1)

    def take(self, tick: int) -> tuple[int, int | None, tuple[Entry, ...], HardState | None]:
        """Close the open batch: (seq, truncate_from, entries, hard state if it changed)."""
        require(self.dirty, "an empty batch is never taken")
        seq, entries, cut = self._next_seq, tuple(self._entries), self._truncate_from
        below = self._outstanding[-1].top if self._outstanding else self.durable_height
        top = entries[-1].height if entries else below
        require(not entries or entries[0].height == below + 1, "a batch continues what is below it")
        hard_state = self.hard_state if self._hard_state_changed else None
        self._outstanding.append(_Batch(seq, top, tick))
        self._next_seq += 1
        self._entries, self._truncate_from, self._hard_state_changed = [], None, False
        return seq, cut, entries, hard_state

    def persisted(self, seq: int) -> None:
        """Every batch up to `seq` is on the disk. Doubled and overtaken reports are harmless."""
        require(seq < self._next_seq, "only a batch that was handed out can be persisted")
        while self._outstanding and self._outstanding[0].seq <= seq:
            batch = self._outstanding.popleft()
            self.persisted_seq = batch.seq
            self.durable_height = max(self.durable_height, batch.top)

    def oldest_age_ticks(self, now: int) -> int:
        """How long the disk has owed its oldest answer; 0 when it owes none."""
        return now - self._outstanding[0].tick if self._outstanding else 0
