"""Transactions between peers: pushed once by the node where they entered, announced again for those who missed them.

- A node pushes what its own clients brought, with bodies, to every peer that it has a link to. What came from a
  peer is not pushed on: its origin pushed it to everyone.
- On connecting, and every `reannounce_ms`, a node announces ids from its pool; who lacks one fetches it from the
  announcer. So a transaction travels around a broken link, one hop per announcement.
- Transactions of one burst share frames: the first leaves at once, the next batch `gossip_interval_ms` later. Before
  a block leaves, all that may be in it does: who has the block then need not ask for its bodies.

| bound | at the bound |
|---|---|
| ANNOUNCED_IDS_MAX per round | the rest waits for a later round; the pool names the oldest first |
| ANNOUNCED_IDS_MAX ids held for an announcer that cannot be asked yet | the rest is forgotten, as above |
| FETCHING_MAX ids asked for and not yet due | no more are asked for; a later announcement names them again |
| SERVED_BYTES_MAX per request for transactions | the rest is left out; a later announcement names it again |
| a peer's gossip queue | the batch is dropped for that peer and counted; as above |
"""

import asyncio
from collections.abc import Callable, Sequence

from consensus.messages import NodeId
from network.frames import Parcel, pack
from network.messages import (
    ANNOUNCE_IDS_MAX,
    MIB,
    TRANSACTION_BYTES_MAX,
    Announce,
    GetTransactions,
    Transactions,
    transaction_batches,
    transaction_bytes,
)
from network.port import Handler, NetworkSettings, SharedTransaction

ANNOUNCED_IDS_MAX = 20 * ANNOUNCE_IDS_MAX
FETCHING_MAX = 65_536
FETCHING_MS = 2_000
SERVED_BYTES_MAX = 16 * MIB
PENDING_TRANSACTIONS_MAX = 1_024

Send = Callable[[NodeId, Parcel], None]


class Gossip:
    """`send` queues a parcel for one peer, `connected` names the peers that have a link up."""

    def __init__(
        self,
        settings: NetworkSettings,
        handler: Handler,
        send: Send,
        connected: Callable[[], Sequence[NodeId]],
    ) -> None:
        self._settings = settings
        self._handler = handler
        self._send = send
        self._connected = connected
        self._pending: list[SharedTransaction] = []
        self._timer: asyncio.Handle | None = None
        self._flushed_at = float("-inf")
        # What a peer announced before this node's own link to it was up: asked for as soon as it is.
        self._held: dict[NodeId, list[bytes]] = {}
        # Id to the loop time until which its fetch may still be answered; ascending, since all wait equally long.
        self._fetching: dict[bytes, float] = {}

    def push(self, transactions: Sequence[SharedTransaction]) -> None:
        """Send to all peers, together with whatever else is pushed within the interval. ValueError: too large."""
        for transaction in transactions:
            if transaction_bytes(transaction) > TRANSACTION_BYTES_MAX:
                raise ValueError(f"a transaction of more than {TRANSACTION_BYTES_MAX} bytes")
        self._pending.extend(transactions)
        if len(self._pending) >= PENDING_TRANSACTIONS_MAX:
            self.flush()
        elif self._timer is None:
            loop = asyncio.get_running_loop()
            due = self._flushed_at + self._settings.gossip_interval_ms / 1000
            self._timer = loop.call_soon(self.flush) if due <= loop.time() else loop.call_at(due, self.flush)

    def flush(self) -> None:
        """Send what was pushed now."""
        self.close()
        if not self._pending:
            return
        self._flushed_at = asyncio.get_running_loop().time()
        pending, self._pending = self._pending, []
        for batch in transaction_batches(pending):
            parcel = pack(batch)
            for peer in self._connected():
                self._send(peer, parcel)

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def run(self) -> None:
        """Announce to everyone, every `reannounce_ms`, until cancelled."""
        while True:
            await asyncio.sleep(self._settings.reannounce_ms / 1000)
            self.announce(self._connected())

    def announce(self, peers: Sequence[NodeId]) -> None:
        if not peers:
            return
        ids = list(self._handler.announceable(ANNOUNCED_IDS_MAX))[:ANNOUNCED_IDS_MAX]
        for start in range(0, len(ids), ANNOUNCE_IDS_MAX):
            parcel = pack(Announce(ids[start : start + ANNOUNCE_IDS_MAX]))
            for peer in peers:
                self._send(peer, parcel)

    def on_transactions(self, sender: NodeId, message: Transactions) -> None:
        self._handler.on_transactions(
            sender, [SharedTransaction(item.envelope, item.bodies) for item in message.items]
        )

    def on_announce(self, sender: NodeId, message: Announce) -> None:
        if sender in self._connected():
            self._ask(sender, message.ids)
        else:
            held = self._held.setdefault(sender, [])
            held += message.ids[: ANNOUNCED_IDS_MAX - len(held)]

    def on_up(self, peer: NodeId) -> None:
        """This node can send to the peer from now on."""
        self.announce([peer])
        held = self._held.pop(peer, [])
        for start in range(0, len(held), ANNOUNCE_IDS_MAX):
            self._ask(peer, held[start : start + ANNOUNCE_IDS_MAX])

    def _ask(self, peer: NodeId, ids: Sequence[bytes]) -> None:
        now = asyncio.get_running_loop().time()
        self._expire(now)
        fresh = [item for item in ids if item not in self._fetching]
        wanted = list(self._handler.wanted(peer, fresh)) if fresh else []
        wanted = wanted[: max(0, FETCHING_MAX - len(self._fetching))]
        if wanted:
            self._fetching.update(dict.fromkeys(wanted, now + FETCHING_MS / 1000))
            self._send(peer, pack(GetTransactions(wanted)))

    def on_get_transactions(self, sender: NodeId, message: GetTransactions) -> None:
        served: list[SharedTransaction] = []
        size_bytes = 0
        for transaction in self._handler.serve_transactions(message.ids):
            size_bytes += transaction_bytes(transaction)
            if served and size_bytes > SERVED_BYTES_MAX:
                break
            served.append(transaction)
        for batch in transaction_batches(served):
            self._send(sender, pack(batch))

    def _expire(self, now: float) -> None:
        while self._fetching:
            oldest = next(iter(self._fetching))
            if self._fetching[oldest] > now:
                return
            del self._fetching[oldest]
