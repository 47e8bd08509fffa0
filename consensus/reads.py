"""Linearizable reads (Ongaro, section 6.4): how high must this node have executed to have seen every write so far?

    leader      read(7)   round 3 begins   heartbeats carry 3   a quorum echoes 3   ReadState(7, 41)
    follower    read(9)   ReadIndex(9) -> leader: as above -> ReadIndexReply(9, 41)  ReadState(9, 41)

A *round* is a number that the leader counts up within its term. Every Append bears the newest, every AppendReply the
newest that its sender heard of this leader in this term (the echo):

| round r, echoed by            | proves                                            | used for                       |
|-------------------------------|---------------------------------------------------|--------------------------------|
| any follower                  | its answer was made after r began                 | a disk that lost what it held  |
|                               |                                                   | (`Progress.is_loss`)           |
| a quorum of those that may    | when r began no quorum had voted in a later term  | reads: no later leader had     |
| vote (`AppendReply.binding`), |                                                   | committed anything by then     |
| the leader among them         |                                                   |                                |

Who may not vote (consensus.caution) may have elected another leader and not know it: that echo counts for no read.
Several reads share a round, and one request of a follower. No clock is trusted: there are no leases.

| what                                   | bound            | at the bound                   |
|----------------------------------------|------------------|--------------------------------|
| reads of this node that wait           | READS_MAX        | answered None at once          |
| requests of one peer that wait         | PEER_REQUESTS_MAX| answered None at once          |
| how long one waits                     | election_ticks_max | answered None                |
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from consensus.errors import require
from consensus.messages import NodeId, ReadIndex, ReadIndexReply
from consensus.parts import Parts

PEER_REQUESTS_MAX = 64


@dataclass(frozen=True, slots=True)
class _Read:
    """`asker` None: this node itself, and `token` is its own; else a peer, and `token` is the peer's request."""

    asker: NodeId | None
    token: int
    deadline: int


class LeaderReads:
    """The reads that a leader was asked for in its term. One round is under way at a time, heartbeats aside.

    `round` is what every Append carries. `_queued` waits for a round to begin, `_asked` (round, height, reads) for a
    quorum's echo; both ascend by deadline.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.round = 0
        self._queued: deque[_Read] = deque()
        self._asked: deque[tuple[int, int, list[_Read]]] = deque()
        self._requests: Counter[NodeId] = Counter()

    @property
    def must_begin(self) -> bool:
        """Whether a round should begin now: some read waits, none is under way, and what is committed is known."""
        return self.may_begin and not self._asked

    @property
    def may_begin(self) -> bool:
        """A leader knows what is committed only once a block of its own term is."""
        certificate = self._parts.commit.certificate
        return bool(self._queued) and certificate is not None and certificate.term == self._parts.term

    def ask(self, asker: NodeId | None, token: int, now: int) -> None:
        """Take one read. `asker` None: this node, whose token is open in `Answers`."""
        read = _Read(asker, token, now + self._parts.settings.election_ticks_max)
        if asker is not None:
            if self._requests[asker] >= PEER_REQUESTS_MAX:
                self._parts.outbox.send(asker, ReadIndexReply(self._parts.term, token, None))
                return
            self._requests[asker] += 1
        self._queued.append(read)

    def begin(self) -> None:
        """A new round, for all that is queued; the caller sends it out."""
        self.round += 1
        self._asked.append((self.round, self._parts.commit.height, list(self._queued)))
        self._queued.clear()

    def echoed(self, has_echo: Callable[[int], bool]) -> None:
        """Answer the reads of every round that a quorum has echoed."""
        while self._asked and has_echo(self._asked[0][0]):
            _, height, reads = self._asked.popleft()
            self._answer(reads, height)

    def expire(self, now: int) -> None:
        """Give up on what waited too long. Reads end in the order in which they came."""
        for number, (begun, height, reads) in enumerate(self._asked):
            late = [read for read in reads if read.deadline <= now]
            if late:
                self._asked[number] = (begun, height, [read for read in reads if read.deadline > now])
                self._answer(late, None)
        while self._asked and not self._asked[0][2]:
            self._asked.popleft()
        while self._queued and self._queued[0].deadline <= now:
            self._answer([self._queued.popleft()], None)

    def fail(self) -> None:
        """This node leads no longer."""
        for _, _, reads in self._asked:
            self._answer(reads, None)
        self._answer(self._queued, None)
        self._asked.clear()
        self._queued.clear()

    def _answer(self, reads: Iterable[_Read], height: int | None) -> None:
        for read in reads:
            if read.asker is None:
                self._parts.answers.answer((read.token,), height)
            else:
                self._requests[read.asker] -= 1
                self._parts.outbox.send(read.asker, ReadIndexReply(self._parts.term, read.token, height))


class FollowerReads:
    """The reads for which a follower asks its leader. While one request is out, later reads share the next.

    A request bears the token of its first read: an answer to an earlier one must not be taken for it.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._queued: list[int] = []
        self._asked: dict[int, tuple[int, list[int]]] = {}

    def ask(self, leader: NodeId, token: int, now: int) -> None:
        self._queued.append(token)
        if not self._asked:
            self._send(leader, now)

    def tick(self, leader: NodeId, now: int) -> None:
        """What is queued goes at the latest with the next tick, lest a lost answer hold it up."""
        while self._asked and next(iter(self._asked.values()))[0] <= now:
            _, tokens = self._asked.pop(next(iter(self._asked)))
            self._parts.answers.answer(tokens, None)
        self._send(leader, now)

    def _send(self, leader: NodeId, now: int) -> None:
        if self._queued:
            request = self._queued[0]
            require(request not in self._asked, "a token is read once")
            deadline = now + self._parts.settings.election_ticks_max
            self._asked[request] = (deadline, self._queued)
            self._queued = []
            self._parts.outbox.send(leader, ReadIndex(self._parts.term, request))

    def answered(self, leader: NodeId, reply: ReadIndexReply, now: int) -> None:
        asked = self._asked.pop(reply.request, None)
        if asked is not None:
            self._parts.answers.answer(asked[1], reply.height)
            self._send(leader, now)

    def fail(self) -> None:
        """The leader asked leads no longer, or no longer this node."""
        for _, tokens in self._asked.values():
            self._parts.answers.answer(tokens, None)
        self._parts.answers.answer(self._queued, None)
        self._asked.clear()
        self._queued = []
