"""`python -m bench`: transactions per second, commit latency, and what a follower spends on a transaction.

Exits 0 unless a follower of three nodes spends more than FOLLOWER_VERIFICATIONS_MAX signature verifications on a
transaction that weighs 512 bytes, signed and with its body. Transactions that bring 512 bytes of body are measured
beside them, and only shown.
"""

import argparse
import asyncio
import math
import os
import platform
import secrets
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec

from bench.gauges import metrics, processor_s, verification_us
from bench.load import Run
from bench.report import FOLLOWER_VERIFICATIONS_MAX, Follower, Report, Series, Window, lines, write
from bench.workload import Sized, Task, samples
from carequorum.client import Client
from carequorum.devnet import Devnet, DevnetError, DevnetNode, create
from carequorum.wallet import Wallet, read_passphrase
from ledger.contracts.identity import possession_proof
from ledger.errors import Rejection
from ledger.keys import SigningKey

PROCESSES = 2
WARM_UP = 0.1  # of a window, before the first one
SETTLE_TIMEOUT_S = 30.0
# What was executed goes to the disk behind the answers: it belongs to the window too.
WRITE_BEHIND_S = 0.7
_POLL_S = 0.1


class BenchError(Exception):
    """A measurement broke down; one line for people."""


def main() -> int:
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    begin = time.monotonic()
    directory = Path(tempfile.mkdtemp(prefix="carequorum-bench-"))
    try:
        series = [_measured(directory / f"{nodes}-{sized}", nodes, sized, options) for nodes, sized in _plan(options)]
    except (BenchError, DevnetError, Rejection, OSError) as error:
        print(f"bench: {error} (see {directory})", file=sys.stderr)
        return 1
    figures = {each.sized: each.verifications or math.nan for each in series if each.nodes == 3}
    figure = figures.get("transaction", math.nan)
    report = Report(
        processors=os.cpu_count() or 0,
        python=platform.python_version(),
        seconds=round(time.monotonic() - begin, 1),
        follower_cpu_per_tx_in_verifications=figure,
        follower_cpu_per_tx_in_verifications_body=figures.get("body", math.nan),
        networks=series,
    )
    write(report, options.out)
    print("", *lines(report), "", f"written to {options.out}", sep="\n")
    shutil.rmtree(directory)
    if figure > FOLLOWER_VERIFICATIONS_MAX:
        most = f"{FOLLOWER_VERIFICATIONS_MAX:g} at most"
        print(f"bench: a follower spends {figure:g} verifications on a transaction, {most}", file=sys.stderr)
        return 1
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--transactions", type=int, default=10_000, help="in a window (default 10,000)")
    parser.add_argument("--windows", type=int, default=1, help="of three nodes, on one growing ledger (default 1)")
    parser.add_argument("--in-flight", type=int, default=64, help="at a time, of all processes (default 64)")
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 3, 4], help="networks of so many (default 1 3 4)")
    parser.add_argument("--sized", choices=("body", "transaction"), nargs="+", default=["transaction", "body"])
    parser.add_argument("--at", choices=("leader", "follower"), default="leader", help="where the load enters")
    parser.add_argument("--out", type=Path, default=Path("build/bench.json"), help="where the report goes")
    return parser.parse_args()


def _plan(options: argparse.Namespace) -> list[tuple[int, Sized]]:
    """Which load is told to which network: both sizes where the figure is taken, at three nodes."""
    return [
        (nodes, sized) for nodes in options.nodes for sized in options.sized if nodes == 3 or sized == "transaction"
    ]


def _measured(directory: Path, nodes: int, sized: Sized, options: argparse.Namespace) -> Series:
    """A new network, its load, and the windows of it."""
    windows = options.windows if nodes == 3 else 1
    count = options.transactions if nodes == 3 else options.transactions // 2
    print(f"{nodes} nodes: {windows} x {count} transactions, 512 bytes of {sized} each", file=sys.stderr)
    network = create(directory, nodes)
    seed = secrets.token_bytes(32)
    with _running(network), ExitStack() as ending:
        leader = _leader(network)
        asyncio.run(_enrol(network, leader, seed))
        entry = leader if options.at == "leader" else next(node for node in network.nodes if node != leader)
        each = math.ceil(count / PROCESSES)
        warm = max(1, int(each * WARM_UP))
        task = Task(
            chain=network.genesis.chain_id(),
            seed=seed,
            port=entry.provider_port,
            sized=sized,
            count=warm + windows * each,
            in_flight=math.ceil(options.in_flight / PROCESSES),
        )
        loads = [ending.enter_context(_Load(task)) for _ in range(PROCESSES)]
        for load in loads:
            load.ready()
        _run(loads, warm)
        measured = [_window(network, leader, entry, loads, each) for _ in range(windows)]
    sample = samples(msgspec.structs.replace(task, count=1))[0]
    return Series(
        nodes=nodes,
        sized=sized,
        transaction_bytes=sample.transaction_bytes,
        body_bytes=sample.body_bytes,
        in_flight=PROCESSES * task.in_flight,
        processes=PROCESSES,
        windows=measured,
    )


