"""What this node does with what its peers send, and what it serves them: the network's Handler."""

from collections.abc import Callable, Sequence
from itertools import islice

import structlog

from consensus.messages import Message
from ledger.errors import Rejection
from network.messages import BLOCKS_MAX, KINDS
from network.port import BlockRange, Direction, SharedTransaction, SnapshotOffer, Statements
from node.admission import Admission
from node.intake import Intake
from node.metrics import Metrics
from node.pool import Pool
from node.snapshots import Snapshots
from storage.store import Store

_log = structlog.get_logger(__name__)


class Peering:
    """`admitted` is told that transactions of peers came new into the pool; `removed` which peer says that this node
    is out; `shown` what a peer holds from this node, of which `statements_of` gives the other way round.
    """

    def __init__(
        self,
        intake: Intake,
        admission: Admission,
        pool: Pool,
        store: Store,
        *,
        now_ms: Callable[[], int],
        admitted: Callable[[], None],
        connected: Callable[[str], None],
        removed: Callable[[str], None],
        statements_of: Callable[[str], Statements],
        shown: Callable[[str, Statements], None],
        snapshots: Callable[[], Snapshots | None],
    ) -> None:
        self._intake = intake
        self._admission = admission
        self._pool = pool
        self._store = store
        self._now_ms = now_ms
        self._admitted = admitted
        self._connected = connected
        self._removed = removed
        self._statements_of = statements_of
        self._shown = shown
        self._snapshots = snapshots

    def on_consensus(self, sender: str, message: Message) -> None:
        self._intake.on_consensus(sender, message)

    def on_transactions(self, sender: str, transactions: Sequence[SharedTransaction]) -> None:
        """Each is judged alone: a peer's clock or state may differ a little, so refusals are only counted."""
        taken = self._admission.take(transactions, "peer")
        if any(not isinstance(one, Rejection) and one.new for one in taken):
            self._intake.pool_grew()
            self._admitted()

    def wanted(self, sender: str, transaction_ids: Sequence[bytes]) -> Sequence[bytes]:
        if not self._pool.has_room:
            return ()
        return [
            tx_id for tx_id in transaction_ids if tx_id not in self._pool and self._store.tx_status(tx_id) is None
        ]

    def announceable(self, ids_max: int) -> Sequence[bytes]:
        """Not those whose time is over here: peers would refuse them, and be asked to take them again for ever."""
        now_ms = self._now_ms()
        pooled = (self._pool.get(tx_id) for tx_id in self._pool)
        alive = (item.transaction for item in pooled if item and item.transaction.envelope.until >= now_ms)
        return [transaction.id for transaction in islice(alive, ids_max)]

    def serve_transactions(self, transaction_ids: Sequence[bytes]) -> Sequence[SharedTransaction]:
        found = (self._pool.get(tx_id) for tx_id in transaction_ids)
        return [SharedTransaction(item.transaction.data, item.bodies) for item in found if item is not None]

    def serve_blocks(self, from_height: int, bytes_max: int) -> BlockRange:
        """Up to the last certified block within the bounds; where there is none within them, up to the first."""
        base = self._store.base.height
        if from_height <= base:
            return BlockRange((), None, base)
        blocks: list[bytes] = []
        size, count, newest = 0, 0, None
        for height in range(from_height, self._store.executed_height + 1):
            data = self._store.block_data(height)
            size += len(data)
            if newest is not None and (size > bytes_max or len(blocks) == BLOCKS_MAX):
                break
            blocks.append(data)
            certificate = self._store.certificate(height)
            if certificate is not None:
                count, newest = len(blocks), certificate
        return BlockRange(tuple(blocks[:count]), None if newest is None else newest.encode(), base)

    def serve_bodies(self, commitments: Sequence[bytes], bytes_max: int) -> Sequence[bytes]:
        found: list[bytes] = []
        size = 0
        for commitment in commitments:
            body = self._pool.body(commitment) or self._store.body(commitment)
            if body is None:
                continue
            size += len(body)
            if size > bytes_max:
                break
            found.append(body)
        return found

    def statements_of(self, peer: str) -> Statements:
        return self._statements_of(peer)

    def on_statements(self, peer: str, statements: Statements) -> None:
        self._shown(peer, statements)

    def serve_snapshot(self) -> SnapshotOffer | None:
        snapshots = self._snapshots()
        return None if snapshots is None else snapshots.serve_snapshot()

    def serve_chunk(self, snapshot: bytes, index: int) -> bytes | None:
        snapshots = self._snapshots()
        return None if snapshots is None else snapshots.serve_chunk(snapshot, index)

    def on_connected(self, peer: str) -> None:
        self._connected(peer)

    def on_goodbye(self, peer: str, reason: str) -> None:
        _log.warning("refused by a peer", peer=peer, reason=reason)
        if reason == "removed":
            self._removed(peer)


class NetworkCounters:
    """What the links count, as metrics: the network's Counters."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        # Finding a labelled series costs more than counting in it.
        self._moved = {
            (direction, kind.name): (frames.labels(kind.name), frame_bytes.labels(kind.name))
            for direction, frames, frame_bytes in (
                ("in", metrics.frames_in, metrics.frame_bytes_in),
                ("out", metrics.frames_out, metrics.frame_bytes_out),
            )
            for kind in KINDS
        }

    def connection_refused(self, reason: str) -> None:
        self._metrics.refused_connections.labels(reason).inc()

    def frame_refused(self, reason: str) -> None:
        self._metrics.bad_frames.labels(reason).inc()

    def message_dropped(self, kind: str, reason: str) -> None:
        self._metrics.messages_dropped.labels(kind, reason).inc()

    def frame_moved(self, direction: Direction, kind: str, size_bytes: int) -> None:
        frames, frame_bytes = self._moved[direction, kind]
        frames.inc()
        frame_bytes.inc(size_bytes)

    def gossip_decoded(self, seconds: float) -> None:
        self._metrics.stage_seconds.spent("receive", seconds)
