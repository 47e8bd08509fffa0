"""A reader of /v1/events that knows nothing but the format."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import aiohttp
from yarl import URL

from tests.node.http_client import Port

READ_TIMEOUT_S = 10.0


class Message(NamedTuple):
    """One message; `name` is "" and `data` None where only a place is told."""

    id: str
    name: str
    data: Any


class Stream:
    """The messages of one connection, one by one."""

    def __init__(self, content: aiohttp.StreamReader) -> None:
        self._content = content

    async def next(self) -> Message | None:
        """The next message, heartbeats included; None at the end."""
        fields: dict[str, str] = {}
        async with asyncio.timeout(READ_TIMEOUT_S):
            while (line := (await self._content.readline()).decode()) not in ("", "\n"):
                name, _, value = line.rstrip("\n").partition(": ")
                fields[name] = value
        if not line:
            assert not fields, "a message was cut in two"
            return None
        data = fields.get("data")
        return Message(fields["id"], fields.get("event", ""), None if data is None else json.loads(data))

    async def events(self, count: int) -> list[Message]:
        """The next so many that are no heartbeats."""
        found: list[Message] = []
        while len(found) < count:
            message = await self.next()
            assert message is not None, f"the stream ended after {len(found)} of {count} events"
            if message.name:
                found.append(message)
        return found

    async def rest(self) -> list[Message]:
        """All that are no heartbeats, to the end of the stream."""
        found: list[Message] = []
        while (message := await self.next()) is not None:
            if message.name:
                found.append(message)
        return found


@asynccontextmanager
async def stream(port: Port, query: str = "", *, after: str | None = None, **headers: str) -> AsyncIterator[Stream]:
    """A stream that is being served."""
    target = URL(f"{port.url}/v1/events{query}", encoded=True)
    if after is not None:
        headers["Last-Event-ID"] = after
    async with port.session.get(target, headers=headers) as answer:
        assert answer.status == 200, await answer.read()
        assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert answer.headers["Cache-Control"] == "no-store"
        yield Stream(answer.content)


async def ids(port: Port, count: int, query: str = "?from=1", **options: Any) -> list[str]:
    """The ids of the next `count` events of a new stream."""
    async with stream(port, query, **options) as one:
        return [message.id for message in await one.events(count)]
