"""A node: every part built once, joined once, run in one task group.

It is given its store and a network, real or simulated, so that whole networks of nodes run in one process under
test with the disk and the links that the test chooses.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from consensus.core import RaftCore
from consensus.messages import Configuration, Message, Reason
from consensus.ports import CoreSettings, Restored
from ledger.block import Block, decode_block, header_of
from ledger.genesis import Genesis
from ledger.keys import SigningKey
from network.port import BlockRange, Handler, PeerStatus, SharedTransaction
from node.admission import Admission
from node.backend import NodeBackend, lookup
from node.catchup import CatchUp
from node.certificates import plain
from node.driver import Driver
from node.evidence import Witness
from node.executor import Executor
from node.inspector import BLOCK_OVERHEAD_BYTES, Inspector, Roots
from node.intake import BlockChecks, Intake
from node.lineage import Lineage
from node.maker import BlockMaker, Head
from node.metrics import Metrics
from node.peering import Peering
from node.pool import Pool, PoolLimits
from node.proposer import Proposer
from node.tail import Tail
from node.tracker import Tracker
from storage.port import StorageFailure
from storage.store import Store

_log = structlog.get_logger(__name__)


class Network(Protocol):
    """What a node asks of its network; network.peer_network.PeerNetwork is the real one."""

    def send_consensus(self, peer: str, message: Message) -> None: ...
    def push_transactions(self, transactions: Sequence[SharedTransaction]) -> None: ...
    def flush_transactions(self) -> None: ...
    def peers(self) -> dict[str, PeerStatus]: ...
    async def fetch_blocks(self, peer: str, from_height: int, bytes_max: int) -> BlockRange: ...
    async def fetch_bodies(self, peer: str, commitments: Sequence[bytes]) -> dict[bytes, bytes]: ...


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """The configuration's values that the parts need; `core` counts in ticks of `tick_ms`."""

    core: CoreSettings
    pool: PoolLimits
    tick_ms: int
    seal_delay_ms: int
    clock_skew_ms: int


class RemovedError(Exception):
    """The other nodes say, under their signature, that this one is out."""


