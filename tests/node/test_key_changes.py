"""A key rotated or revoked between admission and execution fails alike on every node, also on one that comes late.

The late node is down meanwhile. It gets the blocks from the leader if it is close behind, and from any peer if not.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest

from ledger.contracts import identity
from ledger.receipt import verify_receipt
from network.port import BlockRange
from tests.node.cluster import Cluster, Server, admin_account, admin_key
from tests.node.entrance import at_rest, newcomer
from tests.node.members import account_of, addition, key_of, register, sign, transact

GAP_BLOCKS = 8


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass
class CountingServer:
    """A member's own answers, counted."""

    member: Server
    ranges: int = 0

    def serve_blocks(self, from_height: int, bytes_max: int) -> BlockRange:
        self.ranges += 1
        return self.member.serve_blocks(from_height, bytes_max)

    def serve_bodies(self, commitments: Sequence[bytes], bytes_max: int) -> Sequence[bytes]:
        return self.member.serve_bodies(commitments, bytes_max)


def rotation(cluster: Cluster) -> identity.Rotate:
    new = key_of("ada, later")
    proof = identity.possession_proof(new, cluster.genesis.chain_id(), account_of("ada"))
    return identity.Rotate(account_of("ada"), new.public, proof, 1)


def revocation(cluster: Cluster) -> identity.Revoke:
    return identity.Revoke(account_of("ada"), 1)


@pytest.mark.parametrize("far", [False, True], ids=["close behind", "far behind"])
@pytest.mark.parametrize(("change", "code"), [(rotation, "wrong_signer"), (revocation, "revoked")])
@pytest.mark.asyncio
async def test_it_fails_alike_everywhere(
    change: Callable[[Cluster], identity.Rotate | identity.Revoke], code: str, far: bool
) -> None:
    async with Cluster(replicate_gap_blocks=GAP_BLOCKS if far else 128) as cluster:
        await register(cluster, "ada")
        late = cluster.follower()
        await cluster.kill(late)
        leader = await cluster.led()
        node = cluster.members[leader].running
        # Both are admitted by the same state; the block has them in this order.
        changed = sign(cluster, admin_key(0), admin_account(0), [change(cluster)], [], now_ms())
        record, body = addition(cluster, "ada", now_ms())
        answers = node.backend.submit([(changed.data, []), (record.data, [body])])
        assert [answer.rejection for answer in answers] == [None, None]
        assert (await node.backend.wait(changed.id, "committed", 10.0)).code == "ok"
        assert (await node.backend.wait(record.id, "committed", 10.0)).code == code
        for _ in range(2 * GAP_BLOCKS if far else 1):
            assert await transact(cluster, leader, newcomer(cluster, now_ms())) == "ok"
        servers = {
            node_id: CountingServer(each.running.peering) for node_id, each in cluster.members.items() if each.node
        }
        cluster.stand_ins.update(servers)
        await cluster.start(late)
        await cluster.until(lambda: at_rest(cluster))
        assert (sum(server.ranges for server in servers.values()) > 0) == far
        outcomes = set()
        for member in cluster.members.values():
            store = member.store
            assert store is not None
            receipt = verify_receipt(store.receipt(record.id), cluster.genesis)
            assert (receipt.id, receipt.code) == (record.id, code)
            outcomes.add((store.results(receipt.height), store.roots(store.executed_height)))
        ((results, _),) = outcomes
        assert [(result.id, result.code) for result in results] == [(changed.id, "ok"), (record.id, code)]
