"""The provider port: HTTP for this hospital's own programs. The table in node/endpoints.py is the whole of it.

Bounds, and what happens at each:

- connections: CONNECTIONS_MAX; more are closed at once;
- one request's body: `request_bytes_max`, else 413;
- bodies being received or checked at once: UPLOADS_MAX times that, else 503 "busy";
- requests that wait for a commit at once: WAITS_MAX, else 503 "busy";
- linearizable reads at once: node/reads.py, else 503 "busy";
- the time a body may take to arrive: BODY_S, else 408;
- the time an answer may wait: `wait_ms_max`, then it says how far the transaction came (202 where it is in no block
  yet), or 503 "not_confirmed";
- readers of events: node/events.py;
- the blocks of one answer: BLOCKS_BYTES_MAX beyond the first block, then `next` says where to go on.

There is no CORS: a web page of another origin cannot read answers, nor send a body of a type read here.
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from types import UnionType
from typing import Annotated, Any, NamedTuple, TypeVar, Union, get_args, get_origin

import msgspec
import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from ledger.encoding import encode
from ledger.errors import Rejection
from ledger.events import EventId, Filter, end_of, parse_event_id
from ledger.receipt import decode_receipt
from node.auth import require_member
from node.config import ProviderSection
from node.endpoints import ENDPOINTS, JSON, MSGPACK, OCTETS, Endpoint
from node.events import EventStreams
from node.http_types import (
    Backend,
    BlockQuery,
    BlocksAnswer,
    BlocksQuery,
    BodyQuery,
    EventsQuery,
    ExtendQuery,
    Health,
    Item,
    NetworkQuery,
    NoQuery,
    ReadQuery,
    ReceiptQuery,
    RecordsAnswer,
    RecordsQuery,
    SavedReceipt,
    StateQuery,
    StoredBlock,
    Submission,
    SubmitAnswer,
    SubmitQuery,
    Submitted,
    TransactionQuery,
    TransactionResult,
    Wait,
)
from node.http_views import block_view, receipt_view, record_view, state_proof_view, state_view, status_view
from node.logs import fault_fields
from node.metrics import CONTENT_TYPE as METRICS_TYPE
from node.openapi import describe
from node.problems import COMMON_HEADERS, problem, problem_of

BODY_S = 30.0
DRAIN_S = 5.0
KEEPALIVE_S = 75.0
UPLOADS_MAX = 8
# Each holds a file descriptor, of which LevelDB needs some too.
CONNECTIONS_MAX = 512
WAITS_MAX = 1_024
BLOCKS_BYTES_MAX = 1024 * 1024
# Between batches of this many transactions others have the loop: consensus cannot wait for 1,000 signatures.
SUBMIT_BATCH = 16

# None is what turns it off, whatever the library's annotation says.
NO_ACCESS_LOG: dict[str, Any] = {"access_log": None}
# A list of which all is refused for one of these is answered by the problem itself: it may be taken later.
REFUSED_WHOLE = frozenset({"pool_full", "not_ready"})
# Contracts whose state is linked to subjects.
SIGNED_CONTRACTS = frozenset({"records"})

log = structlog.get_logger("node.http")

Content = TypeVar("Content")

_SUBMISSION_DECODERS: dict[str, Callable[[bytes], Submitted]] = {
    MSGPACK: msgspec.msgpack.Decoder(Submitted).decode,
    JSON: msgspec.json.Decoder(Submitted).decode,
}
_RECEIPT_DECODERS: dict[str, Callable[[bytes], SavedReceipt]] = {
    MSGPACK: msgspec.msgpack.Decoder(SavedReceipt).decode,
    JSON: msgspec.json.Decoder(SavedReceipt).decode,
}


@asynccontextmanager
async def provider_port(backend: Backend, settings: ProviderSection) -> AsyncIterator[int]:
    """Serve until the block ends; yields the bound port. Open requests then have DRAIN_S to finish.

    Raises OSError where the address cannot be bound.
    """
    runner = web.AppRunner(
        make_app(backend, settings), access_log=None, handle_signals=False, shutdown_timeout=DRAIN_S
    )
    await runner.setup()
    server, loop = runner.server, asyncio.get_running_loop()
    assert server is not None, "the runner was set up"
    try:
        listener = await loop.create_server(
            lambda: _Connection(
                server,
                loop=loop,
                keepalive_timeout=KEEPALIVE_S,
                # Compressed bodies are refused, so nothing is to be unpacked on the way.
                auto_decompress=False,
                **NO_ACCESS_LOG,
            ),
            settings.host,
            settings.port,
        )
        port: int = listener.sockets[0].getsockname()[1]
        try:
            yield port
        finally:
            listener.close()
    finally:
        await runner.cleanup()


class _Connection(web.RequestHandler):
    """One connection. What is not HTTP gets an answer that, unlike the library's, quotes nothing of it."""

    __slots__ = ("_refused",)

    _refused: bool

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert self._manager is not None, "a new connection has its server"
        self._refused = len(self._manager.connections) >= CONNECTIONS_MAX
        if not self._refused:
            super().connection_made(transport)
        elif isinstance(transport, asyncio.Transport):
            transport.abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        if not self._refused:
            super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        log.warning("request_unreadable", status=status, error=type(exc).__name__)
        if request.writer.output_size > 0:
            raise ConnectionError("part of an answer is sent already")
        response = problem("internal" if status >= 500 else "bad_request", "this is not a valid HTTP request")
        response.headers.update(COMMON_HEADERS)
        response.force_close()
        return response

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """What the library refuses before our handlers see it, such as an Expect it does not know, quotes it too."""
        if isinstance(resp, web.HTTPException):
            resp = problem("bad_request", resp.reason)
        return await super().finish_response(request, resp, start_time)