class Node:
    """Parts: `driver` (consensus), `executor`, `proposer`, `peering` (what peers ask), `backend` (what clients ask).

    `network` is made from the Handler it must call and is entered and left by `run`'s caller.
    """

    def __init__(
        self,
        genesis: Genesis,
        node_id: str,
        seed: bytes,
        store: Store,
        metrics: Metrics,
        settings: NodeSettings,
        *,
        now_ms: Callable[[], int],
        make_network: Callable[[Handler], Network],
    ) -> None:
        self._genesis = genesis
        self._node_id = node_id
        self._store = store
        self._settings = settings
        self._now_ms = now_ms
        self._stopping = False
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="writer")
        self._group: asyncio.TaskGroup | None = None
        self.metrics = metrics
        self.pool = Pool(settings.pool)
        self.tail = Tail()
        self._lineage = Lineage(genesis, store)
        self._hold_log()
        self.tracker = Tracker(lambda tx_id: lookup(store, self.pool, self.tail, tx_id))
        self._track_unsealed()
        self._witness = Witness(self._keep_evidence)
        self._inspector = Inspector(
            genesis,
            self._witness,
            known=self.pool.by_hash,
            roots_at=self._roots_at,
            now_ms=now_ms,
            clock_skew_ms=settings.clock_skew_ms,
        )
        self._build_consensus(SigningKey(seed))
        self._build_borders(make_network)

    async def run(self, started: Callable[[], None]) -> None:
        """Run until cancelled; raises what ended the node. `started` is called once every task is under way."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                group.create_task(self.driver.run(), name="driver")
                group.create_task(self.executor.run(), name="executor")
                group.create_task(self.catch_up.run(), name="catch-up")
                started()
        finally:
            self.proposer.close()
            self._writer.shutdown(wait=True)
            self.executor.flush()

    def stop_serving(self) -> None:
        """From now on `ready` says that this node is stopping, and nobody is kept waiting."""
        self._stopping = True
        self.tracker.release()

    def ready(self) -> str | None:
        """None when clients can be served, else why not."""
        if self._stopping:
            return "stopping"
        if self.driver.core.leader is None:
            return "no leader is known"
        # A node that has to catch up from peers would answer about the past.
        known = self.driver.core.known_certificate
        gap = self._settings.core.replicate_gap_blocks // 2
        if known is not None and known.height - self._store.executed_height > gap:
            return "catching up"
        return None

    def _build_consensus(self, key: SigningKey) -> None:
        genesis, store, settings = self._genesis, self._store, self._settings
        maker = BlockMaker(
            genesis,
            self._node_id,
            key,
            parent_of=self._lineage.parent_of,
            head=lambda: Head(store.executed_height, self._roots(store.executed_height)),
            now_ms=self._now_ms,
            sealed=self._hold_sealed,
        )
        self.driver = Driver(
            RaftCore(settings.core, self._restored(), store, maker),
            store,
            self.tail,
            self.metrics,
            sender=self,
            in_writer=self._in_writer,
            tick_ms=settings.tick_ms,
            on_committed=lambda certificate: self.executor.certified(certificate),
            on_change=lambda: self.proposer.consider(),
        )
        self.executor = Executor(
            genesis,
            store,
            self.tail,
            self.pool,
            self.tracker,
            self.metrics,
            in_writer=self._in_writer,
            on_executed=self._executed,
        )
        self.proposer = Proposer(
            genesis,
            self.driver,
            store,
            self.pool,
            self.tail,
            now_ms=self._now_ms,
            block_time_ms=self._block_time_ms,
            seal_delay_ms=settings.seal_delay_ms,
            last_busy_height=self._last_busy_height(),
        )

    def _build_borders(self, make_network: Callable[[Handler], Network]) -> None:
        genesis, store, core = self._genesis, self._store, self.driver.core
        checks = BlockChecks(
            self._inspector,
            self.tail,
            self._lineage,
            body_at_hand=lambda commitment: self.pool.body(commitment) or store.body(commitment),
            term_hash=core.term_hash,
        )
        intake = Intake(
            core,
            checks,
            self._witness,
            genesis,
            self._node_id,
            self.metrics.stage_seconds,
            step=self.driver.step,
            refuse=self.driver.refuse,
            fetch=self._fetch_bodies,
            spawn=self._spawn,
            certified=lambda height: self.catch_up.notice(height),
            halt=self.driver.fail,
            count=lambda kind: self.metrics.bad_frames.labels(kind).inc(),
        )
        admission = Admission(
            genesis.chain_id(),
            self.pool,
            self.metrics,
            read=store.get,
            executed=lambda tx_id: store.tx_status(tx_id) is not None,
            logged=lambda tx_id: tx_id in self.tail,
            now_ms=self._now_ms,
            block_time_ms=self._block_time_ms,
        )
        self.peering = Peering(
            intake,
            admission,
            self.pool,
            store,
            now_ms=self._now_ms,
            admitted=self._admitted,
            connected=lambda peer: _log.info("peer connected", peer=peer),
            removed=lambda reason: self.driver.fail(RemovedError(reason)),
        )
        self.network = make_network(self.peering)
        self.metrics.peers_connected.set_function(
            lambda: sum(status.sending or status.receiving for status in self.network.peers().values())
        )
        self.metrics.clock_offset_seconds.set_function(lambda: (self._now_ms() - self._block_time_ms()) / 1000)
        self.catch_up = CatchUp(
            self.driver,
            checks,
            replicate_gap_blocks=self._settings.core.replicate_gap_blocks,
            certificate_holds=intake.certificate_holds,
            fetch_blocks=self.network.fetch_blocks,
            fetch_bodies=self.network.fetch_bodies,
            peers=lambda: [peer for peer, status in self.network.peers().items() if status.sending],
            executed=self.executor.executed,
        )
        self.backend = NodeBackend(
            genesis,
            self._node_id,
            core,
            store,
            self.tracker,
            admission,
            self.metrics,
            now_ms=self._now_ms,
            ready=self.ready,
            fault=self._fault,
            peers=self.network.peers,
            share=self.network.push_transactions,
            admitted=self._admitted,
            executed=self.executor.executed,
        )

    def send_consensus(self, peer: str, message: Message) -> None:
        self.network.send_consensus(peer, message)

    async def _fetch_bodies(self, peer: str, commitments: Sequence[bytes]) -> dict[bytes, bytes]:
        return await self.network.fetch_bodies(peer, commitments)

    async def _in_writer(self, function: Callable[[], object]) -> None:
        await asyncio.get_running_loop().run_in_executor(self._writer, function)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        assert self._group is not None, "messages arrive while the node runs"
        self._group.create_task(coroutine)

    def _keep_evidence(self, kind: str, node: str, proof: bytes) -> None:
        _log.error("a node contradicted itself", kind=kind, of=node)
        self._spawn(self._in_writer(lambda: self._store.put_evidence(kind, node, proof)))

    def _fault(self, error: Exception) -> None:
        """A request met it. Damage on the disk ends the node, whoever finds it; anything else ended the request."""
        if isinstance(error, StorageFailure):
            self.driver.fail(error)

    def _admitted(self) -> None:
        self.metrics.pool_transactions.set(len(self.pool))
        self.metrics.pool_bytes.set(self.pool.size)
        self.proposer.consider()

    def _executed(self, block: Block) -> None:
        header = block.header
        self.metrics.pool_transactions.set(len(self.pool))
        self.metrics.pool_bytes.set(self.pool.size)
        self._lineage.learn(block)
        if (
            self.driver.core.barred_for is Reason.BAD_TIME
            and header.proposer != self._node_id
            and self._inspector.clock_agrees(header.time)
        ):
            self.driver.mend()
        self.proposer.executed(header.height, header.count)

    def _hold_sealed(self, block: Block) -> None:
        """A block that this node proposes: its bodies are those of the pool, and leave for the peers before it."""
        self.network.flush_transactions()
        bodies: dict[bytes, bytes] = {}
        for transaction in block.transactions:
            for reference in transaction.envelope.bodies:
                body = self.pool.body(reference.commitment)
                assert body is not None, "a pooled transaction has its bodies"
                bodies[reference.commitment] = body
        self.tail.hold(block, bodies)
        self._lineage.learn(block)

    def _hold_log(self) -> None:
        """At boot: what the log holds above the executed height."""
        store = self._store
        bytes_max = self._genesis.parameters.block_bytes_max + BLOCK_OVERHEAD_BYTES
        for height in range(store.executed_height + 1, store.last_height() + 1):
            block = decode_block(store.block_data(height), bytes_max)
            self.tail.hold(block, {})
            self.tail.in_log(block)
            self._lineage.learn(block)

    def _track_unsealed(self) -> None:
        """At boot: what is executed and not sealed yet has someone to tell when it is."""
        sealed = self._store.sealed_height
        for height in range(0 if sealed is None else sealed + 1, self._store.executed_height + 1):
            results = self._store.results(height) if height else ()
            self.tracker.committed(height, tuple(result.id for result in results))

    def _restored(self) -> Restored:
        store, configuration = self._store, self._genesis.configuration()
        newest = store.newest_certificate()
        certificate = None if newest is None else plain(newest)
        members = Configuration(tuple(configuration.voters), tuple(configuration.learners))
        return Restored(
            hard_state=store.hard_state(),
            base_height=0,
            base_term=0,
            base_hash=self._genesis.chain_id(),
            last_height=store.last_height(),
            certificate=certificate,
            configurations=((0, members),),
        )

    def _roots(self, height: int) -> Roots:
        roots = self._store.roots(height)
        return Roots(roots.history, roots.state)

    def _roots_at(self, height: int) -> Roots | None:
        return self._roots(height) if height <= self._store.executed_height else None

    def _block_time_ms(self) -> int:
        height = self._store.executed_height
        found = self._store.term_hash(height)
        assert found is not None, "the executed block is in the log"
        return self._lineage.parent_of(height, found[1]).time_ms

    def _last_busy_height(self) -> int:
        """The highest block of the log above the sealed height that holds transactions; 0 if none does."""
        store = self._store
        for height in range(store.last_height(), store.sealed_height or 0, -1):
            if header_of(store.block_data(height))[0].count:
                return height
        return 0
