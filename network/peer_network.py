"""The peer network as the node sees it: one object, entered once."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from consensus.messages import Message, NodeId
from network.frames import Parcel, pack
from network.gossip import Gossip
from network.greeting import Greeter
from network.links import Dialler, Link, LinkEvents
from network.messages import (
    Announce,
    Blocks,
    Bodies,
    Chunk,
    GetBlocks,
    GetBodies,
    GetChunk,
    GetSnapshot,
    GetTransactions,
    Snapshot,
    Transactions,
    kind_of,
)
from network.port import (
    BlockRange,
    Counters,
    Handler,
    Identity,
    NetworkSettings,
    Peer,
    PeerStatus,
    SharedTransaction,
    SnapshotOffer,
    Tap,
)
from network.server import PeerServer, ServerEvents
from network.sync import Sync
from network.tls import Pins, TlsContexts


class PeerNetwork:
    """`async with network:` listens and dials; leaving cuts every connection. Everything here: event loop only.

    `peers` may name this node itself; that entry is ignored. A fault of ours (an exception other than Rejection in
    the handler, a bug in here) cancels the body of the `async with` and leaves it as an ExceptionGroup.
    """

    def __init__(
        self,
        settings: NetworkSettings,
        identity: Identity,
        chain: bytes,
        peers: Mapping[NodeId, Peer],
        handler: Handler,
        counters: Counters,
        tap: Tap | None = None,
    ) -> None:
        self._settings = settings
        self._identity = identity
        self._handler = handler
        self._counters = counters
        self._tap = tap
        self._greeter = Greeter(identity, chain, handler.statements_of, handler.on_statements)
        self._peers = self._others(peers)
        self._entered = False
        self._links: dict[NodeId, Link] = {}
        self._tasks: dict[NodeId, asyncio.Task[None]] = {}
        self._gossip = Gossip(settings, handler, self._send, self._sending)
        self._sync = Sync(settings, handler, counters, self._send, self._reachable)
        self._deliver_by_class: dict[type[Any], Callable[[NodeId, Any], None]] = {
            Transactions: self._gossip.on_transactions,
            Announce: self._gossip.on_announce,
            GetTransactions: self._gossip.on_get_transactions,
            GetBlocks: self._sync.on_get_blocks,
            GetBodies: self._sync.on_get_bodies,
            Blocks: self._sync.on_answer,
            Bodies: self._sync.on_answer,
            GetSnapshot: self._sync.on_get_snapshot,
            GetChunk: self._sync.on_get_chunk,
            Snapshot: self._sync.on_answer,
            Chunk: self._sync.on_answer,
        }
        # The last consensus message packed: the core often sends equal ones to several peers.
        self._packed: tuple[Message, Parcel] | None = None

    async def __aenter__(self) -> Self:
        """Listen and begin to dial. Raises OSError where the port cannot be had."""
        loop = asyncio.get_running_loop()
        pins = Pins(self._peers)
        self._tls = TlsContexts(self._identity, pins.certificates(), self._counters.connection_refused, loop.time)
        self._fault: asyncio.Future[None] = loop.create_future()
        self._server = PeerServer(
            self._settings,
            self._greeter,
            pins,
            self._counters,
            self._tap,
            ServerEvents(
                begun=self._on_met, deliver=self._deliver, ended=self._sync.on_disconnected, fault=self._on_fault
            ),
        )
        self._address = await self._server.start(self._tls.accepting)
        self._dialler = Dialler(
            self._settings,
            self._greeter,
            self._tls.dialling,
            self._counters,
            self._tap,
            LinkEvents(up=self._on_up, down=self._sync.on_disconnected, goodbye=self._handler.on_goodbye),
        )
        self._group = await asyncio.TaskGroup().__aenter__()
        self._own_tasks = [
            self._group.create_task(self._gossip.run()),
            self._group.create_task(self._raise_fault()),
        ]
        self._entered = True
        self._dial_members()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._entered = False
        self._gossip.close()
        for task in [*self._own_tasks, *self._tasks.values()]:
            task.cancel()
        # The group turns what ends it into an ExceptionGroup. What the body raised by itself leaves as it is.
        ours = kind is None or not issubclass(kind, asyncio.CancelledError)
        try:
            await self._server.stop()
        finally:
            try:
                await (self._group.__aexit__(None, None, None) if ours else self._group.__aexit__(kind, error, trace))
            finally:
                await self._dialler.close()

    @property
    def address(self) -> tuple[str, int]:
        """The bound host and port, inside `async with`."""
        return self._address

    def set_peers(self, peers: Mapping[NodeId, Peer]) -> None:
        """Replace the pins, also before entering. Links of who changed or left are cut; a removed one is told so."""
        old, self._peers = self._peers, self._others(peers)
        if not self._entered:
            return
        self._server.pins = Pins(self._peers)
        self._tls.trust(self._server.pins.certificates())
        for peer_id, before in old.items():
            after = self._peers.get(peer_id)
            if after == before:
                continue
            if peer_id in self._tasks:
                self._tasks.pop(peer_id).cancel()
                del self._links[peer_id]
            if after is None or (after.certificate, after.standing) != (before.certificate, before.standing):
                reason = "removed" if after is not None and after.standing == "removed" else "unknown_certificate"
                self._group.create_task(self._server.dismiss(peer_id, reason))
        self._dial_members()

    def peers(self) -> dict[NodeId, PeerStatus]:
        """The members other than this node, in the order of their ids."""
        return {
            peer_id: PeerStatus(self._is_up(peer_id), self._server.receiving(peer_id))
            for peer_id, peer in sorted(self._peers.items())
            if peer.standing == "member"
        }

    def send_consensus(self, peer: NodeId, message: Message) -> None:
        """Queue a message of the core. Never waits; what cannot be queued is dropped and counted.

        ValueError for a message larger than its kind allows (APPEND_BYTES_MAX for blocks).
        """
        link = self._links.get(peer)
        if link is None or not link.up:
            self._counters.message_dropped(kind_of(message).name, "not_connected")
            return
        if self._packed is None or type(self._packed[0]) is not type(message) or self._packed[0] != message:
            self._packed = (message, pack(message))
        link.send(self._packed[1])

    def push_transactions(self, transactions: Sequence[SharedTransaction]) -> None:
        """Push to all peers, in batches. ValueError, and none pushed, where one is larger than
        TRANSACTION_BYTES_MAX: admission must have refused it."""
        self._gossip.push(transactions)

    def flush_transactions(self) -> None:
        """What was pushed and still waits for company leaves now."""
        self._gossip.flush()

    async def fetch_blocks(self, peer: NodeId, from_height: int, bytes_max: int) -> BlockRange:
        """Certified blocks from `from_height` up, as `peer` holds them, unchecked. Raises FetchFailed."""
        return await self._sync.fetch_blocks(peer, from_height, bytes_max)

    async def fetch_bodies(self, peer: NodeId, commitments: Sequence[bytes]) -> dict[bytes, bytes]:
        """Bodies by commitment, checked against it; only those that the peer holds and one answer carries.

        At most COMMITMENTS_MAX are asked for at once. Raises FetchFailed.
        """
        return await self._sync.fetch_bodies(peer, commitments)

    async def fetch_snapshot(self, peer: NodeId) -> SnapshotOffer | None:
        """The newest snapshot that `peer` has, unchecked; None where it has none. Raises FetchFailed."""
        return await self._sync.fetch_snapshot(peer)

    async def fetch_chunk(self, peer: NodeId, snapshot: bytes, index: int) -> bytes | None:
        """One chunk of it, unchecked; None where the peer has it not (any more). Raises FetchFailed."""
        return await self._sync.fetch_chunk(peer, snapshot, index)

    def _others(self, peers: Mapping[NodeId, Peer]) -> dict[NodeId, Peer]:
        return {peer_id: peer for peer_id, peer in peers.items() if peer_id != self._identity.node_id}

    def _dial_members(self) -> None:
        for peer_id, peer in self._peers.items():
            if peer.standing == "member" and peer.address is not None and peer_id not in self._tasks:
                self._links[peer_id] = link = Link(peer_id, peer, self._dialler)
                self._tasks[peer_id] = self._group.create_task(link.run())

    def _is_up(self, peer: NodeId) -> bool:
        link = self._links.get(peer)
        return link is not None and link.up

    def _reachable(self, peer: NodeId) -> bool:
        return self._is_up(peer) and self._server.receiving(peer)

    def _sending(self) -> list[NodeId]:
        return [peer_id for peer_id, link in self._links.items() if link.up]

    def _send(self, peer: NodeId, parcel: Parcel) -> None:
        link = self._links.get(peer)
        if link is None:
            self._counters.message_dropped(parcel.kind.name, "not_connected")
        else:
            link.send(parcel)

    def _on_up(self, peer: NodeId) -> None:
        self._gossip.on_up(peer)
        self._handler.on_connected(peer)

    def _on_met(self, peer: NodeId) -> None:
        link = self._links.get(peer)
        if link is not None:
            link.meet()

    def _deliver(self, sender: NodeId, message: Any) -> None:
        deliver = self._deliver_by_class.get(type(message), self._handler.on_consensus)
        deliver(sender, message)

    def _on_fault(self, error: Exception) -> None:
        if not self._fault.done():
            self._fault.set_exception(error)

    async def _raise_fault(self) -> None:
        await self._fault
