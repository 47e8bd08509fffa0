"""An orderly stop: the leader hands over first, nobody is handed what stops itself, nothing executed is lost."""

import asyncio
import time

import pytest

from storage.store import Store
from tests.node.cluster import TICK_MS, Cluster, hospital
from tests.node.members import addition, register, transact
from tests.node.test_cluster import add_records


@pytest.mark.asyncio
async def test_a_stopping_leader_hands_over_before_it_stops() -> None:
    async with Cluster() as cluster:
        await register(cluster, "ada")
        for _ in range(4):
            leader = await cluster.led()
            node = cluster.members[leader].running
            term = node.driver.core.term
            begin_s = time.monotonic()
            await node.hand_over()
            took_s = time.monotonic() - begin_s
            assert node.driver.core.role.value == "follower"
            assert node.driver.core.leader not in (None, leader)
            # One election, won at once: nobody had to notice a silence of at least 10 ticks first.
            assert node.driver.core.term == term + 1
            print(f"handed over in {took_s * 1000:.0f} ms, {took_s * 1000 / TICK_MS:.1f} ticks")
            assert node.backend.ready() == "stopping"
            await cluster.stop(leader)
            await add_records(cluster, await cluster.led(leader), "ada", 1)
            await cluster.start(leader)


@pytest.mark.asyncio
async def test_what_was_submitted_during_the_hand_over_is_committed_by_the_next_leader() -> None:
    async with Cluster() as cluster:
        await register(cluster, "ada")
        leader = await cluster.led()
        node = cluster.members[leader].running
        stop = asyncio.create_task(node.hand_over())
        made = [addition(cluster, "ada", time.time_ns() // 1_000_000) for _ in range(20)]
        writes = [asyncio.create_task(transact(cluster, leader, one, [body])) for one, body in made]
        await stop
        assert set(await asyncio.gather(*writes)) == {"ok"}


@pytest.mark.asyncio
async def test_nobody_is_handed_over_to_who_said_that_it_stops() -> None:
    async with Cluster() as cluster:
        await register(cluster, "ada")
        leader = await cluster.led()
        others = [node_id for node_id in cluster.members if node_id != leader]
        for node_id in others[:2]:
            await cluster.members[node_id].running.hand_over()
        core = cluster.members[leader].running.driver.core
        await cluster.until(lambda: sum(follower.stopping for follower in core.followers()) == 2)
        await cluster.members[leader].running.hand_over()
        assert core.leader == others[2]


@pytest.mark.asyncio
async def test_with_nobody_to_take_over_the_stop_is_not_held_up() -> None:
    async with Cluster(size=3) as cluster:
        await register(cluster, "ada")
        leader = await cluster.led()
        others = [node_id for node_id in cluster.members if node_id != leader]
        for node_id in others:
            await cluster.members[node_id].running.hand_over()
        core = cluster.members[leader].running.driver.core
        await cluster.until(lambda: all(follower.stopping for follower in core.followers()))
        begin_s = time.monotonic()
        await cluster.members[leader].running.hand_over()
        assert time.monotonic() - begin_s < 0.1
        assert core.role.value == "leader"


@pytest.mark.asyncio
async def test_a_clean_stop_leaves_everything_executed_on_the_disk() -> None:
    """Results are written up to half a second behind the answer; a power cut may take them, a stop must not."""
    async with Cluster() as cluster:
        await register(cluster, "ada")
        await add_records(cluster, hospital(0), "ada", 5)
        for member in cluster.members.values():
            store = member.store
            assert store is not None
            executed, sealed = store.executed_height, store.sealed_height
            assert store.pending_commits > 0, "something still waits for the disk"
            await cluster.stop(hospital(member.index))
            found = Store(member.disk.open(), cluster.genesis)
            assert found.executed_height >= executed
            assert (found.sealed_height or 0) >= (sealed or 0)
            found.close()
