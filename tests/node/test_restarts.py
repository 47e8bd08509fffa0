"""A disk that was emptied or put back from a backup: whoever is up and remembers keeps it from voting.

A network of three, in which one of the two nodes that committed something forgets it, and the third never heard of
it: the forgetful one and the third are a quorum, and would elect a leader without what was committed.
"""

import copy
import time

import pytest

from ledger.contracts import identity
from network.port import Statements, VoteShown
from node import catchup
from node.comparison import BAD_STATEMENT
from node.node import AMNESIA
from tests.fakes.disk import PowerLossDisk
from tests.node.cluster import Cluster, hospital
from tests.node.members import account_of, register, registration, transact
from tests.node.test_cluster import heads


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catchup, "RETRY_S", 0.01)
    monkeypatch.setattr(catchup, "STALL_S", 0.1)


def backup(cluster: Cluster, node_id: str) -> PowerLossDisk:
    """What the disk would hold after a power loss now."""
    disk = cluster.members[node_id].disk
    made = PowerLossDisk(only_synced=True)
    made._durable = copy.copy(disk._durable)
    made.power_loss()
    return made


def amnesiac(cluster: Cluster, node_id: str) -> bool:
    return cluster.members[node_id].running.amnesia is not None


def may_vote(cluster: Cluster, node_id: str) -> bool:
    return cluster.members[node_id].running.driver.core.may_vote


async def trusted(cluster: Cluster, *node_ids: str) -> None:
    await cluster.until(lambda: all(may_vote(cluster, node_id) for node_id in node_ids))


def knows(cluster: Cluster, node_id: str, name: str) -> bool:
    return cluster.members[node_id].running.backend.state(identity.account_path(account_of(name))) is not None


