"""One node of a simulated cluster: the real core, store, pool, inspection, intake, comparison and membership; around
them, in place of the event loop and the writer thread, a few inputs that the simulation calls when it likes.

    on_message, tick, propose -> core -> Ready -> sent                          (`pump`)
                                            |---> one write at a time           (`disk`: begin, then finish)
                                            |---> committed -> executed         (`execute`)
                                            '---> reads, answered once executed

As in node/node.py, node/driver.py and node/executor.py, with their own functions where these do not wait.
"""

import random
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

from consensus.core import RaftCore
from consensus.errors import ProtocolViolation
from consensus.messages import (
    Append,
    Certificate,
    CertifiedBlocks,
    Configuration,
    Message,
    Ready,
    Reason,
    Role,
)
from consensus.ports import CoreSettings, Restored
from ledger.block import Block, decode_block
from ledger.errors import Rejection
from ledger.execution import admit
from ledger.state_tree import EMPTY
from ledger.transaction import Transaction, check_signature
from network.port import BlockRange, Statements
from node.catchup import CatchUp
from node.certificates import plain, signed
from node.changes import Changes
from node.comparison import GRACE, Comparison, Disk, Holdings, Noting, Said, recall
from node.driver import Driver, merge
from node.evidence import Witness
from node.inspector import BLOCK_OVERHEAD_BYTES, Inspector, Roots
from node.joining import SnapshotReady
from node.lineage import Lineage
from node.maker import BlockMaker, Head
from node.pool import Pool, PoolLimits
from node.roster import Roster
from node.tail import Tail
from storage.boot import check_newest
from storage.configurations import members_of
from storage.executed import Commit
from storage.port import StorageFailure
from storage.promises import Forsworn
from storage.schema import Place
from storage.store import Store
from tests.sim.background import Background
from tests.sim.disk import SimDisk
from tests.sim.founding import node_key
from tests.sim.shelf import SimShelf
from tests.sim.shell import Gossip, Sent, SwiftChecks, SwiftIntake, Untimed, WatchedMaker, World, at_once, never

TICK_MS = 50
CLOCK_SKEW_MS = 30_000
ELECTION_TICKS_MAX = 20
REPLICATE_GAP_BLOCKS = 8
TRANSACTIONS_MAX = 4
POOL = PoolLimits(10_000, 1 << 26, 1.0, 1.0)
CHECKED_HEIGHTS_MAX = 2
READS_MAX = 4


