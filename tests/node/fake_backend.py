"""A node without consensus for the provider port: real store, real admission, and commits on demand."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Literal

from consensus.messages import HardState
from ledger.block import Block, decode_block, stored_transactions
from ledger.contracts import identity
from ledger.contracts.context import read_as
from ledger.contracts.records import Record, Subject, record_path, subject_path
from ledger.errors import Rejection
from ledger.genesis import Genesis
from ledger.request import ReadRequest
from node.admission import Admission
from node.http_types import (
    Evidence,
    ExecutedBlock,
    Head,
    Heights,
    Member,
    NetworkView,
    StoredBlock,
    Submission,
    TxStatus,
)
from node.metrics import Metrics
from node.pool import Pool, PoolLimits
from node.readiness import withheld
from tests.fakes.disk import PowerLossDisk
from tests.ledger.founding import NOW_MS, ORGANISATIONS
from tests.storage.chains import Chain, certify, entry_of

BLOCK_BYTES_MAX = 2 * 1024 * 1024


class FakeBackend:
    """The http_types.Backend of "north-1". `commit` puts the pool into a block and a sealing one after it."""

    def __init__(self, genesis: Genesis, *, pool_transactions_max: int = 100) -> None:
        self.genesis = genesis
        self.chain_id = genesis.chain_id()
        self.node_id = "north-1"
        self.metrics = Metrics()
        self.chain = Chain(PowerLossDisk())
        self.pool = Pool(PoolLimits(pool_transactions_max, 1024 * 1024 * 1024, 1.0, 1.0))
        self.clock_ms = NOW_MS
        self.not_ready: str | None = None
        self.ails: str | None = None
        self.batches: list[int] = []
        self.faults: list[Exception] = []
        self.timeouts_s: list[float] = []
        self.confirmed: list[tuple[float, bool]] = []
        self.unconfirmed: Rejection | None = None
        self.waiting = asyncio.Event()
        self.committed = asyncio.Event()
        self.grown = asyncio.Event()
        self._admission = Admission(
            self.chain_id,
            self.pool,
            self.metrics,
            read=self.chain.store.get,
            executed=lambda tx_id: self.chain.store.tx_status(tx_id) is not None,
            logged=lambda tx_id: False,
            known_since_ms=lambda: self.chain.store.known_since_ms,
            now_ms=self.now_ms,
            block_time_ms=lambda: NOW_MS,
        )

    def commit(self) -> None:
        pooled = [self.pool.remove(tx_id) for tx_id in list(self.pool)]
        bodies = {
            reference.commitment: body
            for each in pooled
            if each is not None
            for reference, body in zip(each.transaction.envelope.bodies, each.bodies, strict=True)
        }
        block = self.chain.seal(*(each.transaction for each in pooled if each is not None))
        self.append(block, bodies)
        self.append(self.chain.seal(), {})
        self.committed.set()

    def append(self, block: Block, bodies: Mapping[bytes, bytes]) -> None:
        store = self.chain.store
        store.persist(None, [entry_of(block)], bodies, HardState(block.header.term, None))
        store.commit(block, certify(block))
        self.grown.set()
        self.grown.clear()

    def now_ms(self) -> int:
        return self.clock_ms

    def fault(self, error: Exception) -> None:
        self.faults.append(error)

    def ailment(self) -> str | None:
        return self.ails

    def ready(self) -> str | None:
        return self.not_ready

    def submit(self, items: Sequence[tuple[bytes, Sequence[bytes]]]) -> list[Submission]:
        self.batches.append(len(items))
        return [
            Submission(None, withheld(one, self.not_ready))
            if isinstance(one, Rejection)
            else Submission(one.transaction.id, None)
            for one in self._admission.take(items, "client")
        ]

    async def wait(self, tx_id: bytes, level: Literal["committed", "sealed"], timeout_s: float) -> TxStatus:
        self.timeouts_s.append(timeout_s)
        self.waiting.set()
        if tx_id in self.pool:
            await self.committed.wait()
        return self.status(tx_id)

    def status(self, tx_id: bytes) -> TxStatus:
        store = self.chain.store
        place = store.tx_status(tx_id)
        if place is None:
            if tx_id in self.pool:
                return TxStatus("pending")
            return TxStatus("unknown", known_since=store.known_since_ms)
        sealed = store.sealed_height is not None and place.height <= store.sealed_height
        return TxStatus("sealed" if sealed else "committed", place.height, place.index, place.code)

    def receipt(self, tx_id: bytes) -> bytes:
        return self.chain.store.receipt(tx_id)

    def extend_receipt(self, data: bytes) -> bytes:
        return self.chain.store.extend_receipt(data)

    def heights(self) -> Heights:
        store = self.chain.store
        return Heights(
            last=store.last_height(),
            committed=store.executed_height,
            executed=store.executed_height,
            sealed=store.sealed_height,
            base=store.base.height,
        )

    def block(self, height: int) -> StoredBlock | None:
        store = self.chain.store
        if height > store.executed_height:
            return None
        certificate = store.certificate(height)
        return StoredBlock(
            decode_block(store.block_data(height), BLOCK_BYTES_MAX), certificate.encode() if certificate else None
        )

    def executed_block(self, height: int) -> ExecutedBlock:
        store = self.chain.store
        transactions = stored_transactions(store.block_data(height))
        return ExecutedBlock(store.roots(height).time_ms, transactions, store.encoded_results(height))

    async def executed(self, height: int) -> None:
        while self.chain.store.executed_height < height:
            await self.grown.wait()

    async def confirm(self, timeout_s: float, *, sealed: bool) -> None:
        self.confirmed.append((timeout_s, sealed))
        if self.unconfirmed is not None:
            raise self.unconfirmed

    def state(self, key: str) -> bytes | None:
        return self.chain.store.get(key)

    def state_answer(self, key: str) -> bytes:
        return self.chain.store.state_answer(key)

    def body(self, commitment: bytes) -> bytes | None:
        return self.chain.store.body(commitment)

    def subject_records(self, subject: bytes, before: bytes | None, limit: int) -> list[tuple[bytes, Record]]:
        head = read_as(self.state, Subject, subject_path(subject))
        following = head.head if head is not None else None
        if before is not None:
            newer = read_as(self.state, Record, record_path(before))
            if newer is None:
                raise Rejection("not_found", "no such record")
            following = newer.previous
        found: list[tuple[bytes, Record]] = []
        while following is not None and len(found) < limit:
            record = read_as(self.state, Record, record_path(following))
            assert record is not None
            found.append((following, record))
            following = record.previous
        return found

    def check_reader(self, request: ReadRequest) -> None:
        try:
            identity.check_key(self.state, request.by, request.key)
        except Rejection as rejection:
            raise withheld(rejection, self.not_ready) from None

    def network(self) -> NetworkView:
        store = self.chain.store
        height = store.executed_height
        roots = store.roots(height)
        return NetworkView(
            network=self.genesis.network,
            chain=self.chain_id.hex(),
            node=self.node_id,
            organisation=ORGANISATIONS[0],
            role="leader",
            leader=self.node_id,
            term=1,
            barred=False,
            amnesia=False,
            time=self.clock_ms,
            heights=self.heights(),
            head=Head(
                height=height,
                hash=self.chain_id.hex(),
                history_root=roots.history.hex(),
                state_root=roots.state.hex(),
            ),
            steps=0,
            joint=False,
            pending=None,
            members=[
                Member(
                    id=node.id,
                    organisation=node.organisation,
                    role=node.role,
                    address=node.address,
                    connected=node.id != "zone-1",
                    lag_blocks=0,
                )
                for node in self.genesis.nodes
            ],
            evidence=[Evidence(kind="vote", node="west-1", proof=b"proof")],
        )
