"""One core with a disk that forgets what was not written: the hand tool of every consensus test."""

from collections import deque
from hashlib import sha256
from typing import TypeVar

from consensus.core import RaftCore
from consensus.messages import (
    Acknowledgement,
    Answer,
    Append,
    AppendReply,
    Certificate,
    Configuration,
    Entry,
    HardState,
    Message,
    NodeId,
    PreVote,
    PreVoteReply,
    ReadIndex,
    ReadIndexReply,
    ReadState,
    Ready,
    Role,
    Slot,
    TimeoutNow,
    Vote,
    VoteReply,
)
from consensus.ports import CoreSettings, Restored

AnyMessage = TypeVar(
    "AnyMessage",
    PreVote,
    PreVoteReply,
    Vote,
    VoteReply,
    Append,
    AppendReply,
    TimeoutNow,
    ReadIndex,
    ReadIndexReply,
)

GENESIS = sha256(b"genesis").digest()


def block_hash(height: int, term: int, parent: bytes, data: bytes) -> bytes:
    return sha256(b"%d/%d/" % (height, term) + parent + data).digest()


def make_block(height: int, term: int, parent: bytes, data: bytes = b"") -> Entry:
    return Entry(height, term, parent, block_hash(height, term, parent, data), data)


def make_chain(*terms: int, data: bytes = b"") -> list[Entry]:
    """A log from height 1 up, with one block for each term given."""
    chain: list[Entry] = []
    for height, term in enumerate(terms, 1):
        chain.append(make_block(height, term, chain[-1].hash if chain else GENESIS, data))
    return chain


def extend(chain: list[Entry], *terms: int, data: bytes = b"") -> list[Entry]:
    """A new chain: `chain` and one more block for each term."""
    longer = list(chain)
    for term in terms:
        parent = longer[-1].hash if longer else GENESIS
        longer.append(make_block(len(longer) + 1, term, parent, data))
    return longer


def certify(entry: Entry, *voters: NodeId) -> Certificate:
    signatures = tuple((voter, acknowledgement(voter, entry.term, entry.height, entry.hash)) for voter in voters)
    return Certificate(entry.term, entry.height, entry.hash, signatures)


def acknowledgement(voter: NodeId, term: int, height: int, block: bytes) -> bytes:
    return b"ack/%s/%d/%d/" % (voter.encode(), term, height) + block


class Disk:
    """What survives a crash: a LogReader over batches written in order."""

    def __init__(self, chain: list[Entry] | None = None, hard_state: HardState | None = None) -> None:
        self.blocks = {entry.height: entry for entry in chain or []}
        self.hard_state = hard_state or HardState()
        self.certificate: Certificate | None = None
        self.base = (0, 0, GENESIS)
        self.base_configuration: Configuration | None = None

    @property
    def last_height(self) -> int:
        return max(self.blocks, default=self.base[0])

    def compact(self, height: int, configuration: Configuration) -> None:
        """Forget the blocks at `height` and below; `configuration` is in effect there."""
        base = self.blocks[height]
        self.base, self.base_configuration = (height, base.term, base.hash), configuration
        self.blocks = {at: entry for at, entry in self.blocks.items() if at > height}

    def write(self, batch: Ready) -> None:
        if batch.truncate_from is not None:
            for height in range(batch.truncate_from, self.last_height + 1):
                del self.blocks[height]
        for entry in batch.entries:
            assert entry.height == self.last_height + 1, "batches arrive in order and leave no hole"
            self.blocks[entry.height] = entry
        self.hard_state = batch.hard_state or self.hard_state

    def term_hash(self, height: int) -> tuple[int, bytes] | None:
        entry = self.blocks.get(height)
        return (entry.term, entry.hash) if entry else None

    def entries(self, first: int, last: int, bytes_max: int) -> tuple[Entry, ...]:
        chosen = [self.blocks[first]]
        for height in range(first + 1, min(last, self.last_height) + 1):
            if sum(len(entry.data) for entry in chosen) + len(self.blocks[height].data) > bytes_max:
                break
            chosen.append(self.blocks[height])
        return tuple(chosen)


class PlainSigner:
    """Signatures in clear. A payload is bytes, or None for the empty block of a new leader."""

    def __init__(self, node_id: NodeId) -> None:
        self.node_id = node_id

    def seal(self, slot: Slot, payload: object) -> tuple[bytes, bytes]:
        data = payload if isinstance(payload, bytes) else b""
        return data, block_hash(slot.height, slot.term, slot.parent, data)

    def acknowledge(self, term: int, height: int, block: bytes) -> bytes:
        return acknowledgement(self.node_id, term, height, block)

    def vote(self, term: int, candidate: NodeId) -> bytes:
        return b"vote/%s/%d/%s" % (self.node_id.encode(), term, candidate.encode())


