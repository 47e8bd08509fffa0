"""The log: what is not yet on the disk and a recent tail in memory, the rest behind LogReader.

    base      first          durable            last
     |          |               |                 |
     0  1  2 .. 41  42  43  44  45  46  47  48  49      memory holds 41..49; 46..49 are on their way to the disk

Invariants: base <= durable <= last; every height in (durable, last] is in memory; what memory holds is contiguous
and ends at last; parents link.
"""

from collections.abc import Sequence

from consensus.configuration import ConfigurationHistory
from consensus.errors import InvariantViolation, require
from consensus.messages import Entry
from consensus.ports import LogReader, Restored
from consensus.writes import Writes

RECENT_BLOCKS_MAX = 1024
RECENT_BYTES_MAX = 16 * 1024 * 1024


class Log:
    """Blocks by height. Every change here is put into `writes` at once, so the two cannot drift apart.

    At RECENT_BLOCKS_MAX blocks or RECENT_BYTES_MAX of data in memory the oldest durable ones are forgotten;
    blocks not yet durable never are (their amount is bounded by who appends).
    """

    def __init__(self, restored: Restored, reader: LogReader) -> None:
        self.writes = Writes(restored.hard_state, restored.last_height)
        self.configurations = ConfigurationHistory(restored.configurations, restored.base_height)
        self.base_height = restored.base_height
        self._base = (restored.base_term, restored.base_hash)
        self._reader = reader
        self._recent: dict[int, Entry] = {}
        self._first = restored.last_height + 1
        self._recent_bytes = 0
        self.last_height = restored.last_height
        require(restored.last_height >= restored.base_height, "the log does not end below its base")
        require(self.configurations.newest_height <= self.last_height, "a configuration is of a block in the log")
        self.last_term, self.last_hash = self._require_term_hash(restored.last_height)
        require(restored.hard_state.term >= self.last_term, "the stored term is not below the log's newest")

    @property
    def durable_height(self) -> int:
        return self.writes.durable_height

    @property
    def undurable_bytes(self) -> int:
        """Data of blocks that are still on their way to the disk."""
        heights = range(self.durable_height + 1, self.last_height + 1)
        return sum(len(self._recent[height].data) for height in heights)

    def term_hash(self, height: int) -> tuple[int, bytes] | None:
        """Term and hash at `height`; None above the log and below its base."""
        if height == self.base_height:
            return self._base
        if not self.base_height < height <= self.last_height:
            return None
        entry = self._recent.get(height)
        return (entry.term, entry.hash) if entry is not None else self._reader.term_hash(height)

    def _require_term_hash(self, height: int) -> tuple[int, bytes]:
        found = self.term_hash(height)
        if found is None:
            raise InvariantViolation(f"the disk does not hold height {height} of its own log")
        return found

    def term(self, height: int) -> int:
        """The term at a height that the log holds."""
        return self._require_term_hash(height)[0]

    def entry(self, height: int) -> Entry | None:
        """The block at `height`, or None outside the log. The base itself is not a block that can be read."""
        if not self.base_height < height <= self.last_height:
            return None
        return self._recent.get(height) or self.entries(height, height, 1)[0]

    def entries(self, first: int, last: int, bytes_max: int) -> tuple[Entry, ...]:
        """Blocks from `first`, at most to `last`, at least one, ending before `bytes_max` of data is passed."""
        require(self.base_height < first <= last <= self.last_height, "only what the log holds is read")
        chosen: list[Entry] = []
        if first < self._first:
            chosen += self._reader.entries(first, min(last, self._first - 1), bytes_max)
            require(bool(chosen) and chosen[0].height == first, f"the disk holds height {first} of its own log")
            if chosen[-1].height < self._first - 1:
                return tuple(chosen)
        size = sum(len(entry.data) for entry in chosen)
        for height in range(first + len(chosen), last + 1):
            entry = self._recent[height]
            size += len(entry.data)
            if chosen and size > bytes_max:
                break
            chosen.append(entry)
        return tuple(chosen)

    def append(self, entries: Sequence[Entry]) -> None:
        """Add blocks on top. Their links are asserted: the log is the chain."""
        for entry in entries:
            require(entry.height == self.last_height + 1, "heights are contiguous")
            require(entry.parent == self.last_hash, "a block's parent is the block below it")
            require(self.last_term <= entry.term <= self.writes.hard_state.term, "terms in the log never fall")
            self._recent[entry.height] = entry
            self._recent_bytes += len(entry.data)
            self.last_height, self.last_term, self.last_hash = entry.height, entry.term, entry.hash
            if entry.configuration is not None:
                self.configurations.append(entry.height, entry.configuration)
        self.writes.put(entries)

    def truncate(self, height: int) -> None:
        """Remove `height` and above. The caller has made sure that nothing of it is committed."""
        require(self.base_height < height <= self.last_height, "only what the log holds is removed")
        for removed in range(max(height, self._first), self.last_height + 1):
            self._recent_bytes -= len(self._recent.pop(removed).data)
        self._first = min(self._first, height)
        self.last_height = height - 1
        self.writes.truncate(height)
        self.configurations.truncate_from(height)
        self.last_term, self.last_hash = self._require_term_hash(height - 1)

    def compact(self, height: int) -> None:
        """Make `height`, durable and certified, the base: what is below is asked for no longer."""
        found = self._require_term_hash(height)
        require(self.base_height <= height <= self.durable_height, "only what is durable is compacted")
        for dropped in range(self._first, min(height, self.last_height) + 1):
            self._recent_bytes -= len(self._recent.pop(dropped).data)
        self._first = max(self._first, height + 1)
        self.base_height, self._base = height, found
        self.configurations.compact(height)

    def forget_old(self) -> None:
        """Drop the oldest durable blocks from memory until it is within its bounds."""
        while self._first <= self.durable_height and (
            len(self._recent) > RECENT_BLOCKS_MAX or self._recent_bytes > RECENT_BYTES_MAX
        ):
            self._recent_bytes -= len(self._recent.pop(self._first).data)
            self._first += 1

    def newest_not_above(self, height: int, term: int, floor: int) -> int:
        """The largest height in [floor, height] whose term is at most `term`, or `floor` if there is none.

        Terms never fall along a log, so this is a binary search. It is what makes the search for the common
        prefix jump over whole terms.
        """
        low, high = floor, max(floor, height)
        while low < high:
            middle = (low + high + 1) // 2
            if self.term(middle) <= term:
                low = middle
            else:
                high = middle - 1
        return low
