"""Whole nodes in one process: real cores, stores and contracts over fake disks and a network in memory.

Messages arrive on the next turn of the event loop, in order; a cut pair exchanges nothing. Killing a node cancels its
tasks and takes the power from its disk.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from consensus.messages import Message
from consensus.ports import CoreSettings
from ledger.genesis import Genesis, Node, Organisation, Parameters, decode_genesis
from ledger.keys import SigningKey, account_id, sha256
from ledger.node_cert import make_certificate
from ledger.transaction import body_commitment
from network.port import BlockRange, FetchFailed, Handler, PeerStatus, SharedTransaction
from node.metrics import Metrics
from node.node import Node as RunningNode
from node.node import NodeSettings
from node.pool import PoolLimits
from storage.store import Store
from tests.fakes.disk import PowerLossDisk

TICK_MS = 10
POOL = PoolLimits(10_000, 1 << 26, 0.5, 0.25)


def hospital(index: int) -> str:
    return f"hospital-{index}"


def admin_key(index: int) -> SigningKey:
    return SigningKey(sha256(b"admin", bytes([index])))


def node_seed(index: int) -> bytes:
    return sha256(b"node", bytes([index]))


def make_genesis(nodes: int, parameters: Parameters | None = None) -> Genesis:
    """One hospital a node, each with one admin."""
    genesis = Genesis(
        format=1,
        network="cluster",
        nodes=[
            Node(
                address=f"127.0.0.1:{1000 + index}",
                certificate=make_certificate(node_seed(index), hospital(index)),
                id=hospital(index),
                organisation=hospital(index),
                role="voter",
            )
            for index in range(nodes)
        ],
        organisations=[
            Organisation(
                admin_keys=[admin_key(index).public], id=hospital(index), kind="hospital", name=f"Hospital {index}"
            )
            for index in range(nodes)
        ],
        parameters=parameters or Parameters(),
        time=time.time_ns() // 1_000_000 - 1,
    )
    return decode_genesis(genesis.encode())


def admin_account(index: int) -> bytes:
    return account_id(admin_key(index).public)


class Server(Protocol):
    """Who answers what peers fetch."""

    def serve_blocks(self, from_height: int, bytes_max: int) -> BlockRange: ...
    def serve_bodies(self, commitments: Sequence[bytes], bytes_max: int) -> Sequence[bytes]: ...


class MemoryNetwork:
    """One node's side of the hub."""

    def __init__(self, hub: "Cluster", node_id: str) -> None:
        self._hub = hub
        self._node_id = node_id

    def send_consensus(self, peer: str, message: Message) -> None:
        arrives = self._hub.rewrite(self._node_id, peer, message)
        if arrives is not None:
            self._to(peer, lambda handler: handler.on_consensus(self._node_id, arrives))

    def push_transactions(self, transactions: Sequence[SharedTransaction]) -> None:
        for peer in () if self._hub.gossip_lost else self.peers():
            self._to(peer, lambda handler: handler.on_transactions(self._node_id, transactions))

    def flush_transactions(self) -> None:
        """They left when they were pushed."""

    def peers(self) -> dict[str, PeerStatus]:
        return {
            peer: PeerStatus(sending=self._hub.linked(self._node_id, peer), receiving=True)
            for peer in self._hub.members
            if peer != self._node_id
        }

    async def fetch_blocks(self, peer: str, from_height: int, bytes_max: int) -> BlockRange:
        return self._ask(peer).serve_blocks(from_height, bytes_max)

    async def fetch_bodies(self, peer: str, commitments: Sequence[bytes]) -> dict[bytes, bytes]:
        bodies = self._ask(peer).serve_bodies(commitments, 1 << 20)
        return {body_commitment(body): body for body in bodies}

    def _to(self, peer: str, deliver: Callable[[Handler], None]) -> None:
        if self._hub.linked(self._node_id, peer):
            asyncio.get_running_loop().call_soon(self._deliver, peer, deliver)

    def _deliver(self, peer: str, deliver: Callable[[Handler], None]) -> None:
        if self._hub.linked(self._node_id, peer):
            deliver(self._hub.members[peer].running.peering)
            self._hub.moved.set()

    def _ask(self, peer: str) -> Server:
        if not self._hub.linked(self._node_id, peer):
            raise FetchFailed(peer, "not_connected")
        return self._hub.stand_ins.get(peer) or self._hub.members[peer].running.peering


