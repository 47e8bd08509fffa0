"""A leader whose blocks break a rule of the ledger: refused with its reason, replaced, and the network goes on.

What it sends is changed on the way, under its own signature (tests/node/tampering.py). Every rule stands in
tests/node/test_inspector.py; here is one of each kind, as a network lives through it.
"""

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from consensus.messages import Append, Entry, Message, Reason
from ledger.block import Block
from ledger.contracts import identity
from ledger.encoding import encode
from ledger.genesis import Parameters
from ledger.keys import SigningKey
from ledger.transaction import Transaction, decode_transaction
from network.port import BlockRange, FetchFailed
from tests.node.cluster import Cluster, Server, admin_account, admin_key
from tests.node.entrance import at_rest, committed_since, newcomer
from tests.node.members import addition, register, sign, transact
from tests.node.tampering import LyingLeader, block_of, entry_of, key_of_node, resealed, successor

OTHER = bytes(31) + b"\x01"

# What a leader does to a block: its own key, the block, the entry that carries it.
Lie = Callable[[SigningKey, Block, Entry], Entry]


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def forged(transaction: Transaction) -> Transaction:
    body = encode(transaction.envelope)
    return decode_transaction(encode({"body": body, "signature": transaction.signature[::-1]}))


def by_header(**changes: Any) -> Lie:
    return lambda key, block, entry: entry_of(resealed(block, key, **changes))


LIES: dict[str, tuple[Lie, Reason]] = {
    "bad hash": (lambda key, block, entry: replace(entry, hash=OTHER), Reason.BAD_STRUCTURE),
    "bad bytes": (lambda key, block, entry: replace(entry, data=entry.data + b"\x00"), Reason.BAD_STRUCTURE),
    "bad state root": (by_header(state_root=OTHER), Reason.BAD_ROOTS),
    "bad history root": (by_header(history_root=OTHER), Reason.BAD_ROOTS),
    "bad signature": (
        lambda key, block, entry: entry_of(resealed(block, admin_key(0))),
        Reason.BAD_SIGNATURE,
    ),
    "a forged transaction": (
        lambda key, block, entry: entry_of(resealed(block, key, [forged(one) for one in block.transactions])),
        Reason.BAD_SIGNATURE,
    ),
    "unknown proposer": (by_header(proposer="nobody"), Reason.BAD_STRUCTURE),
    "time not after the parent's": (by_header(time=0), Reason.BAD_STRUCTURE),
    "time far ahead": (by_header(time=2**50), Reason.BAD_TIME),
}


async def led(cluster: Cluster) -> str:
    """At rest, and who leads."""
    await cluster.until(lambda: at_rest(cluster))
    leader = cluster.leader()
    assert leader is not None
    return leader


async def agree_on(cluster: Cluster, height: int, *ids: bytes) -> None:
    """Every node comes to rest with the same head, and the blocks above `height` hold these transactions alone."""
    await cluster.until(lambda: at_rest(cluster))
    stores = [member.store for member in cluster.members.values() if member.store is not None]
    assert len({(store.executed_height, store.roots(store.executed_height)) for store in stores}) == 1
    for member in cluster.members.values():
        assert committed_since(cluster, member, height) == list(ids)


@pytest.mark.parametrize("name", LIES)
@pytest.mark.asyncio
async def test_a_refused_leader_is_replaced_and_the_network_goes_on(name: str) -> None:
    lie, reason = LIES[name]
    async with Cluster() as cluster:
        leader = await led(cluster)
        height = cluster.members[leader].running.backend.heights().executed
        key = key_of_node(cluster, leader)
        liar = LyingLeader(cluster, leader, lambda block, entry: lie(key, block, entry))
        cluster.rewrite = liar
        transaction = newcomer(cluster, now_ms())
        honest = next(node_id for node_id in cluster.members if node_id != leader)
        assert await transact(cluster, honest, transaction) == "ok"
        assert cluster.leader() not in (None, leader)
        assert set(liar.reasons) == {reason}
        await agree_on(cluster, height, transaction.id)
        # It stays out of elections, unless it was its clock, which its own node finds in order.
        assert cluster.members[leader].running.driver.core.barred == (reason is not Reason.BAD_TIME)


