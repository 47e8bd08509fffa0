"""Connections that this node dials: one link to each member, on which it only sends.

A link is two connections, its lanes, which live and die together; while either is down nothing is queued, because
what was meant for a lost connection is stale. Each link is one task that dials, serves, and dials again; a lane is
one writer, which empties the lane's outbox, and one reader, which waits for the goodbye or the end.
"""

import asyncio
import secrets
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import aiohttp
import structlog

from consensus.messages import NodeId
from ledger.errors import Rejection
from network.frames import FRAME_BYTES_MAX, STREAMS, Parcel
from network.greeting import PATHS, Greeter, read_greeting
from network.messages import GOODBYE_NUMBER, Goodbye, Lane, Stream
from network.outbox import BOUNDS, Outbox, gossip_bound
from network.port import Counters, Direction, NetworkSettings, Peer, Tap
from network.tls import same_certificate

# How much unsent data may stand between an urgent message and the wire, in the transport and in the kernel. To
# these come the 256 KiB that aiohttp writes between two looks at the transport.
TRANSPORT_BYTES_MAX = 64 * 1024
KERNEL_UNSENT_BYTES_MAX = 128 * 1024
CLOSE_TIMEOUT_S = 0.5


_log = structlog.get_logger("network.links")


class PeerSocket(aiohttp.ClientWebSocketResponse):
    """aiohttp's client socket, with the transport under it in reach."""

    def __init__(
        self,
        reader: Any,
        writer: Any,
        protocol: str | None,
        response: aiohttp.ClientResponse,
        *args: Any,
        **more: Any,
    ) -> None:
        super().__init__(reader, writer, protocol, response, *args, **more)
        assert response.connection is not None
        assert response.connection.transport is not None
        self.transport: asyncio.Transport = response.connection.transport


@dataclass(frozen=True, slots=True)
class LinkEvents:
    """What a link reports: up and down (both lanes), and a verified goodbye with its reason."""

    up: Callable[[NodeId], None]
    down: Callable[[NodeId], None]
    goodbye: Callable[[NodeId, str], None]


class Dialler:
    """What all links share: settings, greetings, TLS, the client session."""

    def __init__(
        self,
        settings: NetworkSettings,
        greeter: Greeter,
        tls: ssl.SSLContext,
        counters: Counters,
        tap: Tap | None,
        events: LinkEvents,
    ) -> None:
        self.settings = settings
        self.greeter = greeter
        self.counters = counters
        self.tap = tap
        self.events = events
        self._tls = tls
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True, socket_factory=_bounded_socket),
            timeout=aiohttp.ClientTimeout(total=None),
            cookie_jar=aiohttp.DummyCookieJar(),
            ws_response_class=PeerSocket,
        )

    async def open(self, address: tuple[str, int], lane: Lane) -> PeerSocket:
        """A WebSocket over TLS. Raises aiohttp.ClientError, OSError, TimeoutError."""
        host, port = address
        name = f"[{host}]" if ":" in host else host
        # Liveness is judged on the control lane alone: on the other one a probe may queue behind megabytes.
        heartbeat_s = self.settings.liveness_ms / 1000 if lane is Lane.CONTROL else None
        opened = await self._session.ws_connect(
            f"wss://{name}:{port}{PATHS[lane]}",
            ssl=self._tls,
            compress=0,
            max_msg_size=FRAME_BYTES_MAX + 1,
            heartbeat=heartbeat_s,
            timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_TIMEOUT_S),
        )
        assert isinstance(opened, PeerSocket)
        return opened

    async def close(self) -> None:
        await self._session.close()


