"""SIGTERM of the leader under load: it hands over first, so that commits pause for less than after its SIGKILL."""

import asyncio
import signal
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from carequorum.devnet import Devnet, create
from tests.processes.hospitals import log_of, missing_in_stores, settled, started
from tests.processes.load import Load, writing

pytestmark = pytest.mark.processes

ROUNDS = 5
WRITERS = 6

Record = Callable[[str, object], None]


async def end_leaders(network: Devnet, load: Load, number: signal.Signals) -> list[float]:
    """ROUNDS times: end the leader by this signal, see commits go on, start it again. The moments of the signals."""
    moments: list[float] = []
    while len(moments) < ROUNDS:
        await load.more(4 * WRITERS)
        leader = await asyncio.to_thread(network.leader)
        if leader is None:
            continue
        moments.append(time.monotonic())
        end = network.stop if number is signal.SIGTERM else network.kill
        ended = await asyncio.to_thread(end, [leader])
        how = ended[leader.id]
        assert how is not None
        assert how.code == (0 if number is signal.SIGTERM else -number)
        await load.more(1)
        await asyncio.to_thread(network.start, [leader])
    await load.more(4 * WRITERS)
    return moments


@pytest.mark.asyncio
async def test_a_leader_that_is_told_to_stop_is_missed_for_less_time_than_a_killed_one(
    tmp_path: Path, record_property: Record
) -> None:
    network = create(tmp_path / "net")
    async with started(network):
        async with writing(network, tmp_path, WRITERS) as load:
            stopped = await end_leaders(network, load, signal.SIGTERM)
            killed = await end_leaders(network, load, signal.SIGKILL)
        gaps_s = [round(gap, 3) for gap in load.longest_gaps_s([*stopped, *killed])]
        of_stops, of_kills = gaps_s[:ROUNDS], gaps_s[ROUNDS:]
        record_property("gaps_after_sigterm_s", of_stops)
        record_property("gaps_after_sigkill_s", of_kills)
        print(f"longest pause of commits: SIGTERM {of_stops} s, SIGKILL {of_kills} s; {len(load.answers)} committed")
        await settled(network)
        handed = [line for node in network.nodes for line in log_of(network, node) if line["event"] == "handed over"]
        await asyncio.to_thread(network.stop, network.nodes)
    assert missing_in_stores(network, load.committed) == []
    assert len(handed) >= ROUNDS
    assert statistics.median(of_stops) < statistics.median(of_kills)
