"""A stage for scenarios: real cores, with disks and a network that do nothing unless told.

Between each two nodes there is a queue of messages in the order sent. A node's disk answers at once, unless it is
slow; then batches wait to be written, and what was written waits to be reported. What a batch holds is durable once
written, whether or not the core was told.
"""

from collections import defaultdict, deque
from collections.abc import Callable
from copy import deepcopy
from hashlib import sha256

from consensus.core import RaftCore
from consensus.errors import Contradiction, InvariantViolation, ProtocolViolation
from consensus.messages import Certificate, Configuration, Entry, HardState, Message, NodeId, Ready, Role, Slot
from consensus.ports import CoreSettings, Restored
from node.trace import Json, Tracer
from tests.stage import story
from tests.tracecheck.check import check
from tests.tracecheck.lines import Forbidden

GENESIS = sha256(b"genesis").digest()
ROUNDS_MAX = 200


class StageError(Exception):
    """The story asks for something that is not there, or it went another way."""


def block_hash(height: int, term: int, parent: bytes, data: bytes) -> bytes:
    return sha256(b"%d/%d/" % (height, term) + parent + data).digest()


class StageDisk:
    """What a crash leaves: the LogReader of its node."""

    def __init__(self, configuration: Configuration) -> None:
        self.blocks: dict[int, Entry] = {}
        self.hard_state = HardState()
        self.certificate: Certificate | None = None
        self.first_configuration = configuration
        self.base = (0, 0, GENESIS)
        self.must_compare = False
        self.forsworn = False

    @property
    def last_height(self) -> int:
        return max(self.blocks, default=self.base[0])

    def write(self, batch: Ready) -> None:
        if batch.truncate_from is not None:
            for height in [height for height in self.blocks if height >= batch.truncate_from]:
                del self.blocks[height]
        for entry in batch.entries:
            if entry.height != self.last_height + 1:
                raise StageError(f"a disk is given block {entry.height} above {self.last_height}")
            self.blocks[entry.height] = entry
        self.hard_state = batch.hard_state or self.hard_state

    def term_hash(self, height: int) -> tuple[int, bytes] | None:
        entry = self.blocks.get(height)
        return (entry.term, entry.hash) if entry else None

    def entries(self, first: int, last: int, bytes_max: int) -> tuple[Entry, ...]:
        chosen: list[Entry] = []
        size = 0
        for height in range(first, last + 1):
            size += len(self.blocks[height].data)
            if chosen and size > bytes_max:
                break
            chosen.append(self.blocks[height])
        return tuple(chosen)

    def configurations(self) -> tuple[tuple[int, Configuration], ...]:
        """As the shell stores them: the one at genesis and one for each block that changed it."""
        brought = ((h, e.configuration) for h, e in sorted(self.blocks.items()) if e.configuration is not None)
        return ((self.base[0], self.first_configuration), *brought)

    def restored(self) -> Restored:
        height, term, block = self.base
        return Restored(
            hard_state=self.hard_state,
            base_height=height,
            base_term=term,
            base_hash=block,
            last_height=self.last_height,
            certificate=self.certificate,
            configurations=self.configurations(),
            must_compare=self.must_compare,
            forsworn=self.forsworn,
        )

    def compact(self, height: int) -> None:
        """Forget what is at and below `height`, but for what the log must know of its base."""
        self.first_configuration = [made for start, made in self.configurations() if start <= height][-1]
        base = self.blocks[height]
        self.base = (height, base.term, base.hash)
        self.blocks = {above: entry for above, entry in self.blocks.items() if above > height}


class StageSigner:
    """Signatures in clear. `labels` learns the name of every block."""

    def __init__(self, node_id: NodeId, labels: dict[bytes, str]) -> None:
        self.node_id = node_id
        self._labels = labels

    def seal(self, slot: Slot, payload: object) -> tuple[bytes, bytes]:
        data = payload if isinstance(payload, bytes) else b""
        block = block_hash(slot.height, slot.term, slot.parent, data)
        self._labels.setdefault(block, f"{slot.height}@{slot.term}")
        return data, block

    def acknowledge(self, term: int, height: int, block: bytes) -> bytes:
        return acknowledgement(self.node_id, term, height, block)

    def vote(self, term: int, candidate: NodeId) -> bytes:
        return b"vote/%s/%d/%s" % (self.node_id.encode(), term, candidate.encode())


def acknowledgement(voter: NodeId, term: int, height: int, block: bytes) -> bytes:
    return b"ack/%s/%d/%d/" % (voter.encode(), term, height) + block