class Link:
    """This node's side of one member. `send` may be called at any time; `run` is its one task."""

    def __init__(self, peer_id: NodeId, peer: Peer, dialler: Dialler) -> None:
        assert peer.address is not None
        self.peer_id = peer_id
        self.peer = peer
        self.up = False
        self._met = asyncio.Event()
        self._address = peer.address
        self._dialler = dialler
        bounds = BOUNDS | {Stream.GOSSIP: gossip_bound(dialler.settings.gossip_queue_bytes_max)}
        self._outboxes = {
            lane: Outbox({stream: bounds[stream] for stream in streams}) for lane, streams in STREAMS.items()
        }

    def send(self, parcel: Parcel) -> None:
        """Queue for the peer, or count what is dropped instead: not_connected, queue_full."""
        if not self.up:
            self._dialler.counters.message_dropped(parcel.kind.name, "not_connected")
            return
        assert parcel.kind.lane is not None
        for dropped in self._outboxes[parcel.kind.lane].put(parcel):
            self._dialler.counters.message_dropped(dropped.kind.name, "queue_full")

    def meet(self) -> None:
        """The peer has just connected to this node, so it runs: dial now rather than after the wait."""
        self._met.set()

    async def run(self) -> None:
        """Dial, serve, dial again, until cancelled."""
        settings = self._dialler.settings
        loop = asyncio.get_running_loop()
        delay_ms = settings.redial_min_ms
        while True:
            begun = loop.time()
            reason = await self._once()
            # What held for a while, or hung for a while, has waited already; what fails at once backs off.
            if loop.time() - begun > settings.redial_max_ms / 1000 and reason is None:
                delay_ms = settings.redial_min_ms
            await self._wait(delay_ms, refused=reason is not None)
            delay_ms = min(2 * delay_ms, settings.redial_max_ms)

    async def _wait(self, delay_ms: int, *, refused: bool) -> None:
        """Before the next dial. A peer that comes itself ends the wait, unless it has refused: it may again."""
        wait_s = _jittered(delay_ms) / 1000
        if refused:
            await asyncio.sleep(wait_s)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._met.wait()
        self._met.clear()

    async def _once(self) -> str | None:
        """One connection from dialling to its end. The answer is why the peer or its pin refused it, if so."""
        try:
            async with AsyncExitStack() as stack:
                sockets: dict[Lane, PeerSocket] = {}
                async with asyncio.timeout(self._dialler.settings.dial_timeout_ms / 1000):
                    for lane in Lane:
                        sockets[lane] = await stack.enter_async_context(self._opened(lane))
                await self._serve(sockets)
        except Rejection as refusal:
            self._dialler.counters.connection_refused(refusal.code)
            _log.warning("link_refused", peer=self.peer_id, reason=refusal.code, detail=refusal.detail)
            return refusal.code
        except aiohttp.ClientSSLError:
            # It is nobody whom the ledger names, or it speaks no TLS 1.3.
            self._dialler.counters.connection_refused("unknown_certificate")
            _log.warning("link_refused", peer=self.peer_id, reason="unknown_certificate")
            return "unknown_certificate"
        except (aiohttp.ClientError, OSError) as error:
            _log.debug("link_failed", peer=self.peer_id, error=type(error).__name__)
        return None

    @asynccontextmanager
    async def _opened(self, lane: Lane) -> AsyncIterator[PeerSocket]:
        """A lane that both sides have greeted on; aborted on the way out, since all that waits in it is stale."""
        peer_socket = await self._dialler.open(self._address, lane)
        try:
            await self._greet(peer_socket)
            yield peer_socket
        finally:
            peer_socket.transport.abort()
            await peer_socket.close()

    async def _greet(self, peer_socket: PeerSocket) -> None:
        certificate = peer_socket.get_extra_info("ssl_object").getpeercert(binary_form=True)
        if not same_certificate(self.peer.certificate, certificate):
            raise Rejection("wrong_certificate", "another member answers at this address")
        hello = self._dialler.greeter.hello(self.peer_id)
        self._saw("out", hello)
        await peer_socket.send_bytes(hello)
        frame = await _frame(peer_socket)
        if frame is None:
            raise ConnectionResetError
        self._saw("in", frame)
        if isinstance(greeting := read_greeting(frame), Goodbye):
            self._take_leave(greeting)
        self._dialler.greeter.check_hello(frame, self.peer_id)

    async def _serve(self, sockets: dict[Lane, PeerSocket]) -> None:
        """Until any of the four tasks ends: then the link is down."""
        self.up = True
        self._met.clear()
        _log.info("link_up", peer=self.peer_id)
        tasks = [asyncio.create_task(self._write(sockets[lane], self._outboxes[lane])) for lane in Lane]
        tasks += [asyncio.create_task(self._watch(sockets[lane])) for lane in Lane]
        try:
            self._dialler.events.up(self.peer_id)
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.up = False
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for outbox in self._outboxes.values():
                outbox.clear()
            self._dialler.events.down(self.peer_id)
            _log.info("link_down", peer=self.peer_id)
        for task in done:
            task.result()

    async def _write(self, peer_socket: PeerSocket, outbox: Outbox) -> None:
        peer_socket.transport.set_write_buffer_limits(high=TRANSPORT_BYTES_MAX)
        moved = self._dialler.counters.frame_moved
        tap = self._dialler.tap
        while True:
            if (item := outbox.pop()) is None:
                await outbox.filled()
                continue
            parcel, frame = item
            if tap is not None:
                tap("out", self.peer_id, frame)
            await peer_socket.send_bytes(frame)
            moved("out", parcel.kind.name, len(frame))
            if parcel.stream is not Stream.URGENT:
                # A socket that takes everything at once never suspends this task: let the others run.
                await asyncio.sleep(0)

    async def _watch(self, peer_socket: PeerSocket) -> None:
        """Returns when the peer closes; Rejection for its goodbye, and for anything else that it might say."""
        frame = await _frame(peer_socket)
        if frame is None:
            return
        self._saw("in", frame)
        if not frame or frame[0] != GOODBYE_NUMBER:
            raise Rejection("bad_frame", "the accepting side only says goodbye")
        greeting = read_greeting(frame)
        assert isinstance(greeting, Goodbye)
        self._take_leave(greeting)

    def _take_leave(self, goodbye: Goodbye) -> None:
        self._dialler.greeter.check_goodbye(goodbye, self.peer_id, self.peer.certificate)
        self._dialler.events.goodbye(self.peer_id, goodbye.reason)
        raise Rejection("refused_by_peer", goodbye.reason)

    def _saw(self, direction: Direction, frame: bytes) -> None:
        if self._dialler.tap is not None:
            self._dialler.tap(direction, self.peer_id, frame)


async def _frame(peer_socket: PeerSocket) -> bytes | None:
    """The next frame, None at the end of the connection. Raises Rejection("bad_frame")."""
    message = await peer_socket.receive()
    if message.type is aiohttp.WSMsgType.BINARY:
        data: bytes = message.data
        return data
    if message.type is aiohttp.WSMsgType.TEXT:
        raise Rejection("bad_frame", "text")
    return None


def _bounded_socket(address_info: tuple[Any, ...]) -> socket.socket:
    """The kernel takes no more than it can soon send, so that what waits, waits where it has a priority."""
    family, kind, protocol = address_info[:3]
    made = socket.socket(family, kind, protocol)
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, KERNEL_UNSENT_BYTES_MAX)
    return made


def _jittered(delay_ms: int) -> float:
    """Between half and all of it, so that peers that lost each other together do not return together."""
    return delay_ms / 2 + secrets.randbelow(1000) / 1000 * delay_ms / 2
