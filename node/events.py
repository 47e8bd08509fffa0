"""The chain's events as a stream of server-sent events, for as long as the reader keeps up.

Nothing is queued for anybody and nothing is recorded: a reader is a place in the chain, and what comes next is read
from the store when its connection has room. So a reader may start anywhere, and a slow one costs a place among the
readers and one chunk of bytes.

Bounds, and what happens at each:

- readers: READERS_MAX. The next one gets the place of the one that has been stalled longest, if one has been for
  STALLED_S, which is cut as "too_many"; else 503 "busy";
- bytes sent and not taken: about CHUNK_BYTES and the transport's own buffer, and SOCKET_BYTES in the kernel. Nothing
  is read for a reader that has more; whoever has more for UNSENT_S is cut as "too_slow";
- a cut reader's time to take what was sent, the last event included: LINGER_S, then the connection is reset. At
  most READERS_MAX take such time at once;
- the node's time: one slice of SLICE_S after another for all readers together, and REST times as long for everything
  else in between; and for a reader that has caught up one chunk in GATHER_S, with all that was executed meanwhile;
- blocks in memory: OPENED_MAX for all readers together, none without readers.
"""

import asyncio
import socket
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import aiohttp
import msgspec
import structlog
from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from ledger.errors import Rejection
from ledger.events import Event, EventId, Filter, end_of, end_of_transaction, events_of
from ledger.execution import OK, stored_result
from ledger.transaction import stored_envelope
from node.http_types import Backend, CutReason, CutView, ExecutedBlock
from node.http_views import event_view
from node.logs import fault_fields

READERS_MAX = 64
STALLED_S = 1.0
CHUNK_BYTES = 64 * 1024
SOCKET_BYTES = 128 * 1024
UNSENT_S = 10.0
LINGER_S = 30.0
LINGER_STOPPING_S = 1.0
HEARTBEAT_S = 15.0
SLICE_S = 0.001
REST = 4
GATHER_S = 0.05
OPENED_MAX = 4
# What a browser's EventSource waits before it connects again.
RETRY_MS = 1_000

HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    # Reverse proxies hold answers back otherwise.
    "X-Accel-Buffering": "no",
}

log = structlog.get_logger("node.events")

# What ends a connection from the other side.
_GONE = (ConnectionError, aiohttp.ClientError)


class Slice(NamedTuple):
    """`data`: so many `events` as they are sent, all that is wanted up to `after`. `more`: others are executed."""

    data: bytes
    events: int
    after: EventId
    more: bool


class EventSource:
    """Reads the executed chain forward, a slice at a time."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._opened: OrderedDict[int, _Opened] = OrderedDict()
        self._turn = asyncio.Lock()
        self._rested_at_s = 0.0

    async def read(self, after: EventId, wanted: Filter) -> Slice:
        """What follows `after`, once it is this reader's turn. Raises StorageFailure."""
        async with self._turn:
            await asyncio.sleep(max(self._rested_at_s - time.perf_counter(), 0.0))
            begun_s = time.perf_counter()
            found = self._slice(after, wanted, begun_s + SLICE_S)
            ended_s = time.perf_counter()
            self._rested_at_s = ended_s + REST * (ended_s - begun_s)
        return found

    def require_kept(self, after: EventId) -> None:
        """Rejection("pruned") where what follows `after` is not here any more."""
        base = self._backend.heights().base
        if base and after.height + after.ends_block <= base:
            raise Rejection("pruned", f"this node keeps no events of blocks up to height {base}")

    def close(self) -> None:
        """Nobody reads now: keep nothing."""
        self._opened.clear()

    def _slice(self, after: EventId, wanted: Filter, until_s: float) -> Slice:
        """At least one transaction, if there is one; then until the time or the bytes are used up."""
        executed = self._backend.heights().executed
        frames: list[bytes] = []
        size = 0
        height, index = (
            (after.height + 1, 0) if after.ends_block else (after.height, after.index + after.ends_transaction)
        )
        if height == 0:
            # Nothing happened in genesis, which is no block; its ids are places to go on after like any.
            height, index = 1, 0
        while height <= executed:
            block = self._open(height)
            for place in range(index, len(block)):
                for event, frame in block.events(place):
                    if event.id > after and wanted.admits(event):
                        frames.append(frame)
                        size += len(frame)
                after = end_of_transaction(height, place)
                if size >= CHUNK_BYTES or time.perf_counter() >= until_s:
                    return Slice(b"".join(frames), len(frames), after, True)
            after = end_of(height)
            height, index = height + 1, 0
            if time.perf_counter() >= until_s:
                break
        return Slice(b"".join(frames), len(frames), after, height <= executed)

    def _open(self, height: int) -> "_Opened":
        opened = self._opened.pop(height, None)
        if opened is None:
            opened = _Opened(height, self._backend.executed_block(height))
            if len(self._opened) >= OPENED_MAX:
                self._opened.popitem(last=False)
        self._opened[height] = opened
        return opened