@pytest.mark.asyncio
async def test_a_block_with_too_many_transactions() -> None:
    async with Cluster(parameters=Parameters(block_transactions_max=2)) as cluster:
        leader = await led(cluster)
        height = cluster.members[leader].running.backend.heights().executed
        liar = LyingLeader(cluster, leader, lambda block, entry: entry)
        cluster.rewrite = liar
        made = [newcomer(cluster, now_ms()) for _ in range(3)]
        assert cluster.members[leader].running.driver.propose(made)
        await successor(cluster, leader)
        assert set(liar.reasons) == {Reason.BAD_STRUCTURE}
        await agree_on(cluster, height)


@pytest.mark.parametrize("kind", ["expired", "until_too_far", "unregistered", "wrong_signer", "bad_key"])
@pytest.mark.asyncio
async def test_what_a_pool_would_refuse_fails_alike_where_a_leader_includes_it(kind: str) -> None:
    """A leader may include it: then it is in the block, with its code, and changes nothing."""
    async with Cluster() as cluster:
        leader = await led(cluster)
        height = cluster.members[leader].running.backend.heights().executed
        stranger = SigningKey(secrets.token_bytes(32))
        when = {"expired": now_ms() - 400_000, "until_too_far": now_ms() + 400_000}.get(kind, now_ms())
        key = stranger if kind in ("unregistered", "wrong_signer") else admin_key(0)
        by = OTHER if kind == "unregistered" else admin_account(0)
        new = bytes(32) if kind == "bad_key" else stranger.public
        proof = identity.possession_proof(stranger, cluster.genesis.chain_id(), by)
        bad = sign(cluster, key, by, [identity.Register(new, proof, "patient")], [], when)
        before = {member.store.roots(height).state for member in cluster.members.values() if member.store}
        assert cluster.members[leader].running.driver.propose([bad])
        await agree_on(cluster, height, bad.id)
        for member in cluster.members.values():
            assert member.store is not None
            assert [result.code for result in member.store.results(height + 1)] == [kind]
            assert {member.store.roots(member.store.executed_height).state} == before


@pytest.mark.asyncio
async def test_one_follower_that_is_lied_to_refuses_and_recovers() -> None:
    """The others are a quorum without it, so that the leader stays; once it hears the truth it follows again."""
    async with Cluster() as cluster:
        leader = await led(cluster)
        height = cluster.members[leader].running.backend.heights().executed
        key = key_of_node(cluster, leader)
        victim = next(node_id for node_id in cluster.members if node_id != leader)
        lie = by_header(state_root=OTHER)
        liar = LyingLeader(cluster, leader, lambda block, entry: lie(key, block, entry), frozenset({victim}))
        cluster.rewrite = liar
        first, second = newcomer(cluster, now_ms()), newcomer(cluster, now_ms())
        assert await transact(cluster, leader, first) == "ok"
        await cluster.until(lambda: liar.sent >= 3)
        assert cluster.leader() == leader
        assert cluster.members[victim].running.backend.heights().executed == height
        liar.victims = frozenset()
        assert await transact(cluster, victim, second) == "ok"
        assert set(liar.reasons) == {Reason.BAD_ROOTS}
        await agree_on(cluster, height, first.id, second.id)
        assert cluster.leader() == leader


@pytest.mark.asyncio
async def test_a_made_up_link_to_a_certified_block_stops_nobody() -> None:
    """Bad roots under a certificate stop a node; a leader that only says that they are under one is refused.

    It sends its bad block, and above it an entry that claims the certified hash without having its bytes.
    """
    async with Cluster() as cluster:
        leader = await led(cluster)
        height = cluster.members[leader].running.backend.heights().executed
        key = key_of_node(cluster, leader)
        victim = next(node_id for node_id in cluster.members if node_id != leader)
        lies = 0

        def claim(sender: str, peer: str, message: Message) -> Message:
            nonlocal lies
            if (sender, peer) != (leader, victim) or not isinstance(message, Append) or message.certificate is None:
                return message
            for index, entry in enumerate(message.entries):
                if block_of(entry).transactions:
                    lies += 1
                    bad = entry_of(resealed(block_of(entry), key, state_root=OTHER))
                    claimed = Entry(bad.height + 1, bad.term, bad.hash, message.certificate.hash, entry.data)
                    return replace(message, entries=(*message.entries[:index], bad, claimed))
            return message

        cluster.cut.add(frozenset((leader, victim)))
        first, second = newcomer(cluster, now_ms()), newcomer(cluster, now_ms())
        assert await transact(cluster, leader, first) == "ok"
        cluster.rewrite = claim
        cluster.cut.clear()
        await cluster.until(lambda: lies >= 2)
        task = cluster.members[victim].task
        assert task is not None
        assert not task.done()
        cluster.rewrite = lambda sender, peer, message: message
        assert await transact(cluster, leader, second) == "ok"
        await agree_on(cluster, height, first.id, second.id)