class Node:
    """A core and its shell. `sent` and `committed` collect what it let go; `pending` waits for the disk."""

    def __init__(
        self,
        node_id: NodeId,
        configuration: Configuration,
        disk: Disk | None = None,
        settings: CoreSettings | None = None,
        signer: PlainSigner | None = None,
        *,
        must_compare: bool = False,
        forsworn: bool = False,
    ) -> None:
        self.node_id = node_id
        self.disk = disk or Disk()
        self.sent: list[tuple[NodeId, Message]] = []
        self.committed: list[Certificate] = []
        self.pending: deque[Ready] = deque()
        self.reads: list[ReadState] = []
        base_height, base_term, base_hash = self.disk.base
        changes = [(block.height, block.configuration) for block in self.disk.blocks.values() if block.configuration]
        restored = Restored(
            hard_state=self.disk.hard_state,
            base_height=base_height,
            base_term=base_term,
            base_hash=base_hash,
            last_height=self.disk.last_height,
            certificate=self.disk.certificate,
            configurations=((base_height, self.disk.base_configuration or configuration), *changes),
            must_compare=must_compare,
            forsworn=forsworn,
        )
        self.core = RaftCore(settings or CoreSettings(node_id), restored, self.disk, signer or PlainSigner(node_id))

    def pump(self) -> None:
        """Do what Ready says, except for the disk."""
        while self.core.has_ready():
            ready = self.core.ready()
            self.sent.extend(ready.messages)
            if ready.seq:
                self.pending.append(ready)
            if ready.committed is not None:
                self.committed.append(ready.committed)
            self.reads.extend(ready.reads)

    def persist(self, batches: int | None = None) -> None:
        """Write the oldest `batches` of what is pending (all, if None), and report the last one."""
        self.pump()
        count = len(self.pending) if batches is None else batches
        for _ in range(count):
            batch = self.pending.popleft()
            self.disk.write(batch)
            self.core.persisted(batch.seq)
            self.pump()
        if batches is None and self.pending:
            self.persist()

    def step(self, sender: NodeId, message: Message) -> None:
        self.core.step(sender, message)
        self.pump()

    def tick(self, ticks: int = 1) -> None:
        for _ in range(ticks):
            self.core.tick()
        self.pump()

    def take(self) -> list[tuple[NodeId, Message]]:
        """What was sent since the last call."""
        self.pump()
        sent, self.sent = self.sent, []
        return sent

    def role(self) -> Role:
        return self.core.role

    def log(self) -> list[Entry]:
        """The whole log as the core sees it, durable or not."""
        first = self.core.base_height + 1
        entries = [self.core.entry(height) for height in range(first, self.core.last_height + 1)]
        return [entry for entry in entries if entry is not None]


THREE = Configuration(("n1", "n2", "n3"))
FIVE = Configuration(("n1", "n2", "n3", "n4", "n5"))


def follower(
    chain: list[Entry] | None = None,
    term: int = 0,
    vote: NodeId | None = None,
    node_id: NodeId = "n1",
    configuration: Configuration = THREE,
    settings: CoreSettings | None = None,
) -> Node:
    """A node that has just started over this log."""
    return Node(node_id, configuration, Disk(chain, HardState(term, vote)), settings)


def elect(node: Node) -> Node:
    """Let `node` win the next term with everyone's votes, its own disk answering; what it sent is left in `sent`."""
    term = node.core.term + 1
    others = [voter for voter in node.core.configuration.electorate if voter != node.node_id]
    node.tick(20)
    for other in others:
        node.step(other, PreVoteReply(term, granted=True))
    node.persist()
    for other in others:
        node.step(other, VoteReply(term, granted=True, signature=b"vote"))
    assert (node.core.role, node.core.term) == (Role.LEADER, term)
    return node


def led(*terms: int, configuration: Configuration = THREE, settings: CoreSettings | None = None) -> Node:
    """A leader over a log of these terms, its first block on its own disk, and nothing left to send."""
    node = elect(follower(make_chain(*terms), max(terms, default=0), configuration=configuration, settings=settings))
    node.persist()
    node.take()
    return node


def append(term: int, prev: Entry | None, *entries: Entry, certificate: Certificate | None = None) -> Append:
    """What the leader of `term` sends after `prev` (None: genesis)."""
    anchor = (prev.height, prev.term, prev.hash) if prev else (0, 0, GENESIS)
    return Append(term, *anchor, entries, certificate)


def accept(term: int, *blocks: Entry, voter: NodeId, round_heard: int = 0) -> AppendReply:
    """What `voter` answers once `blocks` are on its disk."""
    acks = tuple(
        Acknowledgement(block.height, block.hash, acknowledgement(voter, term, block.height, block.hash))
        for block in blocks
        if block.term == term
    )
    return AppendReply(
        term, Answer.ACCEPTED, blocks[-1].height, acknowledgements=acks, round=round_heard, binding=True
    )


def conflict(term: int, rejected: int, height: int, hint_term: int) -> AppendReply:
    return AppendReply(term, Answer.CONFLICT, height, rejected, hint_term)


def only(messages: list[tuple[NodeId, Message]], kind: type[AnyMessage], receiver: NodeId) -> list[AnyMessage]:
    """The messages of one kind to one receiver, in order."""
    return [message for to, message in messages if to == receiver and isinstance(message, kind)]
