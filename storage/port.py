"""The small key-value port that everything above LevelDB is written against."""

from collections.abc import Iterator, Sequence
from typing import Protocol

# A put (key, value) or a delete (key, None), applied in order.
Write = tuple[bytes, bytes | None]


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


class StorageFailure(Exception):  # noqa: N818 - it is the disk's, not a caller's
    """The disk failed or holds what was never written. Detail names the file or the key."""