# Bodies.


class Keeper:
    """A member's own answers, of which the first `fails` about bodies are replaced by `answer`."""

    def __init__(self, member: Server, fails: int, answer: Callable[[Sequence[bytes]], Sequence[bytes]]) -> None:
        self.member, self.fails, self.answer = member, fails, answer
        self.asked = 0

    def serve_blocks(self, from_height: int, bytes_max: int) -> BlockRange:
        return self.member.serve_blocks(from_height, bytes_max)

    def serve_bodies(self, commitments: Sequence[bytes], bytes_max: int) -> Sequence[bytes]:
        self.asked += 1
        bodies = self.member.serve_bodies(commitments, bytes_max)
        return self.answer(bodies) if self.asked <= self.fails else bodies


def times_out(bodies: Sequence[bytes]) -> Sequence[bytes]:
    raise FetchFailed("the leader", "timed_out")


@pytest.mark.parametrize(
    ("fails", "answer"),
    [(0, list), (6, times_out), (6, lambda bodies: []), (6, lambda bodies: [b"another body"])],
    ids=["at once", "after failures", "after empty answers", "after other bodies"],
)
@pytest.mark.asyncio
async def test_missing_bodies_are_fetched_from_the_leader(
    fails: int, answer: Callable[[Sequence[bytes]], Sequence[bytes]]
) -> None:
    """Gossip is lost, so that no follower has them. Nobody acknowledges a block before it is whole."""
    async with Cluster() as cluster:
        await register(cluster, "ada")
        leader = await led(cluster)
        height = cluster.members[leader].running.backend.heights().executed
        keeper = Keeper(cluster.members[leader].running.peering, fails, answer)
        cluster.gossip_lost, cluster.stand_ins = True, {leader: keeper}
        made = [addition(cluster, "ada", now_ms()) for _ in range(3)]
        answers = cluster.members[leader].running.backend.submit([(one.data, [body]) for one, body in made])
        assert [submission.rejection for submission in answers] == [None] * 3
        await agree_on_once(cluster, made[-1][0].id)
        assert keeper.asked >= max(fails, 3)
        await agree_on(cluster, height, *(one.id for one, _ in made))
        for member in cluster.members.values():
            assert member.store is not None
            for one, body in made:
                assert member.store.body(one.envelope.bodies[0].commitment) == body


async def agree_on_once(cluster: Cluster, tx_id: bytes) -> None:
    """Wait until every node has committed it."""
    await cluster.until(
        lambda: all(member.running.tracker.status(tx_id).code == "ok" for member in cluster.members.values())
    )


@pytest.mark.asyncio
async def test_a_leader_without_the_bodies_of_its_block_is_replaced() -> None:
    """It cannot get the block committed; the next leader's goes through, and the lost one's transaction later on."""
    async with Cluster() as cluster:
        await register(cluster, "ada")
        leader = await led(cluster)
        height = cluster.members[leader].running.backend.heights().executed
        keeper = Keeper(cluster.members[leader].running.peering, 1_000_000, times_out)
        cluster.gossip_lost, cluster.stand_ins = True, {leader: keeper}
        lost, body = addition(cluster, "ada", now_ms())
        cluster.members[leader].running.backend.submit([(lost.data, [body])])
        follower = await successor(cluster, leader)
        assert keeper.asked > 0
        good = newcomer(cluster, now_ms())
        assert await transact(cluster, follower, good) == "ok"
        cluster.gossip_lost, cluster.stand_ins = False, {}
        await cluster.kill(leader)
        await cluster.led()
        await cluster.start(leader)
        assert await transact(cluster, leader, lost, [body]) == "ok"
        await agree_on(cluster, height, good.id, lost.id)
