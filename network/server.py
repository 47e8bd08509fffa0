"""Connections that this node accepts: from each member one per lane, on which it only receives.

| who comes | what happens |
|---|---|
| no certificate, an unknown one, older TLS | refused in the handshake, counted |
| a certificate whose pin was taken away | 403, counted unknown_certificate |
| a removed node | a signed goodbye "removed", closed, counted |
| another version or chain | a hello, by which the other side sees it too, a goodbye, closed, counted |
| another name than its certificate's | a signed goodbye with the reason, closed, counted |
| a member whose lane is open already | the older connection is cut: the node has restarted or lost it |
| a frame that breaks a rule | a signed goodbye with the reason, closed, counted |
"""

import asyncio
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import structlog
from aiohttp import WebSocketError, WSCloseCode, WSMsgType, web

from consensus.messages import NodeId
from ledger.errors import Rejection
from network.frames import FRAME_BYTES_MAX, Assembler
from network.greeting import LANE_BY_PATH, Greeter
from network.messages import KIND_BY_NUMBER, Lane, Stream, decode
from network.port import Counters, Direction, NetworkSettings, Peer, Tap
from network.tls import HANDSHAKE_TIMEOUT_S, Pins

CONNECTIONS_MAX = 512
GREETING_TIMEOUT_S = 5.0
CLOSE_TIMEOUT_S = 0.5
BACKLOG = 128

_log = structlog.get_logger("network.server")


@dataclass(frozen=True, slots=True)
class ServerEvents:
    """`deliver` takes a decoded message, and raises Rejection for the peer's mistake; `fault` takes ours.

    `begun`: the control lane from the peer is open. `ended`: it is gone, and no newer one has replaced it.
    """

    begun: Callable[[NodeId], None]
    deliver: Callable[[NodeId, Any], None]
    ended: Callable[[NodeId], None]
    fault: Callable[[Exception], None]


@dataclass(slots=True)
class _Inbound:
    socket: web.WebSocketResponse
    transport: asyncio.Transport