def _window(network: Devnet, leader: DevnetNode, entry: DevnetNode, loads: "Sequence[_Load]", each: int) -> Window:
    _settle(network)
    verification = [verification_us()]
    # Asking costs a node time too: outside of what is measured.
    counts = {node.id: metrics(node.provider_port) for node in network.nodes}
    cpu_s = {node.id: _processor_s(network, node) for node in network.nodes}
    runs = _run(loads, each)
    _settle(network)
    cpu_s = {node.id: _processor_s(network, node) - cpu_s[node.id] for node in network.nodes}
    counts = {node.id: _growth(counts[node.id], metrics(node.provider_port)) for node in network.nodes}
    verification.append(verification_us())
    if _leader(network) != leader:
        raise BenchError("the leader changed during a window")
    count, unit_us = len(loads) * each, statistics.median(verification)
    cpu_us = {node: spent_s / count * 1e6 for node, spent_s in cpu_s.items()}
    latencies_ms = sorted(latency for run in runs for latency in run.latencies_ms)
    seconds = (max(run.ended_ns for run in runs) - min(run.began_ns for run in runs)) / 1e9
    return Window(
        transactions=count,
        seconds=round(seconds, 2),
        tx_per_s=round(count / seconds, 1),
        commit_ms_p50=round(_quantile(latencies_ms, 0.50), 1),
        commit_ms_p99=round(_quantile(latencies_ms, 0.99), 1),
        blocks=int(counts[leader.id]["carequorum_blocks_committed_total"]),
        verification_us=round(unit_us, 2),
        leader_cpu_us=round(cpu_us[leader.id], 1),
        followers=[
            Follower(
                node=node.id,
                cpu_us=round(cpu_us[node.id], 1),
                cpu_verifications=round(cpu_us[node.id] / unit_us, 2),
                stages_us=_stages(counts[node.id], count, cpu_us[node.id]),
            )
            for node in network.nodes
            if node not in (leader, entry)
        ],
    )


def _processor_s(network: Devnet, node: DevnetNode) -> float:
    pid = network.pid(node)
    if pid is None:
        raise BenchError(f"the daemon of {node.id} has ended")
    return processor_s(pid)


def _growth(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    return {name: value - before.get(name, 0.0) for name, value in after.items()}


class _Load:
    """One load process: killed on leaving if it has not ended."""

    def __init__(self, task: Task) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.load"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._say(msgspec.json.encode(task))

    def __enter__(self) -> "_Load":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()

    def ready(self) -> None:
        if self._answer() != b"ready":
            raise BenchError("a load process is not ready")

    def begin(self, count: int) -> None:
        self._say(b"%d" % count)

    def done(self) -> Run:
        return msgspec.json.decode(self._answer(), type=Run)

    def _say(self, line: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + b"\n")
        self._process.stdin.flush()

    def _answer(self) -> bytes:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise BenchError("a load process failed")
        return line.strip()


def _run(loads: Sequence[_Load], each: int) -> list[Run]:
    for load in loads:
        load.begin(each)
    return [load.done() for load in loads]


@contextmanager
def _running(network: Devnet) -> Iterator[None]:
    try:
        network.start(network.nodes)
        yield
    finally:
        network.kill(network.nodes)


def _leader(network: Devnet) -> DevnetNode:
    leader = network.leader()
    if leader is None:
        raise BenchError("no node leads")
    return leader


async def _enrol(network: Devnet, node: DevnetNode, seed: bytes) -> None:
    """The load's clinician, registered by the admin of `node`."""
    wallet_file, passphrase_file = network.wallet(node)
    admin = Wallet.open(wallet_file, read_passphrase(passphrase_file))
    key = SigningKey(seed)
    async with Client([node.url], network.genesis, admin) as client:
        proof = possession_proof(key, client.chain, admin.account)
        await client.register_member(key.public, proof, "clinician", wait="sealed")


def _settle(network: Devnet) -> None:
    """Until every node has executed and sealed what the others have, and written what that leaves."""
    deadline = time.monotonic() + SETTLE_TIMEOUT_S
    while True:
        views = [status.network for status in network.status()]
        heads = {view.head for view in views if view is not None}
        if None not in views and len(heads) == 1 and all(v and v.heights.last == v.heights.executed for v in views):
            break
        if time.monotonic() > deadline:
            raise BenchError(f"the nodes do not agree within {SETTLE_TIMEOUT_S:g} s")
        time.sleep(_POLL_S)
    time.sleep(WRITE_BEHIND_S)


def _stages(spent: dict[str, float], count: int, cpu_us: float) -> dict[str, float]:
    """µs for each transaction by stage, and what no stage accounts for."""
    prefix = "carequorum_stage_seconds_sum"
    stages_us = {
        name.removeprefix(prefix).strip("{}"): round(seconds / count * 1e6, 1)
        for name, seconds in spent.items()
        if name.startswith(prefix)
    }
    return stages_us | {"elsewhere": round(cpu_us - sum(stages_us.values()), 1)}


def _quantile(ascending: Sequence[float], share: float) -> float:
    return ascending[max(0, math.ceil(share * len(ascending)) - 1)]


if __name__ == "__main__":
    sys.exit(main())
