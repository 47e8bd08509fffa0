"""A node far behind, and peers that lie to it: it takes nothing that a certificate does not prove, and asks the next.

Two of the three peers lie, each time; the third is honest.
"""

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import msgspec
import pytest

from ledger.block import FORMAT, Block, Header, block_hash, decode_block, seal_block, tx_root
from ledger.finality import Certificate, decode_certificate, make_certificate, sign_acknowledgement
from network.port import BlockRange, FetchFailed
from node import catchup
from node.catchup import ForkError
from node.inspector import BLOCK_OVERHEAD_BYTES
from node.membership import Place, entry_on
from tests.node.cluster import Cluster, Server
from tests.node.entrance import at_rest, newcomer
from tests.node.members import addition, register, transact
from tests.node.tampering import key_of_node, resealed

GAP_BLOCKS = 8
BYTES_MAX = (1 << 20) + BLOCK_OVERHEAD_BYTES

# What a liar makes of an honest answer.
Lie = Callable[[Cluster, BlockRange], BlockRange]


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catchup, "RETRY_S", 0.01)


class Liar:
    """A member whose answers about blocks, or about bodies, are changed."""

    def __init__(
        self,
        cluster: Cluster,
        member: Server,
        lie: Lie,
        bodies: Callable[[Sequence[bytes]], Sequence[bytes]] = lambda bodies: bodies,
    ) -> None:
        self.cluster, self.member, self.lie, self.bodies = cluster, member, lie, bodies
        self.asked = 0

    def serve_blocks(self, from_height: int, bytes_max: int) -> BlockRange:
        self.asked += 1
        return self.lie(self.cluster, self.member.serve_blocks(from_height, bytes_max))

    def serve_bodies(self, commitments: Sequence[bytes], bytes_max: int) -> Sequence[bytes]:
        return self.bodies(self.member.serve_bodies(commitments, bytes_max))


@asynccontextmanager
async def one_far_behind(cluster: Cluster) -> AsyncIterator[str]:
    """A running network, and the node that was switched off 2 * GAP_BLOCKS blocks ago."""
    async with cluster:
        await register(cluster, "ada")
        await cluster.until(lambda: at_rest(cluster))
        late = cluster.follower()
        await cluster.kill(late)
        leader = await cluster.led()
        for _ in range(2 * GAP_BLOCKS):
            transaction, body = addition(cluster, "ada", now_ms())
            assert await transact(cluster, leader, transaction, [body]) == "ok"
        await cluster.until(lambda: at_rest(cluster))
        yield late


def appointed(
    cluster: Cluster,
    late: str,
    lie: Lie,
    bodies: Callable[[Sequence[bytes]], Sequence[bytes]] = lambda bodies: bodies,
) -> list[Liar]:
    """Two of the late node's peers lie, the two that it asks first."""
    names = [node_id for node_id in cluster.members if node_id != late][:2]
    liars = [Liar(cluster, cluster.members[name].running.peering, lie, bodies) for name in names]
    cluster.stand_ins.update(zip(names, liars, strict=True))
    return liars


def certificate_of(answer: BlockRange) -> Certificate:
    assert answer.certificate is not None
    return decode_certificate(answer.certificate)


def signed_by_all(cluster: Cluster, block: Block) -> bytes:
    """A certificate of this block under every node's signature."""
    chain, header = cluster.genesis.chain_id(), block.header
    signatures = [
        (name, sign_acknowledgement(key_of_node(cluster, name), chain, header.term, header.height, block.hash))
        for name in cluster.members
    ]
    return make_certificate(header.term, header.height, block.hash, signatures).encode()


def no_blocks(cluster: Cluster, answer: BlockRange) -> BlockRange:
    return BlockRange((), None)


def not_answering(cluster: Cluster, answer: BlockRange) -> BlockRange:
    raise FetchFailed("a peer", "timed_out")


def no_certificate(cluster: Cluster, answer: BlockRange) -> BlockRange:
    return answer._replace(certificate=None)