@dataclass(slots=True)
class Member:
    """A node of the cluster: its disk outlives it, everything else is made anew at each start."""

    index: int
    disk: PowerLossDisk
    clock_offset_ms: int = 0
    node: RunningNode | None = None
    task: asyncio.Task[None] | None = None
    store: Store | None = None

    @property
    def running(self) -> RunningNode:
        assert self.node is not None, "the node runs"
        return self.node


@dataclass(slots=True)
class Cluster:
    """`async with` starts every node and stops them all.

    Faults: `rewrite(sender, peer, message)` says what of a consensus message arrives, if anything; `gossip_lost`
    loses every pushed transaction; `stand_ins` answer in the place of members what peers fetch from them.
    """

    size: int = 4
    only_synced: bool = True
    sync_ignored: bool = False
    clock_offsets_ms: dict[int, int] = field(default_factory=dict)
    pool: PoolLimits = POOL
    parameters: Parameters = field(default_factory=Parameters)
    replicate_gap_blocks: int = 128
    rewrite: Callable[[str, str, Message], Message | None] = lambda sender, peer, message: message
    gossip_lost: bool = False
    stand_ins: dict[str, Server] = field(default_factory=dict)
    genesis: Genesis = field(init=False)
    members: dict[str, Member] = field(init=False)
    cut: set[frozenset[str]] = field(default_factory=set)
    moved: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.genesis = make_genesis(self.size, self.parameters)
        self.members = {
            hospital(index): Member(
                index,
                PowerLossDisk(seed=index, only_synced=self.only_synced, sync_ignored=self.sync_ignored),
                self.clock_offsets_ms.get(index, 0),
            )
            for index in range(self.size)
        }

    async def __aenter__(self) -> "Cluster":
        for node_id in self.members:
            await self.start(node_id)
        return self

    async def __aexit__(self, *_: object) -> None:
        for node_id in self.members:
            await self.stop(node_id)

    def linked(self, one: str, other: str) -> bool:
        both_up = self.members[one].node is not None and self.members[other].node is not None
        return both_up and frozenset((one, other)) not in self.cut

    async def start(self, node_id: str) -> None:
        member = self.members[node_id]
        member.store = Store(member.disk.open(), self.genesis)
        settings = NodeSettings(
            core=CoreSettings(
                node_id=node_id,
                election_ticks_min=10,
                election_ticks_max=20,
                heartbeat_ticks=2,
                replicate_gap_blocks=self.replicate_gap_blocks,
            ),
            pool=self.pool,
            tick_ms=TICK_MS,
            seal_delay_ms=10,
            clock_skew_ms=30_000,
        )
        member.node = RunningNode(
            self.genesis,
            node_id,
            node_seed(member.index),
            member.store,
            Metrics(),
            settings,
            now_ms=lambda: time.time_ns() // 1_000_000 + member.clock_offset_ms,
            make_network=lambda handler: MemoryNetwork(self, node_id),
        )
        started = asyncio.Event()
        member.task = asyncio.create_task(member.node.run(started.set), name=node_id)
        await started.wait()

    async def stop(self, node_id: str) -> None:
        """A clean stop. Raises what had ended the node, if anything had."""
        member = self.members[node_id]
        if member.task is None or member.store is None:
            return
        member.node = None
        member.task.cancel()
        task, member.task = member.task, None
        try:
            await task
        except asyncio.CancelledError:
            pass
        finally:
            member.store.close()

    async def kill(self, *node_ids: str) -> None:
        """Take the power from these nodes at once."""
        tasks = []
        for node_id in node_ids:
            member = self.members[node_id]
            assert member.task is not None, "the node runs"
            member.disk.power_loss()
            member.node = None
            member.task.cancel()
            tasks.append(member.task)
            member.task = None
        await asyncio.gather(*tasks, return_exceptions=True)

    async def until(self, condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
        """Let the cluster run until `condition` holds, asked after each message; TimeoutError after `timeout_s`."""
        async with asyncio.timeout(timeout_s):
            while not condition():
                self.moved.clear()
                await self.moved.wait()

    def leader(self) -> str | None:
        """The leader that a majority of the running nodes follow, if there is one."""
        votes = [member.node.driver.core.leader for member in self.members.values() if member.node is not None]
        named = [vote for vote in votes if vote is not None]
        best = max(set(named), key=named.count, default=None)
        if best is None or named.count(best) * 2 <= len(self.members) or self.members[best].node is None:
            return None
        return best if self.members[best].running.driver.core.role.value == "leader" else None