async def enrol(cluster: Cluster, node_id: str, name: str) -> None:
    transaction = registration(cluster, name, "clinician", 0, time.time_ns() // 1_000_000)
    assert await transact(cluster, node_id, transaction) == "ok"


async def two_commit_without_the_third(cluster: Cluster) -> tuple[str, str, str]:
    """Leader, follower, and the third: "eve" is committed by the first two, while the third hears nothing."""
    leader = await cluster.led()
    follower, third = (node_id for node_id in cluster.members if node_id != leader)
    cluster.cut = {frozenset((third, leader)), frozenset((third, follower))}
    await enrol(cluster, leader, "eve")
    await cluster.until(lambda: knows(cluster, follower, "eve"))
    return leader, follower, third


async def with_another_disk(cluster: Cluster, node_id: str, disk: PowerLossDisk) -> None:
    """Start the node, which is down, on this disk."""
    cluster.members[node_id].disk = disk
    await cluster.start(node_id)


async def settle(cluster: Cluster) -> None:
    await cluster.until(
        lambda: cluster.leader() is not None and len(heads(cluster)) == 1 and all(head[0] for head in heads(cluster))
    )


@pytest.mark.parametrize("forgets", ["the follower", "the leader"])
@pytest.mark.asyncio
async def test_an_emptied_disk_elects_nobody_who_lacks_what_it_had_a_part_in(forgets: str) -> None:
    async with Cluster(size=3) as cluster:
        await register(cluster, "ada")
        leader, follower, _ = await two_commit_without_the_third(cluster)
        lost, kept = (follower, leader) if forgets == "the follower" else (leader, follower)
        await cluster.kill(lost)
        await with_another_disk(cluster, lost, PowerLossDisk())
        assert amnesiac(cluster, lost)
        assert not may_vote(cluster, lost)

        # Nobody is left who remembers: the other two make a quorum, and must elect nobody.
        await cluster.kill(kept)
        cluster.cut.clear()
        with pytest.raises(TimeoutError):
            await cluster.until(lambda: cluster.leader() is not None, timeout_s=2.0)

        await cluster.start(kept)
        await cluster.until(lambda: all(knows(cluster, node_id, "eve") for node_id in cluster.members))
        await settle(cluster)
        assert cluster.leader() != lost
        view = cluster.members[lost].running.backend
        assert view.network().amnesia
        assert (view.ready(), view.ailment()) == (None, AMNESIA)
        assert b"carequorum_amnesia 1.0" in view.metrics.render()
        # It serves, and follows; commits need the other two.
        await enrol(cluster, lost, "joe")


@pytest.mark.asyncio
async def test_a_disk_put_back_from_a_backup_is_noticed() -> None:
    async with Cluster(size=3) as cluster:
        await register(cluster, "ada")
        await settle(cluster)
        old = {node_id: backup(cluster, node_id) for node_id in cluster.members}
        leader, follower, _ = await two_commit_without_the_third(cluster)
        await cluster.kill(follower)
        await with_another_disk(cluster, follower, old[follower])
        assert amnesiac(cluster, follower)
        why = cluster.members[follower].running.amnesia
        assert why is not None
        assert (why.kind, why.shown_by) == ("acknowledgement", leader)
        cluster.cut.clear()
        await settle(cluster)
        assert all(knows(cluster, node_id, "eve") for node_id in cluster.members)


@pytest.mark.asyncio
async def test_once_noticed_it_stays_noticed() -> None:
    """Also when nobody is up who would show it again."""
    async with Cluster(size=3) as cluster:
        await register(cluster, "ada")
        leader, follower, _ = await two_commit_without_the_third(cluster)
        await cluster.kill(follower)
        await with_another_disk(cluster, follower, PowerLossDisk(only_synced=True))
        await cluster.until(lambda: cluster.members[follower].running._store.promises.forsworn is not None)
        await cluster.kill(leader, follower)
        await cluster.start(follower)
        assert amnesiac(cluster, follower)
        assert cluster.members[follower].running.driver.core.forsworn


@pytest.mark.asyncio
async def test_who_voted_is_remembered_by_whom_it_voted_for_also_over_a_restart() -> None:
    """A candidate holds votes on its own disk: here nothing was committed in the term, and all were restarted."""
    async with Cluster(size=3) as cluster:
        leader = await cluster.led()
        held = cluster.members[leader].running._holdings
        voters = [node_id for node_id in cluster.members if held.shown_to(node_id, 0).vote is not None]
        assert voters
        vote = held.shown_to(voters[0], 0).vote
        await settle(cluster)
        await cluster.kill(*cluster.members)
        await cluster.start(leader)
        assert cluster.members[leader].running._holdings.shown_to(voters[0], 0).vote == vote
        await with_another_disk(cluster, voters[0], PowerLossDisk())
        assert amnesiac(cluster, voters[0])


@pytest.mark.parametrize("forgets", ["the follower", "the leader"])
@pytest.mark.asyncio
async def test_who_remembers_may_have_lost_its_power_too(forgets: str) -> None:
    """What it holds it finds again on its disk: votes for it, headers in its blocks."""
    async with Cluster(size=3) as cluster:
        await register(cluster, "ada")
        leader, follower, third = await two_commit_without_the_third(cluster)
        lost, kept = (follower, leader) if forgets == "the follower" else (leader, follower)
        await cluster.kill(*cluster.members)
        await cluster.start(kept)
        await with_another_disk(cluster, lost, PowerLossDisk())
        assert amnesiac(cluster, lost)
        cluster.cut.clear()
        await cluster.start(third)
        await settle(cluster)
        assert all(knows(cluster, node_id, "eve") for node_id in cluster.members)


@pytest.mark.asyncio
async def test_an_emptied_node_of_the_leader_s_own_term_is_served() -> None:
    """The leader remembers what it once acknowledged and sends it no more; it fetches, however near it is."""
    async with Cluster(size=4) as cluster:
        await register(cluster, "ada")
        await settle(cluster)
        leader = await cluster.led()
        lost = next(node_id for node_id in cluster.members if node_id != leader)
        term = cluster.members[leader].running.driver.core.term
        await cluster.kill(lost)
        await with_another_disk(cluster, lost, PowerLossDisk())
        await cluster.until(lambda: knows(cluster, lost, "ada"))
        await enrol(cluster, leader, "eve")
        await cluster.until(lambda: knows(cluster, lost, "eve"))
        assert cluster.members[leader].running.driver.core.term == term


@pytest.mark.asyncio
async def test_what_only_a_node_that_is_down_remembers_cannot_be_noticed() -> None:
    """The limit: two of three fail at once. One goes back to an earlier disk, one is off, the third heard nothing."""
    async with Cluster(size=3) as cluster:
        await register(cluster, "ada")
        await settle(cluster)
        old = {node_id: backup(cluster, node_id) for node_id in cluster.members}
        leader, follower, _ = await two_commit_without_the_third(cluster)
        await cluster.kill(leader, follower)
        cluster.cut.clear()
        await with_another_disk(cluster, follower, old[follower])
        await cluster.until(lambda: may_vote(cluster, follower))
        assert not amnesiac(cluster, follower)


@pytest.mark.asyncio
async def test_a_forged_statement_takes_nobody_s_vote() -> None:
    async with Cluster(size=3) as cluster:
        await register(cluster, "ada")
        victim = cluster.members[hospital(0)].running
        forged = Statements(vote=VoteShown(99, hospital(1), bytes(64)))
        victim.peering.on_statements(hospital(1), forged)
        assert not amnesiac(cluster, hospital(0))
        assert may_vote(cluster, hospital(0))
        count = victim.metrics.bad_frames.labels(BAD_STATEMENT)._value.get()
        assert count == 1


class TestPlainRestarts:
    """Nobody waits for more than to be connected, and to hold again the certificates that its disk had not kept."""

    @pytest.mark.asyncio
    async def test_of_one(self) -> None:
        async with Cluster(size=3) as cluster:
            await register(cluster, "ada")
            for node_id in cluster.members:
                await cluster.kill(node_id)
                await cluster.start(node_id)
                await trusted(cluster, node_id)
                await enrol(cluster, node_id, f"after-{node_id}")
            assert not any(amnesiac(cluster, node_id) for node_id in cluster.members)

    @pytest.mark.asyncio
    async def test_of_one_while_another_is_down(self) -> None:
        async with Cluster(size=3) as cluster:
            await register(cluster, "ada")
            await cluster.kill(hospital(0), hospital(1))
            await cluster.start(hospital(1))
            await enrol(cluster, hospital(1), "eve")
            assert may_vote(cluster, hospital(1))

    @pytest.mark.asyncio
    async def test_of_all_at_once_again_and_again(self) -> None:
        async with Cluster(size=3, only_synced=True) as cluster:
            await register(cluster, "ada")
            for turn in range(5):
                await cluster.kill(*cluster.members)
                for node_id in cluster.members:
                    await cluster.start(node_id)
                await trusted(cluster, *cluster.members)
                await enrol(cluster, await cluster.led(), f"turn-{turn}")
            assert not any(amnesiac(cluster, node_id) for node_id in cluster.members)

    @pytest.mark.asyncio
    async def test_of_a_network_of_one(self) -> None:
        async with Cluster(size=1) as cluster:
            await enrol(cluster, hospital(0), "ada")
            await cluster.kill(hospital(0))
            await cluster.start(hospital(0))
            assert may_vote(cluster, hospital(0))
            await enrol(cluster, hospital(0), "eve")

    @pytest.mark.asyncio
    async def test_alone_of_three_it_waits_for_another(self) -> None:
        async with Cluster(size=3) as cluster:
            await register(cluster, "ada")
            await cluster.kill(*cluster.members)
            await cluster.start(hospital(0))
            assert not may_vote(cluster, hospital(0))
            await cluster.start(hospital(1))
            await cluster.until(lambda: may_vote(cluster, hospital(0)))
