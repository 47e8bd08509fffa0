"""Nodes that contradict themselves leave proof: two statements about one thing, both under their signature."""

import time
from dataclasses import replace
from typing import Any

import pytest

from consensus.messages import AppendReply, Entry, Message
from ledger.block import Block, verify_header
from ledger.encoding import decode
from ledger.finality import sign_acknowledgement, verify_acknowledgement
from ledger.keys import sha256
from node import evidence as module
from node.comparison import Holdings
from node.evidence import Witness
from storage.schema import Evidence
from storage.store import EVIDENCE_BYTES_MAX
from tests.node.cluster import Cluster
from tests.node.entrance import at_rest, newcomer
from tests.node.members import transact
from tests.node.tampering import LyingLeader, entry_of, key_of_node, resealed, successor

A, B, C = (bytes([letter]) * 32 for letter in b"abc")


class Kept(list[tuple[str, str, dict[str, Any]]]):
    """What the witness handed over, decoded."""

    def keep(self, kind: str, node: str, proof: bytes) -> None:
        self.append((kind, node, decode(proof, EVIDENCE_BYTES_MAX)))


@pytest.fixture
def kept() -> Kept:
    return Kept()


@pytest.fixture
def witness(kept: Kept) -> Witness:
    return Witness(kept.keep, Holdings((), lambda node, vote: None))


def test_two_headers_of_one_height_and_term(witness: Witness, kept: Kept) -> None:
    witness.header("n1", 3, 7, A, b"first")
    witness.header("n1", 3, 7, B, b"second")
    assert kept == [
        (
            "header",
            "n1",
            {
                "first": {"signature": b"first", "statement": A},
                "height": 7,
                "kind": "header",
                "node": "n1",
                "second": {"signature": b"second", "statement": B},
                "term": 3,
            },
        )
    ]


def test_two_acknowledgements_of_one_height_and_term(witness: Witness, kept: Kept) -> None:
    witness.acknowledgement("n1", 3, 7, A, b"first")
    witness.acknowledgement("n1", 3, 7, B, b"second")
    ((kind, node, proof),) = kept
    assert (kind, node, proof["height"], proof["term"]) == ("acknowledgement", "n1", 7, 3)
    assert (proof["first"]["statement"], proof["second"]["statement"]) == (A, B)


def test_two_votes_of_one_term(witness: Witness, kept: Kept) -> None:
    witness.vote("n1", 3, "n2", b"first")
    witness.vote("n1", 3, "n3", b"second")
    ((kind, node, proof),) = kept
    assert (kind, node, proof["height"], proof["term"]) == ("vote", "n1", 0, 3)
    assert (proof["first"]["statement"], proof["second"]["statement"]) == (b"n2", b"n3")


def test_what_an_honest_node_says_is_no_contradiction(witness: Witness, kept: Kept) -> None:
    """The same again, also under another signature; another height, term, node or kind."""
    for say in (witness.header, witness.acknowledgement):
        say("n1", 3, 7, A, b"first")
        say("n1", 3, 7, A, b"first")
        say("n1", 3, 7, A, b"again")
        say("n1", 4, 7, B, b"a later term")
        say("n1", 3, 8, B, b"the next height")
        say("n2", 3, 7, B, b"another node")
    witness.vote("n1", 3, "n2", b"first")
    witness.vote("n1", 4, "n3", b"a later term")
    witness.vote("n2", 3, "n3", b"another node")
    assert kept == []


def test_it_is_told_once(witness: Witness, kept: Kept) -> None:
    for block in (A, B, C, B, A):
        witness.header("n1", 3, 7, block, b"signature")
    assert len(kept) == 1


