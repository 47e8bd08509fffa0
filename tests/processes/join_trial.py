"""How much sooner a node takes part that begins with a snapshot than one that executes every block.

    python -m tests.processes.join_trial [--transactions N] [--rounds N] [--keep DIR]        `make join-trial`

Real daemons. Three voters hold a chain of 20,000 records, older than the window in which transaction ids are known;
of the blocks in that window a snapshot holds all, so that a younger chain is no example of a long one. A learner is
voted in and joins again and again with an empty disk, by turns executing every block and from a snapshot.

A join takes from the moment the learner listens until it has executed what the voters have; then its roots are
theirs. The sealed bodies, which a snapshot leaves out and execution does not need, come behind: when they were there
is shown as well. Exits 0 if the median join from a snapshot takes less than a fifth of the median replay.
"""

import argparse
import asyncio
import http.client
import os
import secrets
import shutil
import statistics
import sys
import tempfile
import time
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from bench.gauges import processor_s
from bench.load import Submitter
from bench.load import run as submit
from bench.workload import Task, samples
from carequorum.client import Client, wall_clock_ms
from carequorum.devnet import Devnet, DevnetNode, create
from carequorum.views import Head, NetworkStatus, decode_view
from ledger.contracts.identity import possession_proof
from ledger.keys import SigningKey
from node.daemon import REPLICATE_GAP_BLOCKS
from storage.index import WINDOW_MS
from tests.processes.hospitals import admin_of, enrol, log_of, settled, urls_from
from tests.processes.load import Load
from tests.processes.membership_trial import Figures as Changes
from tests.processes.membership_trial import Trial

Join = Literal["replay", "snapshot"]

VOTERS = 3
IN_FLIGHT = 64
# The trial's chain has few blocks more than it has transactions in a hundredth: default snapshots would be too rare.
INTERVAL_BLOCKS = 20
SHARE_MAX = 0.2
JOIN_TIMEOUT_S = 120.0
ANSWER_TIMEOUT_S = 5.0
POLL_S = 0.02
# Longer than any block of a network at rest takes.
REST_S = 1.0
# Clocks are set forward by so much between the load and what comes after it.
AGE_MS = WINDOW_MS + 60_000
# Records that make the blocks after the window: more than an interval, as a snapshot wants blocks above it; and more
# than a leader sends a learner by itself, however few there are before.
LATER = REPLICATE_GAP_BLOCKS + INTERVAL_BLOCKS


@dataclass(frozen=True, slots=True)
class Joined:
    """One join: from `listening` to the head of the network, the processor time for it and for the start, and until
    no body was missing. `events`: what the log said, and when (s).
    """

    join: Join
    seconds: float
    cpu_s: float
    bodies_s: float
    head: Head
    events: tuple[tuple[float, str], ...]


@dataclass(slots=True)
class Figures:
    transactions: int = 0
    head: Head | None = None
    joins: list[Joined] = field(default_factory=list)

    def of(self, join: Join) -> list[Joined]:
        return [joined for joined in self.joins if joined.join == join]

    @property
    def share(self) -> float:
        """The median join from a snapshot by the median replay."""
        return _median(self.of("snapshot")) / _median(self.of("replay"))


async def run(folder: Path, transactions: int, rounds: int) -> Figures:
    """The whole trial in a new folder."""
    figures = Figures(transactions)
    network = create(folder / "net", VOTERS, settings={"storage": {"snapshot_interval_blocks": INTERVAL_BLOCKS}})
    learner: DevnetNode | None = None
    try:
        await asyncio.to_thread(network.start, network.nodes)
        await _load(network, transactions)
        learner = await Trial(network, Load(), Changes()).offer("d")
        await _grow_old(network, learner, folder)
        head = figures.head = await _at_rest(network)
        for _ in range(rounds):
            for join in ("replay", "snapshot"):
                figures.joins.append(await _joined(network, learner, join, head))
    finally:
        await asyncio.to_thread(network.kill, [*network.nodes, *([learner] if learner else [])])
    return figures


def sound(figures: Figures) -> bool:
    """Whether every join came to the same roots as the voters, and came there as it was told to."""
    asked = all(
        ("snapshot installed" in {event for _, event in joined.events}) == (joined.join == "snapshot")
        for joined in figures.joins
    )
    return asked and {joined.head for joined in figures.joins} == {figures.head}


async def _load(network: Devnet, transactions: int) -> None:
    """So many records, one a transaction, as fast as the network takes them."""
    leader = None
    while leader is None:
        leader = await asyncio.to_thread(network.leader)
    seed, chain = secrets.token_bytes(32), network.genesis.chain_id()
    key, admin = SigningKey(seed), admin_of(network, leader)
    async with Client([leader.url], network.genesis, admin) as client:
        proof = possession_proof(key, chain, admin.account)
        await client.register_member(key.public, proof, "clinician", wait="sealed")
    task = Task(chain, seed, leader.provider_port, "transaction", transactions, IN_FLIGHT)
    waiting = deque(await asyncio.to_thread(samples, task))
    opened = [await asyncio.open_connection("127.0.0.1", task.port) for _ in range(IN_FLIGHT)]
    await submit([Submitter(reader, writer) for reader, writer in opened], waiting, transactions)
    for _, writer in opened:
        writer.close()


