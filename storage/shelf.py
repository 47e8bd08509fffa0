"""Snapshots in a folder, and the parts of one that is being fetched.

    <height>/manifest, 000000, 000001, ...   a whole snapshot
    <height>.partial/...                     one that is being taken; a crash leaves it, the next start removes it
    fetched/manifest, proof, 000000, ...     one that is being fetched; after a crash it goes on with what is whole

A snapshot is there once its folder has its own name: chunks and manifest are synced, then the folder is renamed. At
most KEPT_MAX are kept, and none that is older than the base of the log, as nobody could go on from it.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ledger.errors import Rejection
from storage import schema
from storage.port import Reads, StorageFailure
from storage.schema import must
from storage.snapshot import (
    CHUNK_BYTES,
    CHUNKS_MAX,
    FORMAT,
    Manifest,
    Pause,
    chunk_hash,
    chunks,
    decode_manifest,
    manifest_id,
    records,
    window_base,
)

KEPT_MAX = 2
_MANIFEST, _PROOF, _PARTIAL, _FETCHED = "manifest", "proof", ".partial", "fetched"


@dataclass(frozen=True, slots=True)
class Kept:
    """A whole snapshot: its manifest as bytes, what that says, and its id."""

    manifest: Manifest
    data: bytes
    id: bytes


class Shelf:
    """One thread at a time takes and tidies; any reads chunks. Raises StorageFailure where the disk fails."""

    def __init__(self, folder: Path) -> None:
        """Removes what a crash left half-written."""
        self._folder = folder
        self._kept: dict[int, Kept] = {}
        with _disk(folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for path in folder.iterdir():
                if path.name.endswith(_PARTIAL):
                    shutil.rmtree(path)
                elif path.name.isdecimal():
                    self._load(path)

    def kept(self) -> list[Kept]:
        """Oldest first."""
        return [self._kept[height] for height in sorted(self._kept)]

    def chunk(self, snapshot: bytes, index: int) -> bytes | None:
        """Chunk `index` of the snapshot with this id; None where there is none (any more), or it is damaged."""
        kept = next((one for one in self._kept.values() if one.id == snapshot), None)
        if kept is None or not 0 <= index < len(kept.manifest.chunks):
            return None
        try:
            data = (self._path(kept.manifest.height) / _name(index)).read_bytes()
        except OSError:
            return None
        return data if chunk_hash(data) == kept.manifest.chunks[index] else None

    def take(self, view: Reads, height: int, before: Mapping[str, bytes | None], pause: Pause) -> Kept | None:
        """Write the snapshot at `height`, see `snapshot.records`. None where it would have too many chunks."""
        if height in self._kept:
            return self._kept[height]
        partial = self._folder / f"{height}{_PARTIAL}"
        with _disk(partial):
            if partial.exists():
                shutil.rmtree(partial)
            partial.mkdir(mode=0o700)
            hashes: list[bytes] = []
            size = 0
            for data in chunks(records(view, window_base(view, height), height, before)):
                if len(hashes) == CHUNKS_MAX:
                    shutil.rmtree(partial)
                    return None
                _write(partial / _name(len(hashes)), data)
                hashes.append(chunk_hash(data))
                size += len(data)
                pause()
            manifest = _manifest(view, height, size, hashes)
            data = manifest.encode()
            _write(partial / _MANIFEST, data)
            _sync(partial)
            os.rename(partial, self._path(height))
            _sync(self._folder)
        kept = self._kept[height] = Kept(manifest, data, manifest_id(data))
        return kept

    def tidy(self, base: int) -> None:
        """Remove what is older than the log's base, and the oldest beyond KEPT_MAX."""
        heights = sorted(self._kept)
        for height in [*(height for height in heights if height < base), *heights[:-KEPT_MAX]]:
            if self._kept.pop(height, None) is not None:
                # Not a snapshot any more before any part of it goes.
                gone = self._folder / f"{height}{_PARTIAL}"
                with _disk(gone):
                    os.rename(self._path(height), gone)
                    shutil.rmtree(gone)

    def fetching(self) -> "Fetched":
        return Fetched(self._folder / _FETCHED)

    def _load(self, path: Path) -> None:
        try:
            data = (path / _MANIFEST).read_bytes()
            manifest = decode_manifest(data)
        except (OSError, Rejection):
            # Damaged since: the next one replaces it.
            shutil.rmtree(path)
            return
        if str(manifest.height) == path.name:
            self._kept[manifest.height] = Kept(manifest, data, manifest_id(data))

    def _path(self, height: int) -> Path:
        return self._folder / str(height)


