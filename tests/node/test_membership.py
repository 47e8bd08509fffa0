"""Nodes come and go while the network works: by votes, one step at a time, with nobody in doubt about who counts."""

from dataclasses import replace
from typing import Any

import pytest

from consensus.messages import AppendReply, Entry, Message, Reason
from ledger.block import Block
from ledger.contracts.network import AddNode, Promote, Remove
from ledger.keys import sha256
from ledger.membership import configuration_after, without
from ledger.receipt import verify_receipt
from node.standing import RemovedError, WrongKeyError
from storage.check import check_store
from storage.configurations import members_of
from tests.fakes.disk import PowerLossDisk
from tests.node.cluster import TICK_MS, Cluster, hospital
from tests.node.entrance import newcomer
from tests.node.members import transact
from tests.node.tampering import LyingLeader, entry_of, key_of_node, resealed
from tests.node.voting import add, decide, load, now_ms, offer, promote, remove, role, until, voters

ELECTION_TIMEOUT_S = 20 * TICK_MS / 1000


async def out(cluster: Cluster, node_id: str) -> None:
    """The node ends of itself, because it was removed."""
    error = await cluster.ended(node_id)
    assert isinstance(error, ExceptionGroup)
    assert error.split(RemovedError)[1] is None, error


async def join(cluster: Cluster, at: str, index: int) -> str:
    """A new hospital's node becomes a learner, and then a voter."""
    added = await add(cluster, at, index)
    await promote(cluster, at, added)
    return added


async def offer_alone(cluster: Cluster, at: str, index: int) -> str:
    """As `offer`, where one organisation decides."""
    return await offer(cluster, at, index, organisations=(0,))


def stores(cluster: Cluster) -> list[str]:
    return [node_id for node_id, member in cluster.members.items() if member.node is not None]


async def settled(cluster: Cluster) -> None:
    """Every running node executed the same, and its roots are equal."""

    def alike() -> bool:
        found = [cluster.members[node_id].store for node_id in stores(cluster)]
        heads = {(store.executed_height, store.roots(store.executed_height)) for store in found if store}
        return len(heads) == 1

    await until(alike)


@pytest.mark.asyncio
async def test_a_node_is_added_promoted_and_removed() -> None:
    async with Cluster(size=3) as cluster:
        await cluster.led()
        at = hospital(0)
        added = await join(cluster, at, 3)
        assert voters(cluster, at) == [*map(hospital, range(4))]
        assert await transact(cluster, added, newcomer(cluster, now_ms())) == "ok"
        await remove(cluster, at, added)
        assert voters(cluster, at) == [*map(hospital, range(3))]
        await out(cluster, added)
        assert await transact(cluster, at, newcomer(cluster, now_ms())) == "ok"


@pytest.mark.asyncio
async def test_three_become_five_and_three_again_under_load_and_every_receipt_verifies_offline() -> None:
    async with Cluster(size=3) as cluster:
        at = await cluster.led()
        async with load(cluster, [*map(hospital, range(3))]) as found:
            for index in (3, 4):
                await join(cluster, at, index)
            assert voters(cluster, at) == [*map(hospital, range(5))]
            for index in (3, 4):
                await remove(cluster, at, hospital(index))
                await out(cluster, hospital(index))
        assert voters(cluster, at) == [*map(hospital, range(3))]
        assert len(found.committed) > 50
        # No election was needed; a stall is the machine's.
        assert found.longest_gap_s() < 5 * ELECTION_TIMEOUT_S
        await settled(cluster)
        store = cluster.members[at].store
        assert store is not None
        last = found.committed[-1][1]
        await until(lambda: cluster.members[at].running.tracker.status(last).status == "sealed")
        for _, tx_id in found.committed:
            proven = verify_receipt(store.receipt(tx_id), cluster.genesis)
            assert (proven.id, proven.code) == (tx_id, "ok")
        assert store.configuration.steps == 4


@pytest.mark.asyncio
async def test_the_leader_removes_itself_and_another_takes_over() -> None:
    async with Cluster(size=4) as cluster:
        leader = await cluster.led()
        others = [node_id for node_id in cluster.members if node_id != leader]
        term = cluster.members[leader].running.driver.core.term
        async with load(cluster, others) as found:
            await decide(cluster, others[0], Remove(leader), (0, 1, 2))
            await out(cluster, leader)
            count = len(found.committed)
            await until(lambda: len(found.committed) > count + 10)
        assert cluster.leader() in others
        assert voters(cluster, others[0]) == others
        # It handed over: one term later, not after a search for a leader.
        assert cluster.members[others[0]].running.driver.core.term == term + 1
        await settled(cluster)


