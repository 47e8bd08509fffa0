"""A full pool at a real node: who is refused, what is said, and that peers' gossip still has room.

Two of four hospitals are down, so that nothing commits and what waits stays. Of 16 places a member may take 4, an
organisation 8, and the clients of one node 12.
"""

import time
from collections.abc import AsyncIterator, Sequence

import pytest
import pytest_asyncio

from ledger.transaction import Transaction
from network.port import SharedTransaction
from node.pool import PoolLimits
from tests.node.cluster import Cluster, hospital
from tests.node.entrance import Entrance, at_rest, entrance
from tests.node.members import addition, register

MEMBERS = {"ada": 0, "abe": 0, "amy": 0, "bea": 1, "bob": 1, "cyd": 2}


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@pytest_asyncio.fixture
async def port() -> AsyncIterator[Entrance]:
    """Hospital-0's port, and nobody to agree with."""
    async with Cluster(pool=PoolLimits(16, 1 << 20, organisation_share=0.5, member_share=0.25)) as cluster:
        for name, index in MEMBERS.items():
            await register(cluster, name, hospital_index=index)
        await cluster.until(lambda: at_rest(cluster))
        await cluster.kill(hospital(2), hospital(3))
        async with entrance(cluster, hospital(0)) as client:
            yield client


def waiting(port: Entrance) -> int:
    return len(port.cluster.members[port.node_id].running.pool)


def item(transaction: Transaction, body: bytes) -> dict[str, object]:
    return {"envelope": transaction.data, "bodies": [body]}


async def fill(port: Entrance, *names: str, count: int = 4) -> list[bytes]:
    """So many records by each of them wait here; their ids."""
    ids = []
    for name in names:
        for _ in range(count):
            transaction, body = addition(port.cluster, name, now_ms())
            assert (await port.submit(transaction, [body], wait="accepted"))["status"] == "pending"
            ids.append(transaction.id)
    return ids


async def assert_refused(port: Entrance, name: str) -> bytes:
    """One more by `name` is refused as `pool_full`, alone and in a list; its id. Nothing of it waits."""
    before = waiting(port)
    transaction, body = addition(port.cluster, name, now_ms())
    for content in (item(transaction, body), [item(transaction, body)] * 2):
        status, headers, problem = await port.post(content)
        assert (status, problem["code"], headers["Retry-After"]) == (503, "pool_full", "1")
    assert waiting(port) == before
    for member in port.cluster.members.values():
        if member.node is not None:
            assert member.node.backend.status(transaction.id).status == "unknown"
            assert member.node.pool.body(transaction.envelope.bodies[0].commitment) is None
    return transaction.id


async def assert_everything_commits(port: Entrance, ids: Sequence[bytes], never: Sequence[bytes]) -> None:
    """Once the others are back, what waited is committed, what was refused is nowhere, and there is room again."""
    cluster = port.cluster
    for node_id in (hospital(2), hospital(3)):
        await cluster.start(node_id)
    await cluster.until(lambda: at_rest(cluster))
    for member in cluster.members.values():
        assert {member.running.tracker.status(tx_id).code for tx_id in ids} == {"ok"}
        assert {member.running.tracker.status(tx_id).status for tx_id in never} <= {"unknown"}
    transaction, body = addition(cluster, "ada", now_ms())
    assert (await port.submit(transaction, [body]))["code"] == "ok"


@pytest.mark.asyncio
async def test_a_member_s_share_is_used_up(port: Entrance) -> None:
    """The others of its organisation go on."""
    ids = await fill(port, "ada")
    never = await assert_refused(port, "ada")
    ids += await fill(port, "abe")
    await assert_everything_commits(port, ids, [never])


@pytest.mark.asyncio
async def test_an_organisation_s_share_is_used_up(port: Entrance) -> None:
    """The others go on."""
    ids = await fill(port, "ada", "abe")
    never = await assert_refused(port, "amy")
    ids += await fill(port, "bea")
    await assert_everything_commits(port, ids, [never])


@pytest.mark.asyncio
async def test_the_pool_is_full_for_clients_and_still_takes_what_peers_push(port: Entrance) -> None:
    """Up to the last place, which is refused to nobody in particular; `Retry-After` holds once there is room."""
    cluster = port.cluster
    ids = await fill(port, "ada", "abe", "bea")
    never = [await assert_refused(port, "bob")]
    node = cluster.members[port.node_id].running
    for count in range(5):
        transaction, body = addition(cluster, "bob", now_ms())
        node.peering.on_transactions(hospital(1), [SharedTransaction(transaction.data, (body,))])
        assert (transaction.id in node.pool) == (count < 4)
        (ids if count < 4 else never).append(transaction.id)
    assert waiting(port) == 16
    transaction, body = addition(cluster, "cyd", now_ms())
    node.peering.on_transactions(hospital(1), [SharedTransaction(transaction.data, (body,))])
    assert waiting(port) == 16
    never += [transaction.id, await assert_refused(port, "cyd")]
    await assert_everything_commits(port, ids, never)


@pytest.mark.asyncio
async def test_of_a_list_the_ones_that_fit_are_taken(port: Entrance) -> None:
    """Then the answer is 200 with a result for each."""
    made = [addition(port.cluster, "ada", now_ms()) for _ in range(6)]
    status, _, answer = await port.post([item(*each) for each in made])
    assert status == 200
    assert [result["status"] for result in answer["results"]] == ["pending"] * 4 + ["refused"] * 2
    assert [result.get("code") for result in answer["results"]][4:] == ["pool_full"] * 2
    ids = [transaction.id for transaction, _ in made]
    await assert_everything_commits(port, ids[:4], ids[4:])