def make_app(backend: Backend, settings: ProviderSection) -> web.Application:
    """The application behind the port, for `provider_port` and for tests."""
    api = ProviderApi(backend, settings)
    app = web.Application(middlewares=[api.answer], client_max_size=settings.request_bytes_max)
    app.on_shutdown.append(api.stop_streams)
    for endpoint in ENDPOINTS:
        app.router.add_route(endpoint.method, endpoint.path, _parsed(endpoint, api))
    return app


def _parsed(endpoint: Endpoint, api: "ProviderApi") -> Handler:
    """The handler with its parameters parsed, no body where none belongs, and reads as consistent as was asked."""
    shape = _shape(endpoint.parameters)
    handler: Callable[[web.Request, Any], Awaitable[web.StreamResponse]] = getattr(api, endpoint.handler)

    async def run(request: web.Request) -> web.StreamResponse:
        if endpoint.method == "GET" and request.can_read_body:
            raise Rejection("bad_request", "a GET has no body here")
        query = _parameters(shape, request)
        if isinstance(query, ReadQuery) and query.consistency == "linearizable":
            await api.confirm(query)
        return await handler(request, query)

    return run


class ProviderApi:
    """The handlers. They parse, ask the backend, and choose the form of the answer; they decide nothing."""

    def __init__(self, backend: Backend, settings: ProviderSection) -> None:
        self._backend = backend
        self._settings = settings
        self._description = msgspec.json.encode(describe(ENDPOINTS))
        self._events = EventStreams(backend)
        self._upload_bytes = 0
        self._waiting = 0

    @web.middleware
    async def answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Every answer leaves through here: errors become problems, requests are counted and timed."""
        started = time.perf_counter()
        response = await self._outcome(request, handler)
        resource = request.match_info.route.resource
        endpoint = resource.canonical if resource is not None else "none"
        metrics = self._backend.metrics
        metrics.http_requests.labels(endpoint, str(response.status)).inc()
        # Of a stream the head is sent already, and its duration says only how patient the reader was.
        if not response.prepared:
            response.headers.update(COMMON_HEADERS)
            metrics.http_seconds.observe(time.perf_counter() - started)
        return response

    async def confirm(self, query: ReadQuery) -> None:
        """Wait until an answer given now knows of every write acknowledged before; Rejection where it cannot."""
        await self._backend.confirm(self._settings.wait_ms_max / 1_000, sealed=query.proves)

    async def stop_streams(self, app: web.Application) -> None:
        """Open requests have time to finish when the port closes; streams would use all of it."""
        self._events.stop()

    async def _outcome(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except Rejection as rejection:
            return problem_of(rejection)
        except web.HTTPMethodNotAllowed as error:
            response = problem("method_not_allowed", f"use {' or '.join(sorted(error.allowed_methods))}")
            response.headers["Allow"] = ", ".join(sorted(error.allowed_methods))
            return response
        except web.HTTPRequestEntityTooLarge:
            return problem("too_large", f"a request has at most {self._settings.request_bytes_max} bytes")
        except web.HTTPNotFound:
            return problem("not_found", "no such path")
        except web.HTTPException as error:
            return problem("bad_request", error.reason)
        # The edge of the node: a fault in one request is logged without content and ends that request. The node
        # judges whether it may go on.
        except Exception as error:  # noqa: BLE001
            log.error("request_failed", method=request.method, **fault_fields(error))
            self._backend.fault(error)
            return problem("internal", "the request failed in this node")

    async def submit(self, request: web.Request, query: SubmitQuery) -> web.Response:
        with self._wait_room(query.wait):
            with self._upload_room(request):
                submitted = _decode(request, await self._body(request), _SUBMISSION_DECODERS)
                items = [submitted] if isinstance(submitted, Item) else submitted
                submissions = await self._submit(items)
            refusals = [each.rejection for each in submissions if each.rejection is not None]
            passes = all(refusal.code in REFUSED_WHOLE for refusal in refusals)
            if len(refusals) == len(items) and (isinstance(submitted, Item) or passes):
                raise refusals[0]
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._result(each, query)) for each in submissions]
        results = [task.result() for task in tasks]
        late = query.wait != "accepted" and any(result.status == "pending" for result in results)
        return _json(SubmitAnswer(results=results), status=202 if late else 200)

    async def transaction(self, request: web.Request, query: TransactionQuery) -> web.Response:
        tx_id = bytes.fromhex(query.id)
        return _json(status_view(tx_id, self._backend.status(tx_id)))

    async def receipt(self, request: web.Request, query: ReceiptQuery) -> web.Response:
        tx_id = bytes.fromhex(query.id)
        if self._backend.status(tx_id).status == "pending":
            raise Rejection("not_sealed", "the transaction waits for a block")
        receipt = self._backend.receipt(tx_id)
        return _json(receipt_view(tx_id, receipt)) if _wants(request, MSGPACK) == JSON else _msgpack(receipt)

    async def extend(self, request: web.Request, query: ExtendQuery) -> web.Response:
        with self._upload_room(request):
            saved = _decode(request, await self._body(request), _RECEIPT_DECODERS).receipt
            receipt = self._backend.extend_receipt(saved)
        tx_id = decode_receipt(receipt).result.id
        return _json(receipt_view(tx_id, receipt)) if _wants(request, MSGPACK) == JSON else _msgpack(receipt)

    async def block(self, request: web.Request, query: BlockQuery) -> web.Response:
        stored = self._backend.block(query.height) if query.height > 0 else None
        if stored is None:
            raise Rejection("not_found", "no committed block at this height; genesis is at /v1/genesis")
        return _msgpack(stored.block.data) if _wants(request, JSON) == MSGPACK else _json(block_view(stored))

    async def blocks(self, request: web.Request, query: BlocksQuery) -> web.Response:
        found: list[StoredBlock] = []
        size = 0
        height = query.from_
        following: int | None = None
        while (stored := self._backend.block(height)) is not None:
            size += len(stored.block.data)
            if len(found) == query.limit or (found and size > BLOCKS_BYTES_MAX):
                following = height
                break
            found.append(stored)
            height += 1
            # Each was read and decoded: consensus goes in between.
            await asyncio.sleep(0)
        if _wants(request, JSON) == MSGPACK:
            rows = [{"block": each.block.data, "certificate": each.certificate} for each in found]
            return _msgpack(encode({"blocks": rows, "next": following}))
        return _json(BlocksAnswer(blocks=[block_view(each) for each in found], next=following))

    async def state(self, request: web.Request, query: StateQuery) -> web.Response:
        contract, key = query.contract, query.key
        if contract in SIGNED_CONTRACTS:
            require_member(request, self._backend)
        if query.proves:
            answer = self._backend.state_answer(f"{contract}/{key}")
            wanted = _wants(request, MSGPACK)
            return _json(state_proof_view(contract, key, answer)) if wanted == JSON else _msgpack(answer)
        height = self._backend.heights().executed
        value = self._backend.state(f"{contract}/{key}")
        if value is None:
            raise Rejection("not_found", "the state holds nothing here; proof=1 proves it")
        return _json(state_view(contract, key, height, value))

    async def body(self, request: web.Request, query: BodyQuery) -> web.Response:
        require_member(request, self._backend)
        body = self._backend.body(bytes.fromhex(query.commitment))
        if body is None:
            raise Rejection("not_found", "this node holds no such body")
        return web.Response(body=body, content_type=OCTETS)

    async def records(self, request: web.Request, query: RecordsQuery) -> web.Response:
        require_member(request, self._backend)
        subject = bytes.fromhex(query.subject)
        before = bytes.fromhex(query.before) if query.before is not None else None
        found = self._backend.subject_records(subject, before, query.limit)
        views = [record_view(record_id, record) for record_id, record in found]
        more = bool(views) and views[-1].previous is not None
        return _json(RecordsAnswer(records=views, next=views[-1].record if more else None))

    async def events(self, request: web.Request, query: EventsQuery) -> web.StreamResponse:
        backend = self._backend
        member = require_member(request, backend) if query.subject is not None else None
        wanted = Filter(
            contract=query.contract,
            subject=bytes.fromhex(query.subject) if query.subject is not None else None,
            member=bytes.fromhex(query.member) if query.member is not None else None,
        )
        after = _last_event_id(request) or end_of(query.from_ - 1 if query.from_ else backend.heights().executed)
        return await self._events.serve(
            request, after, wanted, check=lambda: backend.check_reader(member) if member is not None else None
        )

    async def network(self, request: web.Request, query: NetworkQuery) -> web.Response:
        return _json(self._backend.network())

    async def genesis(self, request: web.Request, query: NoQuery) -> web.Response:
        genesis = self._backend.genesis
        if _wants(request, JSON) == MSGPACK:
            return _msgpack(genesis.encode())
        return web.Response(text=genesis.to_json(), content_type=JSON)

    async def openapi(self, request: web.Request, query: NoQuery) -> web.Response:
        return web.Response(body=self._description, content_type=JSON)

    async def healthz(self, request: web.Request, query: NoQuery) -> web.Response:
        return _json(Health(status="ok"))

    async def readyz(self, request: web.Request, query: NoQuery) -> web.Response:
        reason = self._backend.ready()
        if reason is not None:
            raise Rejection("not_ready", reason)
        return _json(Health(status="ready", detail=self._backend.ailment()))

    async def metrics(self, request: web.Request, query: NoQuery) -> web.Response:
        return web.Response(body=self._backend.metrics.render(), headers={"Content-Type": METRICS_TYPE})

    async def _submit(self, items: list[Item]) -> list[Submission]:
        submissions: list[Submission] = []
        for start in range(0, len(items), SUBMIT_BATCH):
            batch = items[start : start + SUBMIT_BATCH]
            submissions += self._backend.submit([(item.envelope, item.bodies) for item in batch])
            await asyncio.sleep(0)
        return submissions

    async def _result(self, submission: Submission, query: SubmitQuery) -> TransactionResult:
        tx_id, rejection = submission
        if rejection is not None:
            return TransactionResult(
                id=tx_id.hex() if tx_id is not None else None,
                status="refused",
                code=rejection.code,
                detail=rejection.detail,
            )
        assert tx_id is not None, "what was accepted has an id"
        if query.wait == "accepted":
            return status_view(tx_id, self._backend.status(tx_id))
        wait_ms_max = self._settings.wait_ms_max
        wait_ms = wait_ms_max if query.wait_ms is None else min(query.wait_ms, wait_ms_max)
        status = await self._backend.wait(tx_id, query.wait, wait_ms / 1_000)
        return status_view(tx_id, status)

    @contextmanager
    def _wait_room(self, wait: Wait) -> Iterator[None]:
        """Room for one request that waits, from before it is read until it is answered."""
        waits = wait != "accepted"
        if waits and self._waiting >= WAITS_MAX:
            raise Rejection("busy", "too many requests wait")
        self._waiting += waits
        try:
            yield
        finally:
            self._waiting -= waits

    @contextmanager
    def _upload_room(self, request: web.Request) -> Iterator[None]:
        """Room for one request's body, from before it is read until it was checked."""
        if request.headers.get("Content-Encoding", "identity") != "identity":
            raise Rejection("unsupported_media_type", "bodies come without a content encoding")
        size_max = self._settings.request_bytes_max
        size = request.content_length if request.content_length is not None else size_max
        if size > size_max:
            raise Rejection("too_large", f"a request has at most {size_max} bytes")
        if self._upload_bytes + size > UPLOADS_MAX * size_max:
            raise Rejection("busy", "too many submissions at once")
        self._upload_bytes += size
        try:
            yield
        finally:
            self._upload_bytes -= size

    async def _body(self, request: web.Request) -> bytes:
        try:
            async with asyncio.timeout(BODY_S):
                return await request.read()
        except TimeoutError:
            raise Rejection("request_timeout", f"the body took longer than {BODY_S:.0f} s") from None
        except (ConnectionError, web.RequestPayloadError):
            # The other side's fault, though it may not be there to read it.
            raise Rejection("bad_request", "the body ended early, or is not what its headers say") from None


