"""A network that is watched: what its nodes store, send, log, count and answer, gathered to be searched.

Two nodes run as processes. Two run in this process, over the same TLS links, so that each message is seen before it
is encrypted or after it was decrypted. All log at DEBUG.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from carequorum.devnet import Devnet, DevnetNode, create
from network.frames import HEADER_BYTES, MORE
from network.messages import KIND_BY_NUMBER
from network.port import Direction, Tap
from node.config import LoggingSection, load_config
from node.daemon import identify, running
from node.logs import logs
from node.node import Node
from storage.leveldb import LevelDb

ANSWER_TIMEOUT_S = 20.0
CHUNK_BYTES = 64 * 1024


@dataclass(slots=True)
class Recorder:
    """Every message that a watched node sent or received, whole, each once: its kind's number, then its bytes."""

    messages: set[bytes] = field(default_factory=set)
    _unfinished: dict[tuple[str, Direction, str, int], bytes] = field(default_factory=dict)

    def tap(self, node_id: str) -> Tap:
        def see(direction: Direction, peer: str, frame: bytes) -> None:
            stream = (node_id, direction, peer, frame[1] & ~MORE)
            message = self._unfinished.pop(stream, frame[:1]) + frame[HEADER_BYTES:]
            if frame[1] & MORE:
                self._unfinished[stream] = message
            else:
                self.messages.add(message)

        return see

    def whole(self) -> list[bytes]:
        """What was recorded, and what the end of a connection cut short."""
        return [*self.messages, *self._unfinished.values()]

    def kinds(self) -> set[str]:
        return {KIND_BY_NUMBER[message[0]].name for message in self.messages}


@dataclass(slots=True)
class Watched:
    """`outside` run as processes, `inside` here: those of them that run by id. `log` is this process's."""

    network: Devnet
    recorder: Recorder
    log: Path
    inside: dict[str, Node]
    _stack: AsyncExitStack

    @property
    def outside(self) -> list[DevnetNode]:
        return self.network.nodes[:2]

    async def join(self, node: DevnetNode) -> None:
        """Start a node in this process."""
        config = load_config(self.network.folder(node) / "node.toml")
        self.inside[node.id] = await self._stack.enter_async_context(
            running(config, identify(config), self.recorder.tap(node.id))
        )

    async def stop(self) -> None:
        """Stop every node in order, so that its store can be read."""
        self.inside.clear()
        await self._stack.aclose()
        ended = await asyncio.to_thread(self.network.stop, self.outside)
        assert {how and how.code for how in ended.values()} == {0}

    def logged(self) -> list[bytes]:
        return [path.read_bytes() for path in (self.log, *map(self.network.log, self.outside))]

    def stored(self, node: DevnetNode) -> Iterator[bytes]:
        """The keys, without the byte that names their table, and the values. `node` does not run."""
        database = LevelDb(self.store(node), create=False)
        try:
            for key, value in database.range(b"", b"\xff" * 16):
                yield key[1:]
                yield value
        finally:
            database.close()

    def store(self, node: DevnetNode) -> Path:
        return self.network.folder(node) / "data" / "ledger"


@asynccontextmanager
async def watched(directory: Path) -> AsyncIterator[Watched]:
    """Three nodes of four run; the last has yet to `join`."""
    network = create(directory, settings={"logging": {"level": "debug"}})
    log = directory / "inside.log"
    try:
        with logs(LoggingSection(level="debug", file=log)):
            async with AsyncExitStack() as stack:
                found = Watched(network, Recorder(), log, {}, stack)
                starting = asyncio.create_task(asyncio.to_thread(network.start, found.outside))
                await found.join(network.nodes[2])
                await starting
                yield found
    finally:
        await asyncio.to_thread(network.kill, network.nodes)


async def answer(url: str, request: bytes) -> bytes:
    """What the port says, head and body, to these very bytes; as much as arrives where it hangs up on the sender."""
    target = urlsplit(url)
    said = bytearray()
    async with asyncio.timeout(ANSWER_TIMEOUT_S):
        reader, writer = await asyncio.open_connection(target.hostname, target.port)
        writer.write(request)
        with suppress(ConnectionResetError):
            while some := await reader.read(CHUNK_BYTES):
                said += some
        writer.close()
    return bytes(said)


def http(method: str, target: str, body: bytes = b"", **headers: str) -> bytes:
    """A request; in the names of headers, underscores for hyphens."""
    lines = [f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items()]
    head = f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\nConnection: close\r\n"
    return (head + "".join(lines)).encode() + b"\r\n" + body
