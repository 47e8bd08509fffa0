"""Real peers on 127.0.0.1 in one process: recorders instead of nodes, waits for events instead of time."""

import asyncio
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web

from consensus.messages import Message
from ledger.node_cert import make_certificate
from network.greeting import PATHS, Greeter, read_greeting
from network.messages import PROTOCOL_VERSION, Goodbye, Hello, Lane
from network.peer_network import PeerNetwork
from network.port import (
    BlockRange,
    Direction,
    Identity,
    NetworkSettings,
    Peer,
    SharedTransaction,
    SnapshotOffer,
    Statements,
)
from network.tls import TlsContexts

CHAIN = b"c" * 32
SETTINGS = NetworkSettings(
    listen_host="127.0.0.1", listen_port=0, redial_min_ms=1, redial_max_ms=5, reannounce_ms=600_000
)
PATIENCE_S = 20.0
NO_BLOCKS = BlockRange([], None)


def identity(node_id: str) -> Identity:
    seed = node_id.encode().ljust(32, b".")
    return Identity(node_id, seed, make_certificate(seed, node_id))


def member(node_id: str, address: tuple[str, int] | None = None) -> Peer:
    return Peer(identity(node_id).certificate, address)


@dataclass
class Recorder:
    """Handler and Counters in one: keeps what comes, serves what it is given, wakes whoever waits for a change."""

    consensus: list[tuple[str, Message]] = field(default_factory=list)
    transactions: list[tuple[str, SharedTransaction]] = field(default_factory=list)
    announced: list[tuple[str, list[bytes]]] = field(default_factory=list)
    connected: list[str] = field(default_factory=list)
    goodbyes: list[tuple[str, str]] = field(default_factory=list)
    held: dict[str, Statements] = field(default_factory=dict)
    shown: list[tuple[str, Statements]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    tapped: list[tuple[Direction, str, bytes]] = field(default_factory=list)
    pool: dict[bytes, SharedTransaction] = field(default_factory=dict)
    blocks: BlockRange = NO_BLOCKS
    bodies: dict[bytes, bytes] = field(default_factory=dict)
    snapshot: SnapshotOffer | None = None
    chunks: dict[tuple[bytes, int], bytes] = field(default_factory=dict)
    fails_with: Exception | None = None
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def until(self, true: Callable[[], object]) -> None:
        """Wait for the first event after which `true` holds."""
        async with asyncio.timeout(PATIENCE_S):
            while not true():
                self._changed.clear()
                await self._changed.wait()

    def on_consensus(self, sender: str, message: Message) -> None:
        self._changed.set()
        if self.fails_with is not None:
            raise self.fails_with
        self.consensus.append((sender, message))

    def on_transactions(self, sender: str, transactions: Sequence[SharedTransaction]) -> None:
        self._changed.set()
        self.transactions += [(sender, transaction) for transaction in transactions]

    def wanted(self, sender: str, transaction_ids: Sequence[bytes]) -> Sequence[bytes]:
        self._changed.set()
        self.announced.append((sender, list(transaction_ids)))
        return [item for item in transaction_ids if item not in self.pool]

    def announceable(self, ids_max: int) -> Sequence[bytes]:
        return list(self.pool)[:ids_max]

    def serve_transactions(self, transaction_ids: Sequence[bytes]) -> Sequence[SharedTransaction]:
        return [self.pool[item] for item in transaction_ids if item in self.pool]

    def serve_blocks(self, from_height: int, bytes_max: int) -> BlockRange:
        self.counts[f"serve_blocks from {from_height} bytes {bytes_max}"] += 1
        self._changed.set()
        return self.blocks

    def serve_bodies(self, commitments: Sequence[bytes], bytes_max: int) -> Sequence[bytes]:
        return [self.bodies[item] for item in commitments if item in self.bodies]

    def serve_snapshot(self) -> SnapshotOffer | None:
        return self.snapshot

    def serve_chunk(self, snapshot: bytes, index: int) -> bytes | None:
        return self.chunks.get((snapshot, index))

    def statements_of(self, peer: str) -> Statements:
        return self.held.get(peer, Statements())

    def on_statements(self, peer: str, statements: Statements) -> None:
        self.shown.append((peer, statements))
        self._changed.set()

    def on_connected(self, peer: str) -> None:
        self.connected.append(peer)
        self._changed.set()

    def on_goodbye(self, peer: str, reason: str) -> None:
        self.goodbyes.append((peer, reason))
        self._changed.set()

    def connection_refused(self, reason: str) -> None:
        self._count(f"connection {reason}")

    def frame_refused(self, reason: str) -> None:
        self._count(f"frame {reason}")

    def message_dropped(self, kind: str, reason: str) -> None:
        self._count(f"dropped {kind} {reason}")

    def gossip_decoded(self, seconds: float) -> None:
        pass

    def frame_moved(self, direction: Direction, kind: str, size_bytes: int) -> None:
        self._count(f"{direction} {kind}")

    def tap(self, direction: Direction, peer: str, frame: bytes) -> None:
        self.tapped.append((direction, peer, frame))

    def _count(self, what: str) -> None:
        self.counts[what] += 1
        self._changed.set()


def network(
    node_id: str,
    recorder: Recorder,
    peers: Mapping[str, Peer],
    *,
    settings: NetworkSettings = SETTINGS,
    chain: bytes = CHAIN,
) -> PeerNetwork:
    return PeerNetwork(settings, identity(node_id), chain, peers, recorder, recorder, recorder.tap)


@dataclass
class Pair:
    """Two networks, "a" and "b", that have both links up."""

    a: PeerNetwork
    b: PeerNetwork
    at_a: Recorder
    at_b: Recorder


@asynccontextmanager
async def pair(settings: NetworkSettings = SETTINGS) -> AsyncIterator[Pair]:
    at_a, at_b = Recorder(), Recorder()
    async with (
        network("a", at_a, {"b": member("b")}, settings=settings) as a,
        network("b", at_b, {"a": member("a", a.address)}, settings=settings) as b,
    ):
        a.set_peers({"b": member("b", b.address)})
        # A peer greets back only once it listens, so that these two make four lanes.
        await at_a.until(lambda: at_a.connected)
        await at_b.until(lambda: at_b.connected)
        yield Pair(a, b, at_a, at_b)


def client_context(node: Identity | None, trusted: Iterable[bytes]) -> ssl.SSLContext:
    """What a node would dial with; with no identity, TLS 1.3 without a certificate."""
    if node is not None:
        return TlsContexts(node, trusted, lambda reason: None, lambda: 0.0).dialling
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=b"".join(trusted))
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