class PeerServer:
    """`await start()`, then members may come; `await stop()` cuts all of them."""

    def __init__(
        self,
        settings: NetworkSettings,
        greeter: Greeter,
        pins: Pins,
        counters: Counters,
        tap: Tap | None,
        events: ServerEvents,
    ) -> None:
        self.pins = pins
        self._settings = settings
        self._greeter = greeter
        self._counters = counters
        self._tap = tap
        self._events = events
        self._inbound: dict[tuple[NodeId, Lane], _Inbound] = {}
        self._http = web.Server(self._accept, access_log=None)
        self._listener: asyncio.Server | None = None

    async def start(self, tls: ssl.SSLContext) -> tuple[str, int]:
        """Listen; the bound host and port. Raises OSError."""
        self._listener = await asyncio.get_running_loop().create_server(
            self._http,
            self._settings.listen_host,
            self._settings.listen_port,
            ssl=tls,
            ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S,
            backlog=BACKLOG,
        )
        host, port = self._listener.sockets[0].getsockname()[:2]
        return host, port

    async def stop(self) -> None:
        if self._listener is not None:
            self._listener.close()
        for inbound in self._inbound.values():
            inbound.transport.abort()
        await self._http.shutdown(timeout=CLOSE_TIMEOUT_S)

    def receiving(self, peer: NodeId) -> bool:
        """Whether both lanes from the peer are open."""
        return all((peer, lane) in self._inbound for lane in Lane)

    async def dismiss(self, peer: NodeId, reason: str) -> None:
        """Say goodbye on every lane from the peer and close them."""
        for lane in Lane:
            inbound = self._inbound.get((peer, lane))
            if inbound is not None:
                with suppress(ConnectionError):
                    await self._say_goodbye(inbound.socket, peer, reason)

    async def _accept(self, request: web.BaseRequest) -> web.StreamResponse:
        """One connection, from its first request to its end."""
        transport, lane = request.transport, LANE_BY_PATH.get(request.path)
        if transport is None:
            return web.Response(status=400)
        found = self.pins.find(transport.get_extra_info("ssl_object").getpeercert(binary_form=True))
        if found is None:
            return self._refuse(403, "unknown_certificate")
        if len(self._http.connections) > CONNECTIONS_MAX:
            return self._refuse(503, "busy")
        heartbeat_s = self._settings.liveness_ms / 1000 if lane is Lane.CONTROL else None
        peer_socket = web.WebSocketResponse(
            timeout=CLOSE_TIMEOUT_S, compress=False, max_msg_size=FRAME_BYTES_MAX + 1, heartbeat=heartbeat_s
        )
        if lane is None or not peer_socket.can_prepare(request):
            return self._refuse(404, "bad_request")
        try:
            await peer_socket.prepare(request)
            if await self._greeted(peer_socket, *found):
                await self._attend(_Inbound(peer_socket, transport), found[0], lane)
        except ConnectionError as error:
            _log.debug("connection_lost", peer=found[0], error=type(error).__name__)
        except Exception as error:  # noqa: BLE001 - aiohttp would log it and go on; a fault of ours ends the node
            self._events.fault(error)
        # One whose connection went before it had begun cannot be ended either, which aiohttp would do.
        return peer_socket if peer_socket.prepared else web.Response()

    def _refuse(self, status: int, reason: str) -> web.Response:
        self._counters.connection_refused(reason)
        response = web.Response(status=status)
        response.force_close()
        return response

    async def _greeted(self, peer_socket: web.WebSocketResponse, peer_id: NodeId, peer: Peer) -> bool:
        try:
            if peer.standing == "removed":
                raise Rejection("removed", "by decision of the network")
            try:
                async with asyncio.timeout(GREETING_TIMEOUT_S):
                    frame = await _frame(peer_socket)
            except TimeoutError:
                raise Rejection("bad_hello", "none came in time") from None
            if frame is None:
                return False
            self._saw("in", peer_id, frame)
            self._greeter.check_hello(frame, peer_id)
        except Rejection as refusal:
            self._counters.connection_refused(refusal.code)
            _log.warning("connection_refused", peer=peer_id, reason=refusal.code, detail=refusal.detail)
            if refusal.code in ("protocol_version", "wrong_chain"):
                # A goodbye of another chain or version cannot be checked; a hello names the difference by itself.
                await self._say_hello(peer_socket, peer_id)
            await self._say_goodbye(peer_socket, peer_id, refusal.code)
            return False
        await self._say_hello(peer_socket, peer_id)
        return True

    async def _attend(self, inbound: _Inbound, peer_id: NodeId, lane: Lane) -> None:
        """Receive until the connection ends. The control lane takes the other one with it."""
        older = self._inbound.get((peer_id, lane))
        if older is not None:
            older.transport.abort()
        self._inbound[peer_id, lane] = inbound
        if lane is Lane.CONTROL:
            self._events.begun(peer_id)
        try:
            await self._receive(inbound.socket, peer_id, Assembler(lane))
        except Rejection as refusal:
            self._counters.frame_refused(refusal.code)
            _log.warning("frame_refused", peer=peer_id, reason=refusal.code, detail=refusal.detail)
            await self._say_goodbye(inbound.socket, peer_id, refusal.code)
        finally:
            if self._inbound.get((peer_id, lane)) is inbound:
                del self._inbound[peer_id, lane]
                if lane is Lane.CONTROL:
                    self._end(peer_id)

    def _end(self, peer_id: NodeId) -> None:
        gossip = self._inbound.get((peer_id, Lane.GOSSIP))
        if gossip is not None:
            gossip.transport.abort()
        self._events.ended(peer_id)

    async def _receive(self, peer_socket: web.WebSocketResponse, peer_id: NodeId, assembler: Assembler) -> None:
        moved = self._counters.frame_moved
        deliver = self._events.deliver
        timed = assembler.lane is Lane.GOSSIP
        while (frame := await _frame(peer_socket)) is not None:
            if self._tap is not None:
                self._tap("in", peer_id, frame)
            begun_s = time.thread_time() if timed else 0.0
            done = assembler.feed(frame)
            moved("in", KIND_BY_NUMBER[frame[0]].name, len(frame))
            if done is not None:
                message = decode(*done)
                if timed:
                    self._counters.gossip_decoded(time.thread_time() - begun_s)
                deliver(peer_id, message)
            if frame[1] != Stream.URGENT:
                # A full buffer never suspends this task: let the other connections have their turn.
                await asyncio.sleep(0)

    async def _say_hello(self, peer_socket: web.WebSocketResponse, peer_id: NodeId) -> None:
        hello = self._greeter.hello(peer_id)
        self._saw("out", peer_id, hello)
        await peer_socket.send_bytes(hello)

    async def _say_goodbye(self, peer_socket: web.WebSocketResponse, peer_id: NodeId, reason: str) -> None:
        if not peer_socket.closed:
            goodbye = self._greeter.goodbye(peer_id, reason)
            self._saw("out", peer_id, goodbye)
            await peer_socket.send_bytes(goodbye)
            await peer_socket.close(code=WSCloseCode.POLICY_VIOLATION)

    def _saw(self, direction: Direction, peer_id: NodeId, frame: bytes) -> None:
        if self._tap is not None:
            self._tap(direction, peer_id, frame)


async def _frame(peer_socket: web.WebSocketResponse) -> bytes | None:
    """The next frame, None at the end of the connection. Raises Rejection: bad_frame, frame_too_large."""
    message = await peer_socket.receive()
    if message.type is WSMsgType.BINARY:
        data: bytes = message.data
        return data
    if message.type is WSMsgType.ERROR and isinstance(message.data, WebSocketError):
        too_big = message.data.code == WSCloseCode.MESSAGE_TOO_BIG
        raise Rejection("frame_too_large" if too_big else "bad_frame", f"WebSocket code {message.data.code}")
    if message.type is WSMsgType.TEXT:
        raise Rejection("bad_frame", "text")
    return None
