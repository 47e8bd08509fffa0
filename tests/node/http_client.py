"""A client of one running provider port, with the checks that every answer must pass."""

import asyncio
import json
from typing import Any

import aiohttp
import msgpack
from yarl import URL

from ledger.keys import sha256
from ledger.request import sign_request
from ledger.transaction import Transaction
from node.problems import PROBLEMS, RETRIED
from tests.ledger.founding import (
    account_of,
    signing_key,
)
from tests.node.fake_backend import FakeBackend

MSGPACK = "application/msgpack"
REQUEST_BYTES_MAX = 2 * 1024 * 1024
SUBJECT = sha256(b"subject").hex()


class Port:
    """A client of one running port. `ask` gives (status, headers, body)."""

    def __init__(self, url: str, session: aiohttp.ClientSession, backend: FakeBackend) -> None:
        self.url = url
        self.session = session
        self.backend = backend

    async def ask(
        self, method: str, path: str, *, signer: str | None = None, key: str | None = None, **options: Any
    ) -> tuple[int, Any, bytes]:
        headers = dict(options.pop("headers", {}))
        if signer is not None:
            headers["Authorization"] = sign_request(
                signing_key(key or signer),
                account_of(signer),
                self.backend.node_id,
                method,
                path,
                b"",
                self.backend.clock_ms,
            )
        target = URL(self.url + path, encoded=True)
        async with self.session.request(method, target, headers=headers, **options) as answer:
            return answer.status, answer.headers, await answer.read()

    async def get(self, path: str, **options: Any) -> Any:
        status, headers, body = await self.ask("GET", path, **options)
        assert status == 200, body
        assert headers["Content-Type"].startswith("application/json")
        return json.loads(body)

    async def bytes_of(self, path: str, accept: str = MSGPACK, **options: Any) -> bytes:
        status, headers, body = await self.ask("GET", path, headers={"Accept": accept}, **options)
        assert (status, headers["Content-Type"]) == (200, accept)
        return body

    async def problem(self, method: str, path: str, **options: Any) -> str:
        """The code of an answer that is an error, once everything about its form was checked."""
        status, headers, body = await self.ask(method, path, **options)
        assert headers["Content-Type"] == "application/problem+json"
        problem = json.loads(body)
        assert (status, problem["title"]) == PROBLEMS[problem["code"]]
        assert problem["status"] == status
        assert problem["type"] == "about:blank"
        assert ("Retry-After" in headers) == (problem["code"] in RETRIED)
        assert ("WWW-Authenticate" in headers) == (status == 401)
        return str(problem["code"])

    async def send(self, *transactions: Transaction, wait: str = "accepted", bodies: Any = ()) -> Any:
        """Submit a list; the results."""
        items = [item(each, bodies) for each in transactions]
        status, _, body = await self.post(items, wait)
        assert status == 200, body
        return json.loads(body)["results"]

    async def post(self, content: Any, wait: str = "accepted", content_type: str = MSGPACK) -> tuple[int, Any, bytes]:
        return await self.ask("POST", f"/v1/transactions?wait={wait}", **posted(content, content_type))

    async def refusal(self, content: Any, content_type: str = MSGPACK) -> str:
        """The code by which a submission of one is refused; nothing may stay of it."""
        heights, waiting = self.backend.heights(), len(self.backend.pool)
        code = await self.problem("POST", "/v1/transactions", **posted(content, content_type))
        assert (self.backend.heights(), len(self.backend.pool)) == (heights, waiting)
        return code


async def raw(port: Port, request: bytes) -> bytes:
    """The whole answer to bytes that a client library would not send."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(port.url.rpartition(":")[2]))
    writer.write(request)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


def item(transaction: Transaction, bodies: Any = ()) -> dict[str, Any]:
    return {"envelope": transaction.data, "bodies": list(bodies)}


def posted(content: Any, content_type: str) -> dict[str, Any]:
    data = content if isinstance(content, bytes) else msgpack.packb(content)
    return {"data": data, "headers": {"Content-Type": content_type}}
