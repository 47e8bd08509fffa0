"""A simulated disk under the key-value port, with what LevelDB promises and no more.

Batches are atomic and reach the medium in the order in which they were written. A write with `sync` asks for one;
it is done when `finish_sync` says so, and until then a power loss may take it: what survives is a prefix of the
batches that is never shorter than the last finished sync. A damaged record is noticed, by its checksum, when read.
"""

import random
from collections.abc import Callable, Iterator, Sequence

from storage.port import StorageFailure, Write
from tests.fakes.disk import DiskView, apply

# Told of each batch as it reaches the medium for good.
Observer = Callable[[Sequence[Write]], None]


class SimDisk:
    """A KeyValue. `durable` is what a power loss now would leave at least; `on_durable` sees it grow.

    `sync_ignored` is the broken disk: it finishes syncs without doing them.
    """

    def __init__(self, on_durable: Observer, *, sync_ignored: bool = False) -> None:
        self.durable: dict[bytes, bytes] = {}
        self.sync_ignored = sync_ignored
        self.fail_writes = False
        self._on_durable = on_durable
        self._current: dict[bytes, bytes] = {}
        self._cached: list[tuple[Write, ...]] = []
        self._asked = 0
        self._damaged: dict[bytes, None] = {}
        self._open = False
        self._latched = False

    # the port

    def get(self, key: bytes) -> bytes | None:
        self._require_readable()
        if key in self._damaged:
            raise StorageFailure(f"the record at {key.hex()} does not match its checksum")
        return self._current.get(key)

    def range(self, start: bytes, stop: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        self._require_readable()
        if not self._current:
            return
        for key in sorted((key for key in self._current if start <= key < stop), reverse=reverse):
            value = self.get(key)
            assert value is not None, "what is listed is there"
            yield key, value

    def write(self, batch: Sequence[Write], *, sync: bool) -> None:
        self._require_readable()
        if self.fail_writes or self._latched:
            self._latched = True
            raise StorageFailure("the disk fails to write")
        self._cached.append(tuple(batch))
        apply(self._current, batch)
        if sync:
            self._asked = len(self._cached)

    def view(self) -> DiskView:
        """What is stored now, as it stays while others write."""
        self._require_readable()
        return DiskView(dict(self._current))

    def compact(self, start: bytes, stop: bytes) -> None:
        """There is no space to give back."""

    def close(self) -> None:
        """A clean stop: the operating system writes out what it still holds."""
        self._keep(len(self._cached))
        self._open = False

    # what the simulation does to it

    def open(self) -> "SimDisk":
        """As a node finds it that has just been started."""
        assert not self._cached, "what a power loss left in memory is gone"
        self._open, self._latched = True, False
        self._current = dict(self.durable)
        return self

    def finish_sync(self) -> None:
        """What was asked to be synced is on the medium."""
        if not self.sync_ignored:
            self._keep(self._asked)

    def fail_sync(self, chance: random.Random) -> None:
        """A sync fails: some of what it was for may be on the medium; nothing is written from now on."""
        self._keep(chance.randint(0, len(self._cached)))
        self._latched = True

    def lose_power(self, chance: random.Random) -> int:
        """Some of what was not synced is gone; how many batches."""
        self._keep(chance.randint(0, len(self._cached)))
        lost = len(self._cached)
        self._cached.clear()
        self._asked = 0
        self._current = {}
        self._open = False
        return lost

    def damage(self, key: bytes) -> None:
        """Flip a bit of the record: from now on its checksum is wrong."""
        self._damaged[key] = None

    def mend(self) -> None:
        """A damaged medium reads well again (the cable, not the platter); writes succeed again after a restart."""
        self._damaged.clear()
        self.fail_writes = False

    def replace(self, content: dict[bytes, bytes]) -> None:
        """Another content altogether, on a stopped node: wiped, or restored from a backup."""
        assert not self._open, "a disk is exchanged while its node is down"
        self.durable = dict(content)
        self._damaged.clear()

    def _keep(self, count: int) -> None:
        for batch in self._cached[:count]:
            apply(self.durable, batch)
            self._on_durable(batch)
        del self._cached[:count]
        self._asked = max(0, self._asked - count)

    def _require_readable(self) -> None:
        if not self._open:
            raise StorageFailure("the disk is closed")
