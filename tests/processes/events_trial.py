"""Every event once through a reader that stalls, disconnects and resumes, and commits as fast as without it.

    python -m tests.processes.events_trial [--events 20000] [--rounds 20] [--keep DIR]        `make events-trial`

Three real daemons; one process that writes single-action transactions, so many in flight, always at the node that
also serves the reader; one process that reads, with the SDK. The run is a row of rounds, each of two stretches with
equally many transactions, the one first in every other round that is second in the rest. In one of them nobody
reads. Before the other the reader comes back and fetches what it missed; during it, it follows what is committed,
stalls now and then, and disconnects now and then, to go on at this node or another. Commit latencies of the two are
compared within each round, so that a machine which is busy with other things is so for both. The reader runs at the
lowest priority: it stands for one on a machine of its own.

Then another reader begins at height 1 and takes nothing until it is cut, and goes on to the end.
Both must have seen every transaction of every block once, in the order of the chain.
"""

import argparse
import asyncio
import json
import os
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.request import urlopen

import msgspec

from bench.gauges import processor_s
from carequorum.client import Client
from carequorum.devnet import Devnet, DevnetNode, create
from carequorum.events import Event
from carequorum.wallet import Wallet, read_passphrase
from ledger.contracts.records import Add
from ledger.events import EventId, parse_event_id
from ledger.keys import sha256
from tests.processes.hospitals import enrol, settled, started, urls_from

ROOT = Path(__file__).resolve().parents[2]
REPORT = ROOT / "build" / "events-trial.json"
NODES = 3
IN_FLIGHT = 16
WARM_UP = 64
BODY_BYTES = 300
STALL_EVERY, STALL_S = 400, 1.0
RECONNECT_EVERY = 1_300
RATIO_MAX = 1.1
CUT_TIMEOUT_S = 120.0
LINE_BYTES_MAX = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Figures:
    """`ratio`: the median over the rounds of median commit latency with the reader by that without it."""

    events: int
    exactly_once: bool
    exactly_once_after_cut: bool | None
    connections: int
    stalls: int
    cut_too_slow: int
    commit_ms_without: float
    commit_ms_with: float
    ratio: float
    ratios: list[float]
    commits_per_s_without: float
    commits_per_s_with: float
    node_cpu_ms_per_commit_without: float
    node_cpu_ms_per_commit_with: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Stretch:
    """Commits, one latency each; how long all of them took, and how much CPU time of the node that serves both."""

    latencies_ms: list[float]
    seconds: float
    cpu_s: float

    @property
    def median_ms(self) -> float:
        return statistics.median(self.latencies_ms)