def a_forged_certificate(cluster: Cluster, answer: BlockRange) -> BlockRange:
    certificate = certificate_of(answer)
    forged = [msgspec.structs.replace(one, signature=one.signature[::-1]) for one in certificate.signatures]
    return answer._replace(certificate=msgspec.structs.replace(certificate, signatures=forged).encode())


def too_few_signatures(cluster: Cluster, answer: BlockRange) -> BlockRange:
    certificate = certificate_of(answer)
    few = msgspec.structs.replace(certificate, signatures=certificate.signatures[:2])
    return answer._replace(certificate=few.encode())


def a_certificate_of_another_block(cluster: Cluster, answer: BlockRange) -> BlockRange:
    return answer._replace(blocks=answer.blocks[:-1])


def no_certificate_at_all(cluster: Cluster, answer: BlockRange) -> BlockRange:
    return answer._replace(certificate=b"\xc1")


def other_blocks(cluster: Cluster, answer: BlockRange) -> BlockRange:
    """The last one sealed again with another time, by its own proposer."""
    last = decode_block(answer.blocks[-1], BYTES_MAX)
    key = key_of_node(cluster, last.header.proposer)
    return answer._replace(blocks=[*answer.blocks[:-1], resealed(last, key, time=last.header.time + 1).data])


def a_gap(cluster: Cluster, answer: BlockRange) -> BlockRange:
    return answer._replace(blocks=[*answer.blocks[:1], *answer.blocks[2:]])


def blocks_from_elsewhere(cluster: Cluster, answer: BlockRange) -> BlockRange:
    return answer._replace(blocks=answer.blocks[1:])


def noise(cluster: Cluster, answer: BlockRange) -> BlockRange:
    return answer._replace(blocks=(b"noise",))


def other_transactions(cluster: Cluster, answer: BlockRange) -> BlockRange:
    """The true header, under a true certificate, over a transaction that is not its own."""
    blocks = [decode_block(data, BYTES_MAX) for data in answer.blocks]
    # The last of them: the first may be in the late node's log already.
    busy = max(index for index, block in enumerate(blocks) if block.transactions)
    header = blocks[busy].header
    other = seal_block(header, [newcomer(cluster, now_ms())], key_of_node(cluster, header.proposer))
    assert other.hash == blocks[busy].hash
    return answer._replace(blocks=[*answer.blocks[:busy], other.data, *answer.blocks[busy + 1 :]])


def a_block_that_breaks_a_rule(cluster: Cluster, answer: BlockRange) -> BlockRange:
    """Certified by everybody, as by a network that went wrong: this node judges for itself."""
    first = decode_block(answer.blocks[0], BYTES_MAX)
    key = key_of_node(cluster, first.header.proposer)
    bad = resealed(first, key, proposer="nobody")
    return BlockRange((bad.data,), signed_by_all(cluster, bad))


LIES: list[Lie] = [
    no_blocks,
    not_answering,
    no_certificate,
    a_forged_certificate,
    too_few_signatures,
    a_certificate_of_another_block,
    no_certificate_at_all,
    other_blocks,
    a_gap,
    blocks_from_elsewhere,
    noise,
    other_transactions,
    a_block_that_breaks_a_rule,
]


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
@pytest.mark.asyncio
async def test_a_lying_peer_is_not_believed_and_the_next_is_asked(lie: Lie) -> None:
    cluster = Cluster(replicate_gap_blocks=GAP_BLOCKS)
    async with one_far_behind(cluster) as late:
        liars = appointed(cluster, late, lie)
        await cluster.start(late)
        await cluster.until(lambda: at_rest(cluster))
        assert all(liar.asked for liar in liars)
        roots = {
            member.store.roots(member.store.executed_height) for member in cluster.members.values() if member.store
        }
        assert len(roots) == 1


