"""Clocks that differ, step back, or are an hour ahead: block time never falls, and nobody leads from far ahead."""

import asyncio
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from carequorum.client import Client, wall_clock_ms
from carequorum.devnet import Devnet, DevnetNode, Settings, create
from ledger.block import Header
from tests.processes.hospitals import log_of, missing, settled, started, view_of
from tests.processes.load import Load, writing

pytestmark = pytest.mark.processes

WRITERS = 4
AHEAD_MS = 10_000
HOUR_MS = 3_600_000
LEAD_TIMEOUT_S = 60.0

# Among nodes with PATIENT timeouts, one with EAGER timeouts wins most elections. After a start of all it wins, unless
# it starts seconds after the others.
EAGER: Settings = {"consensus": {"election_timeout_min_ms": 200, "election_timeout_max_ms": 250}}
PATIENT: Settings = {"consensus": {"election_timeout_min_ms": 1_500, "election_timeout_max_ms": 3_000}}


def clock(offset_ms: int) -> Settings:
    return {"devnet": {"clock_offset_ms": offset_ms}}


async def restart(network: Devnet, node: DevnetNode, changes: Settings) -> None:
    await asyncio.to_thread(network.kill, [node])
    network.configure(node, changes)
    await asyncio.to_thread(network.start, [node])


async def elections_until(network: Devnet, load: Load, held: Callable[[], bool]) -> None:
    """While it does not hold: kill the leader, see another one commit, and start the first again."""
    async with asyncio.timeout(LEAD_TIMEOUT_S):
        while not await asyncio.to_thread(held):
            leader = await asyncio.to_thread(network.leader)
            if leader is not None:
                await asyncio.to_thread(network.kill, [leader])
                await load.more(1)
                await asyncio.to_thread(network.start, [leader])


async def chain(network: Devnet) -> list[Header]:
    """Every header from height 1 up, as one node has them. Checks that block time rises with each."""
    async with Client([network.nodes[0].url], network.genesis) as client:
        last = (await client.network()).heights.executed
        headers = [(await client.block(height)).header for height in range(1, last + 1)]
    times = [network.genesis.time, *(header.time for header in headers)]
    assert all(earlier < later for earlier, later in itertools.pairwise(times))
    return headers


async def assert_all_agree(network: Devnet, load: Load) -> None:
    views = await settled(network)
    assert {view.head for view in views} == {views[0].head}
    assert [view.evidence for view in views] == [[] for _ in views]
    assert await missing(network, load.committed) == []


@pytest.mark.asyncio
async def test_clocks_ten_seconds_apart_and_one_that_steps_back_agree(tmp_path: Path) -> None:
    network = create(tmp_path / "net", settings=PATIENT)
    odd = network.nodes[1]
    network.configure(odd, {**EAGER, **clock(AHEAD_MS)})
    async with started(network):
        usual = await view_of(network, network.nodes[0])
        assert (await view_of(network, odd)).time - usual.time >= AHEAD_MS
        async with writing(network, tmp_path, WRITERS) as load:
            await elections_until(network, load, lambda: network.leader() == odd)
            led_ahead_ms = wall_clock_ms()
            await load.more(10)
            await restart(network, odd, clock(-AHEAD_MS))
            await load.more(10)
            await elections_until(network, load, lambda: network.leader() == odd)
            await load.more(10)
        await assert_all_agree(network, load)
        headers = await chain(network)

    made = [header for header in headers if header.proposer == odd.id]
    assert any(header.time >= led_ahead_ms + AHEAD_MS for header in made), "it led while it was ahead"
    back = next(header for header in made if header.term == made[-1].term)
    assert back.time == headers[back.height - 2].time + 1, "its clock being behind, it goes on from its parent's time"


@pytest.mark.asyncio
async def test_a_leader_an_hour_ahead_is_refused_and_replaced(tmp_path: Path) -> None:
    network = create(tmp_path / "net", settings=PATIENT)
    odd, *others = network.nodes
    network.configure(odd, {**EAGER, **clock(HOUR_MS)})

    async with started(network):
        # With all of them running: it takes three that refuse to bar the fourth.
        async with asyncio.timeout(LEAD_TIMEOUT_S):
            while not (await view_of(network, odd)).barred:
                await asyncio.to_thread(network.kill, network.nodes)
                await asyncio.to_thread(network.start, network.nodes)
        async with writing(network, tmp_path, WRITERS) as load:
            await load.more(10)
            headers = await chain(network)
            assert headers[-1].time < wall_clock_ms() + AHEAD_MS
            assert odd.id not in {header.proposer for header in headers}
            await restart(network, odd, clock(0))
            await elections_until(network, load, lambda: network.leader() == odd)
            await load.more(10)
        await assert_all_agree(network, load)
        assert odd.id in {header.proposer for header in await chain(network)}

    led = [line for line in log_of(network, odd) if line["event"] == "role" and line["role"] == "leader"]
    assert led
    for node in others:
        reasons = {line["reason"] for line in log_of(network, node) if line["event"] == "block refused"}
        assert reasons == {"bad_time"}, node.id
