"""Snapshots of one node, and parts of one that it fetches: storage/shelf.py without its folder, which storage's own
tests break. It outlives crashes, as what is half-written there counts for nothing.
"""

from collections.abc import Callable, Iterator, Mapping

from storage.port import Reads
from storage.shelf import KEPT_MAX, Kept, _manifest
from storage.snapshot import Manifest, Pause, chunk_hash, chunks, decode_manifest, manifest_id, records, window_base


class SimShelf:
    """`taken` is told the height and the id of each snapshot."""

    def __init__(self, taken: Callable[[int, bytes], None]) -> None:
        self._taken = taken
        self._kept: dict[int, tuple[Kept, list[bytes]]] = {}
        self._fetched = SimFetched()

    def kept(self) -> list[Kept]:
        return [self._kept[height][0] for height in sorted(self._kept)]

    def chunk(self, snapshot: bytes, index: int) -> bytes | None:
        for kept, data in self._kept.values():
            if kept.id == snapshot:
                return data[index]
        return None

    def take(self, view: Reads, height: int, before: Mapping[str, bytes | None], pause: Pause) -> Kept:
        data = list(chunks(records(view, window_base(view, height), height, before)))
        manifest = _manifest(view, height, sum(map(len, data)), [chunk_hash(one) for one in data])
        encoded = manifest.encode()
        kept = Kept(manifest, encoded, manifest_id(encoded))
        self._kept[height] = (kept, data)
        self._taken(height, kept.id)
        return kept

    def tidy(self, base: int) -> None:
        heights = sorted(self._kept)
        for height in [*(height for height in heights if height < base), *heights[:-KEPT_MAX]]:
            self._kept.pop(height, None)

    def fetching(self) -> "SimFetched":
        return self._fetched


class SimFetched:
    def __init__(self) -> None:
        self._have: dict[int, bytes] = {}
        self.manifest: Manifest | None = None
        self.id = b""
        self.proof = b""

    def begin(self, manifest: bytes, proof: bytes) -> None:
        if self.id != manifest_id(manifest):
            self._have.clear()
            self.manifest, self.id, self.proof = decode_manifest(manifest), manifest_id(manifest), proof

    def missing(self) -> list[int]:
        assert self.manifest is not None, "a snapshot is being fetched"
        return [index for index in range(len(self.manifest.chunks)) if index not in self._have]

    def put(self, index: int, data: bytes) -> bool:
        assert self.manifest is not None, "a snapshot is being fetched"
        if chunk_hash(data) != self.manifest.chunks[index]:
            return False
        self._have[index] = data
        return True

    def chunks(self) -> Iterator[bytes]:
        yield from (self._have[index] for index in sorted(self._have))

    def discard(self) -> None:
        self._have.clear()
        self.manifest, self.id, self.proof = None, b"", b""