class _Opened:
    """One block's events, those of each transaction derived when they are first asked for."""

    def __init__(self, height: int, block: ExecutedBlock) -> None:
        self._height = height
        self._block = block
        self._events: list[list[tuple[Event, bytes]] | None] = [None] * len(block.transactions)

    def __len__(self) -> int:
        return len(self._events)

    def events(self, index: int) -> list[tuple[Event, bytes]]:
        """The events of one transaction, each with its bytes on the wire."""
        found = self._events[index]
        if found is None:
            envelope = stored_envelope(self._block.transactions[index])
            result = stored_result(self._block.results[index])
            events = events_of(self._height, index, self._block.time_ms, envelope, result)
            self._events[index] = found = [(event, _frame(event)) for event in events]
        return found


class _CutError(Exception):
    """The stream ends here, by this node's word."""

    def __init__(self, reason: CutReason) -> None:
        super().__init__(reason)
        self.reason = reason


class _Reader:
    """One connection and its place in the chain: everything wanted up to `after` was sent.

    `check` raises Rejection when this reader may read no more. `stalled_at_s` is set while bytes wait to be taken;
    `unsent` is a write that has not ended well.
    """

    def __init__(
        self,
        source: EventSource,
        backend: Backend,
        transport: asyncio.Transport,
        after: EventId,
        wanted: Filter,
        check: Callable[[], None],
    ) -> None:
        self.after = after
        self.transport = transport
        self.stalled_at_s: float | None = None
        self.unsent: asyncio.Task[None] | None = None
        self._dismissed: asyncio.Future[CutReason] = asyncio.get_running_loop().create_future()
        self._source = source
        self._backend = backend
        self._wanted = wanted
        self._check = check
        self._sent_at_s = 0.0

    @property
    def gone(self) -> bool:
        """The other side has closed the connection."""
        return self.transport.is_closing()

    def dismiss(self, reason: CutReason) -> None:
        if not self._dismissed.done():
            self._dismissed.set_result(reason)

    async def run(self, writer: AbstractStreamWriter) -> CutReason:
        """Send what comes, until this reader is cut: why. Raises what a closed connection raises."""
        try:
            await self._send(writer, b"retry: %d\n" % RETRY_MS + _heartbeat(self.after))
            while True:
                await self._advance(writer)
        except _CutError as cut:
            return cut.reason
        except _GONE:
            raise
        except Rejection as rejection:
            if rejection.code == "pruned":
                return "pruned"
            raise
        # One reader's fault ends its stream only.
        except Exception as error:  # noqa: BLE001
            log.error("events_failed", **fault_fields(error))
            return "internal"

    async def _advance(self, writer: AbstractStreamWriter) -> None:
        """Send the next slice, then wait until there is another."""
        found = await self._source.read(self.after, self._wanted)
        # Before the place moves: who is cut here was not sent this slice.
        self._require_welcome()
        self.after = found.after
        if found.events:
            await self._send(writer, found.data)
            self._backend.metrics.events_sent.inc(found.events)
        elif time.monotonic() >= self._sent_at_s + HEARTBEAT_S:
            await self._send(writer, _heartbeat(self.after))
        if not found.more:
            await self._news(writer)

    async def _news(self, writer: AbstractStreamWriter) -> None:
        """Wait until the block that comes next is executed; say meanwhile that the connection lives."""
        executed = asyncio.ensure_future(self._backend.executed(self.after.height + self.after.ends_block))
        try:
            # Small blocks that follow upon each other are worth one chunk, not one each.
            await self._happens(None, self._sent_at_s + GATHER_S)
            while not await self._happens(executed, self._sent_at_s + HEARTBEAT_S):
                self._require_welcome()
                await self._send(writer, _heartbeat(self.after))
            executed.result()
        finally:
            executed.cancel()

    async def _send(self, writer: AbstractStreamWriter, data: bytes) -> None:
        self.stalled_at_s = self._sent_at_s = time.monotonic()
        # Never cancelled: the library cannot wait for the same connection again after that.
        self.unsent = asyncio.create_task(_put(writer, data), name="events")
        try:
            if not await self._happens(self.unsent, self._sent_at_s + UNSENT_S):
                raise _CutError("too_slow")
            self.unsent.result()
        finally:
            self.stalled_at_s = None
        self.unsent = None

    async def _happens(self, what: asyncio.Future[None] | None, until_s: float) -> bool:
        """Whether it is done by then (monotonic, s). Raises _CutError as soon as this reader is dismissed."""
        ends: set[asyncio.Future[Any]] = {self._dismissed} if what is None else {self._dismissed, what}
        timeout_s = max(until_s - time.monotonic(), 0.0)
        await asyncio.wait(ends, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if self._dismissed.done():
            raise _CutError(self._dismissed.result())
        return what is not None and what.done()

    def _require_welcome(self) -> None:
        if self._dismissed.done():
            raise _CutError(self._dismissed.result())
        try:
            self._check()
        except Rejection:
            raise _CutError("not_allowed") from None


class EventStreams:
    """All readers of one provider port."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._source = EventSource(backend)
        self._readers: set[_Reader] = set()
        self._leaving: set[asyncio.Transport] = set()
        self._stopping = False

    async def serve(
        self, request: web.Request, after: EventId, wanted: Filter, check: Callable[[], None]
    ) -> web.StreamResponse:
        """Answer with the events after `after`, until the reader goes or is cut.

        `check` is asked again and again whether this reader still may. Raises Rejection, before anything is sent:
        "busy", "not_ready", "pruned".
        """
        response = web.StreamResponse(headers=HEADERS)
        response.force_close()
        transport = request.transport
        if transport is None:
            return response
        self._source.require_kept(after)
        self._make_room()
        reader = _Reader(self._source, self._backend, transport, after, wanted, check)
        self._enter(reader)
        try:
            writer = await response.prepare(request)
            assert writer is not None, "nothing of this response was sent yet"
            reason = await reader.run(writer)
            self._leave(reader)
            await self._say_farewell(reader, response, writer, reason)
        except _GONE:
            pass
        except asyncio.CancelledError:
            transport.abort()
            raise
        finally:
            self._leave(reader)
            if reader.unsent is not None:
                await asyncio.gather(reader.unsent, return_exceptions=True)
        return response

    def stop(self) -> None:
        """Cut every reader: the node is stopping."""
        self._stopping = True
        for reader in self._readers:
            reader.dismiss("stopping")
        for transport in self._leaving:
            transport.abort()

    def _make_room(self) -> None:
        """Room for one reader more, or Rejection."""
        if self._stopping:
            raise Rejection("not_ready", "stopping")
        if len(self._readers) < READERS_MAX:
            return
        now_s = time.monotonic()
        waiting = [reader for reader in self._readers if reader.stalled_at_s is not None]
        stalled = [reader for reader in waiting if now_s - (reader.stalled_at_s or now_s) >= STALLED_S]
        gone = [reader for reader in self._readers if reader.gone]
        if not gone and not stalled:
            raise Rejection("busy", f"{READERS_MAX} readers of events are connected")
        dismissed = gone[0] if gone else min(stalled, key=lambda reader: reader.stalled_at_s or now_s)
        dismissed.dismiss("too_many")
        self._leave(dismissed)

    def _enter(self, reader: _Reader) -> None:
        # The kernel would hold megabytes for a reader that takes none of them.
        reader.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
        self._readers.add(reader)
        self._backend.metrics.event_readers.set(len(self._readers))

    def _leave(self, reader: _Reader) -> None:
        self._readers.discard(reader)
        self._backend.metrics.event_readers.set(len(self._readers))
        if not self._readers:
            self._source.close()

    async def _say_farewell(
        self, reader: _Reader, response: web.StreamResponse, writer: AbstractStreamWriter, reason: CutReason
    ) -> None:
        """The last event, after everything sent before it, for a reader that may not be taking anything."""
        transport = reader.transport
        if reader.gone:
            return
        self._backend.metrics.event_readers_cut.labels(reason).inc()
        if len(self._leaving) >= READERS_MAX:
            transport.abort()
            return
        self._leaving.add(transport)
        try:
            async with asyncio.timeout(LINGER_STOPPING_S if self._stopping else LINGER_S):
                # From here on there is room only once nothing is left.
                transport.set_write_buffer_limits(0)
                await writer.write(_cut_frame(reason, reader.after))
                await response.write_eof()
                await writer.drain()
        except TimeoutError:
            transport.abort()
        finally:
            self._leaving.discard(transport)


async def _put(writer: AbstractStreamWriter, data: bytes) -> None:
    """Return once the connection has room for more."""
    await writer.write(data)
    await writer.drain()


def _frame(event: Event) -> bytes:
    kind = b"action" if event.code == OK else b"failed"
    return b"id: %s\nevent: %s\ndata: %s\n\n" % (
        str(event.id).encode(),
        kind,
        msgspec.json.encode(event_view(event)),
    )


def _heartbeat(after: EventId) -> bytes:
    """A comment; the id beside it says how far this reader is, though nothing it wants may have come."""
    return b": here\nid: %s\n\n" % str(after).encode()


def _cut_frame(reason: CutReason, after: EventId) -> bytes:
    view = CutView(reason=reason, resume=str(after))
    return b"id: %s\nevent: cut\ndata: %s\n\n" % (view.resume.encode(), msgspec.json.encode(view))