@pytest.mark.parametrize(
    "bodies", [lambda bodies: [], lambda bodies: [b"another body"]], ids=["no bodies", "other bodies"]
)
@pytest.mark.asyncio
async def test_blocks_without_their_bodies_are_not_taken(
    bodies: Callable[[Sequence[bytes]], Sequence[bytes]],
) -> None:
    cluster = Cluster(replicate_gap_blocks=GAP_BLOCKS)
    async with one_far_behind(cluster) as late:
        liars = appointed(cluster, late, lambda cluster, answer: answer, bodies)
        await cluster.start(late)
        await cluster.until(lambda: at_rest(cluster))
        assert all(liar.asked for liar in liars)
        leader = cluster.leader()
        assert leader is not None
        for height in range(1, cluster.members[late].running.backend.heights().executed + 1):
            assert bodies_at(cluster, late, height) == bodies_at(cluster, leader, height)


def bodies_at(cluster: Cluster, node_id: str, height: int) -> list[bytes]:
    """The bodies of a block, all of them in this node's store."""
    store = cluster.members[node_id].store
    assert store is not None
    block = decode_block(store.block_data(height), BYTES_MAX)
    found = [store.body(one.commitment) for item in block.transactions for one in item.envelope.bodies]
    assert None not in found
    return [body for body in found if body is not None]


@pytest.mark.asyncio
async def test_while_everybody_lies_it_stays_where_it_is() -> None:
    cluster = Cluster(replicate_gap_blocks=GAP_BLOCKS)
    async with one_far_behind(cluster) as late:
        liars = {
            name: Liar(cluster, member.running.peering, a_forged_certificate)
            for name, member in cluster.members.items()
            if name != late
        }
        cluster.stand_ins.update(liars)
        await cluster.start(late)
        height = cluster.members[late].running.backend.heights().executed
        await cluster.until(lambda: all(liar.asked for liar in liars.values()))
        assert cluster.members[late].running.backend.heights().executed == height
        cluster.stand_ins.clear()
        await cluster.until(lambda: at_rest(cluster))


@pytest.mark.asyncio
async def test_a_certified_chain_that_contradicts_what_is_committed_here_stops_the_node() -> None:
    """Only a quorum that signed two chains can make one. The node stops as it is, for people to look at."""

    def on_another_parent(cluster: Cluster, answer: BlockRange) -> BlockRange:
        first = decode_block(answer.blocks[0], BYTES_MAX)
        forked = resealed(first, key_of_node(cluster, first.header.proposer), parent=bytes(32))
        return BlockRange((forked.data,), signed_by_all(cluster, forked))

    cluster = Cluster(replicate_gap_blocks=GAP_BLOCKS)
    async with one_far_behind(cluster) as late:
        appointed(cluster, late, on_another_parent)
        await cluster.start(late)
        height = cluster.members[late].running.backend.heights().executed
        task = cluster.members[late].task
        assert task is not None
        await cluster.until(task.done)
        assert cluster.members[late].running.backend.heights().executed == height
        with pytest.raises(ExceptionGroup) as caught:
            await cluster.stop(late)
        assert caught.group_contains(ForkError, match=f"at height {height}")


def test_a_stored_block_becomes_an_entry() -> None:
    header = Header(
        chain=bytes(32),
        change=None,
        configuration=bytes(32),
        count=0,
        executed_height=0,
        format=FORMAT,
        height=5,
        history_root=bytes(32),
        parent=b"p" * 32,
        proof=None,
        proposer="n1",
        state_root=bytes(32),
        term=3,
        time=1,
        tx_root=tx_root([]),
    )
    cluster = Cluster(size=1)
    block = seal_block(header, [], key_of_node(cluster, "hospital-0"))
    place = Place(3, cluster.genesis.configuration())
    entry, after = entry_on(place, block.data)
    assert after == place
    assert (entry.height, entry.term, entry.parent, entry.data) == (5, 3, b"p" * 32, block.data)
    assert entry.hash == block_hash(block.header_data)