class Child:
    """This module in a process of its own: a line goes in, a line of JSON comes out."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, role: str, network: Devnet, *arguments: str) -> "Child":
        process = await asyncio.create_subprocess_exec(
            *(
                sys.executable,
                "-m",
                "tests.processes.events_trial",
                "--child",
                role,
                str(network.directory),
                *arguments,
            ),
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=LINE_BYTES_MAX,
        )
        return cls(process)

    def say(self, *words: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write((" ".join(str(word) for word in words) + "\n").encode())

    async def hear(self) -> dict[str, object]:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a child ended with {await self._process.wait()}")
        answer: dict[str, object] = json.loads(line)
        return answer

    async def ask(self, *words: object) -> dict[str, object]:
        self.say(*words)
        return await self.hear()

    async def end(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()


async def run(folder: Path, events: int, rounds: int, *, cut: bool) -> Figures:
    """The trial in a new network in `folder`; `cut`: the second reader too, for which it takes some megabytes."""
    network = create(folder / "net", NODES)
    begun_s = time.monotonic()
    async with started(network):
        served = network.nodes[0]
        await enrol(network, served, folder, "writer", "clinician")
        writer = await Child.start("writer", network, str(folder / "writer.wallet"))
        reader = await Child.start("reader", network)
        try:
            pid = network.pid(served)
            assert pid is not None, "it was started"
            without, with_ = await _rounds(writer, reader, pid, events, rounds)
            views = await settled(network)
            expected = await _expected(network, views[0].head.height)
            seen = await reader.ask("finish", expected[-1])
            cut_seen = await _cut_reader(network, served, reader, expected[-1]) if cut else None
        finally:
            await writer.end()
            await reader.end()
        cuts = sum([await asyncio.to_thread(_cuts, node) for node in network.nodes])
    ratios = [one.median_ms / other.median_ms for one, other in zip(with_, without, strict=True)]
    connections, stalls = seen["connections"], seen["stalls"]
    assert isinstance(connections, int)
    assert isinstance(stalls, int)
    return Figures(
        events=len(expected),
        exactly_once=seen["ids"] == expected,
        exactly_once_after_cut=None if cut_seen is None else cut_seen["ids"] == expected,
        connections=connections,
        stalls=stalls,
        cut_too_slow=cuts,
        commit_ms_without=_median_ms(without),
        commit_ms_with=_median_ms(with_),
        ratio=round(statistics.median(ratios), 3),
        ratios=[round(ratio, 3) for ratio in ratios],
        commits_per_s_without=_rate(without),
        commits_per_s_with=_rate(with_),
        node_cpu_ms_per_commit_without=_cpu_ms(without),
        node_cpu_ms_per_commit_with=_cpu_ms(with_),
        seconds=round(time.monotonic() - begun_s, 1),
    )


async def _rounds(
    writer: Child, reader: Child, node_pid: int, events: int, rounds: int
) -> tuple[list[Stretch], list[Stretch]]:
    """The stretches without and with the reader."""
    count = -(-events // (2 * rounds))
    stretches: dict[bool, list[Stretch]] = {False: [], True: []}
    await writer.ask("commit", WARM_UP)
    # The writer's own registration was the first event.
    committed = 1 + WARM_UP
    for done in range(rounds):
        for reads in (False, True) if done % 2 == 0 else (True, False):
            if reads:
                await reader.ask("catch_up", committed)
            stretches[reads].append(await _stretch(writer, node_pid, count))
            committed += count
            if reads:
                await reader.ask("pause")
    return stretches[False], stretches[True]


async def _stretch(writer: Child, node_pid: int, count: int) -> Stretch:
    before_s = processor_s(node_pid)
    answer = await writer.ask("commit", count)
    return msgspec.convert({**answer, "cpu_s": processor_s(node_pid) - before_s}, Stretch)


async def _expected(network: Devnet, height: int) -> list[str]:
    """The id of each transaction's only event, from the blocks themselves."""
    async with Client([network.nodes[1].url], network.genesis) as client:
        found: list[str] = []
        for each in range(1, height + 1):
            block = await client.block(each)
            found += [f"{each}.{index}.0" for index in range(len(block.transactions))]
    return found


async def _cut_reader(network: Devnet, served: DevnetNode, reader: Child, last: str) -> dict[str, object]:
    """From the beginning, stalled until the node had enough of it, and then to the end."""
    before = await asyncio.to_thread(_cuts, served)
    await reader.ask("stall")
    async with asyncio.timeout(CUT_TIMEOUT_S):
        while await asyncio.to_thread(_cuts, served) == before:  # noqa: ASYNC110 - it is another process
            await asyncio.sleep(0.5)
    return await reader.ask("resume", last)


def _cuts(node: DevnetNode) -> int:
    """How many readers this node found too slow."""
    with urlopen(f"{node.url}/metrics", timeout=10) as answer:  # noqa: S310 - at 127.0.0.1
        lines = answer.read().decode().splitlines()
    wanted = 'carequorum_event_readers_cut_total{reason="too_slow"}'
    return sum(int(float(line.split()[-1])) for line in lines if line.startswith(wanted))


def _cpu_ms(stretches: Sequence[Stretch]) -> float:
    commits = sum(len(stretch.latencies_ms) for stretch in stretches)
    return round(sum(stretch.cpu_s for stretch in stretches) * 1_000 / commits, 3)


def _median_ms(stretches: Sequence[Stretch]) -> float:
    return round(statistics.median(each for stretch in stretches for each in stretch.latencies_ms), 2)


def _rate(stretches: Sequence[Stretch]) -> float:
    commits = sum(len(stretch.latencies_ms) for stretch in stretches)
    return round(commits / sum(stretch.seconds for stretch in stretches), 1)


# The children.


