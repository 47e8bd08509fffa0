"""A node: every part built once, joined once, run in one task group.

It is given its store and a network, real or simulated, so that whole networks of nodes run in one process under
test with the disk and the links that the test chooses.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import structlog

from consensus.core import RaftCore
from consensus.messages import Message, Reason, Role
from consensus.ports import CoreSettings, Restored
from ledger.block import Block, decode_block, header_of
from ledger.genesis import Genesis
from ledger.keys import SigningKey
from ledger.state_tree import EMPTY
from network.port import BlockRange, Handler, Peer, PeerStatus, SharedTransaction, SnapshotOffer, VoteShown
from node.admission import Admission
from node.backend import NodeBackend, lookup
from node.bodies import MissingBodies
from node.catchup import CatchUp
from node.certificates import plain
from node.changes import Changes
from node.comparison import GRACE, Comparison, Disk, Holdings, Noting, Said, recall
from node.driver import Driver
from node.evidence import Witness
from node.executor import Executor
from node.inspector import BLOCK_OVERHEAD_BYTES, Inspector, Roots
from node.intake import BlockChecks, Intake
from node.joining import Joining
from node.lineage import Lineage
from node.maker import BlockMaker, Head
from node.metrics import Metrics
from node.peering import Peering
from node.pool import Pool, PoolLimits
from node.proposer import Proposer
from node.readiness import Readiness
from node.reads import Reads
from node.roster import Roster
from node.snapshots import SnapshotPlaces, Snapshots
from node.standing import Standing
from node.tail import Tail
from node.trace import TraceFile, Tracer
from node.tracker import Tracker
from storage.configurations import members_of
from storage.executed import Commit
from storage.port import StorageFailure
from storage.promises import Forsworn
from storage.store import Store

_log = structlog.get_logger(__name__)


class Network(Protocol):
    """What a node asks of its network; network.peer_network.PeerNetwork is the real one."""

    def send_consensus(self, peer: str, message: Message) -> None: ...
    def push_transactions(self, transactions: Sequence[SharedTransaction]) -> None: ...
    def flush_transactions(self) -> None: ...
    def peers(self) -> dict[str, PeerStatus]: ...
    def set_peers(self, peers: Mapping[str, Peer]) -> None: ...
    async def fetch_blocks(self, peer: str, from_height: int, bytes_max: int) -> BlockRange: ...
    async def fetch_bodies(self, peer: str, commitments: Sequence[bytes]) -> dict[bytes, bytes]: ...
    async def fetch_snapshot(self, peer: str) -> SnapshotOffer | None: ...
    async def fetch_chunk(self, peer: str, snapshot: bytes, index: int) -> bytes | None: ...


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """The configuration's values that the parts need; `core` counts in ticks of `tick_ms`."""

    core: CoreSettings
    pool: PoolLimits
    tick_ms: int
    seal_delay_ms: int
    clock_skew_ms: int
    trace: Path | None = None


AMNESIA = "the disk forgot what this node had signed: it follows, and votes no more"


