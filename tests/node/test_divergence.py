"""A node whose execution differs from what is certified stops, and says why; it neither loops nor serves."""

import time

import pytest

from storage.executed import Divergence
from storage.schema import Roots
from tests.node.cluster import Cluster, Member
from tests.node.entrance import at_rest, newcomer
from tests.node.members import transact


def diverge(member: Member) -> None:
    """From the next height on this node finds another state than everybody else."""
    store = member.store
    assert store is not None
    executed, first = store._executed, store.executed_height + 1
    honest = executed.roots

    def roots(height: int) -> Roots:
        found = honest(height)
        return found._replace(state=b"\1" * 32) if height >= first else found

    executed.roots = roots  # type: ignore[method-assign]


@pytest.mark.asyncio
@pytest.mark.parametrize("replicate_gap_blocks", [4, 128], ids=["fetching from any peer", "fed by its leader"])
async def test_a_node_that_a_certified_block_contradicts_stops(replicate_gap_blocks: int) -> None:
    cluster = Cluster(replicate_gap_blocks=replicate_gap_blocks)
    async with cluster:
        await cluster.until(lambda: at_rest(cluster))
        leader = cluster.leader()
        assert leader is not None
        name = next(node_id for node_id in cluster.members if node_id != leader)
        member = cluster.members[name]
        diverge(member)
        for _ in range(12):
            assert await transact(cluster, leader, newcomer(cluster, time.time_ns() // 1_000_000)) == "ok"
        task = member.task
        assert task is not None
        await cluster.until(task.done)
        with pytest.raises(BaseExceptionGroup) as caught:
            await cluster.stop(name)
        assert caught.group_contains(Divergence)