async def _lines() -> AsyncGenerator[list[str], None]:
    """What the parent says, word by word; over when the parent is."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        yield line.decode().split()


def _answer(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


async def write(network: Devnet, wallet: Wallet) -> None:
    """`commit N`: that many records, IN_FLIGHT at once; how long each waited for its commit."""
    async with Client([network.nodes[0].url], network.genesis, wallet) as client, aclosing(_lines()) as lines:
        async for _, count in lines:
            turns = iter(range(int(count)))
            begun_s = time.monotonic()
            each = await asyncio.gather(*(_commit(client, turns) for _ in range(IN_FLIGHT)))
            _answer(latencies_ms=[one for many in each for one in many], seconds=time.monotonic() - begun_s)


async def _commit(client: Client, turns: Iterator[int]) -> list[float]:
    """A record for each turn; the latencies in ms."""
    latencies_ms = []
    for _ in turns:
        body = secrets.token_bytes(BODY_BYTES)
        action = Add(body=0, record=secrets.token_bytes(32), subject=sha256(b"trial"))
        signed = client.sign([action], [body])
        begun_s = time.monotonic()
        await client.submit_signed(signed.data, [body])
        latencies_ms.append((time.monotonic() - begun_s) * 1_000)
    return latencies_ms


class Reading:
    """The trial's reader. `ids` is what it was given, in that order."""

    def __init__(self, network: Devnet) -> None:
        self._network = network
        self.ids: list[str] = []
        self.connections = 0
        self.stalls = 0
        self._last: EventId | None = None
        self._came = asyncio.Event()
        self._stalls_from = 0

    async def follow(self, last: str | None = None) -> None:
        """Read, stalling and disconnecting by the way; until the event `last`, or until cancelled."""
        while last is None or self._last is None or self._last < parse_event_id(last):
            # Every third connection is to another node than the one that the writer uses.
            node = self._network.nodes[1 if self.connections % 3 == 2 else 0]
            self.connections += 1
            async with Client(urls_from(self._network, node), self._network.genesis) as client:
                first = 1 if self._last is None else None
                async with aclosing(client.events(first, after=self._last)) as events:
                    await self._take(events, last)

    async def reach(self, count: int) -> None:
        """Return once so many events have come; without stalls on the way there, with them from then on."""
        self._stalls_from = count
        while len(self.ids) < count:
            self._came.clear()
            await self._came.wait()

    async def _take(self, events: AsyncGenerator[Event, None], last: str | None) -> None:
        async for event in events:
            self.ids.append(str(event.id))
            self._last = event.id
            if self.ids[-1] == last or len(self.ids) % RECONNECT_EVERY == 0:
                return
            self._came.set()
            if last is None and len(self.ids) % STALL_EVERY == 0 and len(self.ids) > self._stalls_from:
                self.stalls += 1
                await asyncio.sleep(STALL_S)


async def read(network: Devnet) -> None:
    """`catch_up N`, and on, until `pause`; `finish ID`: to the end. `stall`, `resume ID`: another, from height 1."""
    os.nice(19)
    reading, following = Reading(network), asyncio.create_task(asyncio.sleep(0))
    client = Client(urls_from(network, network.nodes[0]), network.genesis)
    async with client, aclosing(_lines()) as lines, aclosing(client.events(1)) as stalled:
        async for command, *words in lines:
            if command == "catch_up":
                following = asyncio.create_task(reading.follow())
                await reading.reach(int(words[0]))
                _answer()
            elif command == "pause":
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)
                _answer(events=len(reading.ids))
            elif command == "finish":
                await reading.follow(words[0])
                _answer(ids=reading.ids, connections=reading.connections, stalls=reading.stalls)
            elif command == "stall":
                ids = [str((await anext(stalled)).id)]
                _answer()
            elif command == "resume":
                while ids[-1] != words[0]:
                    ids.append(str((await anext(stalled)).id))
                _answer(ids=ids)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--keep", type=Path, help="make the network in this new folder, and leave it there")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child is not None:
        role, folder, *words = given.child
        network = Devnet(Path(folder))
        if role == "reader":
            asyncio.run(read(network))
        else:
            path = Path(words[0])
            asyncio.run(write(network, Wallet.open(path, read_passphrase(path.with_suffix(".passphrase")))))
        return 0
    with tempfile.TemporaryDirectory(prefix="events-trial-") as temporary:
        kept: Path = given.keep or Path(temporary)
        kept.mkdir(mode=0o700, parents=True, exist_ok=True)
        figures = asyncio.run(run(kept, given.events, given.rounds, cut=True))
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps(asdict(figures), indent=2) + "\n")
    for name, value in asdict(figures).items():
        print(f"{name:24} {value}")
    holds = figures.exactly_once and figures.exactly_once_after_cut and figures.cut_too_slow > 0
    return 0 if holds and figures.ratio <= RATIO_MAX else 1


if __name__ == "__main__":
    sys.exit(main())
