"""Whole nodes together, disks and links simulated: what a network promises while nothing, or not much, goes wrong."""

import asyncio
import time

import pytest

from ledger.contracts import identity
from ledger.receipt import verify_receipt, verify_state_answer
from tests.node.cluster import Cluster, admin_account, admin_key, hospital
from tests.node.members import account_of, addition, register, sign, transact


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def heads(cluster: Cluster) -> set[tuple[int, bytes, bytes]]:
    """(height, state root, history root) of every running node."""
    found = set()
    for member in cluster.members.values():
        if member.store is not None and member.node is not None:
            roots = member.store.roots(member.store.executed_height)
            found.add((member.store.executed_height, roots.state, roots.history))
    return found


async def add_records(cluster: Cluster, node_id: str, name: str, count: int) -> list[bytes]:
    """Records by `name` through one node, all at once; their ids."""
    made = [addition(cluster, name, now_ms()) for _ in range(count)]
    codes = await asyncio.gather(*(transact(cluster, node_id, one, [body]) for one, body in made))
    assert set(codes) == {"ok"}
    return [one.id for one, _ in made]


@pytest.mark.asyncio
async def test_four_nodes_commit_seal_and_prove_the_same() -> None:
    async with Cluster() as cluster:
        await register(cluster, "ada")
        ids = await add_records(cluster, hospital(2), "ada", 50)
        await cluster.until(
            lambda: all(
                member.running.tracker.status(tx_id).status == "sealed"
                for member in cluster.members.values()
                for tx_id in ids
            )
        )
        await cluster.until(lambda: len(heads(cluster)) == 1)
        for member in cluster.members.values():
            for tx_id in ids:
                receipt = verify_receipt(member.running.backend.receipt(tx_id), cluster.genesis)
                assert (receipt.id, receipt.code) == (tx_id, "ok")
            answer = member.running.backend.state_answer(identity.account_path(account_of("ada")))
            assert verify_state_answer(answer, cluster.genesis).value is not None
            absent = member.running.backend.state_answer(identity.account_path(bytes(32)))
            assert verify_state_answer(absent, cluster.genesis).value is None


@pytest.mark.asyncio
async def test_an_idle_network_is_quiet_once_everything_is_sealed() -> None:
    async with Cluster() as cluster:
        await register(cluster, "ada")
        leader = cluster.leader()
        assert leader is not None
        node = cluster.members[leader].running
        await cluster.until(lambda: node.backend.heights().sealed == 2)
        height = node.backend.heights().last
        beats = 0

        def thirty_messages_later() -> bool:
            nonlocal beats
            beats += 1
            return beats > 30

        await cluster.until(thirty_messages_later)
        assert node.backend.heights().last == height


@pytest.mark.asyncio
async def test_a_revocation_between_admission_and_execution_fails_alike_everywhere() -> None:
    """Also on a node that was down and fetches the blocks later from any peer."""
    async with Cluster() as cluster:
        await register(cluster, "ada")
        late = cluster.follower()
        await cluster.kill(late)
        leader = await cluster.led()
        node = cluster.members[leader].running
        revoke = sign(cluster, admin_key(0), admin_account(0), [identity.Revoke(account_of("ada"), 1)], [], now_ms())
        record, body = addition(cluster, "ada", now_ms())
        answers = node.backend.submit([(revoke.data, []), (record.data, [body])])
        assert [answer.rejection for answer in answers] == [None, None]
        status = await node.backend.wait(record.id, "committed", 10.0)
        assert status.code == "revoked"
        await register(cluster, "eve")
        for _ in range(3):
            await add_records(cluster, leader, "eve", 60)
        await cluster.start(late)
        await cluster.until(lambda: len(heads(cluster)) == 1)
        for member in cluster.members.values():
            assert member.running.tracker.status(record.id).code == "revoked"


@pytest.mark.asyncio
async def test_a_node_far_behind_catches_up_from_any_peer() -> None:
    async with Cluster() as cluster:
        await register(cluster, "ada")
        late = cluster.follower()
        await cluster.kill(late)
        leader = await cluster.led()
        for _ in range(160):
            await add_records(cluster, leader, "ada", 1)
        await cluster.start(late)
        await cluster.until(lambda: len(heads(cluster)) == 1)
        store = cluster.members[late].store
        assert store is not None
        assert store.executed_height > 160


@pytest.mark.asyncio
async def test_clocks_ten_seconds_apart_and_one_stepping_back_agree() -> None:
    async with Cluster(clock_offsets_ms={0: 10_000, 1: -5_000}) as cluster:
        await register(cluster, "ada")
        await add_records(cluster, hospital(1), "ada", 5)
        cluster.members[hospital(0)].clock_offset_ms = -20_000
        await add_records(cluster, hospital(0), "ada", 5)
        leader = cluster.leader()
        assert leader is not None
        await cluster.kill(leader)
        await cluster.until(lambda: cluster.leader() not in (None, leader))
        survivor = next(node_id for node_id in cluster.members if node_id != leader)
        await add_records(cluster, survivor, "ada", 5)
        await cluster.until(lambda: len(heads(cluster)) == 1)
        store = cluster.members[survivor].store
        assert store is not None
        times = [store.roots(height).time_ms for height in range(store.executed_height + 1)]
        assert times == sorted(set(times))


@pytest.mark.asyncio
async def test_a_leader_an_hour_ahead_is_refused_and_replaced() -> None:
    async with Cluster() as cluster:
        await register(cluster, "ada")
        ahead = cluster.leader()
        assert ahead is not None
        cluster.members[ahead].clock_offset_ms = 3_600_000
        other = next(node_id for node_id in cluster.members if node_id != ahead)
        ids = await add_records(cluster, other, "ada", 3)
        await cluster.until(lambda: cluster.leader() not in (None, ahead))
        assert cluster.members[ahead].running.driver.core.barred
        cluster.members[ahead].clock_offset_ms = 0
        ids += await add_records(cluster, other, "ada", 3)
        await cluster.until(lambda: len(heads(cluster)) == 1)
        await cluster.until(lambda: not cluster.members[ahead].running.driver.core.barred)
        for member in cluster.members.values():
            assert all(member.running.tracker.status(tx_id).code == "ok" for tx_id in ids)