class StageNode:
    """A node on the stage. `core` is None while it is down; `written` is the newest batch on its disk."""

    def __init__(self, node_id: NodeId, disk: StageDisk) -> None:
        self.node_id = node_id
        self.disk = disk
        self.core: RaftCore | None = None
        self.pending: deque[Ready] = deque()
        self.written = 0
        self.slow = False
        self.told = 0
        self.reads: dict[int, int | None] = {}
        self.shown: tuple[Role, int, NodeId | None, int] = (Role.FOLLOWER, 0, None, 0)
        self.trace: list[Json] = []
        self.tracer: Tracer | None = None

    @property
    def running(self) -> RaftCore:
        if self.core is None:
            raise StageError(f"{self.node_id} is down")
        return self.core


class Stage:
    """All nodes, the queues between them, and the transcript of what happened."""

    def __init__(self, configuration: Configuration, settings: dict[str, int]) -> None:
        self.settings = settings
        self.configuration = configuration
        self.labels: dict[bytes, str] = {GENESIS: "genesis"}
        self.nodes = {name: self._node(name) for name in (*configuration.voters, *configuration.learners)}
        self.queues: dict[tuple[NodeId, NodeId], deque[Message]] = defaultdict(deque)
        self.pockets: dict[str, tuple[NodeId, NodeId, Message]] = {}
        self.cut: set[tuple[NodeId, NodeId]] = set()
        self.backups: dict[str, StageDisk] = {}
        self.transcript: list[str] = []
        self.quiet = False
        # What a core found wrong in the last command: (node, text). The next expectation must name it.
        self.complaint: tuple[NodeId, str] | None = None
        # Nodes whose trace proves nothing any more: somebody else spoke in their name, or changed their disk.
        self.forged: set[NodeId] = set()
        self.tampered: set[NodeId] = set()

    def _node(self, name: NodeId) -> StageNode:
        return StageNode(name, StageDisk(self.configuration))

    def node(self, name: NodeId) -> StageNode:
        if name not in self.nodes:
            raise StageError(f"there is no node {name}")
        return self.nodes[name]

    def add_node(self, name: NodeId) -> None:
        """A node with an empty disk, not started."""
        if name in self.nodes:
            raise StageError(f"{name} is there already")
        self.nodes[name] = self._node(name)

    def say(self, line: str) -> None:
        self.transcript.append("    " + line)

    # life

    def start(self, name: NodeId) -> None:
        node = self.node(name)
        if node.core is not None:
            raise StageError(f"{name} is running")
        values = {"election_ticks_min": 10, "election_ticks_max": 30, "seed": 1} | self.settings
        settings = CoreSettings(name, **values)
        node.pending.clear()
        node.written, node.told = 0, node.disk.certificate.height if node.disk.certificate else node.disk.base[0]
        restored = node.disk.restored()
        node.tracer = Tracer(name, restored, node.trace.append)
        try:
            node.core = RaftCore(settings, restored, node.disk, StageSigner(name, self.labels))
        except InvariantViolation as error:
            self._complain(name, f"does not start: {error}")
            return
        core = node.core
        node.shown = (core.role, core.term, core.leader, core.commit_height)
        self.pump(name)

    def stop_power(self, name: NodeId, keeping: int) -> None:
        """The node is gone; of what its disk had not yet written, only the oldest `keeping` batches are there."""
        node = self.node(name)
        if node.core is None:
            raise StageError(f"{name} is down")
        if keeping > len(node.pending):
            raise StageError(f"only {len(node.pending)} batches wait at {name}")
        for _ in range(keeping):
            self._write(node)
        node.core = None
        node.pending.clear()

    # inputs

    def act(self, name: NodeId, action: Callable[[RaftCore], object], kind: str, **values: object) -> object:
        """Let one core act, then carry out what it wants; what it complains about is kept for the next command."""
        node = self.node(name)
        core, tracer = node.running, node.tracer
        assert tracer is not None
        tracer.begin(kind, **values)
        result: object = None
        try:
            result = action(core)
        except ProtocolViolation as violation:
            self._complain(name, f"blames {violation}")
            self._drain(node, str(violation))
        except (InvariantViolation, Contradiction) as error:
            node.core = None
            self._complain(name, f"halts: {error}")
            return None
        self.pump(name)
        return result

    def _complain(self, name: NodeId, text: str) -> None:
        self.say(f"{name} {text}")
        if self.complaint is None:
            self.complaint = (name, text)

    def pump(self, name: NodeId) -> None:
        """Send, hand to the disk, and tell, until the core wants nothing more; a disk that is not slow answers."""
        node = self.node(name)
        self._drain(node)
        if node.pending and not node.slow:
            self.write(name, len(node.pending))
            self.report(name)

    def _drain(self, node: StageNode, fault: str = "") -> None:
        core, tracer, name = node.running, node.tracer, node.node_id
        assert tracer is not None
        while core.has_ready():
            ready = core.ready()
            tracer.left(ready)
            self._show(node)
            for receiver, message in ready.messages:
                self._send(name, receiver, message)
            if ready.seq:
                node.pending.append(ready)
                if not self.quiet:
                    waits = " (waits)" if node.slow else ""
                    self.say(f"{name} {story.describe_write(ready, self.labels)}{waits}")
            if ready.committed is not None:
                node.told = ready.committed.height
                node.disk.certificate = ready.committed
                self.say(f"{name} tells {story.label(self.labels, ready.committed.hash)} committed")
            for read in ready.reads:
                node.reads[read.token] = read.height
                self.say(f"{name} answers read {read.token}: {'failed' if read.height is None else read.height}")
        self._show(node)
        tracer.end(core, fault)

    def _show(self, node: StageNode) -> None:
        core = node.running
        now = (core.role, core.term, core.leader, core.commit_height)
        if now[:3] != node.shown[:3]:
            following = f" of {core.leader}" if core.leader and core.role is Role.FOLLOWER else ""
            self.say(f"{node.node_id} is {core.role.value}{following}, term {core.term}")
        node.shown = now

    def _send(self, sender: NodeId, receiver: NodeId, message: Message) -> None:
        lost = (sender, receiver) in self.cut
        if not lost:
            self.queues[sender, receiver].append(message)
        if not self.quiet:
            arrow = "-x" if lost else "->"
            self.say(f"{sender} {arrow} {receiver}  {story.describe(message, self.labels)}")

    # disk

    def _write(self, node: StageNode) -> None:
        batch = node.pending.popleft()
        node.disk.write(batch)
        node.written = batch.seq

    def write(self, name: NodeId, batches: int) -> None:
        """The oldest batches reach the disk; the core is not told."""
        node = self.node(name)
        if batches > len(node.pending):
            raise StageError(f"only {len(node.pending)} batches wait at {name}")
        for _ in range(batches):
            self._write(node)

    def report(self, name: NodeId, seq: int | None = None) -> None:
        """Tell the core what was written: all of it, or up to batch `seq` once more."""
        reported = self.node(name).written if seq is None else seq
        if reported:
            self.act(name, lambda core: core.persisted(reported), "persisted", seq=reported)

    # network

    def find(self, sender: NodeId, receiver: NodeId, kind: str | None) -> Message:
        """Take the oldest message, or the oldest of one kind, out of its queue."""
        queue = self.queues[sender, receiver]
        for message in queue:
            if kind is None or type(message).__name__ == kind:
                queue.remove(message)
                return message
        raise StageError(f"no {kind or 'message'} is on its way from {sender} to {receiver}")

    def deliver(self, sender: NodeId, receiver: NodeId, message: Message) -> None:
        if self.node(receiver).core is None:
            self.say(f"{receiver} is down, and the message is lost")
            return
        self.act(receiver, lambda core: core.step(sender, message), "message", from_=sender, message=message)

    def settle(self, names: set[NodeId]) -> None:
        """Everything under way between these nodes arrives, and their answers, until all is quiet."""
        for _ in range(ROUNDS_MAX):
            busy = [pair for pair in sorted(self.queues) if self.queues[pair] and set(pair) <= names]
            if not busy:
                return
            for pair in busy:
                for _ in range(len(self.queues[pair])):
                    message = self.queues[pair].popleft()
                    if self.node(pair[1]).core is not None:
                        self.deliver(*pair, message)
        raise StageError(f"it does not become quiet in {ROUNDS_MAX} rounds")

    def judge(self) -> None:
        """Was that Raft? The traces of all nodes before a judge that knows nothing of the core. Raises StageError."""
        traces = [node.trace for name, node in self.nodes.items() if node.trace and name not in self.tampered]
        alone = [[trace] for trace in traces] if self.forged or self.tampered else [traces]
        try:
            for together in alone:
                check(together, between=not self.forged)
        except Forbidden as error:
            raise StageError(f"that was not Raft: {error}") from error

    def backup(self, name: NodeId) -> StageDisk:
        return deepcopy(self.node(name).disk)
