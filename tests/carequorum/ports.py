"""Provider ports for a client to talk to: the node's own HTTP over real sockets, with faults on demand.

Behind them is one ledger, whose blocks are made as soon as a transaction comes; consensus is left out.
"""

import copy
import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Handler

from carequorum.client import Client
from carequorum.transport import Settings
from carequorum.wallet import COST_DEVELOPMENT, Wallet
from ledger.contracts.identity import Register, Role
from node.config import ProviderSection
from node.http_api import make_app
from node.http_types import Submission
from tests.ledger.founding import CHAIN, GENESIS, NOW_MS, account_of, sign
from tests.node.fake_backend import FakeBackend

PASSPHRASE = b"passphrase"
QUICK = Settings(pause_min_s=0.001, pause_max_s=0.002)
IMPATIENT = Settings(pause_min_s=0.001, pause_max_s=0.002, read_timeout_s=0.0)

Fault = Callable[[web.Request, Handler], Awaitable[web.StreamResponse]]


class Hospital(FakeBackend):
    """A node that commits what it takes, at once."""

    def __init__(self) -> None:
        super().__init__(GENESIS)

    def submit(self, items: Sequence[tuple[bytes, Sequence[bytes]]]) -> list[Submission]:
        answers = super().submit(items)
        if len(self.pool):
            self.commit()
        return answers

    def twin(self, node_id: str) -> "Hospital":
        """Another node that has the same ledger."""
        twin = copy.copy(self)
        twin.node_id = node_id
        return twin

    def register(self, wallet: Wallet, role: Role, organisation: str = "north") -> None:
        """As the organisation's admin."""
        admin = f"{organisation}-admin"
        proof = wallet.possession_proof(CHAIN, account_of(admin))
        transaction = sign([Register(wallet.public_key, proof, role)], by=admin)
        (answer,) = self.submit([(transaction.data, [])])
        assert answer.rejection is None, answer.rejection


class Port:
    """One node's port. `faults` are used up by the next requests, one each; `requests` and `bodies` are what came,
    `refusals` the codes that went back."""

    def __init__(self, backend: FakeBackend) -> None:
        self.backend = backend
        self.faults: deque[Fault] = deque()
        self.requests: list[str] = []
        self.bodies: list[bytes] = []
        self.refusals: list[str] = []
        self.url = ""

    @web.middleware
    async def serve(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self.requests.append(f"{request.method} {request.raw_path}")
        self.bodies.append(await request.read())
        response = await (self.faults.popleft()(request, handler) if self.faults else handler(request))
        if response.status != 200 and isinstance(response, web.Response) and response.body:
            with suppress(ValueError):
                self.refusals.append(json.loads(response.text or "")["code"])
        return response


@asynccontextmanager
async def open_port(backend: FakeBackend) -> AsyncIterator[Port]:
    port = Port(backend)
    app = make_app(backend, ProviderSection())
    app.middlewares.insert(0, port.serve)
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield port
    finally:
        await runner.cleanup()


def client_of(
    ports: Sequence[Port | str],
    wallet: Wallet | None = None,
    now_ms: Callable[[], int] = lambda: NOW_MS,
    settings: Settings = QUICK,
) -> Client:
    urls = [port if isinstance(port, str) else port.url for port in ports]
    return Client(urls, GENESIS, wallet, settings=settings, now_ms=now_ms)


def make_wallet(folder: Path, name: str) -> Wallet:
    return Wallet.create(folder / f"{name}.wallet", PASSPHRASE, cost=COST_DEVELOPMENT, label=name)


def answers(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Fault:
    """Say this, and do nothing."""

    async def fault(request: web.Request, handler: Handler) -> web.StreamResponse:
        return web.Response(body=body, status=status, headers=headers)

    return fault


def refuses(code: str, status: int, retry_after: str | None = None) -> Fault:
    """A problem, without doing anything."""
    headers = {"Retry-After": retry_after} if retry_after is not None else {}
    return answers(b'{"code":"%s","detail":"said by a test"}' % code.encode(), status, headers)


async def does_as_asked(request: web.Request, handler: Handler) -> web.StreamResponse:
    """No fault: the next one is for a later request."""
    return await handler(request)


async def loses_the_answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Do as asked, and cut the connection."""
    response = await handler(request)
    assert request.transport is not None
    request.transport.abort()
    return response


async def loses_the_request(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Cut the connection."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def closed_url() -> str:
    """The URL of a port where nobody listens any more."""
    async with open_port(Hospital()) as port:
        return port.url
