"""The key-value port by LevelDB (plyvel): one database, so that all batches stay in one order.

Set so that damage is found rather than skipped: `paranoid_checks` makes a damaged write-ahead log refuse to
open instead of dropping its tail, mostly (`files` finds the rest); every read verifies checksums; nothing is
compressed, as values are mostly sealed. A failed write latches: LevelDB may have lost what a later sync would
claim, so nothing more is written until the database has been opened, and so verified, again.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import plyvel

from storage.port import StorageFailure, Write

# LevelDB holds up to two of them, and reads the last one's log at boot. A larger one is merged into the tables below
# less often: with 8 MiB, merging cost more than executing did once there were 30,000 records.
WRITE_BUFFER_BYTES = 32 * 1024 * 1024
# For a store built in one go and opened again at once: LevelDB makes tables of it meanwhile, in its own thread, and
# has little of its log to read then.
BUILD_BUFFER_BYTES = 4 * 1024 * 1024
BLOCK_CACHE_BYTES = 32 * 1024 * 1024
OPEN_FILES_MAX = 256
BLOOM_BITS_PER_KEY = 10


class _LevelDbReads:
    """What is read of a database, or of a snapshot of one: `_db` is either."""

    _path: Path
    _db: Any

    def get(self, key: bytes) -> bytes | None:
        try:
            value: bytes | None = self._db.get(key, verify_checksums=True)
        except (plyvel.Error, RuntimeError) as error:
            raise StorageFailure(f"{self._path}: reading key {key[:48].hex()}: {_text(error)}") from None
        return value

    def range(self, start: bytes, stop: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        try:
            with self._db.iterator(start=start, stop=stop, reverse=reverse, verify_checksums=True) as pairs:
                yield from pairs
        except (plyvel.Error, RuntimeError) as error:
            place = f"reading keys from {start[:48].hex()}"
            raise StorageFailure(f"{self._path}: {place}: {_text(error)}") from None


class LevelDb(_LevelDbReads):
    """One open LevelDB folder. Only one process can hold it.

    `create` makes the folder if it is missing. `sync=False` ignores every request to sync: it exists so
    that a test can show what that loses, and for scratch databases. `write_buffer_bytes` are kept in memory at
    most twice. Raises StorageFailure if the folder is held by another process, is missing, or is damaged.
    """

    def __init__(
        self,
        path: Path,
        *,
        create: bool = True,
        sync: bool = True,
        write_buffer_bytes: int = WRITE_BUFFER_BYTES,
    ) -> None:
        self._path = path
        self._sync = sync
        self._broken: str | None = None
        is_new = not path.exists()
        if not (path / "CURRENT").is_file() and (not create or _has_files(path)):
            # LevelDB would found a new database here, and delete the tables of the old one.
            raise StorageFailure(f"{path} cannot be opened: it holds no database, or one without its file CURRENT")
        try:
            if create:
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._db = plyvel.DB(
                str(path),
                create_if_missing=create,
                paranoid_checks=True,
                compression=None,
                write_buffer_size=write_buffer_bytes,
                lru_cache_size=BLOCK_CACHE_BYTES,
                max_open_files=OPEN_FILES_MAX,
                bloom_filter_bits=BLOOM_BITS_PER_KEY,
            )
            if is_new:
                _sync_folder(path.parent)
        except (plyvel.Error, OSError) as error:
            raise StorageFailure(_opening(path, error)) from None

    def write(self, batch: Sequence[Write], *, sync: bool) -> None:
        if self._broken is not None:
            raise StorageFailure(f"{self._path}: no writes after a failed one ({self._broken})")
        try:
            writes = self._db.write_batch(sync=sync and self._sync)
            for key, value in batch:
                if value is None:
                    writes.delete(key)
                else:
                    writes.put(key, value)
            writes.write()
        except (plyvel.Error, OSError, RuntimeError) as error:
            self._broken = _text(error)
            raise StorageFailure(f"{self._path}: writing: {self._broken}") from None

    def view(self) -> "LevelDbView":
        return LevelDbView(self._path, self._db.snapshot())

    def compact(self, start: bytes, stop: bytes) -> None:
        try:
            self._db.compact_range(start=start, stop=stop)
        except (plyvel.Error, RuntimeError) as error:
            raise StorageFailure(f"{self._path}: compacting: {_text(error)}") from None

    def close(self) -> None:
        self._db.close()


class LevelDbView(_LevelDbReads):
    """The database as it was when this was made. To be closed before the database is."""

    def __init__(self, path: Path, snapshot: Any) -> None:
        self._path = path
        self._db = snapshot

    def close(self) -> None:
        self._db.close()


def _sync_folder(folder: Path) -> None:
    """Make the new database's own directory entry durable; LevelDB does so only for the files inside."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _opening(path: Path, error: BaseException) -> str:
    text = _text(error)
    if "LOCK:" in text and ("already held" in text or "temporarily unavailable" in text):
        return f"{path} is in use by a running node or another command"
    return f"{path} cannot be opened: {text}"


def _text(error: BaseException) -> str:
    """LevelDB's own words, which plyvel carries as bytes."""
    first = error.args[0] if error.args else str(error)
    return first.decode("utf-8", "replace") if isinstance(first, bytes) else str(error)


def _has_files(path: Path) -> bool:
    return path.is_dir() and any(path.iterdir())