@asynccontextmanager
async def raw_lane(
    address: tuple[str, int],
    node: Identity | None,
    lane: Lane = Lane.CONTROL,
    *,
    trusted: str = "a",
    path: str | None = None,
) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """A lane opened by hand, before any greeting."""
    context = client_context(node, [identity(trusted).certificate])
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(
            f"wss://{address[0]}:{address[1]}{path or PATHS[lane]}", ssl=context, compress=0
        ) as socket,
    ):
        yield socket


@asynccontextmanager
async def greeted_lane(
    address: tuple[str, int], node_id: str, lane: Lane = Lane.CONTROL
) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """A lane on which both sides said hello."""
    async with raw_lane(address, identity(node_id), lane) as socket:
        await socket.send_bytes(Greeter(identity(node_id), CHAIN).hello("a"))
        await socket.receive_bytes(timeout=PATIENCE_S)
        yield socket


async def goodbye(socket: aiohttp.ClientWebSocketResponse, chain: bytes = CHAIN) -> str:
    """The reason that the accepting side "a" gives under its signature, after which it closes."""
    message = read_greeting(await socket.receive_bytes(timeout=PATIENCE_S))
    if isinstance(message, Hello):
        assert (message.version, message.chain, message.node) == (PROTOCOL_VERSION, chain, "a")
        message = read_greeting(await socket.receive_bytes(timeout=PATIENCE_S))
    assert isinstance(message, Goodbye)
    Greeter(identity("b"), chain).check_goodbye(message, "a", identity("a").certificate)
    assert (await socket.receive(timeout=PATIENCE_S)).type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)
    return message.reason


async def refuses_handshake(address: tuple[str, int], context: ssl.SSLContext) -> bool:
    """Whether a TLS connection fails; in version 1.3 the client learns of it when it reads."""
    try:
        reader, writer = await asyncio.open_connection(*address, ssl=context)
        try:
            await reader.readexactly(1)
        finally:
            writer.close()
    except (ssl.SSLError, ConnectionError, EOFError):
        return True
    return False


def shared(number: int, size_bytes: int = 300) -> SharedTransaction:
    """A transaction as the links see it: bytes, with one body."""
    return SharedTransaction(number.to_bytes(4, "big") * 16, [bytes([number % 256]) * size_bytes])


@asynccontextmanager
async def fake_acceptor(
    node_id: str, answers: Sequence[bytes], *, reads: bool = True
) -> AsyncIterator[tuple[str, int]]:
    """A listener with the certificate of a member, that answers each hello with these frames and nothing else.

    Unless it `reads`, it takes nothing after the hello, not even a probe.
    """
    ended = asyncio.Event()

    async def accept(request: web.BaseRequest) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.receive()
        for answer in answers:
            await socket.send_bytes(answer)
        await (socket.receive() if reads else ended.wait())
        return socket

    node = identity(node_id)
    context = TlsContexts(node, [identity("a").certificate], lambda reason: None, lambda: 0.0).accepting
    server = web.Server(accept)
    listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0, ssl=context)
    try:
        yield listener.sockets[0].getsockname()[:2]
    finally:
        ended.set()
        listener.close()
        await server.shutdown(timeout=1)
