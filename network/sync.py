"""Blocks, bodies and snapshots asked of one peer and answered by it.

A question leaves on this node's link to the peer, the answer comes on the peer's link to this node; a number joins
them. An answer that nobody waits for (any more) is dropped and counted.

| bound | at the bound |
|---|---|
| REQUESTS_MAX unanswered questions to one peer | FetchFailed("busy"), nothing is sent |
| `fetch_timeout_ms` | FetchFailed("timed_out") |
| the link to or from the peer ends | FetchFailed("disconnected") |
| an answer's size (`messages`) | the server stops before it, the asker asks for the rest |
| blocks that reach no certificate within it | nothing is sent, counted too_large |
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeVar

from consensus.messages import NodeId
from ledger.errors import Rejection
from ledger.transaction import body_commitment
from network.frames import Parcel, pack
from network.messages import (
    BLOCKS_BYTES_MAX,
    BLOCKS_MAX,
    BODIES_BYTES_MAX,
    CHUNK_BYTES_MAX,
    COMMITMENTS_MAX,
    MANIFEST_BYTES_MAX,
    PROOF_BYTES_MAX,
    Blocks,
    Bodies,
    Chunk,
    GetBlocks,
    GetBodies,
    GetChunk,
    GetSnapshot,
    Snapshot,
)
from network.port import BlockRange, Counters, FetchFailed, Handler, NetworkSettings, SnapshotOffer

REQUESTS_MAX = 16

Answer = TypeVar("Answer", Blocks, Bodies, Snapshot, Chunk)
Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class _Question:
    """`read` makes of an answer of this shape what was asked for; Rejection("bad_message") if it is to another."""

    peer: NodeId
    shape: type[Any]
    future: asyncio.Future[Any]
    read: Callable[[Any], Any]


class Sync:
    """`send` queues a parcel for one peer; `reachable` says whether it can be asked and can answer."""

    def __init__(
        self,
        settings: NetworkSettings,
        handler: Handler,
        counters: Counters,
        send: Callable[[NodeId, Parcel], None],
        reachable: Callable[[NodeId], bool],
    ) -> None:
        self._timeout_s = settings.fetch_timeout_ms / 1000
        self._handler = handler
        self._counters = counters
        self._send = send
        self._reachable = reachable
        self._numbers = count(1)
        self._questions: dict[int, _Question] = {}

    async def fetch_blocks(self, peer: NodeId, from_height: int, bytes_max: int) -> BlockRange:
        def read(answer: Blocks) -> BlockRange:
            _require(bool(answer.blocks) == (answer.certificate is not None))
            return BlockRange(answer.blocks, answer.certificate, answer.base)

        number = next(self._numbers)
        question = GetBlocks(number, from_height, min(bytes_max, BLOCKS_BYTES_MAX))
        return await self._ask(number, peer, question, Blocks, read)

    async def fetch_bodies(self, peer: NodeId, commitments: Sequence[bytes]) -> dict[bytes, bytes]:
        asked = list(commitments[:COMMITMENTS_MAX])

        def read(answer: Bodies) -> dict[bytes, bytes]:
            found = {body_commitment(body): body for body in answer.bodies}
            _require(found.keys() <= set(asked))
            return found

        number = next(self._numbers)
        return await self._ask(number, peer, GetBodies(number, asked), Bodies, read)

    async def fetch_snapshot(self, peer: NodeId) -> SnapshotOffer | None:
        def read(answer: Snapshot) -> SnapshotOffer | None:
            _require(bool(answer.manifest) == bool(answer.proof))
            return SnapshotOffer(answer.manifest, answer.proof) if answer.manifest else None

        number = next(self._numbers)
        return await self._ask(number, peer, GetSnapshot(number), Snapshot, read)

    async def fetch_chunk(self, peer: NodeId, snapshot: bytes, index: int) -> bytes | None:
        def read(answer: Chunk) -> bytes | None:
            return answer.data or None

        number = next(self._numbers)
        return await self._ask(number, peer, GetChunk(number, snapshot, index), Chunk, read)

    async def _ask(
        self,
        number: int,
        peer: NodeId,
        message: object,
        shape: type[Answer],
        read: Callable[[Answer], Found],
    ) -> Found:
        if not self._reachable(peer):
            raise FetchFailed(peer, "not_connected")
        if sum(question.peer == peer for question in self._questions.values()) >= REQUESTS_MAX:
            raise FetchFailed(peer, "busy")
        future: asyncio.Future[Found] = asyncio.get_running_loop().create_future()
        self._questions[number] = _Question(peer, shape, future, read)
        self._send(peer, pack(message))
        try:
            async with asyncio.timeout(self._timeout_s):
                return await future
        except TimeoutError:
            raise FetchFailed(peer, "timed_out") from None
        finally:
            del self._questions[number]

    def on_answer(self, sender: NodeId, message: Blocks | Bodies | Snapshot | Chunk) -> None:
        """Rejection("bad_message") for an answer that is not one to its question; the link closes over it."""
        question = self._questions.get(message.request)
        if question is None or question.future.done() or question.peer != sender:
            self._counters.message_dropped(type(message).__name__.lower(), "unasked")
            return
        try:
            _require(question.shape is type(message))
            found = question.read(message)
        except Rejection:
            question.future.set_exception(FetchFailed(sender, "malformed"))
            raise
        question.future.set_result(found)

    def on_get_blocks(self, sender: NodeId, message: GetBlocks) -> None:
        served = self._handler.serve_blocks(message.from_height, min(message.bytes_max, BLOCKS_BYTES_MAX))
        blocks = list(served.blocks)
        if len(blocks) > BLOCKS_MAX or sum(map(len, blocks)) > BLOCKS_BYTES_MAX:
            self._counters.message_dropped("blocks", "too_large")
            return
        self._send(sender, pack(Blocks(message.request, blocks, served.certificate, served.base)))

    def on_get_bodies(self, sender: NodeId, message: GetBodies) -> None:
        bodies = list(self._handler.serve_bodies(message.commitments, BODIES_BYTES_MAX))
        assert sum(map(len, bodies)) <= BODIES_BYTES_MAX, "bodies are served up to bytes_max"
        self._send(sender, pack(Bodies(message.request, bodies)))

    def on_get_snapshot(self, sender: NodeId, message: GetSnapshot) -> None:
        offer = self._handler.serve_snapshot() or SnapshotOffer(b"", b"")
        if len(offer.manifest) > MANIFEST_BYTES_MAX or len(offer.proof) > PROOF_BYTES_MAX:
            self._counters.message_dropped("snapshot", "too_large")
            return
        self._send(sender, pack(Snapshot(message.request, offer.manifest, offer.proof)))

    def on_get_chunk(self, sender: NodeId, message: GetChunk) -> None:
        data = self._handler.serve_chunk(message.snapshot, message.index) or b""
        assert len(data) <= CHUNK_BYTES_MAX, "chunks are cut to fit"
        self._send(sender, pack(Chunk(message.request, data)))

    def on_disconnected(self, peer: NodeId) -> None:
        """What was asked of the peer will not be answered."""
        for question in self._questions.values():
            if question.peer == peer and not question.future.done():
                question.future.set_exception(FetchFailed(peer, "disconnected"))


def _require(answers: bool) -> None:
    if not answers:
        raise Rejection("bad_message", "an answer to another question")