def test_the_oldest_are_forgotten_first(witness: Witness, kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REMEMBERED_MAX", 3)
    for height in range(5):
        witness.header("n1", 1, height, A, b"first")
    for height in range(5):
        witness.header("n1", 1, height, B, b"second")
    assert [proof["height"] for _, _, proof in kept] == []
    for height in range(2, 5):
        witness.header("n1", 1, height, C, b"third")
    assert [proof["height"] for _, _, proof in kept] == [2, 3, 4]
    assert len(witness._seen) == 3
    assert len(witness._told) <= 3


# In a network.


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def shown(cluster: Cluster, node_id: str) -> list[Evidence]:
    """The evidence that this node keeps, as /v1/network shows it."""
    member = cluster.members[node_id]
    assert member.store is not None
    kept = list(member.store.evidence())
    assert [item.proof for item in member.running.backend.network().evidence] == [item.proof for item in kept]
    return kept


def statements(proof: bytes) -> tuple[dict[str, Any], list[dict[str, bytes]]]:
    """A proof, and the two statements in it, which differ."""
    told = decode(proof, EVIDENCE_BYTES_MAX)
    both = [told["first"], told["second"]]
    assert both[0]["statement"] != both[1]["statement"]
    return told, both


@pytest.mark.asyncio
async def test_a_leader_that_shows_its_followers_another_block_is_proved_to_have_done_so() -> None:
    """The other block is refused, for its time; with the true one beside it the two signatures stand on the disk."""
    async with Cluster() as cluster:
        await cluster.until(lambda: at_rest(cluster))
        leader = cluster.leader()
        assert leader is not None
        victim = next(node_id for node_id in cluster.members if node_id != leader)
        key = key_of_node(cluster, leader)

        def an_hour_ahead(block: Block, entry: Entry) -> Entry:
            # Once: then the victim gets what the others got.
            lie.victims = frozenset()
            return entry_of(resealed(block, key, time=block.header.time + 3_600_000))

        lie = LyingLeader(cluster, leader, an_hour_ahead, frozenset({victim}))
        cluster.rewrite = lie
        assert await transact(cluster, leader, newcomer(cluster, now_ms())) == "ok"
        await cluster.until(lambda: at_rest(cluster) and bool(shown(cluster, victim)))
        assert lie.sent == 1
        (item,) = shown(cluster, victim)
        assert (item.kind, item.node) == ("header", leader)
        told, both = statements(item.proof)
        assert (told["height"], told["term"]) == (2, 1)
        for statement in both:
            assert verify_header(statement["statement"], statement["signature"], key.public)
        assert all(not shown(cluster, other) for other in cluster.members if other != victim)


@pytest.mark.asyncio
async def test_a_follower_that_acknowledges_two_blocks_is_proved_to_have_done_so() -> None:
    """The leader counts only the one that it has, and keeps the other as evidence: also over a restart."""
    async with Cluster() as cluster:
        await cluster.until(lambda: at_rest(cluster))
        leader = cluster.leader()
        assert leader is not None
        liar = next(node_id for node_id in cluster.members if node_id != leader)
        key, chain, other = key_of_node(cluster, liar), cluster.genesis.chain_id(), sha256(b"another block")

        def acknowledge_twice(sender: str, peer: str, message: Message) -> Message:
            if sender != liar or not isinstance(message, AppendReply):
                return message
            more = [
                replace(one, hash=other, signature=sign_acknowledgement(key, chain, message.term, one.height, other))
                for one in message.acknowledgements
            ]
            return replace(message, acknowledgements=(*message.acknowledgements, *more))

        cluster.rewrite = acknowledge_twice
        # The liar's word is needed: one follower is cut off.
        rest = [node_id for node_id in cluster.members if node_id not in (leader, liar)]
        cluster.cut.add(frozenset((leader, rest[0])))
        assert await transact(cluster, leader, newcomer(cluster, now_ms())) == "ok"
        await cluster.until(lambda: bool(shown(cluster, leader)))
        item = shown(cluster, leader)[0]
        assert (item.kind, item.node) == ("acknowledgement", liar)
        told, both = statements(item.proof)
        for statement in both:
            assert verify_acknowledgement(
                key.public, chain, told["term"], told["height"], statement["statement"], statement["signature"]
            )
        assert other in [statement["statement"] for statement in both]
        cluster.cut.clear()
        await cluster.kill(leader)
        await cluster.start(leader)
        assert item in shown(cluster, leader)


@pytest.mark.asyncio
async def test_honest_nodes_leave_no_evidence() -> None:
    """Also when their leader is killed, and they vote again."""
    async with Cluster() as cluster:
        await cluster.until(lambda: at_rest(cluster))
        for _ in range(2):
            leader = cluster.leader()
            assert leader is not None
            assert await transact(cluster, leader, newcomer(cluster, now_ms())) == "ok"
            await cluster.kill(leader)
            await successor(cluster, leader)
            await cluster.start(leader)
            await cluster.until(lambda: at_rest(cluster))
        assert all(not shown(cluster, node_id) for node_id in cluster.members)
