"""What a node holds: its log in memory, the batches on their way, and what of both is on its disk.

A block is durable if it stands in the log and on the disk, now and after each batch that is still on its way.
"""

from collections import deque
from dataclasses import dataclass

from tests.tracecheck.lines import Block, Json, blocks


@dataclass
class Write:
    seq: int
    truncate_from: int | None
    blocks: list[Block]
    hard_state: tuple[int, str | None] | None


class Holdings:
    """`log` and `disk` hold the blocks that the trace told of; of others nothing is known but that both agree."""

    def __init__(self, given: Json) -> None:
        self.base: tuple[int, int | None, str | None] = tuple(given["base"])
        self.last = self.disk_last = int(given["last_height"])
        self.log: dict[int, Block] = {block.height: block for block in blocks(given["blocks"])}
        self.disk: dict[int, Block] = dict(self.log)
        self.term, self.vote = given["term"], given["vote"]
        self.disk_term, self.disk_vote = self.term, self.vote
        self.writes: deque[Write] = deque()
        self.seq = 0
        self.configurations: list[tuple[int, Json]] = [(height, made) for height, made in given["configurations"]]

    # what stands where

    def hash_at(self, height: int) -> str | None:
        """None where it is not known, or nothing is there."""
        if height == self.base[0]:
            return self.base[2]
        found = self.log.get(height)
        return found.hash if found else None

    def term_at(self, height: int) -> int | None:
        if height == self.base[0]:
            return self.base[1]
        found = self.log.get(height)
        return found.term if found else None

    def configuration_at(self, height: int) -> Json:
        return next(made for start, made in reversed(self.configurations) if start <= height)

    @property
    def configuration(self) -> Json:
        return self.configurations[-1][1]

    # changes

    def put(self, write: Write) -> None:
        """A batch changes the log at once, and waits for the disk."""
        self.seq = write.seq
        self.writes.append(write)
        self.last = _apply(self.log, self.last, write)
        if write.truncate_from is not None:
            self.configurations = [
                (start, made) for start, made in self.configurations if start < write.truncate_from
            ]
        self.configurations += [(b.height, b.configuration) for b in write.blocks if b.configuration is not None]
        self.term, self.vote = write.hard_state or (self.term, self.vote)

    def compact(self, height: int) -> None:
        """The base moves up; a base that was never seen is only known by its height."""
        self.base = (height, self.term_at(height), self.hash_at(height))
        for blocks_ in (self.log, self.disk):
            for below in [below for below in blocks_ if below <= height]:
                del blocks_[below]

    def persisted(self, seq: int) -> None:
        while self.writes and self.writes[0].seq <= seq:
            self._write(self.writes.popleft())

    def _write(self, write: Write) -> None:
        self.disk_last = _apply(self.disk, self.disk_last, write)
        self.disk_term, self.disk_vote = write.hard_state or (self.disk_term, self.disk_vote)

    def durable(self, from_height: int) -> int:
        """The newest durable height, which is at least `from_height` unless the log ends below."""
        disk, last = dict(self.disk), self.disk_last
        agreed = self._agreement(disk, last, from_height)
        for write in self.writes:
            last = _apply(disk, last, write)
            agreed = min(agreed, self._agreement(disk, last, from_height))
        return agreed

    def _agreement(self, disk: dict[int, Block], last: int, height: int) -> int:
        top = min(self.last, last)
        height = min(height, top)
        while height < top and disk.get(height + 1) == self.log.get(height + 1):
            height += 1
        return height

    def possible_disks(self) -> list[tuple[int, int, str | None]]:
        """(last height, term, vote) after none, some or all of the batches on their way, in order."""
        last, term, vote = self.disk_last, self.disk_term, self.disk_vote
        states = [(last, term, vote)]
        for write in self.writes:
            last = _apply({}, last, write)
            term, vote = write.hard_state or (term, vote)
            states.append((last, term, vote))
        return states

    def disk_after(self, batches: int) -> dict[int, Block]:
        """What the disk holds once the first `batches` of those on their way are on it."""
        disk, last = dict(self.disk), self.disk_last
        for write in list(self.writes)[:batches]:
            last = _apply(disk, last, write)
        return disk

    def restart(self, given: Json, batches: int) -> None:
        """Memory is gone; the disk kept the first `batches` of what was on its way."""
        for write in list(self.writes)[:batches]:
            self._write(write)
        self.writes.clear()
        self.seq = 0
        # The disk need not have forgotten yet what the log did.
        below = [block for block in blocks(given["blocks"]) if block.height <= self.base[0]]
        self.disk |= {block.height: block for block in below}
        self.base = tuple(given["base"])
        self.disk = {height: block for height, block in self.disk.items() if height > self.base[0]}
        self.log, self.last = dict(self.disk), self.disk_last
        self.term, self.vote = self.disk_term, self.disk_vote
        self.configurations = [(height, made) for height, made in given["configurations"]]


def _apply(blocks: dict[int, Block], last: int, write: Write) -> int:
    if write.truncate_from is not None:
        for height in [height for height in blocks if height >= write.truncate_from]:
            del blocks[height]
        last = write.truncate_from - 1
    for block in write.blocks:
        blocks[block.height] = block
        last = block.height
    return last
