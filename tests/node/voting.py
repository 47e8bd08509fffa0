"""Votes that change the membership of a test cluster, and waiting for what they lead to."""

import asyncio
import itertools
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from ledger.contracts import Action, network
from ledger.contracts.network import AddNode, Promote, Proposed, Remove
from ledger.errors import Rejection
from tests.node.cluster import Cluster, admin_account, admin_key
from tests.node.entrance import newcomer
from tests.node.members import sign, transact


def now_ms() -> int:
    return time.time_ns() // 1_000_000


async def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """As Cluster.until, for what moves without messages too."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - it is asked of many nodes at once, none of which tells
            await asyncio.sleep(0.005)


async def decide(cluster: Cluster, at: str, change: Proposed, organisations: Sequence[int] = (0, 1)) -> bytes:
    """The first of `organisations` proposes; all of them approve, through the node `at`. The proposal's id."""
    proposal = secrets.token_bytes(32)
    first, *others = organisations
    actions: list[Action] = [
        network.Propose(change=change, proposal=proposal),
        network.Vote(approve=True, proposal=proposal),
    ]
    proposed = sign(cluster, admin_key(first), admin_account(first), actions, [], now_ms())
    assert await transact(cluster, at, proposed) == "ok"
    for other in others:
        vote: list[Action] = [network.Vote(approve=True, proposal=proposal)]
        approval = sign(cluster, admin_key(other), admin_account(other), vote, [], now_ms())
        assert await transact(cluster, at, approval) == "ok"
    return proposal


async def offer(
    cluster: Cluster, at: str, index: int, seed: bytes | None = None, organisations: Sequence[int] = (0, 1)
) -> str:
    """Vote for one more node, which does not run yet, and see it a learner. Its id."""
    node_id = cluster.provide(index, seed)
    certificate = cluster.members[node_id].certificate
    change = AddNode(f"127.0.0.1:{1000 + index}", certificate, node_id, "hospital-0")
    await decide(cluster, at, change, organisations)
    await until(lambda: role(cluster, at, node_id) == "learner")
    return node_id


async def add(cluster: Cluster, at: str, index: int, seed: bytes | None = None) -> str:
    """As `offer`, and start it on its empty disk."""
    node_id = await offer(cluster, at, index, seed)
    await cluster.start(node_id)
    return node_id


async def promote(cluster: Cluster, at: str, node_id: str) -> None:
    await decide(cluster, at, Promote(node_id))
    await until(lambda: role(cluster, at, node_id) == "voter")


async def remove(cluster: Cluster, at: str, node_id: str) -> None:
    await decide(cluster, at, Remove(node_id))
    await until(lambda: role(cluster, at, node_id) == "removed")


def role(cluster: Cluster, at: str, node_id: str) -> str | None:
    """The role of `node_id` in the state that `at` executed."""
    record = cluster.members[at].running.roster.records.get(node_id)
    return None if record is None else record.role


def voters(cluster: Cluster, at: str) -> list[str]:
    return sorted(cluster.members[at].running.driver.core.configuration.voters)


@dataclass(slots=True)
class Load:
    """Ids answered `ok` and when, s on the loop's clock."""

    committed: list[tuple[float, bytes]] = field(default_factory=list)

    def longest_gap_s(self) -> float:
        times = [at for at, _ in self.committed]
        return max(later - earlier for earlier, later in itertools.pairwise(times))


@asynccontextmanager
async def load(cluster: Cluster, nodes: Sequence[str], writers: int = 4) -> AsyncIterator[Load]:
    """`writers` submit to `nodes` in turn, each one transaction after the other, until the block ends."""
    found = Load()
    stop = asyncio.Event()

    async def write(number: int) -> None:
        while not stop.is_set():
            transaction = newcomer(cluster, now_ms())
            while not stop.is_set():
                at = nodes[number % len(nodes)]
                number += 1
                try:
                    code = await transact(cluster, at, transaction)
                except Rejection:
                    await asyncio.sleep(0.005)
                    continue
                if code is not None:
                    assert code == "ok"
                    found.committed.append((asyncio.get_running_loop().time(), transaction.id))
                    break

    async with asyncio.TaskGroup() as group:
        for number in range(writers):
            group.create_task(write(number))
        try:
            yield found
        finally:
            stop.set()
