"""SIGKILL under load: nothing that was answered `committed` is gone, and commits go on within three seconds."""

import asyncio
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from carequorum.devnet import Devnet, DevnetNode, create
from tests.processes.hospitals import missing, settled, started
from tests.processes.load import Load, writing

pytestmark = pytest.mark.processes

KILLS = 20
WRITERS = 4
GAP_S_MAX = 3.0


async def kill(network: Devnet, nodes: list[DevnetNode]) -> float:
    """SIGKILL; the moment before it."""
    moment = time.monotonic()
    ended = await asyncio.to_thread(network.kill, nodes)
    assert {node_id: how and how.code for node_id, how in ended.items()} == {
        node.id: -signal.SIGKILL for node in nodes
    }
    return moment


async def kill_leaders(network: Devnet, load: Load) -> list[float]:
    """Twenty times: kill the leader, see commits go on without it, start it again. The moments of the kills."""
    moments: list[float] = []
    while len(moments) < KILLS:
        await load.more(WRITERS)
        leader = await asyncio.to_thread(network.leader)
        if leader is None:
            continue
        moments.append(await kill(network, [leader]))
        await load.more(1)
        await asyncio.to_thread(network.start, [leader])
    return moments


@pytest.mark.asyncio
async def test_the_leader_is_killed_twenty_times_and_then_everybody_at_once(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    network = create(tmp_path / "net")
    async with started(network):
        async with writing(network, tmp_path, WRITERS) as load:
            moments = await kill_leaders(network, load)
            everybody = await kill(network, network.nodes)
            await asyncio.to_thread(network.start, network.nodes)
            await load.more(5 * WRITERS)
        *gaps_s, gap_of_all_s = load.longest_gaps_s([*moments, everybody])
        print(f"{len(load.answers)} committed; longest gaps at each kill of the leader, s:", *(f"{gap:.2f}" for gap in gaps_s))
        print(f"longest gap at the kill of everybody: {gap_of_all_s:.2f} s")
        t = time.monotonic()
        views = await settled(network)
        print("settled", time.monotonic()-t); t = time.monotonic()
        assert await missing(network, load.committed) == []
        print("missing", time.monotonic()-t)
    assert max(gaps_s) <= GAP_S_MAX
