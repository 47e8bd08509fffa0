"""The driver: carries out what the consensus core decides.

Everything that decides runs on the event loop, one input at a time: a tick, a message, a proposal, an answer from the
disk. After each, `_pump` does what the core's Ready lists say: send, persist, execute. The disk is waited for in one
thread; what piles up during a sync goes into the next batch together.

    message, tick, proposal -> core -> Ready -> send
                                         |----> store.persist -> core.persisted -> Ready (acknowledgements)
                                         '----> committed -> Executor
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import structlog

from consensus.core import RaftCore
from consensus.errors import ProtocolViolation
from consensus.messages import (
    Append,
    Certificate,
    CertifiedBlocks,
    Configuration,
    Entry,
    HardState,
    Message,
    ReadState,
    Ready,
    Reason,
    Role,
)
from node.metrics import Metrics
from node.tail import Tail
from node.trace import Tracer
from storage.store import Store

_log = structlog.get_logger(__name__)

# Runs a blocking function in the one thread that writes.
InWriter = Callable[[Callable[[], object]], Awaitable[None]]


class Sender(Protocol):
    """What the driver asks of the network: to take a message without waiting. It may get lost."""

    def send_consensus(self, peer: str, message: Message) -> None: ...


@dataclass(frozen=True, slots=True)
class Batch:
    """Several Ready lists as one write: delete from `truncate_from` up, put `entries`, put `hard_state`."""

    seq: int
    truncate_from: int | None
    entries: tuple[Entry, ...]
    hard_state: HardState | None


def merge(waiting: deque[Ready]) -> Batch:
    """What writing the Ready lists one after the other would leave."""
    truncate_from: int | None = None
    entries: list[Entry] = []
    hard_state: HardState | None = None
    for ready in waiting:
        if ready.truncate_from is not None:
            cut = ready.truncate_from
            entries = [entry for entry in entries if entry.height < cut]
            truncate_from = cut if truncate_from is None else min(cut, truncate_from)
        entries.extend(ready.entries)
        hard_state = ready.hard_state or hard_state
    return Batch(waiting[-1].seq, truncate_from, tuple(entries), hard_state)


class Driver:
    """`on_committed` gets each newer certificate, `on_reads` the answers to `read`, `on_change` is told after the
    core's role or log moved. `state_written` waits until all that is executed is on the disk.

    `trace` gets every transition of the core. `failed` is set to the first error after which this node must not go
    on; `run` raises it.
    """

    def __init__(
        self,
        core: RaftCore,
        store: Store,
        tail: Tail,
        metrics: Metrics,
        *,
        sender: Sender,
        in_writer: InWriter,
        tick_ms: int,
        on_committed: Callable[[Certificate], None],
        on_change: Callable[[], None],
        on_reads: Callable[[Sequence[ReadState]], None],
        state_written: Callable[[], Awaitable[None]],
        trace: Tracer | None = None,
    ) -> None:
        self.core = core
        self._store = store
        self._tail = tail
        self._metrics = metrics
        self._sender = sender
        self._in_writer = in_writer
        self._tick_s = tick_ms / 1000
        self._on_committed = on_committed
        self._on_change = on_change
        self._on_reads = on_reads
        self._state_written = state_written
        self._trace = trace
        if trace is not None:
            trace.end(core)
        self._waiting: deque[Ready] = deque()
        self._work = asyncio.Event()
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._shown: tuple[Role, int] = (core.role, core.term)

    def step(self, sender: str, message: Message) -> None:
        """A checked message of an authenticated peer."""
        self._do(lambda: self.core.step(sender, message), "message", from_=sender, message=message)

    def step_certified(self, sender: str, blocks: CertifiedBlocks) -> bool:
        """Checked blocks of any peer that end at a verified certificate; whether the log holds them now."""
        self._do(lambda: self.core.step_certified(sender, blocks), "certified", from_=sender, blocks=blocks)
        held = self.core.term_hash(blocks.certificate.height)
        return held is not None and held[1] == blocks.certificate.hash

    def refuse(self, sender: str, append: Append, height: int, reason: Reason) -> None:
        """The block at `height` of this Append breaks a rule of the ledger."""
        if reason is Reason.BEHIND:
            _log.info("block not judged yet", leader=sender, height=height)
        else:
            _log.warning("block refused", leader=sender, height=height, reason=reason.value)
        given = {"from_": sender, "message": append, "height": height, "reason": reason.value}
        self._do(lambda: self.core.refuse(sender, append, height, reason), "refuse", **given)

    def propose(self, payload: object) -> bool:
        """Whether the core appended a block with this payload."""
        before = self.core.last_height
        self._do(lambda: self.core.propose(payload), "propose")
        return self.core.last_height > before

    def propose_change(self, target: Configuration) -> bool:
        """Whether the core appended a block that begins the change of membership to `target`."""
        before = self.core.last_height
        self._do(lambda: self.core.propose_change(target), "change", target=target)
        return self.core.last_height > before

    def mend(self) -> None:
        self._do(self.core.mend, "mend")

    def read(self, token: int) -> None:
        """Ask how high a linearizable read must wait; `on_reads` gets the answer."""
        self._do(lambda: self.core.read(token), "read", token=token)

    def compared(self, peer: str, height: int) -> None:
        """What this peer, which has certified blocks up to `height`, holds from this node, this node's disk knows."""
        self._do(lambda: self.core.compared(peer, height), "compared", peer=peer, height=height)

    def forswear(self) -> None:
        """Something that this node signed its disk has forgotten: no more votes."""
        self._do(self.core.forswear, "forswear")

    def hand_over(self) -> bool:
        """This node is about to stop: nobody shall hand it the lead. If it leads, whether somebody shall take it."""
        self._do(self.core.stop, "stop")
        if self.core.role is Role.LEADER:
            self._do(self.core.transfer, "transfer")
        return self.core.transferring

    def fail(self, error: BaseException) -> None:
        """Stop this node: `run` raises `error`."""
        if not self._failed.done():
            self._failed.set_exception(error)

    async def run(self) -> None:
        """Tick and persist until cancelled, or until something fails for good."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._tick_loop(), name="tick")
            group.create_task(self._persist_loop(), name="persist")
            await self._failed

    async def _tick_loop(self) -> None:
        """One tick a period. After a stall there is one tick, not a burst: what waits on the sockets goes first."""
        while True:
            await asyncio.sleep(self._tick_s)
            self._do(self.core.tick, "tick")

    async def _persist_loop(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            if not self._waiting:
                continue
            batch = merge(self._waiting)
            self._waiting.clear()
            bodies: dict[bytes, bytes] = {}
            for entry in batch.entries:
                held = self._tail.get(entry.hash)
                assert held is not None, "a block in the log is held until it is executed"
                bodies.update(held.bodies)
            if any(entry.configuration is not None for entry in batch.entries):
                # Whom a change lets in, and where to reach it, stands in the state alone: a network that lost its
                # power must still know it, or it could wait for the voice of one whom nobody lets in.
                await self._state_written()
            begin = time.perf_counter()
            try:
                await self._in_writer(partial(self._persist, batch, bodies))
            except Exception as error:
                # Nothing that was not stored may ever be acknowledged: latch first, then stop.
                self._do(self.core.disk_failed, "disk_failed")
                self.fail(error)
                raise
            self._metrics.persist_seconds.observe(time.perf_counter() - begin)
            self._tail.persisted(batch.entries)
            self._do(partial(self.core.persisted, batch.seq), "persisted", seq=batch.seq)

    def _persist(self, batch: Batch, bodies: Mapping[bytes, bytes]) -> None:
        begin = time.thread_time()
        self._store.persist(batch.truncate_from, batch.entries, bodies, batch.hard_state)
        self._metrics.stage_seconds.spent("persist", time.thread_time() - begin)

    def _do(self, action: Callable[[], object], kind: str, **given: object) -> None:
        """Let the core act, then carry out what follows. An error of the core's ends the node.

        `kind` and `given` are its input, for the trace.
        """
        if self._failed.done():
            return
        fault = ""
        try:
            with self._metrics.stage_seconds.timed("decide"):
                if self._trace is not None:
                    self._trace.begin(kind, **given)
                try:
                    action()
                except ProtocolViolation as violation:
                    fault = violation.detail
                    _log.warning("protocol violation", peer=violation.sender, detail=violation.detail)
                    self._metrics.bad_frames.labels("protocol_violation").inc()
                self._pump(fault)
        except Exception as error:  # noqa: BLE001 - whatever it is, a core that raised must not decide again
            self.fail(error)

    def _pump(self, fault: str) -> None:
        changed = False
        while self.core.has_ready():
            ready = self.core.ready()
            changed = True
            if self._trace is not None:
                self._trace.left(ready)
            for peer, message in ready.messages:
                self._sender.send_consensus(peer, message)
            if ready.seq:
                self._tail.appended(ready.truncate_from, ready.entries)
                self._waiting.append(ready)
                self._work.set()
            if ready.committed is not None:
                self._on_committed(ready.committed)
            if ready.reads:
                self._on_reads(ready.reads)
        if self._trace is not None:
            self._trace.end(self.core, fault)
        if changed:
            self._show()
            self._on_change()

    def _show(self) -> None:
        role, term = self.core.role, self.core.term
        if (role, term) != self._shown:
            if role is Role.CANDIDATE:
                self._metrics.elections.inc()
            stepped_down = self._shown[0] is Role.LEADER and self.core.step_down_reason
            _log.info("role", role=role.value, term=term, leader=self.core.leader, why=stepped_down or "")
            self._shown = (role, term)
        self._metrics.term.set(term)
        self._metrics.is_leader.set(role is Role.LEADER)
        self._metrics.last_height.set(self.core.last_height)
        self._metrics.commit_height.set(self.core.commit_height)