async def _grow_old(network: Devnet, learner: DevnetNode, folder: Path) -> None:
    """The window passes, by all clocks; then come blocks until every voter's newest snapshot begins behind it."""
    before = (await settled(network))[0].heights.executed
    node = network.nodes[0]
    wallet = await enrol(network, node, folder, "clinician", "clinician")
    await asyncio.to_thread(network.stop, network.nodes)
    for each in (*network.nodes, learner):
        network.configure(each, {"devnet": {"clock_offset_ms": AGE_MS}})
    await asyncio.to_thread(network.start, network.nodes)
    urls = urls_from(network, node)
    async with Client(urls, network.genesis, wallet, now_ms=lambda: wall_clock_ms() + AGE_MS) as client:
        for _ in range(LATER):
            # One after the other: a block each.
            await client.add_record(b"{}", "application/fhir+json", subject=bytes(32), readers=[])
    async with asyncio.timeout(JOIN_TIMEOUT_S):
        for each in network.nodes:
            while not any(line.get("base", 0) >= before for line in _lines(network, each, "snapshot taken")):  # noqa: ASYNC110 - a file
                await asyncio.sleep(POLL_S)


async def _at_rest(network: Devnet) -> Head:
    """Where the chain ends once no block comes any more: a few empty ones still seal what the last ones did."""
    head = (await settled(network))[0].head
    while True:
        await asyncio.sleep(REST_S)
        newer = (await settled(network))[0].head
        if newer == head:
            return head
        head = newer


async def _joined(network: Devnet, learner: DevnetNode, join: Join, head: Head) -> Joined:
    """The learner on an empty disk, until it has all; stopped at the end."""
    shutil.rmtree(network.folder(learner) / "data", ignore_errors=True)
    network.log(learner).unlink(missing_ok=True)
    network.configure(learner, {"storage": {"join": join}})
    starting = asyncio.create_task(asyncio.to_thread(network.start, [learner]))
    async with asyncio.timeout(JOIN_TIMEOUT_S):
        found = None
        while found is None or found.height < head.height:
            if starting.done():
                # It failed, or says that it is ready.
                starting.result()
            await asyncio.sleep(POLL_S)
            found = await asyncio.to_thread(_head, learner)
        ended, pid = time.time(), network.pid(learner)
        assert pid is not None, "it has just answered"
        cpu_s = processor_s(pid)
        await starting
        while join == "snapshot" and not _lines(network, learner, "bodies fetched"):  # noqa: ASYNC110 - a file
            await asyncio.sleep(POLL_S)
    began = _time_of(_lines(network, learner, "listening")[0])
    events = tuple((round(_time_of(line) - began, 3), str(line["event"])) for line in log_of(network, learner))
    fetched = [at for at, event in events if event == "bodies fetched"]
    await asyncio.to_thread(network.stop, [learner])
    return Joined(join, ended - began, cpu_s, max(fetched, default=ended - began), found, events)


def _head(node: DevnetNode) -> Head | None:
    """None while it does not answer: it begins, or begins again on a snapshot."""
    connection = http.client.HTTPConnection("127.0.0.1", node.provider_port, timeout=ANSWER_TIMEOUT_S)
    try:
        connection.request("GET", "/v1/network")
        response = connection.getresponse()
        return decode_view(NetworkStatus, response.read()).head if response.status == 200 else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _lines(network: Devnet, node: DevnetNode, event: str) -> list[dict[str, Any]]:
    return [line for line in log_of(network, node) if line["event"] == event]


def _time_of(line: dict[str, Any]) -> float:
    return datetime.fromisoformat(line["time"]).timestamp()


def _median(joins: list[Joined]) -> float:
    return statistics.median(joined.seconds for joined in joins)


def table(figures: Figures) -> str:
    lines = [f"{'join':10} {'seconds':>8} {'least':>8} {'most':>8} {'cpu, s':>8} {'bodies, s':>10}"]
    for join in ("replay", "snapshot"):
        joins = figures.of(join)
        seconds = [joined.seconds for joined in joins]
        cpu_s = statistics.median(joined.cpu_s for joined in joins)
        bodies_s = statistics.median(joined.bodies_s for joined in joins)
        spread = f"{_median(joins):8.2f} {min(seconds):8.2f} {max(seconds):8.2f}"
        lines.append(f"{join:10} {spread} {cpu_s:8.2f} {bodies_s:10.2f}")
    return "\n".join(lines)


def timeline(joined: Joined) -> str:
    """What the log of one join said, and when."""
    shown = [f"{at:8.3f} s  {event}" for at, event in joined.events if at <= joined.seconds]
    return "\n".join([*shown, f"{joined.seconds:8.3f} s  (the head of the network is executed)"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--transactions", type=int, default=20_000, help="in the chain (default 20,000)")
    parser.add_argument("--rounds", type=int, default=5, help="joins of either kind (default 5)")
    parser.add_argument("--keep", type=Path, help="keep the network's folder here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="join-trial-", ignore_cleanup_errors=True) as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        os.chmod(folder, 0o700)
        figures = asyncio.run(run(folder, options.transactions, options.rounds))
    blocks = figures.head.height if figures.head else 0
    print(f"{figures.transactions} records in {blocks} blocks, {options.rounds} joins of either kind\n")
    print(table(figures))
    print(f"\none join from a snapshot:\n{timeline(figures.of('snapshot')[-1])}\n")
    print(f"roots equal: {'yes' if sound(figures) else 'NO'}")
    print(f"a join from a snapshot takes {figures.share:.3f} of a replay's time; at most {SHARE_MAX:g}")
    return 0 if sound(figures) and figures.share < SHARE_MAX else 1


if __name__ == "__main__":
    sys.exit(main())
