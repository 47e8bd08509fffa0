"""The provider port of one node of a cluster, and the proof that a refusal there left nothing behind at any node."""

import io
import json
import secrets
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgpack

from ledger.block import decode_block, header_of
from ledger.contracts import identity
from ledger.keys import SigningKey
from ledger.transaction import Transaction
from node.config import MIB, ProviderSection
from node.http_api import provider_port
from node.inspector import BLOCK_OVERHEAD_BYTES
from node.problems import PROBLEMS
from storage.schema import Roots
from tests.node.cluster import Cluster, Member, admin_account, admin_key
from tests.node.members import sign

REQUEST_BYTES_MAX = 2 * MIB
EVERY_KEY = (b"", b"\xff" * 64)


@dataclass(frozen=True, slots=True)
class Entrance:
    """A client of the provider port of `node_id`."""

    cluster: Cluster
    node_id: str
    url: str
    session: aiohttp.ClientSession

    async def post(self, content: Any, wait: str = "accepted") -> tuple[int, Any, Any]:
        """Submit; `content` is bytes, or what MessagePack makes of it. Status, headers and parsed answer."""
        data = content if isinstance(content, bytes) else msgpack.packb(content)
        headers = {"Content-Type": "application/msgpack"}
        url = f"{self.url}/v1/transactions?wait={wait}"
        async with self.session.post(url, data=io.BytesIO(data), headers=headers) as answer:
            return answer.status, answer.headers, json.loads(await answer.read())

    async def submit(self, transaction: Transaction, bodies: Sequence[bytes] = (), wait: str = "committed") -> Any:
        """The result of one transaction, which must not be refused."""
        status, _, answer = await self.post({"envelope": transaction.data, "bodies": list(bodies)}, wait)
        assert status == 200, answer
        return answer["results"][0]

    async def refusal(self, content: Any) -> str:
        """The code of a refused submission, once the form of the answer was checked."""
        status, headers, problem = await self.post(content)
        assert headers["Content-Type"] == "application/problem+json", problem
        code: str = problem["code"]
        assert (status, problem["title"]) == PROBLEMS[code]
        assert ("Retry-After" in headers) == (status == 503)
        return code


@asynccontextmanager
async def entrance(cluster: Cluster, node_id: str) -> AsyncIterator[Entrance]:
    settings = ProviderSection(port=0, request_bytes_max=REQUEST_BYTES_MAX)
    backend = cluster.members[node_id].running.backend
    async with provider_port(backend, settings) as port, aiohttp.ClientSession() as session:
        yield Entrance(cluster, node_id, f"http://127.0.0.1:{port}", session)


@dataclass(frozen=True, slots=True)
class Holdings:
    """All that one node holds; `batches` is how often anything was written to its disk."""

    last_height: int
    executed_height: int
    roots: Roots
    waiting: tuple[bytes, ...]
    waiting_bytes: int
    evidence: int
    batches: int


def holdings(member: Member) -> Holdings:
    node, store = member.running, member.store
    assert store is not None, "the node runs"
    return Holdings(
        last_height=node.driver.core.last_height,
        executed_height=store.executed_height,
        roots=store.roots(store.executed_height),
        waiting=tuple(node.pool),
        waiting_bytes=node.pool.size,
        evidence=len(store.evidence()),
        batches=member.disk.batches,
    )


def at_rest(cluster: Cluster) -> bool:
    """Every running node has executed, sealed and written the same, and nothing waits."""
    heights: set[int] = set()
    for member in cluster.members.values():
        if member.node is None or member.store is None:
            continue
        node, store = member.node, member.store
        heights |= {node.driver.core.last_height, store.executed_height}
        if len(node.pool) or store.pending_commits or store.executed_height == 0:
            return False
        # Nothing is left to seal once the newest block holds no transactions.
        if header_of(store.block_data(store.executed_height))[0].count:
            return False
    return len(heights) == 1


def newcomer(cluster: Cluster, now_ms: int) -> Transaction:
    """A good transaction: the admin of hospital-0 registers a patient whom nobody has seen before."""
    key, admin = SigningKey(secrets.token_bytes(32)), admin_account(0)
    proof = identity.possession_proof(key, cluster.genesis.chain_id(), admin)
    return sign(cluster, admin_key(0), admin, [identity.Register(key.public, proof, "patient")], [], now_ms)


@asynccontextmanager
async def nothing_recorded(port: Entrance) -> AsyncIterator[None]:
    """Whatever is refused inside changes nothing at any node: heights, roots, pools and disks stay as they are.

    Then a good transaction commits, as if nothing had happened: the blocks since hold it alone.
    """
    cluster = port.cluster
    await cluster.until(lambda: at_rest(cluster))
    before = {node_id: holdings(member) for node_id, member in cluster.members.items()}
    yield
    assert {node_id: holdings(member) for node_id, member in cluster.members.items()} == before
    good = newcomer(cluster, cluster.members[port.node_id].running.backend.now_ms())
    assert (await port.submit(good))["code"] == "ok"
    await cluster.until(lambda: at_rest(cluster))
    for node_id, member in cluster.members.items():
        assert committed_since(cluster, member, before[node_id].executed_height) == [good.id]


def committed_since(cluster: Cluster, member: Member, height: int) -> list[bytes]:
    """Ids of the transactions in the executed blocks above `height`, as this node stores them."""
    store = member.store
    assert store is not None, "the node runs"
    bytes_max = cluster.genesis.parameters.block_bytes_max + BLOCK_OVERHEAD_BYTES
    blocks = [decode_block(store.block_data(at), bytes_max) for at in range(height + 1, store.executed_height + 1)]
    return [transaction.id for block in blocks for transaction in block.transactions]


def found_on_disks(cluster: Cluster, traces: Iterable[bytes]) -> list[bytes]:
    """Those of `traces` that are part of any value on any node's disk."""
    values = {value for member in cluster.members.values() for _, value in member.disk.range(*EVERY_KEY)}
    return [trace for trace in traces if any(trace in value for value in values)]
