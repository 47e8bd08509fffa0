"""A load process. Standard input: a Task as one line of JSON, then a number on a line for each run.

    task        ->
                <-  ready           everything is signed
    count       ->
                <-  {"began_ns": ..., "ended_ns": ..., "latencies_ms": [...]}     so many were committed
    ...

It speaks HTTP with as little ado as possible, since what it spends on it the nodes lack.
"""

import asyncio
import sys
import time
from collections import deque

import msgspec
import uvloop

from bench.workload import Sample, Task, samples

ANSWER_TIMEOUT_S = 60.0
ANSWER_BYTES_MAX = 64 * 1024


class Run(msgspec.Struct, frozen=True):
    """One run of one process. The clock is the machine's monotonic one."""

    began_ns: int
    ended_ns: int
    latencies_ms: list[float]


class _Result(msgspec.Struct, frozen=True):
    status: str
    code: str | None = None


class _Answer(msgspec.Struct, frozen=True):
    results: list[_Result]


_decode_answer = msgspec.json.Decoder(_Answer).decode


class LoadError(Exception):
    """A transaction was not committed. One line for people."""


class Submitter:
    """One connection, which submits one transaction at a time and waits until it is committed."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def submit(self, request: bytes) -> float:
        """Milliseconds from the request to the answer. Raises LoadError."""
        head = (
            "POST /v1/transactions?wait=committed HTTP/1.1\r\nHost: localhost\r\n"
            f"Content-Type: application/msgpack\r\nContent-Length: {len(request)}\r\n\r\n"
        )
        begin = time.perf_counter()
        self._writer.write(head.encode("ascii") + request)
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            answered = await self._reader.readuntil(b"\r\n\r\n")
            body = await self._reader.readexactly(_content_length(answered))
        took_ms = (time.perf_counter() - begin) * 1000
        if not answered.startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 202 ")):
            raise LoadError(f"refused: {body[:300]!r}")
        (result,) = _decode_answer(body).results
        if (result.code, result.status) not in (("ok", "committed"), ("ok", "sealed")):
            raise LoadError(f"not committed: {result}")
        return took_ms


async def run(submitters: list[Submitter], waiting: deque[Sample], count: int) -> Run:
    """Submit the next `count` of `waiting`, each submitter one after the other."""
    mine = [waiting.popleft().request for _ in range(count)]
    requests = iter(mine)
    latencies_ms: list[float] = []

    async def work(submitter: Submitter) -> None:
        for request in requests:
            latencies_ms.append(await submitter.submit(request))

    began_ns = time.monotonic_ns()
    async with asyncio.TaskGroup() as group:
        for submitter in submitters:
            group.create_task(work(submitter))
    return Run(began_ns, time.monotonic_ns(), latencies_ms)


async def serve() -> None:
    loop = asyncio.get_running_loop()
    task = msgspec.json.decode(await loop.run_in_executor(None, sys.stdin.buffer.readline), type=Task)
    waiting = deque(samples(task))
    opened = [await asyncio.open_connection("127.0.0.1", task.port) for _ in range(task.in_flight)]
    submitters = [Submitter(reader, writer) for reader, writer in opened]
    print("ready", flush=True)
    while line := await loop.run_in_executor(None, sys.stdin.buffer.readline):
        done = await run(submitters, waiting, int(line))
        print(msgspec.json.encode(done).decode(), flush=True)
    for _, writer in opened:
        writer.close()


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
            if length <= ANSWER_BYTES_MAX:
                return length
    raise LoadError("an answer of unknown or excessive length")


if __name__ == "__main__":
    uvloop.run(serve())