class Node:
    """Parts: `driver` (consensus), `executor`, `proposer`, `peering` (what peers ask), `backend` (what clients ask).

    `network` is made from the Handler it must call and is entered and left by `run`'s caller. `addresses` are to be
    dialled instead of the ledger's, node id to host:port; `introduced` see Roster.
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
        addresses: Mapping[str, str] = MappingProxyType({}),
        introduced: Mapping[str, bytes] = MappingProxyType({}),
        places: SnapshotPlaces | None = None,
    ) -> None:
        self._genesis = genesis
        self._node_id = node_id
        self._store = store
        self._settings = settings
        self._places = places
        self._now_ms = now_ms
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="writer")
        self._group: asyncio.TaskGroup | None = None
        self._trace: TraceFile | None = None
        self.metrics = metrics
        self.pool = Pool(settings.pool)
        self.tail = Tail()
        self._lineage = Lineage(genesis, store)
        self.roster = Roster(store, addresses, introduced)
        timeout_s = settings.core.election_ticks_max * settings.tick_ms / 1000
        self.changes = Changes(store, self.roster, steady_s=timeout_s)
        self._hold_log()
        self.tracker = Tracker(lambda tx_id: lookup(store, self.pool, self.tail, tx_id))
        self._track_unsealed()
        self._holdings = Holdings(store.promises.votes(), self._keep_vote)
        recall(self._holdings, store)
        # What this node had signed and its disk did not know; then it votes no more.
        self.amnesia = store.promises.forsworn
        self._witness = Witness(self._keep_evidence, self._holdings)
        self._inspector = Inspector(
            genesis,
            self._witness,
            voted=self.changes.voted,
            known=self.pool.by_hash,
            roots_at=self._roots_at,
            now_ms=now_ms,
            clock_skew_ms=settings.clock_skew_ms,
        )
        key = SigningKey(seed)
        self._standing = Standing(
            node_id,
            key.public,
            store,
            self.roster,
            metrics,
            electorate=lambda: self.driver.core.configuration.electorate,
            end=lambda error: self.driver.fail(error),
            changed=lambda: self._comparison.tell(),
            grace_s=timeout_s,
        )
        self._build_consensus(key)
        self._build_execution()
        self._build_borders(make_network)

    async def run(self, started: Callable[[], None]) -> None:
        """Run until cancelled; raises what ended the node. `started` is called once every task is under way."""
        grace_s = self._settings.core.election_ticks_min * GRACE * self._settings.tick_ms / 1000
        grace = asyncio.get_running_loop().call_later(grace_s, self._comparison.end_grace)
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                group.create_task(self.driver.run(), name="driver")
                group.create_task(self.executor.run(), name="executor")
                group.create_task(self.catch_up.run(), name="catch-up")
                if self.snapshots is not None:
                    group.create_task(self.snapshots.run(), name="snapshots")
                if self.missing_bodies is not None:
                    group.create_task(self.missing_bodies.run(), name="bodies")
                started()
        finally:
            grace.cancel()
            self.proposer.close()
            if self.joining is not None:
                self.joining.close()
            self._writer.shutdown(wait=True)
            self.executor.flush()
            if self._trace is not None:
                self._trace.close()

    async def hand_over(self) -> None:
        """Before an orderly stop: let another node lead if this one does; wait for it an election timeout at most.

        So its peers need not notice its silence first.
        """
        self.readiness.stopping = True
        if not self.driver.hand_over():
            return
        core = self.driver.core
        for _ in range(self._settings.core.election_ticks_max):
            await asyncio.sleep(self._settings.tick_ms / 1000)
            if core.role is Role.LEADER and not core.transferring:
                _log.warning("nobody took over the lead in time")
                return
            if core.role is not Role.LEADER and core.leader is not None:
                _log.info("handed over", leader=core.leader)
                return

    def stop_serving(self) -> None:
        """From now on `readiness` says that this node is stopping, and nobody is kept waiting."""
        self.readiness.stopping = True
        self.tracker.release()
        self.reads.release()

    def _build_consensus(self, key: SigningKey) -> None:
        genesis, store, settings = self._genesis, self._store, self._settings
        maker = BlockMaker(
            genesis,
            self._node_id,
            key,
            parent_of=self._lineage.parent_of,
            next_change=self.changes.next_change,
            head=lambda: Head(store.executed_height, self._roots(store.executed_height)),
            now_ms=self._now_ms,
            sealed=self._hold_sealed,
        )
        hard_state, last_height = store.hard_state(), store.last_height()
        last = store.term_hash(last_height)
        assert last is not None, "the log's end is in the log"
        disk = Disk(hard_state.term, hard_state.vote, last[0], last_height)
        said = Said(disk)
        restored = self._restored()
        if settings.trace is not None:
            self._trace = TraceFile(settings.trace)
        self.driver = Driver(
            RaftCore(settings.core, restored, store, Noting(maker, said)),
            store,
            self.tail,
            self.metrics,
            sender=self,
            in_writer=self._in_writer,
            tick_ms=settings.tick_ms,
            on_committed=lambda certificate: self.executor.certified(certificate),
            on_change=self._consider,
            on_reads=lambda states: self.reads.answered(states),
            state_written=lambda: self.executor.written(),
            trace=Tracer(self._node_id, restored, self._trace.write) if self._trace is not None else None,
        )
        self._comparison = Comparison(
            genesis.chain_id(),
            self._node_id,
            key.public,
            disk,
            said,
            self.driver.core,
            others=lambda: set(self.driver.core.configuration.electorate) - {self._node_id},
            compared=self.driver.compared,
            forswear=self._forswear,
            count=lambda kind: self.metrics.bad_frames.labels(kind).inc(),
        )
        self.metrics.amnesia.set(self.amnesia is not None)
        self.changes.attach(self.driver)
        self.readiness = Readiness(
            self.driver.core, store, last_height, behind_blocks=settings.core.replicate_gap_blocks // 2
        )

    def _build_execution(self) -> None:
        genesis, store = self._genesis, self._store
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
        self.reads = Reads(
            self.driver.read,
            self.executor.executed,
            executed_height=lambda: store.executed_height,
            proved=self._proved,
        )
        self.proposer = Proposer(
            genesis,
            self.driver,
            store,
            self.pool,
            self.tail,
            now_ms=self._now_ms,
            block_time_ms=self._block_time_ms,
            held_back=lambda: self.changes.due,
            seal_delay_ms=self._settings.seal_delay_ms,
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
            last_height=lambda: core.last_height,
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
            hinted=lambda height: self.catch_up.hint(height),
            key_of=self.roster.key_of,
            executed=self.executor.executed,
            own=self._comparison.certified,
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
            known_since_ms=lambda: store.known_since_ms,
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
            removed=self._standing.dismissed,
            statements_of=lambda peer: self._holdings.shown_to(peer, core.commit_height),
            shown=self._comparison.shown,
            snapshots=lambda: self.snapshots,
        )
        self.network = make_network(self.peering)
        self._standing.attach(self.network)
        self.metrics.peers_connected.set_function(
            lambda: sum(status.sending or status.receiving for status in self.network.peers().values())
        )
        self.metrics.clock_offset_seconds.set_function(lambda: (self._now_ms() - self._block_time_ms()) / 1000)
        self._build_snapshots()
        self._build_catch_up(checks, intake)
        self._build_backend(admission)

    def _build_catch_up(self, checks: BlockChecks, intake: Intake) -> None:
        self.catch_up = CatchUp(
            self.driver,
            checks,
            replicate_gap_blocks=self._settings.core.replicate_gap_blocks,
            parent_of=self._lineage.parent_of,
            certificate_holds=intake.certificate_holds,
            fetch_blocks=self.network.fetch_blocks,
            fetch_bodies=self.network.fetch_bodies,
            peers=self._askable,
            executed=self.executor.executed,
            begins_with_snapshot=self._places is not None and self._places.settings.join == "snapshot",
            from_snapshot=None if self.joining is None else self.joining.attempt,
        )

    def _build_backend(self, admission: Admission) -> None:
        self.backend = NodeBackend(
            self._genesis,
            self._node_id,
            self.driver.core,
            self._store,
            self.tracker,
            self.roster,
            self.changes,
            admission,
            self.metrics,
            now_ms=self._now_ms,
            ready=self.readiness.why_not,
            fault=self._fault,
            peers=self.network.peers,
            share=self.network.push_transactions,
            admitted=self._admitted,
            executed=self.executor.executed,
            reads=self.reads,
            ailment=lambda: AMNESIA if self.amnesia is not None else None,
        )

    def _build_snapshots(self) -> None:
        self.snapshots: Snapshots | None = None
        self.joining: Joining | None = None
        self.missing_bodies: MissingBodies | None = None
        if self._places is None:
            return
        self.snapshots = Snapshots(
            self._genesis,
            self._store,
            self._places,
            self.driver.core,
            self.metrics,
            in_writer=self._in_writer,
        )
        self.joining = Joining(
            self._genesis,
            self._store,
            self._places.shelf,
            self.metrics,
            fetch_snapshot=self.network.fetch_snapshot,
            fetch_chunk=self.network.fetch_chunk,
            fetch_blocks=self.network.fetch_blocks,
            fetch_bodies=self.network.fetch_bodies,
            peers=self._askable,
            fresh=self._places.fresh,
            ready=self.driver.fail,
        )
        self.missing_bodies = MissingBodies(
            self._store,
            self._places.kv,
            fetch=self.network.fetch_bodies,
            peers=self._askable,
            in_writer=self._in_writer,
            complete=self.snapshots.have_all_bodies,
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

    def _forswear(self, why: Forsworn) -> None:
        """Shown a signature of its own that its disk does not know: first the core, then the disk."""
        if self.amnesia is None:
            self.amnesia = why
            shown = {"kind": why.kind, "term": why.term, "height": why.height, "by": why.shown_by}
            _log.error("amnesia", detail=AMNESIA, **shown)
            self.metrics.amnesia.set(1)
            self.driver.forswear()
            self._spawn(self._in_writer(lambda: self._store.promises.forswear(why)))

    def _keep_vote(self, voter: str, vote: VoteShown) -> None:
        """Into the writer's queue at once: so the first block of a leader takes the votes for it to the disk."""
        keep = self._store.promises.keep_vote
        asked = (voter, vote.term, vote.candidate, vote.signature)
        self._spawn(_outcome(asyncio.get_running_loop().run_in_executor(self._writer, lambda: keep(*asked))))

    def _fault(self, error: Exception) -> None:
        """A request met it. Damage on the disk ends the node, whoever finds it; anything else ended the request."""
        if isinstance(error, StorageFailure):
            self.driver.fail(error)

    def _admitted(self) -> None:
        self.metrics.pool_transactions.set(len(self.pool))
        self.metrics.pool_bytes.set(self.pool.size)
        self.proposer.consider()

    def _askable(self) -> list[str]:
        """Who can be asked, and can answer."""
        return [peer for peer, status in self.network.peers().items() if status.sending and status.receiving]

    def _consider(self) -> None:
        """The log, the role or the state moved: what is voted comes before what waits in the pool."""
        self._comparison.log_moved()
        self.changes.consider()
        self.proposer.consider()

    def _executed(self, commit: Commit) -> None:
        block, header = commit.block, commit.block.header
        self._standing.executed(commit)
        self.metrics.pool_transactions.set(len(self.pool))
        self.metrics.pool_bytes.set(self.pool.size)
        self._lineage.learn(block)
        if self.snapshots is not None:
            self.snapshots.executed(block)
        if (
            self.driver.core.barred_for is Reason.BAD_TIME
            and header.proposer != self._node_id
            and self._inspector.clock_agrees(header.time)
        ):
            self.driver.mend()
        self.changes.consider()
        reconfigured = header.change is not None or header.proof is not None
        self.proposer.executed(header.height, header.count, reconfigured=reconfigured)

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
        store = self._store
        newest = store.newest_certificate()
        certificate = None if newest is None else plain(newest)
        return Restored(
            hard_state=store.hard_state(),
            base_height=store.base.height,
            base_term=store.base.term,
            base_hash=store.base.hash,
            last_height=store.last_height(),
            certificate=certificate,
            configurations=tuple((height, members_of(each)) for height, each in store.configurations()),
            must_compare=True,
            forsworn=self.amnesia is not None,
        )

    def _roots(self, height: int) -> Roots:
        roots = self._store.roots(height)
        return Roots(roots.history, roots.state)

    def _roots_at(self, height: int) -> Roots | None:
        """None too below a snapshot that this node began with, where no header in it carried the state's root."""
        if not self._store.base.height <= height <= self._store.executed_height:
            return None
        roots = self._roots(height)
        return None if roots.state == EMPTY else roots

    def _proved(self, height: int) -> bool:
        """Whether the seal covers all that changed the state up to `height`."""
        return (self._store.sealed_height or 0) >= min(height, self.proposer.last_busy_height)

    def _block_time_ms(self) -> int:
        height = self._store.executed_height
        found = self._store.term_hash(height)
        assert found is not None, "the executed block is in the log"
        return self._lineage.parent_of(height, found[1]).time_ms

    def _last_busy_height(self) -> int:
        """The highest block of the log above the sealed height that changed the state; 0 if none did."""
        store = self._store
        for height in range(store.last_height(), store.sealed_height or 0, -1):
            header = header_of(store.block_data(height))[0]
            if header.count or header.change is not None or header.proof is not None:
                return height
        return 0


async def _outcome(future: asyncio.Future[None]) -> None:
    """So that a failure of it ends the node."""
    await future
