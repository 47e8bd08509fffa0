"""The small key-value port that everything above LevelDB is written against."""

from collections.abc import Iterator, Sequence
from typing import Protocol

# A put (key, value) or a delete (key, None), applied in order.
Write = tuple[bytes, bytes | None]


class Reads(Protocol):
    """What is read, and from where, does not matter."""

    def get(self, key: bytes) -> bytes | None: ...

    def range(self, start: bytes, stop: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]: ...


class KeyValue(Protocol):
    """Ordered keys, atomic batches that reach the disk in the order they were written."""

    def get(self, key: bytes) -> bytes | None: ...

    def range(self, start: bytes, stop: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """Pairs with start <= key < stop, ascending, or descending if `reverse`."""
        ...

    def write(self, batch: Sequence[Write], *, sync: bool) -> None:
        """All of `batch` or nothing. With `sync`, it and every batch before it survive power loss on return.

        Raises StorageFailure; after one, nothing more is written until the store is opened again.
        """
        ...

    def close(self) -> None: ...


class View(Reads, Protocol):
    """What is stored at one moment, as it stays while others write. May be read in a thread of its own."""

    def close(self) -> None: ...


class Viewable(KeyValue, Protocol):
    """A database that a snapshot can be taken of, and that gives back what pruning leaves empty."""

    def view(self) -> View: ...

    def compact(self, start: bytes, stop: bytes) -> None:
        """Give back the space of what was deleted from `start` to `stop`. Takes long; others may read and write."""
        ...


class StorageFailure(Exception):  # noqa: N818 - it is the disk's, not a caller's
    """The disk failed or holds what was never written. Detail names the file or the key."""
