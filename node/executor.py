"""Executes certified blocks in order, tells who waits, and writes what they leave.

One block at a time, on the loop; what blocks leave is written behind, several at once. A certified header whose
roots are not ours raises storage.executed.Divergence and ends the node: one of us broke determinism, and going on
would hide it.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from consensus.messages import Certificate
from ledger.block import Block, decode_block
from ledger.genesis import Genesis
from node.certificates import signed
from node.driver import InWriter
from node.inspector import BLOCK_OVERHEAD_BYTES
from node.metrics import Metrics
from node.pool import Pool
from node.tail import Tail
from node.tracker import Tracker
from storage.executed import PENDING_COMMITS_MAX, Commit
from storage.port import StorageFailure
from storage.store import Store

# Certificates that wait for their block to execute; the oldest are dispensable, as the newest covers them.
CERTIFICATES_MAX = 1024
# Executed blocks that wait for the disk. They are written together: what all of them change is written once.
WRITES_MAX = 32
WRITES_AT_ONCE = 16
WRITE_BEHIND_S = 0.5


assert WRITES_MAX + WRITES_AT_ONCE < PENDING_COMMITS_MAX, "the store holds what the queue and the writer hold"


class Executor:
    def __init__(
        self,
        genesis: Genesis,
        store: Store,
        tail: Tail,
        pool: Pool,
        tracker: Tracker,
        metrics: Metrics,
        *,
        in_writer: InWriter,
        on_executed: Callable[[Commit], None],
    ) -> None:
        self._bytes_max = genesis.parameters.block_bytes_max + BLOCK_OVERHEAD_BYTES
        self._store = store
        self._tail = tail
        self._pool = pool
        self._tracker = tracker
        self._metrics = metrics
        self._in_writer = in_writer
        self._on_executed = on_executed
        self._certificates: dict[int, Certificate] = {}
        self._target = store.executed_height
        self._work = asyncio.Event()
        self._writes: asyncio.Queue[Commit] = asyncio.Queue(WRITES_MAX)
        # Applied and not known to be on the disk, in order; the height up to which the writer thread has come.
        self._unwritten: deque[Commit] = deque()
        self._written_height = store.executed_height
        # Up to where the disk is waited for; the time that a write under way still waits for others; the next write.
        self._hurry_height = 0
        self._company: asyncio.Timeout | None = None
        self._wrote = asyncio.Event()
        self._reached: list[tuple[int, asyncio.Future[None]]] = []

    def flush(self) -> None:
        """At the end, once the writer thread has ended: what still waits, for the next start to find executed."""
        waiting = [commit for commit in self._unwritten if commit.height > self._written_height]
        if waiting:
            with suppress(StorageFailure):
                self._write(waiting)

    def certified(self, certificate: Certificate) -> None:
        """The log up to this certificate's block is final and on this node's disk."""
        self._certificates[certificate.height] = certificate
        if len(self._certificates) > CERTIFICATES_MAX:
            del self._certificates[min(self._certificates)]
        self._target = max(self._target, certificate.height)
        self._work.set()

    async def executed(self, height: int) -> None:
        """Return once `height` is executed here."""
        if self._store.executed_height < height:
            waiter = (height, asyncio.get_running_loop().create_future())
            self._reached.append(waiter)
            try:
                await waiter[1]
            except asyncio.CancelledError:
                # Already gone if the block was executed in this very turn of the loop.
                self._reached = [item for item in self._reached if item is not waiter]
                raise

    async def written(self) -> None:
        """Return once all that is executed now is on the disk; the write waits for no company."""
        height = self._hurry_height = self._store.executed_height
        if self._company is not None and not self._company.expired():
            self._company.reschedule(asyncio.get_running_loop().time())
        while self._unwritten and self._unwritten[0].height <= height:
            await self._wrote.wait()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._write_loop(), name="write")
            while True:
                await self._work.wait()
                self._work.clear()
                while self._store.executed_height < self._target:
                    await self._execute(self._store.executed_height + 1)

    async def _execute(self, height: int) -> None:
        begin = time.perf_counter()
        block = self._block_at(height)
        certificate = self._certificates.pop(height, None)
        with self._metrics.stage_seconds.timed("execute"):
            commit = self._store.derive(block, None if certificate is None else signed(certificate))
            self._store.apply(commit)
        self._unwritten.append(commit)
        self._metrics.execute_seconds.observe(time.perf_counter() - begin)
        with self._metrics.stage_seconds.timed("settle"):
            self._count(block, commit)
            self._finish(block)
            self._on_executed(commit)
        # Waits only when the disk is WRITES_MAX blocks behind.
        await self._writes.put(commit)
        # Between blocks the loop breathes.
        await asyncio.sleep(0)

    async def _write_loop(self) -> None:
        """What was executed goes to the disk behind the answers: a node that loses it executes the block again."""
        while True:
            commits = [await self._writes.get()]
            with suppress(TimeoutError):
                wait_s = 0.0 if commits[0].height <= self._hurry_height else WRITE_BEHIND_S
                async with asyncio.timeout(wait_s) as self._company:
                    while len(commits) < WRITES_AT_ONCE:
                        commits.append(await self._writes.get())
            self._company = None
            await self._in_writer(partial(self._write, commits))
            self._store.written(*commits)
            for _ in commits:
                self._unwritten.popleft()
            self._wrote.set()
            self._wrote = asyncio.Event()

    def _write(self, commits: list[Commit]) -> None:
        begin = time.thread_time()
        self._store.write(*commits)
        self._written_height = commits[-1].height
        self._metrics.stage_seconds.spent("write", time.thread_time() - begin)

    def _block_at(self, height: int) -> Block:
        found = self._store.term_hash(height)
        assert found is not None, "what is committed here is in the log"
        held = self._tail.get(found[1])
        return held.block if held is not None else decode_block(self._store.block_data(height), self._bytes_max)

    def _finish(self, block: Block) -> None:
        removed = [self._pool.remove(transaction.id) for transaction in block.transactions]
        arrived_s = min((pooled.arrived_s for pooled in removed if pooled is not None), default=None)
        if arrived_s is not None:
            self._metrics.commit_seconds.observe(time.monotonic() - arrived_s)
        self._tracker.dropped(self._pool.expire(block.header.time))
        self._tail.executed(block.header.height)
        self._tracker.committed(block.header.height, tuple(transaction.id for transaction in block.transactions))
        if self._store.sealed_height is not None:
            self._tracker.sealed(self._store.sealed_height)
        for height, future in self._reached:
            if height <= block.header.height and not future.done():
                future.set_result(None)
        self._reached = [item for item in self._reached if not item[1].done()]

    def _count(self, block: Block, commit: Commit) -> None:
        metrics = self._metrics
        metrics.blocks_committed.inc()
        for code, count in Counter(result.code for result in commit.results).items():
            metrics.transactions_executed.labels(code).inc(count)
        metrics.executed_height.set(block.header.height)
        metrics.sealed_height.set(self._store.sealed_height or 0)