@pytest.mark.asyncio
async def test_a_dead_node_is_replaced_and_its_return_on_an_empty_disk_changes_nothing() -> None:
    async with Cluster(size=3) as cluster:
        await cluster.led()
        dead = hospital(2)
        await cluster.kill(dead)
        at = await cluster.led()
        new = await join(cluster, at, 3)
        await remove(cluster, at, dead)
        assert voters(cluster, at) == [hospital(0), hospital(1), new]
        for wiped in (False, True):
            if wiped:
                cluster.provide(2)
            await cluster.start(dead)
            assert await transact(cluster, at, newcomer(cluster, now_ms())) == "ok"
            await out(cluster, dead)
        await settled(cluster)


@pytest.mark.asyncio
async def test_a_removed_node_comes_back_under_a_new_id_and_key_alone() -> None:
    async with Cluster(size=3) as cluster:
        await cluster.led()
        at = hospital(0)
        added = await join(cluster, at, 3)
        await remove(cluster, at, added)
        await out(cluster, added)
        used = cluster.members[added]
        for change in (
            AddNode("127.0.0.1:1003", used.certificate, added, "hospital-0"),
            AddNode(
                "127.0.0.1:1003",
                cluster.members[cluster.provide(4, used.seed)].certificate,
                hospital(4),
                "hospital-0",
            ),
        ):
            with pytest.raises(AssertionError):
                await decide(cluster, at, change)
        again = await add(cluster, at, 5, sha256(b"new key"))
        await promote(cluster, at, again)
        assert again in voters(cluster, at)
        await settled(cluster)


@pytest.mark.asyncio
async def test_a_promotion_waits_for_a_joiner_that_is_away_or_behind_and_commits_go_on() -> None:
    async with Cluster(size=3, replicate_gap_blocks=16) as cluster:
        leader = await cluster.led()
        async with load(cluster, [*map(hospital, range(3))]) as found:
            joiner = await offer(cluster, leader, 3)
            await decide(cluster, leader, Promote(joiner))
            changes = cluster.members[leader].running.changes
            await until(lambda: "to answer" in changes.waits_for)
            view = cluster.members[leader].running.backend.network()
            assert view.pending is not None
            assert (view.pending.kind, view.pending.node, view.pending.appended) == ("promote", joiner, None)
            assert joiner in view.pending.waits_for
            other = next(node_id for node_id in map(hospital, range(3)) if node_id != leader)
            seen = cluster.members[other].running.backend.network().pending
            assert seen is not None
            assert seen.waits_for == f"the leader, {leader}"
            # Far behind: it answers, and cannot fetch.
            height = cluster.members[leader].running.backend.heights().executed
            await until(lambda: cluster.members[leader].running.backend.heights().executed > height + 100)
            cluster.hungry.add(joiner)
            await cluster.start(joiner)
            await until(lambda: "blocks behind" in changes.waits_for)
            count = len(found.committed)
            await until(lambda: len(found.committed) > count + 50)
            assert role(cluster, leader, joiner) == "learner"
            cluster.hungry.clear()
            await until(lambda: role(cluster, leader, joiner) == "voter")
            assert changes.waits_for == ""
        assert found.longest_gap_s() < 5 * ELECTION_TIMEOUT_S
        await settled(cluster)


@pytest.mark.asyncio
async def test_a_leader_whose_change_nobody_voted_for_is_refused_and_replaced() -> None:
    async with Cluster(size=4) as cluster:
        leader = await cluster.led()
        await settled(cluster)
        out_of_it = next(node_id for node_id in cluster.members if node_id != leader)
        key = key_of_node(cluster, leader)

        def coup(block: Block, entry: Entry) -> Entry:
            before = cluster.genesis.configuration()
            change = without(before, out_of_it)
            joint = configuration_after(before, change, leaves=False)
            header: dict[str, Any] = {
                "change": change,
                "configuration": joint.digest(),
                "executed_height": block.header.height - 1,
            }
            return replace(entry_of(resealed(block, key, **header)), configuration=members_of(joint))

        liar = LyingLeader(cluster, leader, coup)
        cluster.rewrite = liar
        honest = next(node_id for node_id in cluster.members if node_id not in (leader, out_of_it))
        assert await transact(cluster, honest, newcomer(cluster, now_ms())) == "ok"
        assert cluster.leader() not in (None, leader)
        assert Reason.BAD_STRUCTURE in liar.reasons
        assert set(liar.reasons) <= {Reason.BAD_STRUCTURE, Reason.BEHIND}
        assert voters(cluster, honest) == sorted(cluster.members)


def joint_on_disk(cluster: Cluster, node_id: str) -> bool:
    store = cluster.members[node_id].store
    assert store is not None
    return store.configurations()[-1][1].is_joint