class Fetched:
    """The snapshot being fetched: chunks arrive in any order, and are whole or not there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._have: set[int] = set()
        self.manifest: Manifest | None = None
        self.id = b""
        self.proof = b""
        with _disk(folder):
            if folder.is_dir():
                self._resume()

    def begin(self, manifest: bytes, proof: bytes) -> None:
        """Another snapshot replaces what was fetched of the last; its parts stay where it is the same one."""
        if self.manifest is not None and manifest_id(manifest) == self.id:
            return
        self.discard()
        with _disk(self._folder):
            self._folder.mkdir(mode=0o700, parents=True)
            _write(self._folder / _PROOF, proof)
            _write(self._folder / _MANIFEST, manifest)
            _sync(self._folder)
        self.manifest, self.id, self.proof = decode_manifest(manifest), manifest_id(manifest), proof

    def missing(self) -> list[int]:
        assert self.manifest is not None, "a snapshot is being fetched"
        return [index for index in range(len(self.manifest.chunks)) if index not in self._have]

    def put(self, index: int, data: bytes) -> bool:
        """Keep a chunk; False where it is not the one that the manifest names."""
        assert self.manifest is not None, "a snapshot is being fetched"
        if chunk_hash(data) != self.manifest.chunks[index]:
            return False
        with _disk(self._folder):
            # Not synced: whoever goes on with it compares it again.
            _write(self._folder / _name(index), data, sync=False)
        self._have.add(index)
        return True

    def chunks(self) -> Iterator[bytes]:
        """All of them, in order, checked once more."""
        assert self.manifest is not None, "a snapshot is being fetched"
        for index, digest in enumerate(self.manifest.chunks):
            with _disk(self._folder):
                data = (self._folder / _name(index)).read_bytes()
            if chunk_hash(data) != digest:
                raise StorageFailure(f"{self._folder / _name(index)} is not what was written")
            yield data

    def discard(self) -> None:
        with _disk(self._folder):
            if self._folder.exists():
                shutil.rmtree(self._folder)
        self._have.clear()
        self.manifest, self.id, self.proof = None, b"", b""

    def _resume(self) -> None:
        try:
            data = (self._folder / _MANIFEST).read_bytes()
            self.manifest = decode_manifest(data)
            self.id, self.proof = manifest_id(data), (self._folder / _PROOF).read_bytes()
        except (OSError, Rejection):
            self.discard()
            return
        for index, digest in enumerate(self.manifest.chunks):
            path = self._folder / _name(index)
            if path.is_file() and path.stat().st_size <= CHUNK_BYTES and chunk_hash(path.read_bytes()) == digest:
                self._have.add(index)


def _manifest(view: Reads, height: int, size: int, hashes: list[bytes]) -> Manifest:
    roots = schema.decode_roots(must(view.get(schema.roots_key(height)), schema.roots_key(height)), height)
    return Manifest(
        base=window_base(view, height),
        chain=schema.decode_link(must(view.get(schema.link_key(0)), schema.link_key(0)), 0).hash,
        chunks=hashes,
        format=FORMAT,
        height=height,
        history_root=roots.history,
        size=size,
        state_root=roots.state,
    )


def _name(index: int) -> str:
    return f"{index:06d}"


def _write(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Whole, and synced, or not under this name."""
    partial = path.with_name(path.name + _PARTIAL)
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        if sync:
            os.fsync(file.fileno())
    os.replace(partial, path)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    """What the operating system says is a StorageFailure."""
    try:
        yield
    except OSError as error:
        raise StorageFailure(f"{path}: {error.strerror}") from None
