"""What the provider port asks of the node, answered from the pool, the store and the core."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Literal

from consensus.core import RaftCore
from ledger.block import decode_block, stored_transactions
from ledger.contracts import identity
from ledger.contracts.context import read_as
from ledger.contracts.records import Record, Subject, record_path, subject_path
from ledger.errors import Rejection
from ledger.genesis import Genesis
from ledger.request import ReadRequest
from network.port import PeerStatus, SharedTransaction
from node.admission import Admission
from node.changes import Changes
from node.http_types import (
    Evidence,
    ExecutedBlock,
    Head,
    Heights,
    Member,
    NetworkView,
    PendingChange,
    StoredBlock,
    Submission,
    TxStatus,
)
from node.inspector import BLOCK_OVERHEAD_BYTES
from node.metrics import Metrics
from node.pool import Pool
from node.readiness import withheld
from node.reads import Reads
from node.roster import Roster
from node.tail import Tail
from node.tracker import Tracker
from storage.store import Store


class NodeBackend:
    """The http_types.Backend of a running node.

    `share` gossips what clients submitted; `admitted` tells the node; `executed` waits until a height is executed.
    """

    def __init__(
        self,
        genesis: Genesis,
        node_id: str,
        core: RaftCore,
        store: Store,
        tracker: Tracker,
        roster: Roster,
        changes: Changes,
        admission: Admission,
        metrics: Metrics,
        *,
        now_ms: Callable[[], int],
        ready: Callable[[], str | None],
        fault: Callable[[Exception], None],
        peers: Callable[[], dict[str, PeerStatus]],
        share: Callable[[Sequence[SharedTransaction]], None],
        admitted: Callable[[], None],
        executed: Callable[[int], Awaitable[None]],
        reads: Reads,
        ailment: Callable[[], str | None],
    ) -> None:
        self.genesis = genesis
        self.chain_id = genesis.chain_id()
        self.node_id = node_id
        self.metrics = metrics
        self._core = core
        self._store = store
        self._tracker = tracker
        self._roster = roster
        self._changes = changes
        self._admission = admission
        self._now_ms = now_ms
        self._ready = ready
        self._fault = fault
        self._peers = peers
        self._share = share
        self._admitted = admitted
        self._executed = executed
        self._reads = reads
        self._ailment = ailment
        self._bytes_max = genesis.parameters.block_bytes_max + BLOCK_OVERHEAD_BYTES

    def now_ms(self) -> int:
        return self._now_ms()

    def ready(self) -> str | None:
        return self._ready()

    def ailment(self) -> str | None:
        return self._ailment()

    def fault(self, error: Exception) -> None:
        self._fault(error)

    def submit(self, items: Sequence[tuple[bytes, Sequence[bytes]]]) -> list[Submission]:
        answers: list[Submission] = []
        fresh: list[SharedTransaction] = []
        for one, (_, bodies) in zip(self._admission.take(items, "client"), items, strict=True):
            if isinstance(one, Rejection):
                answers.append(Submission(None, withheld(one, self._ready())))
                continue
            answers.append(Submission(one.transaction.id, None))
            if one.new:
                fresh.append(SharedTransaction(one.transaction.data, tuple(bodies)))
        if fresh:
            self._share(fresh)
            self._admitted()
        return answers

    async def wait(self, tx_id: bytes, level: Literal["committed", "sealed"], timeout_s: float) -> TxStatus:
        return await self._tracker.wait(tx_id, level, timeout_s)

    def status(self, tx_id: bytes) -> TxStatus:
        return self._tracker.status(tx_id)

    def receipt(self, tx_id: bytes) -> bytes:
        return self._store.receipt(tx_id)

    def extend_receipt(self, data: bytes) -> bytes:
        return self._store.extend_receipt(data)

    def heights(self) -> Heights:
        store = self._store
        return Heights(
            last=self._core.last_height,
            committed=self._core.commit_height,
            executed=store.executed_height,
            sealed=store.sealed_height,
            base=store.base.height,
        )

    def block(self, height: int) -> StoredBlock | None:
        if not 1 <= height <= self._store.executed_height:
            return None
        self._require_kept(height)
        certificate = self._store.certificate(height)
        return StoredBlock(
            decode_block(self._store.block_data(height), self._bytes_max),
            None if certificate is None else certificate.encode(),
        )

    def executed_block(self, height: int) -> ExecutedBlock:
        store = self._store
        self._require_kept(height)
        return ExecutedBlock(
            store.roots(height).time_ms, stored_transactions(store.block_data(height)), store.encoded_results(height)
        )

    async def executed(self, height: int) -> None:
        await self._executed(height)

    async def confirm(self, timeout_s: float, *, sealed: bool) -> None:
        await self._reads.confirm(timeout_s, sealed=sealed)

    def state(self, key: str) -> bytes | None:
        return self._store.get(key)

    def state_answer(self, key: str) -> bytes:
        return self._store.state_answer(key)

    def body(self, commitment: bytes) -> bytes | None:
        return self._store.body(commitment)

    def subject_records(self, subject: bytes, before: bytes | None, limit: int) -> list[tuple[bytes, Record]]:
        if before is None:
            entry = read_as(self._store.get, Subject, subject_path(subject))
            record_id = entry.head if entry is not None else None
        else:
            record_id = self._record_of(subject, before).previous
        found: list[tuple[bytes, Record]] = []
        while record_id is not None and len(found) < limit:
            record = self._record_of(subject, record_id)
            found.append((record_id, record))
            record_id = record.previous
        return found

    def check_reader(self, request: ReadRequest) -> None:
        try:
            identity.check_key(self._store.get, request.by, request.key)
        except Rejection as rejection:
            raise withheld(rejection, self._ready()) from None

    def network(self) -> NetworkView:
        core, store = self._core, self._store
        head_hash = store.term_hash(store.executed_height)
        roots = store.roots(store.executed_height)
        assert head_hash is not None, "the executed block is in the log"
        own = self._roster.records.get(self.node_id)
        return NetworkView(
            network=self.genesis.network,
            chain=self.chain_id.hex(),
            node=self.node_id,
            organisation=None if own is None else own.organisation,
            role=core.role.value,
            leader=core.leader,
            term=core.term,
            barred=core.barred,
            amnesia=self._ailment() is not None,
            time=self._now_ms(),
            heights=self.heights(),
            head=Head(
                height=store.executed_height,
                hash=head_hash[1].hex(),
                history_root=roots.history.hex(),
                state_root=roots.state.hex(),
            ),
            steps=store.configuration.steps,
            joint=store.configuration.is_joint,
            pending=self._pending(),
            members=self._members(),
            evidence=[Evidence(item.kind, item.node, item.proof) for item in store.evidence()],
        )

    def _members(self) -> list[Member]:
        peers = self._peers()
        match_height = {follower.node_id: follower.match for follower in self._core.followers()}
        return [
            Member(
                id=node_id,
                organisation=record.organisation,
                role=record.role,
                address=record.address,
                connected=node_id == self.node_id or (node_id in peers and peers[node_id].sending),
                lag_blocks=(
                    max(self._core.last_height - match_height[node_id], 0) if node_id in match_height else None
                ),
            )
            for node_id, record in self._roster.records.items()
            if record.role != "removed"
        ]

    def _pending(self) -> PendingChange | None:
        pending = self._roster.pending
        if pending is None:
            return None
        return PendingChange(
            kind=pending.kind,
            node=pending.node,
            proposal=pending.proposal.hex(),
            height=pending.height,
            appended=pending.appended,
            waits_for=self._changes.waits_for,
        )

    def _require_kept(self, height: int) -> None:
        base = self._store.base.height
        if height <= base:
            raise Rejection("pruned", f"this node keeps no blocks up to height {base}")

    def _record_of(self, subject: bytes, record_id: bytes) -> Record:
        record = read_as(self._store.get, Record, record_path(record_id))
        if record is None or record.subject != subject:
            raise Rejection("not_found", "no such record of this subject")
        return record


def lookup(store: Store, pool: Pool, tail: Tail, tx_id: bytes) -> TxStatus:
    """Where the store and the pool say a transaction stands."""
    found = store.tx_status(tx_id)
    if found is not None:
        sealed = store.sealed_height is not None and found.height <= store.sealed_height
        return TxStatus(
            status="sealed" if sealed else "committed",
            height=found.height,
            index=found.index,
            code=found.code,
        )
    if tx_id in pool or tx_id in tail:
        return TxStatus(status="pending")
    return TxStatus(status="unknown", known_since=store.known_since_ms)
