"""SIGKILL under load: what was answered `committed` stays, and after the leader's death commits soon go on.

The kernel keeps what a killed process wrote; that nothing is lost with the power either is shown over a disk that
keeps only what was synced (tests/node/test_power_loss.py).
"""

import asyncio
import datetime
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from carequorum.devnet import Devnet, DevnetNode, create
from storage.check import check_path
from tests.processes.hospitals import log_of, missing, missing_in_stores, settled, started
from tests.processes.load import Load, writing

pytestmark = pytest.mark.processes

KILLS = 20
WRITERS = 3
GAP_S_MAX = 3.0
ASKED_OF = 10

Record = Callable[[str, object], None]


async def kill(network: Devnet, nodes: list[DevnetNode]) -> float:
    """SIGKILL; the moment before it."""
    moment = time.monotonic()
    ended = await asyncio.to_thread(network.kill, nodes)
    assert {node_id: how and how.code for node_id, how in ended.items()} == {
        node.id: -signal.SIGKILL for node in nodes
    }
    return moment


async def kill_leaders(network: Devnet, load: Load) -> list[float]:
    """KILLS times: kill the leader, see commits go on without it, start it again. The moments of the kills."""
    moments: list[float] = []
    while len(moments) < KILLS:
        await load.more(WRITERS)
        leader = await asyncio.to_thread(network.leader)
        if leader is not None:
            moments.append(await kill(network, [leader]))
            await load.more(1)
            await asyncio.to_thread(network.start, [leader])
    return moments


async def kill_everybody(network: Devnet, load: Load) -> tuple[float, float]:
    """Kill all, start all. The moment of the kill; how long after the last daemon's start the next commit came, s."""
    moment = await kill(network, network.nodes)
    await asyncio.to_thread(network.start, network.nodes)
    await load.more(5 * WRITERS)
    times = [line["time"] for node in network.nodes for line in log_of(network, node) if line["event"] == "listening"]
    began = datetime.datetime.fromisoformat(max(times)).timestamp() - time.time() + time.monotonic()
    return moment, min(answered for answered, _ in load.answers if answered > began) - began


def assert_logs_are_calm(network: Devnet) -> None:
    """No node found fault with itself or with another's block."""
    lines = [line for node in network.nodes for line in log_of(network, node)]
    assert lines
    bad = [line for line in lines if line["level"] in ("error", "critical") or line["event"] == "block refused"]
    assert bad == []


@pytest.mark.asyncio
async def test_the_leader_is_killed_twenty_times_and_then_everybody_at_once(
    tmp_path: Path, record_property: Record
) -> None:
    network = create(tmp_path / "net")
    async with started(network):
        async with writing(network, tmp_path, WRITERS) as load:
            moments = await kill_leaders(network, load)
            everybody, recovery_s = await kill_everybody(network, load)
        *gaps_s, gap_of_all_s = (round(gap, 2) for gap in load.longest_gaps_s([*moments, everybody]))
        found = {"committed": len(load.answers), "gaps_s": gaps_s, "gap_of_all_s": gap_of_all_s}
        for name, value in found.items():
            record_property(name, value)
        print(found, f"of which the network, once its daemons ran, took {recovery_s:.2f} s")

        views = await settled(network)
        # Some through the ports, all in the stores.
        assert await missing(network, load.committed[::ASKED_OF]) == []
        ended = await asyncio.to_thread(network.stop, network.nodes)

    assert missing_in_stores(network, load.committed) == []
    assert max(gaps_s) <= GAP_S_MAX
    # How long four interpreters take to start on a machine of two cores is not the network's doing.
    assert recovery_s <= GAP_S_MAX
    # Each of those killed did lead.
    assert min(view.term for view in views) > KILLS
    assert {view.head for view in views} == {views[0].head}
    assert {node_id: how and how.code for node_id, how in ended.items()} == {node.id: 0 for node in network.nodes}
    assert_logs_are_calm(network)
    # As all heads and roots are equal, one store derived again from genesis stands for all.
    report = check_path(network.folder(network.nodes[0]) / "data" / "ledger", network.genesis, lambda *_: None)
    assert report.problems == []
    assert report.transactions >= len(load.answers)