class _Shape(NamedTuple):
    """What parameters parse as. `whole` are integers, `optional` None where they are not given."""

    parameters: type[msgspec.Struct]
    whole: frozenset[str]
    optional: frozenset[str]


def _shape(parameters: type[msgspec.Struct]) -> _Shape:
    fields = msgspec.structs.fields(parameters)
    return _Shape(
        parameters,
        whole=frozenset(field.encode_name for field in fields if _is_int(field.type)),
        optional=frozenset(field.encode_name for field in fields if field.default is None),
    )


def _parameters(shape: _Shape, request: web.Request) -> msgspec.Struct:
    """Path and query as one typed value, or Rejection("bad_request"): unknown and repeated ones are refused too.

    The library reads more from text than it should: 1e3 as a number, and "null" as if nothing had been asked for.
    """
    query, path = request.query, request.match_info
    if len(set(query)) != len(query) or not path.keys().isdisjoint(query):
        raise Rejection("bad_request", "a parameter is given twice")
    given = {**query, **path}
    if not all(re.fullmatch(r"-?[0-9]{1,20}", given[name]) for name in shape.whole & given.keys()):
        raise Rejection("bad_request", "a number is digits alone")
    if any(given[name].lower() == "null" for name in shape.optional & given.keys()):
        raise Rejection("bad_request", "what is not wanted is left out")
    try:
        return msgspec.convert(given, shape.parameters, strict=False)
    except msgspec.ValidationError as error:
        raise Rejection("bad_request", f"parameters: {_without_echo(error)}") from None