class SimNode:
    """Raises StorageFailure from its constructor where the disk is damaged: it does not start.

    `failed` says why the daemon would have stopped since. Its core is still told what happens, and must stay silent.
    """

    def __init__(self, name: str, world: World, disk: SimDisk, shelf: SimShelf, chance: random.Random) -> None:
        self.name = name
        self.failed: Exception | None = None
        self.removed = False
        self.pool = Pool(POOL)
        self.executed_target = 0
        self._age_ticks = 0
        self._world = world
        self._disk = disk
        self._chance = chance
        self._genesis = world.genesis
        self._bytes_max = self._genesis.parameters.block_bytes_max + BLOCK_OVERHEAD_BYTES
        check_newest(disk.open(), self._genesis, heights_max=CHECKED_HEIGHTS_MAX, seconds_max=float("inf"))
        self.store = Store(disk, self._genesis)
        disk.finish_sync()
        self._waiting: deque[Ready] = deque()
        self._unwritten: deque[Commit] = deque()
        self._jobs: deque[Callable[[], None]] = deque()
        self._writing: Callable[[], object] | None = None
        self._certificates: dict[int, Certificate] = {}
        # Reads put to the core by token, and those answered by the height they wait for.
        self._asked: dict[int, None] = {}
        self._read_at: list[tuple[int, int]] = []
        self._build()
        self.background = Background(self, world, disk, shelf)
        self._hold_log()
        self.pump()

    def _build(self) -> None:
        genesis, name, store = self._genesis, self.name, self.store
        self._tail = Tail()
        self._lineage = Lineage(genesis, store)
        introduced = self._world.introduced(name)
        self.roster = Roster(store, dict.fromkeys(introduced, "127.0.0.1:1"), introduced)
        self.changes = Changes(store, self.roster)
        self.holdings = Holdings(store.promises.votes(), self._keep_vote)
        recall(self.holdings, store)
        self.amnesia = store.promises.forsworn
        witness = Witness(self._accuse, self.holdings)
        self.inspector = Inspector(
            genesis,
            witness,
            voted=self.changes.voted,
            known=self.pool.by_hash,
            roots_at=self._roots_at,
            now_ms=self.now_ms,
            clock_skew_ms=CLOCK_SKEW_MS,
        )
        said = self._build_core()
        hard_state, last = store.hard_state(), store.term_hash(store.last_height())
        assert last is not None, "the log's end is in the log"
        self.comparison = Comparison(
            genesis.chain_id(),
            name,
            node_key(name).public,
            Disk(hard_state.term, hard_state.vote, last[0], store.last_height()),
            said,
            self.core,
            others=lambda: set(self.core.configuration.electorate) - {name},
            compared=self._compared,
            forswear=self._forswear,
            count=_count,
        )
        self.changes.attach(self)
        self._build_intake(witness)

    def _compared(self, peer: str, height: int) -> None:
        self.guard(lambda: self.core.compared(peer, height))

    def _build_core(self) -> Said:
        store = self.store
        hard_state, last = store.hard_state(), store.term_hash(store.last_height())
        assert last is not None, "the log's end is in the log"
        said = Said(Disk(hard_state.term, hard_state.vote, last[0], store.last_height()))
        maker: BlockMaker = WatchedMaker(
            self._genesis,
            self.name,
            node_key(self.name),
            parent_of=self._lineage.parent_of,
            next_change=self.changes.next_change,
            head=lambda: Head(store.executed_height, self._roots(store.executed_height)),
            now_ms=self.now_ms,
            sealed=self._hold_sealed,
        ).watched(self._world.watch)
        settings = CoreSettings(
            self.name,
            election_ticks_min=ELECTION_TICKS_MAX // 2,
            election_ticks_max=ELECTION_TICKS_MAX,
            heartbeat_ticks=2,
            seed=self._world.seed,
            inflight_messages_max=4,
            inflight_bytes_max=8_000,
            append_bytes_max=3_000,
            uncommitted_bytes_max=12_000,
            replicate_gap_blocks=REPLICATE_GAP_BLOCKS,
            promote_gap_blocks=REPLICATE_GAP_BLOCKS,
        )
        self.core = RaftCore(settings, self._restored(), store, Noting(maker, said))
        return said

    def _build_intake(self, witness: Witness) -> None:
        checks = SwiftChecks(
            self.inspector,
            self._tail,
            self._lineage,
            body_at_hand=self.store.body,
            term_hash=self.core.term_hash,
            last_height=lambda: self.core.last_height,
        )
        self.intake = SwiftIntake(
            self.core,
            checks,
            witness,
            self._genesis,
            self.name,
            Untimed("simulated", "", (1.0,)),
            step=self._step,
            refuse=self._refuse,
            fetch=never,
            spawn=never,
            certified=lambda height: self.catch_up.notice(height),
            hinted=lambda height: self.catch_up.hint(height),
            key_of=self.roster.key_of,
            executed=at_once,
            own=self.comparison.certified,
            halt=self.fail,
            count=_count,
        )
        self.catch_up = CatchUp(
            cast(Driver, self),
            checks,
            replicate_gap_blocks=REPLICATE_GAP_BLOCKS,
            parent_of=self._lineage.parent_of,
            certificate_holds=self.intake.certificate_holds,
            fetch_blocks=self._fetch_blocks,
            fetch_bodies=never,
            peers=lambda: self._world.peers(self.name),
            executed=at_once,
            begins_with_snapshot=self._chance.random() < 0.5,
            from_snapshot=lambda: self.background.joining.attempt(),
        )

    def _restored(self) -> Restored:
        store = self.store
        newest, base = store.newest_certificate(), store.base
        return Restored(
            hard_state=store.hard_state(),
            base_height=base.height,
            base_term=base.term,
            base_hash=base.hash,
            last_height=store.last_height(),
            certificate=None if newest is None else plain(newest),
            configurations=tuple((height, members_of(each)) for height, each in store.configurations()),
            must_compare=True,
            forsworn=self.amnesia is not None,
        )

    def _hold_log(self) -> None:
        self.executed_target = self.store.executed_height
        for height in range(self.store.executed_height + 1, self.store.last_height() + 1):
            block = decode_block(self.store.block_data(height), self._bytes_max)
            self._tail.hold(block, {})
            self._tail.in_log(block)
            self._lineage.learn(block)

    # what comes in

    def on_message(self, sender: str, message: Sent) -> None:
        match message:
            case Gossip():
                self.guard(lambda: self.admit(message.transaction, from_peer=True))
            case Statements():
                self.guard(lambda: self.comparison.shown(sender, message))
            case _:
                self.guard(lambda: self.intake.on_consensus(sender, message))

    def tick(self) -> None:
        self._age_ticks += 1
        if self._age_ticks == GRACE * ELECTION_TICKS_MAX // 2:
            self.guard(self.comparison.end_grace)
        self.guard(self.core.tick)
        if self.failed is None:
            self.guard(self.background.turn)

    def propose(self) -> None:
        """As the leader: a block from the pool, perhaps of several; sometimes an empty one, for the seal."""
        self._propose(self._chance.randint(1, TRANSACTIONS_MAX), empty=self._chance.random() < 0.3)

    def propose_now(self) -> None:
        self._propose(TRANSACTIONS_MAX, empty=True)

    def _propose(self, count_max: int, *, empty: bool) -> None:
        """What was voted comes before what is in the pool."""
        chosen = self.pool.take(count_max, self._bytes_max, self._tail, lambda transaction: True)
        if (chosen or empty) and not self.changes.due:
            self.guard(lambda: self.core.propose(chosen))

    def propose_change(self, target: Configuration) -> bool:
        """The driver's, for what was voted."""
        before = self.core.last_height
        self.core.propose_change(target)
        return self.core.last_height > before

    def place_of(self, tx_id: bytes) -> Place | None:
        """Where a transaction was included, as far as this node knows; a damaged record ends the node."""
        try:
            return self.store.tx_status(tx_id)
        except StorageFailure as failure:
            self.disk_failed(failure)
            return None

    def admit(self, transaction: Transaction, *, from_peer: bool) -> bool:
        """Whether this node took it, or had it already."""
        if transaction.id in self.pool or transaction.id in self._tail or self.place_of(transaction.id):
            return True
        try:
            check_signature(transaction, self._genesis.chain_id())
            account = admit(transaction, self.store.get, self.now_ms())
        except Rejection:
            return False
        except StorageFailure as failure:
            self.disk_failed(failure)
            return False
        return self.pool.add(transaction, (), account.organisation, from_peer=from_peer)

    def read(self, token: int) -> None:
        """A client's linearizable read; the watch hears how high it waited, or that there is no answer."""
        self._asked[token] = None
        self.guard(lambda: self.core.read(token))

    def transfer(self, target: str | None) -> None:
        self.guard(lambda: self.core.transfer(target))

    def stop(self) -> None:
        """About to stop: hand over, and be handed nothing."""
        self.guard(self.core.stop)
        self.transfer(None)

    # the disk, one write at a time

    @property
    def writing(self) -> bool:
        return self._writing is not None

    @property
    def busy(self) -> bool:
        """Something waits for the disk, or for execution."""
        if self.failed is not None:
            return False
        unexecuted = self.store.executed_height < self.executed_target
        jobs = self._jobs or self.background.jobs
        return bool(self._waiting or self._unwritten or self._writing or jobs or unexecuted)

    def disk(self) -> None:
        """The writer thread's next half step: begin a write, or see the one under way synced."""
        if self.failed is not None:
            return
        if self._writing is not None:
            report, self._writing = self._writing, None
            self._disk.finish_sync()
            self.guard(report)
        elif self._jobs:
            job = self._jobs.popleft()
            self._write(job, lambda: None)
        elif self.background.jobs and self._chance.random() < 0.5:
            function, done = self.background.jobs.pop(0)
            self._write(function, lambda: done.append(None))
        elif self._waiting and not self._state_goes_first():
            count = self._chance.randint(1, len(self._waiting))
            batch = merge(deque(self._waiting.popleft() for _ in range(count)))
            cut, entries, hard_state = batch.truncate_from, batch.entries, batch.hard_state
            self._write(lambda: self.store.persist(cut, entries, {}, hard_state), lambda: self._persisted(batch.seq))
        elif self._unwritten:
            commits = [self._unwritten.popleft() for _ in range(self._chance.randint(1, len(self._unwritten)))]
            self._write(lambda: self.store.write(*commits), lambda: self.store.written(*commits))

    def _state_goes_first(self) -> bool:
        """As the driver does it: a block that changes the membership stands on a state that is on the disk."""
        changes = any(entry.configuration is not None for ready in self._waiting for entry in ready.entries)
        return bool(self._unwritten) and (changes or self._chance.random() >= 0.7)

    def _persisted(self, seq: int) -> None:
        self.core.persisted(seq)
        if self._chance.random() < 0.05:
            self.core.persisted(seq)

    def _write(self, write: Callable[[], object], report: Callable[[], object]) -> None:
        try:
            write()
        except StorageFailure as failure:
            # Nothing that was not stored may ever be acknowledged: latch first, then stop.
            self.disk_failed(failure)
        else:
            self._writing = report

    def fail_sync(self) -> None:
        """The sync under way fails; what of it is on the disk nobody knows."""
        self._writing = None
        self._disk.fail_sync(self._chance)
        self.disk_failed(StorageFailure("the sync failed"))

    def disk_failed(self, failure: Exception) -> None:
        self.core.disk_failed()
        self.fail(failure)

    def flush(self) -> None:
        """At an orderly end: the write under way, and what was executed and not written."""
        if self._writing is not None:
            self.disk()
        if self._unwritten and self.failed is None:
            with suppress(StorageFailure):
                self.store.write(*self._unwritten)

    def close(self) -> None:
        """Nothing of it runs any more."""
        self.background.close()

    # execution

    def execute(self) -> None:
        """The next committed block, if there is one."""
        if self.failed is None and self.store.executed_height < self.executed_target:
            self.guard(self._execute)

    def _execute(self) -> None:
        if self.store.pending_commits >= 32:
            return
        height = self.store.executed_height + 1
        found = self.store.term_hash(height)
        assert found is not None, "what is committed here is in the log"
        held = self._tail.get(found[1])
        block = held.block if held is not None else decode_block(self.store.block_data(height), self._bytes_max)
        certificate = self._certificates.pop(height, None)
        commit = self.store.derive(block, None if certificate is None else signed(certificate))
        self.store.apply(commit)
        self._unwritten.append(commit)
        for transaction in block.transactions:
            self.pool.remove(transaction.id)
        self._tail.executed(height)
        self._lineage.learn(block)
        if self.roster.executed(commit) and self.roster.is_removed(self.name):
            self.removed = True
        others = block.header.proposer != self.name
        if self.core.barred_for is Reason.BAD_TIME and others and self.inspector.clock_agrees(block.header.time):
            self.core.mend()
        self.background.snapshots.executed(block)
        self._answer_reads()

    def _answer_reads(self) -> None:
        height = self.store.executed_height
        for token, _ in [item for item in self._read_at if item[1] <= height]:
            self._world.watch.answered(token, height)
        self._read_at = [item for item in self._read_at if item[1] > height]

    # inside

    def now_ms(self) -> int:
        return self._world.now_ms(self.name)

    def step_certified(self, sender: str, blocks: CertifiedBlocks) -> bool:
        """The driver's, for the catch-up."""
        self.core.step_certified(sender, blocks)
        self.pump()
        held = self.core.term_hash(blocks.certificate.height)
        return held is not None and held[1] == blocks.certificate.hash

    def fail(self, error: BaseException) -> None:
        """What would have ended the daemon. Anything but a disk's failure, or a store to go on with, ends the run."""
        if not isinstance(error, StorageFailure | SnapshotReady):
            raise error
        self.failed = error

    def guard(self, action: Callable[[], object]) -> None:
        """Do it as the shell would: what follows too, and an error of the disk ends the node."""
        try:
            action()
            if self.failed is None:
                self.comparison.log_moved()
                self.changes.consider()
                self.pump()
        except StorageFailure as failure:
            self.disk_failed(failure)
        except ProtocolViolation as violation:
            raise AssertionError(f"every node here is correct, yet: {violation}") from violation
        dead = isinstance(self.failed, StorageFailure)
        assert not dead or not self.core.has_ready(), "a node whose disk failed says nothing"

    def pump(self) -> None:
        """Do what Ready says; what must reach the disk waits for `disk`."""
        watch = self._world.watch
        watch.after(self)
        while self.core.has_ready():
            ready = self.core.ready()
            for peer, message in ready.messages:
                watch.sends(self, peer, message)
                self._world.send(self.name, peer, message)
            if ready.seq:
                self._tail.appended(ready.truncate_from, ready.entries)
                self._waiting.append(ready)
            if ready.committed is not None:
                watch.tells(self, ready.committed)
                self._certificates[ready.committed.height] = ready.committed
                self.executed_target = max(self.executed_target, ready.committed.height)
            for state in ready.reads:
                del self._asked[state.token]
                if state.height is None:
                    watch.unanswered(state.token)
                else:
                    self._read_at.append((state.token, state.height))
        if self._read_at:
            self._answer_reads()

    def _step(self, sender: str, message: Message) -> None:
        self.core.step(sender, message)
        self.pump()

    def _refuse(self, sender: str, append: Append, height: int, reason: Reason) -> None:
        fair = reason in (Reason.BAD_TIME, Reason.BEHIND)
        assert fair, f"every node here is correct, yet a block is refused: {reason.value}"
        self.core.refuse(sender, append, height, reason)
        self.pump()

    def _hold_sealed(self, block: Block) -> None:
        self._tail.hold(block, {})
        self._lineage.learn(block)

    def _accuse(self, kind: str, node: str, proof: bytes) -> None:
        raise AssertionError(f"every node here is correct, yet {node} made two {kind}s")

    def _keep_vote(self, voter: str, vote: Any) -> None:
        keep = self.store.promises.keep_vote
        self._jobs.append(lambda: keep(voter, vote.term, vote.candidate, vote.signature))

    def _forswear(self, why: Forsworn) -> None:
        if self.amnesia is None:
            self.amnesia = why
            self._world.watch.forswears(self.name, why)
            self.core.forswear()
            self._jobs.append(lambda: self.store.promises.forswear(why))

    async def _fetch_blocks(self, peer: str, height: int, bytes_max: int) -> BlockRange:
        return self._world.fetch(self.name, peer, height, bytes_max)

    def _roots(self, height: int) -> Roots:
        roots = self.store.roots(height)
        return Roots(roots.history, roots.state)

    def _roots_at(self, height: int) -> Roots | None:
        """None too where a snapshot that this node began with left the state's root out."""
        if not self.store.base.height <= height <= self.store.executed_height:
            return None
        roots = self._roots(height)
        return None if roots.state == EMPTY else roots

    @property
    def leads(self) -> bool:
        return self.failed is None and self.core.role is Role.LEADER


def _count(kind: str) -> None:
    """Above a node's log a certificate may be of voters that it does not know yet."""
    assert kind == "bad_certificate", f"every node here is correct, yet: {kind}"
