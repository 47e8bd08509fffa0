"""A disk that loses power: the key-value port in memory, with what a real one would forget.

It keeps its batches in the order in which they were written. At a power loss a prefix of them survives that
is never shorter than the last synced one; which prefix is the seed's choice, or exactly the synced one with
`only_synced`.
"""

import random
from collections.abc import Iterator, Sequence

from storage.port import StorageFailure, Write


class PowerLossDisk:
    """A KeyValue. `sync_ignored` is the broken disk: it answers to a sync without doing it. `batches`
    counts the writes.

    After `power_loss` or `close` every call fails until `open` (a node's restart).
    """

    def __init__(self, seed: int = 0, *, only_synced: bool = False, sync_ignored: bool = False) -> None:
        self.only_synced = only_synced
        self.sync_ignored = sync_ignored
        self.fail_next_write = False
        self.batches = 0
        self._choose = random.Random(seed)
        self._durable: dict[bytes, bytes] = {}
        self._unsynced: list[tuple[Write, ...]] = []
        self._current: dict[bytes, bytes] = {}
        self._closed = False
        self._broken = False

    def get(self, key: bytes) -> bytes | None:
        self._require_open()
        return self._current.get(key)

    def range(self, start: bytes, stop: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        self._require_open()
        keys = sorted((key for key in self._current if start <= key < stop), reverse=reverse)
        yield from [(key, self._current[key]) for key in keys]

    def write(self, batch: Sequence[Write], *, sync: bool) -> None:
        self._require_open()
        if self._broken or self.fail_next_write:
            self._broken, self.fail_next_write = True, False
            raise StorageFailure("the fake disk fails to write")
        self.batches += 1
        self._unsynced.append(tuple(batch))
        apply(self._current, batch)
        if sync and not self.sync_ignored:
            self._keep(len(self._unsynced))

    def view(self) -> "DiskView":
        self._require_open()
        return DiskView(dict(self._current))

    def compact(self, start: bytes, stop: bytes) -> None:
        self._require_open()

    def close(self) -> None:
        """A clean stop: the operating system writes out what it still holds."""
        self._keep(len(self._unsynced))
        self._closed = True

    def power_loss(self) -> int:
        """Lose what was not synced, or some of it. Answers how many batches are gone."""
        kept = 0 if self.only_synced else self._choose.randint(0, len(self._unsynced))
        lost = len(self._unsynced) - kept
        self._keep(kept)
        self._unsynced.clear()
        self._current = dict(self._durable)
        self._closed = True
        return lost

    def open(self) -> "PowerLossDisk":
        """The same disk, as a restarted node finds it."""
        self._closed = self._broken = self.fail_next_write = False
        return self

    def damage(self, key: bytes, value: bytes | None) -> None:
        """Change one value behind everybody's back, or with None lose it."""
        for content in (self._current, self._durable):
            apply(content, [(key, value)])

    def _keep(self, count: int) -> None:
        for batch in self._unsynced[:count]:
            apply(self._durable, batch)
        del self._unsynced[:count]

    def _require_open(self) -> None:
        if self._closed:
            raise StorageFailure("the fake disk is closed")


class DiskView:
    """What the disk answered when this was made."""

    def __init__(self, content: dict[bytes, bytes]) -> None:
        self._content = content

    def get(self, key: bytes) -> bytes | None:
        return self._content.get(key)

    def range(self, start: bytes, stop: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        keys = sorted((key for key in self._content if start <= key < stop), reverse=reverse)
        yield from [(key, self._content[key]) for key in keys]

    def close(self) -> None:
        self._content = {}


def apply(content: dict[bytes, bytes], batch: Sequence[Write]) -> None:
    for key, value in batch:
        if value is None:
            content.pop(key, None)
        else:
            content[key] = value
