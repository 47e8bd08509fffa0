"""Starting again from a snapshot: fetched from several peers, verified, built beside the store in use.

    offers -> one that is proved and held by most -> chunks, each by its digest -> a new store, by `storage.install`
    -> the certified blocks above it -> `storage.install.extend` -> SnapshotReady: this node ends, and starts on it

Nothing of it touches the store in use. What was fetched stays on the disk, so that a restart goes on with what is
missing. A peer that gives a wrong chunk, or none, is not asked for another; the chunk comes from the next one.

Bounds: OFFERS_MAX peers are asked for offers; of each at most CHUNKS_AT_ONCE chunks are under way; a peer is given up
after FAILURES_MAX questions without an answer. Where no peer is left the attempt ends, and what was fetched stays.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TypeVar

import structlog

from consensus.messages import Entry, HardState
from ledger.block import decode_block
from ledger.errors import Rejection
from ledger.finality import Certificate, decode_certificate, verify_certificate
from ledger.genesis import Genesis
from network.port import BlockRange, FetchFailed, SnapshotOffer
from node.intake import FetchBodies, fetch_all
from node.membership import Place, entry_on
from node.metrics import Metrics
from storage.executed import Divergence
from storage.install import BadSnapshot, extend, install
from storage.log import BLOCK_BYTES_MAX
from storage.port import KeyValue, StorageFailure
from storage.shelf import Fetched, Shelf
from storage.snapshot import decode_manifest, manifest_id, proof_certificate, verify_manifest
from storage.store import Store

_log = structlog.get_logger(__name__)

OFFERS_MAX = 8
CHUNKS_AT_ONCE = 2
FAILURES_MAX = 3
RANGE_BYTES_MAX = 4 * 1024 * 1024

FetchSnapshot = Callable[[str], Awaitable[SnapshotOffer | None]]
FetchChunk = Callable[[str, bytes, int], Awaitable[bytes | None]]
FetchBlocks = Callable[[str, int, int], Awaitable[BlockRange]]


T = TypeVar("T")


class SnapshotReady(Exception):  # noqa: N818 - it is no fault
    """A newer store stands ready beside the one in use: to be carried over, swapped, and started on."""


@dataclass(frozen=True, slots=True)
class _Chosen:
    """A proved offer, who holds it, and the certificate that proves it."""

    offer: SnapshotOffer
    id: bytes
    height: int
    certificate: Certificate
    peers: tuple[str, ...]


class Joining:
    """`fresh` gives an empty database to build in; `ready` is told once the store in it can take over."""

    def __init__(
        self,
        genesis: Genesis,
        store: Store,
        shelf: Shelf,
        metrics: Metrics,
        *,
        fetch_snapshot: FetchSnapshot,
        fetch_chunk: FetchChunk,
        fetch_blocks: FetchBlocks,
        fetch_bodies: FetchBodies,
        peers: Callable[[], Sequence[str]],
        fresh: Callable[[], KeyValue],
        ready: Callable[[SnapshotReady], None],
    ) -> None:
        self._genesis = genesis
        self._store = store
        self._shelf = shelf
        self._metrics = metrics
        self._fetch_snapshot = fetch_snapshot
        self._fetch_chunk = fetch_chunk
        self._fetch_blocks = fetch_blocks
        self._fetch_bodies = fetch_bodies
        self._peers = peers
        self._fresh = fresh
        self._ready = ready
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="joining")
        self._stopping = threading.Event()

    def close(self) -> None:
        """Return once nothing is read or written on behalf of this any more. What is half built is of no use."""
        self._stopping.set()
        self._thread.shutdown(wait=True, cancel_futures=True)

    async def attempt(self) -> bool:
        """Whether a snapshot of peers was made a store, on which this node starts now."""
        fetched: Fetched = await self._in_thread(self._shelf.fetching)
        chosen = await self._choose(fetched)
        if chosen is None:
            return False
        offer = chosen.offer
        await self._in_thread(lambda: fetched.begin(offer.manifest, offer.proof))
        missing, begun_s = len(fetched.missing()), time.monotonic()
        _log.info("fetching a snapshot", height=chosen.height, chunks=missing, peers=list(chosen.peers))
        if not await self._fetch_chunks(fetched, chosen):
            _log.warning("a snapshot could not be fetched whole", chunks_missing=len(fetched.missing()))
            return False
        fetched_s = time.monotonic()
        kv: KeyValue = await self._in_thread(self._fresh)
        try:
            await self._build(kv, fetched, chosen)
        except (BadSnapshot, Divergence, Rejection) as error:
            # Of no use to anybody, whoever made it up; and not to be fetched again.
            _log.error("a snapshot is not what it claims", height=chosen.height, detail=str(error))
            await self._in_thread(fetched.discard)
            await self._in_thread(kv.close)
            return False
        except (FetchFailed, StorageFailure) as error:
            _log.warning("a snapshot could not be installed", height=chosen.height, detail=str(error))
            await self._in_thread(kv.close)
            return False
        await self._in_thread(kv.close)
        await self._in_thread(fetched.discard)
        _log.info(
            "snapshot installed",
            height=chosen.height,
            fetch_seconds=round(fetched_s - begun_s, 3),
            install_seconds=round(time.monotonic() - fetched_s, 3),
        )
        self._ready(SnapshotReady(f"a snapshot of height {chosen.height} is installed"))
        return True

    # Which one.

    async def _choose(self, fetched: Fetched) -> _Chosen | None:
        """What is half fetched, if anybody still has it; else the newest that is offered."""
        peers = list(self._peers())[:OFFERS_MAX]
        answers = await asyncio.gather(*(self._offer(peer) for peer in peers))
        holders: dict[bytes, list[tuple[str, SnapshotOffer, int, Certificate]]] = {}
        for peer, offer in zip(peers, answers, strict=True):
            if offer is None:
                continue
            try:
                manifest = decode_manifest(offer.manifest)
                verify_manifest(manifest, offer.proof, self._genesis)
                certificate = proof_certificate(offer.proof)
            except Rejection as error:
                _log.warning("a peer offers a snapshot that is not proved", peer=peer, detail=str(error))
                self._metrics.snapshot_chunks_refused.inc()
                continue
            if manifest.height > self._store.executed_height:
                found = holders.setdefault(manifest_id(offer.manifest), [])
                found.append((peer, offer, manifest.height, certificate))
        if not holders:
            return None
        id_ = fetched.id if fetched.id in holders else max(holders, key=lambda one: (holders[one][0][2], one))
        _, offer, height, certificate = holders[id_][0]
        return _Chosen(offer, id_, height, certificate, tuple(peer for peer, *_ in holders[id_]))

    async def _offer(self, peer: str) -> SnapshotOffer | None:
        try:
            return await self._fetch_snapshot(peer)
        except FetchFailed:
            return None

    # Its chunks.

    async def _fetch_chunks(self, fetched: Fetched, chosen: _Chosen) -> bool:
        sounds = {peer: _Sound() for peer in chosen.peers}
        while missing := fetched.missing():
            peers = [peer for peer, sound in sounds.items() if sound.failures < FAILURES_MAX]
            if not peers:
                return False
            wanted = deque(missing)
            async with asyncio.TaskGroup() as group:
                for peer in peers * CHUNKS_AT_ONCE:
                    group.create_task(self._fetch_from(peer, sounds[peer], fetched, chosen.id, wanted))
        return True

    async def _fetch_from(
        self, peer: str, sound: "_Sound", fetched: Fetched, snapshot: bytes, wanted: deque[int]
    ) -> None:
        """Take chunks from one peer until none is wanted, or it is of no use. What it does not give goes back."""
        while wanted and sound.failures < FAILURES_MAX:
            index = wanted.popleft()
            data = None
            try:
                data = await self._fetch_chunk(peer, snapshot, index)
            except FetchFailed:
                sound.failures += 1
                wanted.append(index)
                continue
            except BaseException:
                wanted.append(index)
                raise
            if data is None:
                # It has thrown the snapshot away.
                sound.failures = FAILURES_MAX
                wanted.append(index)
            elif await self._in_thread(lambda index=index, data=data: fetched.put(index, data)):  # type: ignore[misc]
                sound.failures = 0
                self._metrics.snapshot_chunks_fetched.inc()
            else:
                _log.warning("a peer gives a chunk that is not the snapshot's", peer=peer, index=index)
                self._metrics.snapshot_chunks_refused.inc()
                sound.failures = FAILURES_MAX
                wanted.append(index)

    # A store of it.

    async def _build(self, kv: KeyValue, fetched: Fetched, chosen: _Chosen) -> None:
        manifest = fetched.manifest
        assert manifest is not None, "it was fetched"
        # The one on the disk, which may be of an earlier start, is proved as well.
        verify_manifest(manifest, chosen.offer.proof, self._genesis)
        await self._in_thread(lambda: install(kv, self._genesis, manifest, self._until_stopped(fetched.chunks())))
        built = await self._in_thread(lambda: Store(kv, self._genesis))
        for peer in chosen.peers:
            try:
                entries, bodies, certificate = await self._above(peer, built, chosen.certificate.height)
            except (FetchFailed, Rejection) as error:
                _log.warning("the blocks above a snapshot did not come", peer=peer, detail=str(error))
                continue
            certificates = (chosen.certificate, certificate)
            await self._in_thread(partial(extend, kv, self._genesis, entries, bodies, certificates, HardState()))
            return
        raise FetchFailed(chosen.peers[-1], "nobody has the blocks above the snapshot")

    def _until_stopped(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            if self._stopping.is_set():
                raise InterruptedError("the node stops")
            yield chunk

    async def _above(
        self, peer: str, built: Store, certified_height: int
    ) -> tuple[list[Entry], dict[bytes, bytes], Certificate]:
        """Certified blocks above the snapshot, at least up to the header that proves it, and their bodies."""
        height = built.executed_height
        found = built.term_hash(height)
        assert found is not None, "the snapshot's block is in the log"
        term, tip = found
        place = Place(term, built.configuration)
        entries: list[Entry] = []
        while True:
            answer = await self._fetch_blocks(peer, height + 1, RANGE_BYTES_MAX)
            if not answer.blocks or answer.certificate is None:
                raise FetchFailed(peer, "it has no certified blocks above the snapshot")
            for data in answer.blocks:
                entry, place = entry_on(place, data)
                entries.append(entry)
            height = entries[-1].height
            if height >= certified_height:
                break
        certificate = decode_certificate(answer.certificate)
        linked = entries[0].parent == tip and all(after.parent == before.hash for before, after in pairwise(entries))
        if not linked or (certificate.height, certificate.hash) != (height, entries[-1].hash):
            raise Rejection("bad_snapshot", "the blocks above it are not linked")
        voters, old = place.configuration.voters, place.configuration.old_voters
        verify_certificate(certificate, self._genesis.chain_id(), voters, old)
        return entries, await self._bodies(peer, entries), certificate

    async def _bodies(self, peer: str, entries: Sequence[Entry]) -> dict[bytes, bytes]:
        wanted: list[bytes] = []
        bodies: dict[bytes, bytes] = {}
        for entry in entries:
            for transaction in decode_block(entry.data, BLOCK_BYTES_MAX).transactions:
                for reference in transaction.envelope.bodies:
                    body = self._store.body(reference.commitment)
                    if body is None:
                        wanted.append(reference.commitment)
                    else:
                        bodies[reference.commitment] = body
        if not await fetch_all(self._fetch_bodies, peer, wanted, bodies):
            raise FetchFailed(peer, "it has not every body of the blocks above the snapshot")
        return bodies

    async def _in_thread(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)


@dataclass(slots=True)
class _Sound:
    """How often a peer has failed in a row."""

    failures: int = 0
