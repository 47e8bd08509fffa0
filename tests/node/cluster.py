"""Whole nodes in one process: real cores, stores and contracts over fake disks and a network in memory.

Messages arrive on the next turn of the event loop, in order; a cut pair exchanges nothing, nor does one of which
either has not pinned the other. Who is pinned as removed hears a goodbye for whatever it sends. Killing a node
cancels its tasks and takes the power from its disk.
"""

import asyncio
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from consensus.messages import Message
from consensus.ports import CoreSettings
from ledger.genesis import Genesis, Node, Organisation, Parameters, decode_genesis
from ledger.keys import SigningKey, account_id, sha256
from ledger.node_cert import make_certificate
from ledger.transaction import body_commitment
from network.port import BlockRange, FetchFailed, Handler, Peer, PeerStatus, SharedTransaction, SnapshotOffer
from node.joining import SnapshotReady
from node.metrics import Metrics
from node.node import Node as RunningNode
from node.node import NodeSettings
from node.pool import PoolLimits
from node.snapshots import SnapshotPlaces, SnapshotSettings
from storage.shelf import Shelf
from storage.store import Store
from storage.swap import carry
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


class SnapshotServer(Protocol):
    """Who answers what peers fetch of snapshots."""

    def serve_snapshot(self) -> SnapshotOffer | None: ...
    def serve_chunk(self, snapshot: bytes, index: int) -> bytes | None: ...


class MemoryNetwork:
    """One node's side of the hub."""

    def __init__(self, hub: "Cluster", node_id: str) -> None:
        self._hub = hub
        self._node_id = node_id
        self._peers: dict[str, Peer] = {}
        hub.networks[node_id] = self

    def set_peers(self, peers: Mapping[str, Peer]) -> None:
        self._peers = {peer: pin for peer, pin in peers.items() if peer != self._node_id}
        asyncio.get_running_loop().call_soon(self._hub.introduce)

    def standing(self, peer: str) -> str:
        """ "member", "removed", or "" for whoever is not pinned with the certificate that it has."""
        pin = self._peers.get(peer)
        return pin.standing if pin is not None and pin.certificate == self._hub.members[peer].certificate else ""

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
            for peer, pin in self._peers.items()
            if pin.standing == "member"
        }

    async def fetch_blocks(self, peer: str, from_height: int, bytes_max: int) -> BlockRange:
        if self._node_id in self._hub.hungry:
            raise FetchFailed(peer, "busy")
        return self._ask(peer).serve_blocks(from_height, bytes_max)

    async def fetch_snapshot(self, peer: str) -> SnapshotOffer | None:
        return self._ask_for_snapshot(peer).serve_snapshot()

    async def fetch_chunk(self, peer: str, snapshot: bytes, index: int) -> bytes | None:
        return self._ask_for_snapshot(peer).serve_chunk(snapshot, index)

    async def fetch_bodies(self, peer: str, commitments: Sequence[bytes]) -> dict[bytes, bytes]:
        bodies = self._ask(peer).serve_bodies(commitments, 1 << 20)
        return {body_commitment(body): body for body in bodies}

    def _to(self, peer: str, deliver: Callable[[Handler], None]) -> None:
        loop = asyncio.get_running_loop()
        if self._hub.linked(self._node_id, peer):
            loop.call_soon(self._deliver, peer, deliver)
        elif self._hub.dismisses(peer, self._node_id):
            loop.call_soon(self._hub.say_goodbye, peer, self._node_id)

    def _deliver(self, peer: str, deliver: Callable[[Handler], None]) -> None:
        self._hub.introduce()
        if self._hub.linked(self._node_id, peer):
            deliver(self._hub.members[peer].running.peering)
            self._hub.moved.set()

    def _ask_for_snapshot(self, peer: str) -> SnapshotServer:
        if not self._hub.linked(self._node_id, peer):
            raise FetchFailed(peer, "not_connected")
        return self._hub.snapshot_stand_ins.get(peer) or self._hub.members[peer].running.peering

    def _ask(self, peer: str) -> Server:
        if not self._hub.linked(self._node_id, peer):
            raise FetchFailed(peer, "not_connected")
        return self._hub.stand_ins.get(peer) or self._hub.members[peer].running.peering


@dataclass(slots=True)
class Member:
    """A node of the cluster: its disk outlives it, everything else is made anew at each start."""

    index: int
    disk: PowerLossDisk
    seed: bytes
    certificate: bytes
    introduced: Sequence[str] = ()
    clock_offset_ms: int = 0
    node: RunningNode | None = None
    task: asyncio.Task[None] | None = None
    store: Store | None = None
    fresh: PowerLossDisk | None = None

    @property
    def running(self) -> RunningNode:
        assert self.node is not None, "the node runs"
        return self.node