@pytest.mark.parametrize("away", [False, True], ids=["all come back", "the leader stays away"])
@pytest.mark.asyncio
async def test_a_network_that_loses_its_power_while_joint_completes_the_change(away: bool) -> None:
    async with Cluster(size=3) as cluster:
        leader = await cluster.led()
        joiner = await add(cluster, leader, 3)

        def mute(sender: str, peer: str, message: Message) -> Message | None:
            """Nobody's acknowledgement of a joint block arrives."""
            node = cluster.members[sender].node
            joint = node is not None and node.driver.core.configuration.joint
            return replace(message, acknowledgements=()) if joint and isinstance(message, AppendReply) else message

        cluster.rewrite = mute
        await decide(cluster, leader, Promote(joiner))
        await until(lambda: all(joint_on_disk(cluster, node_id) for node_id in cluster.members))
        await cluster.kill(*cluster.members)
        cluster.rewrite = lambda sender, peer, message: message
        back = [node_id for node_id in cluster.members if not (away and node_id == leader)]
        for node_id in back:
            await cluster.start(node_id)
        at = next(node_id for node_id in back if node_id != leader)
        await until(lambda: role(cluster, at, joiner) == "voter")
        assert voters(cluster, at) == sorted(cluster.members)
        assert await transact(cluster, at, newcomer(cluster, now_ms())) == "ok"
        await settled(cluster)


@pytest.mark.asyncio
async def test_a_joiner_from_genesis_follows_all_changes_since_and_ends_with_equal_roots() -> None:
    """It meets a certificate by voters of whom it has never heard, and catches up through the steps to them."""
    async with Cluster(size=3, replicate_gap_blocks=8) as cluster:
        at = await cluster.led()
        for index in (3, 4):
            await join(cluster, at, index)
        gone = next(node_id for node_id in map(hospital, range(3)) if node_id != at)
        await remove(cluster, at, gone)
        await out(cluster, gone)
        joiner = await add(cluster, at, 5)
        await settled(cluster)
        store = cluster.members[joiner].store
        assert store is not None
        assert [configuration.steps for _, configuration in store.configurations()][-1] == 3
        # Everything is stored, and follows from genesis alone.
        await cluster.stop(joiner)
        disk = cluster.members[joiner].disk
        report = check_store(disk.open(), cluster.genesis, PowerLossDisk(), lambda *_: None)
        assert report.problems == []


@pytest.mark.asyncio
async def test_a_joiner_from_genesis_whose_leader_genesis_does_not_name() -> None:
    """It lets in nobody of whom it has not heard; so the leader cannot tell it anything, and it asks the others."""
    async with Cluster(size=3) as cluster:
        at = await cluster.led()
        later = await join(cluster, at, 3)
        driver = cluster.members[at].running.driver
        driver._do(lambda: driver.core.transfer(later), "transfer")
        await until(lambda: cluster.leader() == later)
        joiner = await add(cluster, later, 4)
        await settled(cluster)
        core = cluster.members[joiner].running.driver.core
        await until(lambda: core.leader == later)
        assert role(cluster, joiner, later) == "voter"


@pytest.mark.asyncio
async def test_a_joiner_of_a_network_that_has_replaced_all_nodes_of_its_genesis() -> None:
    """Whoever runs it is handed the certificates of nodes that are there now."""
    async with Cluster(size=1) as cluster:
        # Alone it sends no messages.
        await until(lambda: cluster.leader() is not None)
        founder = await cluster.led()
        at = hospital(1)
        added = await offer_alone(cluster, founder, 1)
        await cluster.start(added)
        await decide(cluster, founder, Promote(added), (0,))
        await until(lambda: role(cluster, founder, added) == "voter")
        await decide(cluster, founder, Remove(founder), (0,))
        await out(cluster, founder)
        await until(lambda: cluster.leader() == at)
        joiner = await offer_alone(cluster, at, 2)
        cluster.members[joiner].introduced = [at]
        await cluster.start(joiner)
        await settled(cluster)
        core = cluster.members[joiner].running.driver.core
        await until(lambda: core.leader == at)
        assert role(cluster, joiner, at) == "voter"


@pytest.mark.asyncio
async def test_a_node_under_the_key_of_another_stops() -> None:
    """Its id stands on the ledger with the key that was voted for."""
    async with Cluster(size=3) as cluster:
        at = await cluster.led()
        joiner = await offer(cluster, at, 3)
        cluster.members[joiner].seed = sha256(b"another key")
        await cluster.start(joiner)
        error = await cluster.ended(joiner)
        assert isinstance(error, ExceptionGroup)
        assert error.split(WrongKeyError)[1] is None, error