def _is_int(kind: Any) -> bool:
    if get_origin(kind) in (Union, UnionType):
        return any(_is_int(each) for each in get_args(kind))
    return get_origin(kind) is Annotated and get_args(kind)[0] is int


def _decode(request: web.Request, data: bytes, decoders: Mapping[str, Callable[[bytes], Content]]) -> Content:
    decoder = decoders.get(request.content_type)
    if decoder is None:
        raise Rejection("unsupported_media_type", f"send {MSGPACK} or {JSON}")
    try:
        return decoder(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Rejection("bad_request", f"body: {_without_echo(error)}") from None


def _without_echo(error: Exception) -> str:
    """The decoder's message without what it quotes from the request, which may be content."""
    text = re.sub(r"unknown field `.*", "an unknown field", str(error), flags=re.DOTALL)
    return re.sub(r"Invalid enum value .*", "Not one of the values allowed", text, flags=re.DOTALL)


def _last_event_id(request: web.Request) -> EventId | None:
    """Where a reader that comes back goes on."""
    values = request.headers.getall("Last-Event-ID", [])
    if len(values) > 1:
        raise Rejection("bad_request", "more than one Last-Event-ID header")
    return parse_event_id(values[0]) if values else None


def _wants(request: web.Request, default: str) -> str:
    """JSON or MSGPACK: the one that Accept names first, else `default`."""
    accept = ",".join(request.headers.getall("Accept", []))
    named = [part.partition(";")[0].strip().lower() for part in accept.split(",")]
    return next((kind for kind in named if kind in (JSON, MSGPACK)), default)


def _json(view: msgspec.Struct, *, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(view), status=status, content_type=JSON)


def _msgpack(data: bytes) -> web.Response:
    return web.Response(body=data, content_type=MSGPACK)
