"""HTTP to whichever of several nodes answers.

The nodes are tried in the order given, so a hospital's own comes first; one that failed goes to the back for
`avoid_s`. Trying each of them once is a round. Between rounds there is a pause that doubles from `pause_min_s` to
`pause_max_s`, with jitter, and is at least what a node asked for by Retry-After (of which RETRY_AFTER_MAX_S is
heeded).
"""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import NoReturn, TypeVar

import aiohttp
import msgspec
from yarl import URL

from ledger.errors import Rejection

MSGPACK = "application/msgpack"
JSON = "application/json"
OCTETS = "application/octet-stream"
RETRY_AFTER_MAX_S = 5.0
ANSWER_BYTES_MAX = 32 * 1024 * 1024
# Refusals that time alone may mend. So may every status from 500 on.
TEMPORARY = frozenset(
    {"busy", "not_confirmed", "not_ready", "not_sealed", "pool_full", "request_timeout", "stale_answer"}
)

T = TypeVar("T")
_jitter = random.SystemRandom()


@dataclass(frozen=True, slots=True)
class Settings:
    """How patient a client is, in seconds, and how many connections it keeps to each node.

    `answer_timeout_s` bounds one request at one node, `read_timeout_s` one read over all of them. A submission is
    bounded by its transaction's `until`. A stream of events is given up when no node has served it for
    `stream_timeout_s`; a connection on which nothing came for `silence_s` is dead, as nodes say something every 15 s.
    """

    connect_timeout_s: float = 3.0
    answer_timeout_s: float = 10.0
    read_timeout_s: float = 15.0
    silence_s: float = 45.0
    stream_timeout_s: float = 60.0
    avoid_s: float = 5.0
    pause_min_s: float = 0.05
    pause_max_s: float = 2.0
    connections_max: int = 256


class Unreachable(Rejection):
    """No node gave a usable answer in time. `code` is "unreachable", or what the last of them said."""


class Refused(Rejection):
    """A node said no, with its stable code and the HTTP status."""

    def __init__(self, code: str, detail: str, status: int, retry_after_s: float = 0.0) -> None:
        super().__init__(code, detail)
        self.status = status
        self.retry_after_s = retry_after_s

    @property
    def temporary(self) -> bool:
        return self.code in TEMPORARY or self.status >= 500


class NodeFailed(Exception):  # noqa: N818 - what happened, in the words of the one who waits
    """One node did not answer, or not sensibly. `sent`: it may have received the request, and acted on it."""

    def __init__(self, url: str, why: str, *, sent: bool) -> None:
        super().__init__(f"{url}: {why}")
        self.sent = sent


@dataclass(slots=True, eq=False)
class Node:
    """`id` is None until asked for; until `avoid_until` (monotonic, s) the node is at the back of the order."""

    url: str
    id: str | None = None
    avoid_until: float = 0.0


class _Problem(msgspec.Struct, frozen=True):
    code: str
    detail: str = ""


# (node, target) to the Authorization header
Authorise = Callable[[Node, str], Awaitable[str]]


