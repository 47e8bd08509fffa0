"""The Raft core: one node's part in electing a leader and ordering blocks (Ongaro, "Consensus: Bridging Theory and
Practice", 2014), as a pure state machine. The rules stand in docs/consensus.md.

| role          | leaves it when                                             | becomes                        |
|---------------|------------------------------------------------------------|--------------------------------|
| follower      | nothing valid from a leader for an election timeout        | pre-candidate (voters only)    |
| pre-candidate | a quorum would vote                                        | candidate, one term up         |
| candidate     | a quorum voted, its own vote being on its disk             | leader                         |
| follower      | its leader hands over to it                                | candidate, one term up         |
| leader        | no quorum heard, or on a block; own disk silent; refused;  | follower of nobody             |
|               | removed by a certified block; forsworn                     |                                |
| any           | a newer term, or the leader of this one, speaks            | follower                       |

Time is `tick`; randomness is the seed; the disk is `Ready` and `persisted`. What a role remembers lives in that
role's object and goes with it.
"""

from consensus.answers import Answers
from consensus.caution import Caution
from consensus.chains import check_append, check_certified, check_steps
from consensus.commit import Acknowledger, Commit
from consensus.elections import Campaign, Elections
from consensus.errors import Contradiction, InvariantViolation, ProtocolViolation, require
from consensus.follower import Following, replace_from
from consensus.leader import Leadership
from consensus.log import Log
from consensus.membership import NOT_LEADER
from consensus.messages import (
    Answer,
    Append,
    AppendReply,
    Certificate,
    CertifiedBlocks,
    Configuration,
    Entry,
    Message,
    NodeId,
    PreVote,
    PreVoteReply,
    ReadIndex,
    ReadIndexReply,
    Ready,
    Reason,
    Role,
    TimeoutNow,
    Vote,
    VoteReply,
)
from consensus.outbox import Outbox
from consensus.parts import Parts
from consensus.ports import CoreSettings, LogReader, Restored, Signer
from consensus.progress import FollowerView


