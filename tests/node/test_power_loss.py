"""Power taken from disks that keep only what was synced: nothing that was answered `committed` may be gone."""

import asyncio
import time

import pytest

from ledger.errors import Rejection
from ledger.receipt import verify_receipt
from storage.port import StorageFailure
from tests.node.cluster import Cluster
from tests.node.members import addition, register
from tests.node.test_cluster import heads

KILLS = 20
WRITERS = 8


class LostError(Exception):
    """Something that was answered `committed` is not there any more."""


async def write_until(cluster: Cluster, done: asyncio.Event, committed: set[bytes]) -> None:
    """Add records one after the other at whichever node is up; remember each id answered `committed`."""
    turn = 0
    while not done.is_set():
        transaction, body = addition(cluster, "ada", time.time_ns() // 1_000_000)
        while not done.is_set():
            turn += 1
            running = [member.node for member in cluster.members.values() if member.node is not None]
            if not running:
                cluster.moved.clear()
                await cluster.moved.wait()
                continue
            backend = running[turn % len(running)].backend
            try:
                answers = backend.submit([(transaction.data, [body])])
                rejection = answers[0].rejection
                if rejection is not None:
                    # A node that lost its newest results knows that it does, and refuses nobody for it.
                    assert rejection.code == "not_ready", rejection
                    await asyncio.sleep(0)
                    continue
                status = await backend.wait(transaction.id, "committed", timeout_s=0.5)
            except StorageFailure:
                continue
            if status.status in ("committed", "sealed"):
                committed.add(transaction.id)
                break


async def all_there(cluster: Cluster, committed: set[bytes]) -> None:
    """Every node has every committed transaction with a receipt that verifies; all heads are equal."""
    try:
        await cluster.until(
            lambda: (
                len(heads(cluster)) == 1
                and all(
                    member.running.tracker.status(tx_id).status == "sealed"
                    for member in cluster.members.values()
                    for tx_id in committed
                )
            ),
            timeout_s=5.0,
        )
    except TimeoutError:
        raise LostError from None
    for member in cluster.members.values():
        for tx_id in committed:
            try:
                receipt = verify_receipt(member.running.backend.receipt(tx_id), cluster.genesis)
            except Rejection:
                raise LostError from None
            assert (receipt.id, receipt.code) == (tx_id, "ok")


async def kill_leader_once(cluster: Cluster, committed: set[bytes]) -> None:
    """After a few more commits, take the power from the leader, see another one, and start the first again."""
    count = len(committed)
    await cluster.until(lambda: len(committed) >= count + 5 and cluster.leader() is not None)
    leader = cluster.leader()
    assert leader is not None
    await cluster.kill(leader)
    await cluster.until(lambda: cluster.leader() not in (None, leader))
    await cluster.start(leader)


async def kills_under_load(cluster: Cluster, kills: int) -> set[bytes]:
    """Take the power from the leader `kills` times, then from everybody at once; what was answered `committed`."""
    committed: set[bytes] = set()
    done = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for _ in range(WRITERS):
            group.create_task(write_until(cluster, done, committed))
        for _ in range(kills):
            await kill_leader_once(cluster, committed)
        count = len(committed)
        await cluster.until(lambda: len(committed) >= count + 20)
        await cluster.kill(*cluster.members)
        for node_id in cluster.members:
            await cluster.start(node_id)
        done.set()
    return committed


@pytest.mark.asyncio
async def test_leaders_lose_power_twenty_times_then_everybody_at_once() -> None:
    async with Cluster() as cluster:
        await register(cluster, "ada")
        committed = await kills_under_load(cluster, KILLS)
        assert len(committed) >= 5 * KILLS
        await all_there(cluster, committed)


@pytest.mark.asyncio
async def test_a_disk_that_does_not_sync_loses_what_was_committed() -> None:
    """The test above can fail: the same run over disks that ignore syncs loses answers."""
    async with Cluster(sync_ignored=True) as cluster:
        await register(cluster, "ada")
        committed = await kills_under_load(cluster, 0)
        with pytest.raises(LostError):
            await all_there(cluster, committed)