class Transport:
    """The connections of one client: `async with Transport(...)`."""

    def __init__(self, urls: Sequence[str], settings: Settings) -> None:
        if not urls:
            raise ValueError("a client needs the URL of at least one node")
        self.nodes = [Node(url.rstrip("/")) for url in urls]
        self.settings = settings
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "Transport":
        settings = self.settings
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, limit_per_host=settings.connections_max),
            timeout=aiohttp.ClientTimeout(total=settings.answer_timeout_s, sock_connect=settings.connect_timeout_s),
            headers={"Accept-Encoding": "identity"},
            auto_decompress=False,
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._session is not None, "left once for each time it was entered"
        await self._session.close()
        self._session = None

    async def rounds(self, pauses: "Pauses") -> AsyncIterator[Node]:
        """The nodes, round after round, until the caller has what it wants."""
        while True:
            now = time.monotonic()
            # Not avoided (False) sorts first; the sort is stable, so the order given stands.
            for node in sorted(self.nodes, key=lambda node: node.avoid_until > now):
                yield node
            await pauses.take()

    async def request(
        self,
        node: Node,
        method: str,
        target: str,
        headers: dict[str, str],
        body: bytes | None = None,
        *,
        statuses: Collection[int] = (200,),
    ) -> bytes:
        """One request at one node: the body of its answer, if that has one of these statuses.

        `target` is path and query, sent as it is. Raises Refused or NodeFailed.
        """
        if self._session is None:
            raise RuntimeError("use the client inside `async with`")
        try:
            async with self._session.request(
                method,
                URL(node.url + target, encoded=True),
                headers=headers,
                data=body,
                allow_redirects=False,
            ) as response:
                answer = await _read_bounded(response.content)
                status, retry_after = response.status, response.headers.get("Retry-After", "")
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            unsent = isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)
            self._fail(node, type(error).__name__, sent=not unsent)
        if answer is None:
            self._fail(node, f"an answer of more than {ANSWER_BYTES_MAX} bytes", sent=True)
        if status not in statuses:
            self._refuse(node, answer, status, retry_after)
        node.avoid_until = 0.0
        return answer

    async def chunks(self, node: Node, target: str, headers: dict[str, str]) -> AsyncGenerator[bytes, None]:
        """The pieces of an answer that goes on, as they come; it ends where the node ends it.

        Raises Refused, and NodeFailed also when nothing has come for `silence_s`.
        """
        if self._session is None:
            raise RuntimeError("use the client inside `async with`")
        settings = self.settings
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=settings.connect_timeout_s, sock_read=settings.silence_s
        )
        try:
            async with self._session.get(
                URL(node.url + target, encoded=True), headers=headers, timeout=timeout, allow_redirects=False
            ) as response:
                if response.status == 200:
                    node.avoid_until = 0.0
                    async for chunk in response.content.iter_any():
                        yield chunk
                    return
                answer = await _read_bounded(response.content) or b""
                status, retry_after = response.status, response.headers.get("Retry-After", "")
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            self._fail(node, type(error).__name__, sent=True)
        self._refuse(node, answer, status, retry_after)

    async def read(
        self,
        target: str,
        accept: str,
        check: Callable[[bytes], T],
        authorise: Authorise | None = None,
        *,
        body: bytes | None = None,
    ) -> T:
        """What `check` makes of the first answer that it accepts. With `body`, canonical MessagePack, it is a POST.

        A node that refuses, or whose answer `check` refuses by Rejection, is passed over for the next: it may lag,
        or lie. The refusal is raised when a whole round has brought nothing that could mend with time, or once
        `read_timeout_s` is over: as Refused, as `check`'s Rejection, or as Unreachable.
        """
        pauses = Pauses(self.settings)
        deadline = time.monotonic() + self.settings.read_timeout_s
        remaining, mendable = len(self.nodes), False
        refusal: Rejection | None = None
        async for node in self.rounds(pauses):
            try:
                headers = {"Accept": accept}
                if authorise is not None:
                    headers["Authorization"] = await authorise(node, target)
                if body is not None:
                    headers["Content-Type"] = MSGPACK
                return check(await self.request(node, "GET" if body is None else "POST", target, headers, body))
            except NodeFailed as error:
                mendable = True
                refusal = refusal or Unreachable("unreachable", str(error))
            except Rejection as error:
                temporary = error.temporary if isinstance(error, Refused) else error.code in TEMPORARY
                mendable = mendable or temporary
                # What a node said of the matter tells more than that another is down.
                if refusal is None or isinstance(refusal, Unreachable) or not temporary:
                    refusal = error
                pauses.heed(error)
            remaining -= 1
            if remaining == 0:
                if not mendable or time.monotonic() >= deadline:
                    break
                remaining, mendable = len(self.nodes), False
        assert refusal is not None, "a round without an answer leaves a reason"
        raise refusal

    def _fail(self, node: Node, why: str, *, sent: bool) -> NoReturn:
        self.avoid(node)
        raise NodeFailed(node.url, why, sent=sent) from None

    def _refuse(self, node: Node, answer: bytes, status: int, retry_after: str) -> NoReturn:
        """Raise what an answer with another status says."""
        try:
            problem = msgspec.json.decode(answer, type=_Problem)
        except (msgspec.DecodeError, UnicodeError):
            self._fail(node, f"status {status} without a problem that explains it", sent=True)
        if status >= 500:
            self.avoid(node)
        seconds = min(float(retry_after), RETRY_AFTER_MAX_S) if retry_after.isdecimal() else 0.0
        raise Refused(problem.code, problem.detail, status, seconds)

    def avoid(self, node: Node) -> None:
        """Ask the others first, for a while."""
        node.avoid_until = time.monotonic() + self.settings.avoid_s


class Pauses:
    """The pauses between the rounds of one operation."""

    def __init__(self, settings: Settings) -> None:
        self._next_s = self._min_s = settings.pause_min_s
        self._max_s = settings.pause_max_s
        self._asked_s = 0.0

    def reset(self) -> None:
        """Things go well again: the next pause is short."""
        self._next_s = self._min_s

    def heed(self, refusal: Rejection) -> None:
        """Let the next pause be at least what a node asked for."""
        if isinstance(refusal, Refused):
            self._asked_s = max(self._asked_s, refusal.retry_after_s)

    async def take(self) -> None:
        pause_s = max(self._asked_s, self._next_s * _jitter.uniform(0.5, 1.0))
        self._next_s = min(self._next_s * 2, self._max_s)
        self._asked_s = 0.0
        await asyncio.sleep(pause_s)


async def _read_bounded(content: aiohttp.StreamReader) -> bytes | None:
    """All of it, or None if it is longer than ANSWER_BYTES_MAX."""
    chunks, size = [], 0
    async for chunk in content.iter_any():
        chunks.append(chunk)
        size += len(chunk)
        if size > ANSWER_BYTES_MAX:
            return None
    return b"".join(chunks)