class RaftCore:
    """One node's part in Raft: inputs in, then `while core.has_ready(): handle(core.ready())`.

    Any method may raise InvariantViolation or Contradiction (consensus.errors): stop the node and keep the evidence.
    """

    def __init__(self, settings: CoreSettings, restored: Restored, reader: LogReader, signer: Signer) -> None:
        """Raises InvariantViolation where `restored` denies itself: a term below the log's, a foreign certificate."""
        log = Log(restored, reader)
        self._log = log
        self._commit = Commit(log, restored.certificate)
        self._outbox = Outbox(settings.node_id, log.writes)
        self._answers = Answers()
        self._caution = Caution(
            settings.node_id,
            log.configurations,
            lambda: self._commit.height,
            must_compare=restored.must_compare,
            forsworn=restored.forsworn,
        )
        self._acknowledger = Acknowledger(settings.node_id, log, signer, self._caution)
        self._parts = Parts(
            settings, log, self._commit, self._outbox, self._answers, self._caution, self._acknowledger, signer
        )
        self._settings = settings
        self._elections = Elections(self._parts)
        self._failed = False

    # what may be looked at

    @property
    def _state(self) -> Following | Campaign | Leadership:
        return self._elections.state

    @property
    def _now(self) -> int:
        return self._elections.now

    @property
    def node_id(self) -> NodeId:
        return self._settings.node_id

    @property
    def role(self) -> Role:
        return self._elections.role

    @property
    def term(self) -> int:
        """The newest term met; it may not be durable yet."""
        return self._parts.term

    @property
    def leader(self) -> NodeId | None:
        """Whom this node leads or follows with; None while it knows of nobody."""
        if isinstance(self._state, Leadership):
            return self.node_id
        return self._state.leader if isinstance(self._state, Following) else None

    @property
    def last_height(self) -> int:
        return self._log.last_height

    @property
    def durable_height(self) -> int:
        """The log up to here is on this node's disk."""
        return self._log.durable_height

    @property
    def commit_height(self) -> int:
        return self._commit.height

    @property
    def certificate(self) -> Certificate | None:
        """The newest certificate whose block is in this node's log: it stands at `commit_height`."""
        return self._commit.certificate

    @property
    def known_certificate(self) -> Certificate | None:
        """The newest verified certificate met, perhaps above this node's log: how far behind it is."""
        return self._commit.known

    @property
    def configuration(self) -> Configuration:
        """The one in effect at the newest block of the log, committed or not."""
        return self._log.configurations.current

    def configuration_at(self, height: int) -> Configuration:
        """The one in effect at `height`, as far as this node's log tells."""
        return self._log.configurations.at(height)

    def configurations(self) -> tuple[tuple[int, Configuration], ...]:
        """(height, configuration) pairs along the log, ascending; the first is in effect at the log's base."""
        return self._log.configurations.all

    @property
    def base_height(self) -> int:
        """The log begins above this height: genesis, or where it was last compacted to."""
        return self._log.base_height

    @property
    def barred(self) -> bool:
        """Refused by a quorum as a leader: stays out of elections until `mend`."""
        return self._elections.barred_for is not Reason.NONE

    @property
    def step_down_reason(self) -> str:
        """Why this node last gave up leading of its own accord; empty if it never did."""
        return self._elections.step_down_reason

    @property
    def barred_for(self) -> Reason:
        """Why, or NONE: of several reasons that of the newest refusal that stood when it stepped down."""
        return self._elections.barred_for

    @property
    def can_propose(self) -> bool:
        return isinstance(self._state, Leadership) and self._state.can_propose

    @property
    def transferring(self) -> bool:
        """Whether this leader is handing over, and proposes nothing meanwhile."""
        return isinstance(self._state, Leadership) and self._state.transferring

    @property
    def stopping(self) -> bool:
        return self._elections.stopping

    @property
    def may_vote(self) -> bool:
        """Whether this node votes and acknowledges (consensus.caution)."""
        return self._caution.may_vote

    @property
    def forsworn(self) -> bool:
        return self._caution.forsworn

    def term_hash(self, height: int) -> tuple[int, bytes] | None:
        """Term and hash of this node's block at `height`, durable or not; None outside its log."""
        return self._log.term_hash(height)

    def entry(self, height: int) -> Entry | None:
        """This node's block at `height`, durable or not, from memory or the disk; None outside its log."""
        return self._log.entry(height)

    def followers(self) -> tuple[FollowerView, ...]:
        """While leading, how far each other member is; else nothing."""
        return self._state.followers(self._now) if isinstance(self._state, Leadership) else ()

    # what comes in

    def tick(self) -> None:
        """One tick of the shell's clock has passed."""
        if not self._failed:
            self._elections.tick()

    def step(self, sender: NodeId, message: Message) -> None:
        """A message whose every signature the shell has verified: of headers, acknowledgements, votes, certificates.

        Raises ProtocolViolation on what no correct peer sends.
        """
        require(sender != self.node_id, "a node hears nothing from itself")
        if self._failed:
            return
        match message:
            case Append():
                self._step_append(sender, message)
            case AppendReply():
                self._step_append_reply(sender, message)
            case PreVote():
                self._elections.step_pre_vote(sender, message)
            case Vote():
                self._elections.step_vote(sender, message)
            case PreVoteReply() | VoteReply():
                self._elections.step_vote_reply(sender, message)
            case TimeoutNow():
                self._elections.step_timeout_now(sender, message)
            case ReadIndex():
                self._step_read_index(sender, message)
            case ReadIndexReply():
                self._step_read_index_reply(sender, message)

    def refuse(self, sender: NodeId, append: Append, height: int, reason: Reason) -> None:
        """Instead of step(sender, append): its block at `height` breaks a rule of the ledger.

        The blocks before it are taken; it and what follows are not, and the leader is told. Raises ProtocolViolation.
        """
        require(reason is not Reason.NONE, "a refusal has a reason")
        kept = height - append.prev_height - 1
        require(0 <= kept < len(append.entries), "only a block that was sent is refused")
        check_append(sender, append)
        if self._failed:
            return
        rest = Append(
            append.term,
            append.prev_height,
            append.prev_term,
            append.prev_hash,
            append.entries[:kept],
            append.certificate,
            append.round,
        )
        agrees = self._step_append(sender, rest)
        if agrees and height > self._commit.height and isinstance(self._state, Following):
            self._state.refuse(height, reason)

    def step_certified(self, sender: NodeId, blocks: CertifiedBlocks) -> bool:
        """Verified blocks, fetched from any peer, that end at a verified certificate.

        True when they are in the log now (perhaps not yet durable); False when they do not connect to it, or too
        much already waits for the disk: ask again from `last_height`, or lower. Raises ProtocolViolation.
        """
        check_certified(sender, blocks)
        if self._failed:
            return False
        certificate, log = blocks.certificate, self._log
        first = blocks.entries[0]
        if certificate.height > self._commit.height:
            below = log.term_hash(first.height - 1)
            if first.height > self._commit.height and (below is None or below[1] != first.parent):
                return False
            if log.undurable_bytes > self._settings.uncommitted_bytes_max:
                return False
        self._check_certified_steps(sender, blocks)
        if certificate.term > self.term:
            self._elections.become_follower(certificate.term, None)
        self._commit.learn(certificate)
        if certificate.height > self._commit.height:
            self._take_certified(blocks)
            self._commit_may_move(self._commit.advance())
        return True

    def propose(self, payload: object) -> int | None:
        """Seal `payload` into the next block: its height, or None while `can_propose` is false."""
        if not isinstance(self._state, Leadership) or not self._state.can_propose:
            return None
        return self._state.append(payload, self._now)

    def why_no_change(self, target: Configuration) -> str:
        """Why `propose_change(target)` would append nothing now, as the table of consensus.membership names it.

        An empty string if it would. `target` is not joint: the voters and learners that are wanted in the end.
        """
        if not isinstance(self._state, Leadership):
            return NOT_LEADER
        return self._state.why_no_change(target, self._now)

    def propose_change(self, target: Configuration, payload: object = None) -> int | None:
        """Append the block that begins the change to `target`: its height, or None while `why_no_change` says why.

        Where the voters change it is joint, and the leader itself appends the block that leaves the joint state.
        """
        if not isinstance(self._state, Leadership) or self._state.why_no_change(target, self._now):
            return None
        return self._state.change(target, payload, self._now)

    def transfer(self, target: NodeId | None = None) -> bool:
        """Hand leadership to `target`, or to the best voter: whether an attempt begins.

        It ends when another leads, or after an election timeout; `transferring` says so.
        """
        return isinstance(self._state, Leadership) and self._state.transfer(target, self._now)

    def stop(self) -> None:
        """This node is about to stop: from now on it stays out of elections, and its answers say so."""
        if not self._failed:
            self._elections.stop()

    def read(self, token: int) -> None:
        """Begin a linearizable read: exactly one ReadState with `token` follows in `Ready.reads`.

        A token is never used twice, across restarts neither: an answer may be late. At READS_MAX waiting reads, or
        while no leader is known, the answer is None at once. (After `disk_failed` nothing follows any more.)
        """
        if self._failed:
            return
        state = self._state
        if isinstance(state, Campaign) or (isinstance(state, Following) and state.leader is None):
            self._answers.refuse(token)
        elif self._answers.opened(token):
            if isinstance(state, Leadership):
                state.read(None, token, self._now)
            else:
                state.read(token, self._now)

    def compared(self, peer: NodeId, height: int) -> None:
        """`peer` holds no vote or acknowledgement of this node that this node has forgotten.

        `height`: of the newest certificate of `peer`, as it said then. It counts once this node has come there.
        """
        self._caution.compared(peer, height)

    def forswear(self) -> None:
        """This node was shown what it said and has forgotten: it never votes nor acknowledges again."""
        self._elections.forswear()

    def compact(self, height: int) -> None:
        """Make `height` the base of the log: the disk may forget what is at and below it.

        `height` is certified, durable and not below the present base; its term and hash stay known here.
        """
        require(self._log.base_height <= height <= self._commit.height, "only what is certified is compacted")
        self._log.compact(height)

    def persisted(self, seq: int) -> None:
        """Every batch up to `seq` is on the disk, synced. Cumulative; reports may come doubled or late."""
        if self._failed:
            return
        self._log.writes.persisted(seq)
        self._outbox.release()
        self._log.forget_old()
        if isinstance(self._state, Leadership):
            self._commit_may_move(self._state.persisted())
        elif isinstance(self._state, Following):
            self._state.persisted()
        else:
            self._elections.persisted()

    def disk_failed(self) -> None:
        """A write failed: for ever after this node says nothing and writes nothing, until it is started again."""
        self._elections.become_follower(self.term, None)
        self._outbox.drop_held()
        self._outbox.take()
        self._failed = True

    def mend(self) -> None:
        """What a quorum refused was put right (a clock, say): this node may campaign again."""
        self._elections.barred_for = Reason.NONE

    # what goes out

    def has_ready(self) -> bool:
        if self._failed:
            return False
        return self._outbox.has_messages or self._log.writes.dirty or self._commit.has_news or self._answers.pending

    def ready(self) -> Ready:
        """Everything to do since the last one; see Ready for the order. Several may be unpersisted at once."""
        require(not self._failed, "a node whose disk failed has nothing to do")
        writes = self._log.writes
        batch = writes.take(self._now) if writes.dirty else (0, None, (), None)
        return Ready(self._outbox.take(), *batch, committed=self._commit.take_news(), reads=self._answers.take())

    # replication

    def _step_append(self, sender: NodeId, message: Append) -> bool:
        """Whether the logs agree where the message begins."""
        check_append(sender, message)
        if message.term < self.term:
            self._outbox.send(sender, AppendReply(self.term, Answer.CONFLICT, 0))
            return False
        if message.term == self.term and self._elections.term_leader not in (None, sender):
            raise ProtocolViolation(sender, f"leads term {self.term}, which {self._elections.term_leader} leads")
        if self.leader != sender or message.term > self.term:
            self._elections.become_follower(message.term, sender)
        following = self._state
        if not isinstance(following, Following):
            raise InvariantViolation("whoever takes an Append follows")
        self._elections.term_leader = sender
        following.heard_tick = self._now
        self._elections.reset_timer()
        height = self._commit.height
        try:
            return following.step(message)
        finally:
            self._commit_may_move(self._commit.height > height)

    def _step_append_reply(self, sender: NodeId, message: AppendReply) -> None:
        if message.term > self.term:
            self._elections.become_follower(message.term, None)
        elif message.term == self.term and isinstance(self._state, Leadership):
            self._commit_may_move(self._state.step(sender, message, self._now))
            if isinstance(self._state, Leadership) and self._state.refused_by_quorum:
                self._elections.barred_for = self._state.refused_for
                self._elections.step_down("a quorum refuses its block")

    def _commit_may_move(self, moved: bool) -> None:
        if moved:
            self._acknowledger.forget(self._commit.height)
            if isinstance(self._state, Leadership):
                self._state.tell_commit(self._now)
                if self._state.removed:
                    self._state.hand_over(self._now)
                    self._elections.step_down("it is no longer a voter")

    def _check_certified_steps(self, sender: NodeId, blocks: CertifiedBlocks) -> None:
        """Refuse blocks whose membership takes a step that none may take."""
        log = self._log
        fresh = [entry for entry in blocks.entries if entry.height > max(self._commit.height, log.base_height)]
        if any(entry.configuration is not None for entry in fresh):
            check_steps(sender, log.configurations.at(fresh[0].height - 1), fresh)

    def _take_certified(self, blocks: CertifiedBlocks) -> None:
        """Append what the certificate proves, over whatever uncommitted blocks stand in its way."""
        log, certificate = self._log, blocks.certificate
        before = log.configurations.current
        for index, entry in enumerate(blocks.entries):
            own = log.term_hash(entry.height)
            if own is not None and own[1] == entry.hash:
                continue
            if entry.height < max(self._commit.height, log.base_height):
                continue
            held = own or (log.last_term, log.last_hash)
            if isinstance(self._state, Leadership):
                raise Contradiction("a certified block is missing in the leader's log", certificate, *held)
            if own is None:
                log.append(blocks.entries[index:])
            elif entry.height <= self._commit.height or log.last_term >= certificate.term:
                raise Contradiction("a certified chain denies this node's", certificate, *held)
            else:
                replace_from(self._parts, blocks.entries[index:])
            break
        if log.configurations.current != before:
            self._elections.abandon_campaign()

    # reads

    def _step_read_index(self, sender: NodeId, message: ReadIndex) -> None:
        if message.term > self.term:
            self._elections.become_follower(message.term, None)
        serves = message.term == self.term and sender in self.configuration.members
        if serves and isinstance(self._state, Leadership):
            self._state.read(sender, message.request, self._now)
        else:
            self._outbox.send(sender, ReadIndexReply(self.term, message.request, None))

    def _step_read_index_reply(self, sender: NodeId, message: ReadIndexReply) -> None:
        if message.term > self.term:
            self._elections.become_follower(message.term, None)
        elif message.term == self.term and isinstance(self._state, Following) and self._state.leader == sender:
            self._state.answered(message, self._now)