@dataclass(slots=True)
class Cluster:
    """`async with` starts every node and stops them all.

    Faults: `rewrite(sender, peer, message)` says what of a consensus message arrives, if anything; `gossip_lost`
    loses every pushed transaction; the `hungry` get no blocks that they fetch; `stand_ins` answer in the place of
    members what peers fetch from them.
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
    hungry: set[str] = field(default_factory=set)
    stand_ins: dict[str, Server] = field(default_factory=dict)
    snapshot_stand_ins: dict[str, SnapshotServer] = field(default_factory=dict)
    snapshots: SnapshotSettings | None = None
    folder: Path | None = None
    traces: Path | None = None
    networks: dict[str, MemoryNetwork] = field(default_factory=dict)
    genesis: Genesis = field(init=False)
    members: dict[str, Member] = field(init=False)
    cut: set[frozenset[str]] = field(default_factory=set)
    met: dict[tuple[str, str], tuple[RunningNode, RunningNode]] = field(default_factory=dict)
    moved: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.genesis = make_genesis(self.size, self.parameters)
        self.members = {}
        for index in range(self.size):
            self.provide(index)

    def provide(self, index: int, seed: bytes | None = None) -> str:
        """A machine for one more node: an empty disk and a key, that of `seed`. Its id."""
        node_id = hospital(index)
        self.members[node_id] = Member(
            index,
            PowerLossDisk(seed=index, only_synced=self.only_synced, sync_ignored=self.sync_ignored),
            seed or node_seed(index),
            make_certificate(seed or node_seed(index), node_id),
            clock_offset_ms=self.clock_offsets_ms.get(index, 0),
        )
        return node_id

    async def __aenter__(self) -> "Cluster":
        for node_id in self.members:
            await self.start(node_id)
        return self

    async def __aexit__(self, *_: object) -> None:
        for node_id in self.members:
            await self.stop(node_id)

    def introduce(self) -> None:
        """Whoever can reach each other and has not met since either started is shown what the other holds from it.

        Who was removed is told so.
        """
        for one, other in itertools.permutations(self.members, 2):
            self.say_goodbye(one, other)
        for one, other in itertools.combinations(self.members, 2):
            if not self.linked(one, other):
                continue
            nodes = (self.members[one].running, self.members[other].running)
            if self.met.get((one, other)) != nodes:
                self.met[one, other] = nodes
                here, there = nodes[0].peering, nodes[1].peering
                held, holds = there.statements_of(one), here.statements_of(other)
                here.on_statements(other, held)
                there.on_statements(one, holds)

    def linked(self, one: str, other: str) -> bool:
        standings = (
            {self.networks[one].standing(other), self.networks[other].standing(one)} if self._up(one, other) else ()
        )
        return set(standings) == {"member"}

    def dismisses(self, one: str, other: str) -> bool:
        """Whether `one` answers `other` with nothing but a goodbye."""
        return self._up(one, other) and self.networks[one].standing(other) == "removed"

    def say_goodbye(self, one: str, other: str) -> None:
        if self.dismisses(one, other):
            self.members[other].running.peering.on_goodbye(one, "removed")
            self.moved.set()

    def _up(self, one: str, other: str) -> bool:
        known = one in self.members and other in self.members
        return (
            known
            and self.members[one].node is not None
            and self.members[other].node is not None
            and frozenset((one, other)) not in self.cut
        )

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
            trace=self.traces / f"{node_id}.trace" if self.traces is not None else None,
        )
        node = RunningNode(
            self.genesis,
            node_id,
            member.seed,
            member.store,
            Metrics(),
            settings,
            now_ms=lambda: time.time_ns() // 1_000_000 + member.clock_offset_ms,
            make_network=lambda handler: MemoryNetwork(self, node_id),
            addresses={peer: f"127.0.0.1:{1000 + self.members[peer].index}" for peer in member.introduced},
            introduced={peer: self.members[peer].certificate for peer in member.introduced},
            places=self._places(member),
        )
        started = asyncio.Event()
        member.task = asyncio.create_task(node.run(started.set), name=node_id)
        await started.wait()
        member.node = node
        self.introduce()

    def _places(self, member: "Member") -> SnapshotPlaces | None:
        if self.snapshots is None or self.folder is None:
            return None

        def fresh() -> PowerLossDisk:
            member.fresh = PowerLossDisk(seed=member.index, only_synced=self.only_synced)
            return member.fresh

        return SnapshotPlaces(member.disk, Shelf(self.folder / str(member.index)), self.snapshots, fresh)

    async def start_on_snapshot(self, node_id: str) -> None:
        """Wait until this node has built a store from a snapshot, and start it on that, as its daemon would."""
        member = self.members[node_id]
        error = await self.ended(node_id, 30.0)
        assert isinstance(error, BaseExceptionGroup)
        assert error.subgroup(SnapshotReady) is not None, error
        assert member.fresh is not None
        old, new = Store(member.disk.open(), self.genesis), Store(member.fresh.open(), self.genesis)
        carry(member.disk, old, member.fresh, new)
        member.fresh.close()
        member.disk, member.fresh = member.fresh, None
        await self.start(node_id)

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

    async def ended(self, node_id: str, timeout_s: float = 10.0) -> BaseException:
        """Wait for what ends this node of itself, and take it out of the cluster."""
        member = self.members[node_id]
        assert member.task is not None, "the node runs"
        assert member.store is not None
        await asyncio.wait([member.task], timeout=timeout_s)
        error = member.task.exception()
        assert error is not None, "it failed"
        member.node = member.task = None
        member.store.close()
        return error

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

    async def led(self, *not_by: str) -> str:
        """The leader, once there is one and it is none of these."""
        await self.until(lambda: self.leader() not in (None, *not_by))
        leader = self.leader()
        assert leader is not None
        return leader

    def follower(self) -> str:
        """Some node that does not lead."""
        return next(node_id for node_id in self.members if node_id != self.leader())

    def leader(self) -> str | None:
        """The leader that a majority of its voters follow, if there is one."""
        followed = {
            node_id: member.node.driver.core.leader
            for node_id, member in self.members.items()
            if member.node is not None
        }
        for best in {leader for leader in followed.values() if leader is not None}:
            member = self.members[best]
            if member.node is None or member.node.driver.core.role.value != "leader":
                continue
            voters = member.node.driver.core.configuration.voters
            if sum(followed.get(voter) == best for voter in voters) * 2 > len(voters):
                return best
        return None
