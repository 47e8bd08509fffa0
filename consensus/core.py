"""The Raft core: one node's part in electing a leader and ordering blocks (Ongaro, "Consensus: Bridging Theory and
Practice", 2014), as a pure state machine. The rules stand in docs/consensus.md.

| role          | leaves it when                                             | becomes                        |
|---------------|------------------------------------------------------------|--------------------------------|
| follower      | nothing valid from a leader for an election timeout        | pre-candidate (voters only)    |
| pre-candidate | a quorum would vote                                        | candidate, one term up         |
| candidate     | a quorum voted, its own vote being on its disk             | leader                         |
| leader        | no quorum heard, or on a block; own disk silent; refused   | follower of nobody             |
| any           | a newer term, or the leader of this one, speaks            | follower                       |

Time is `tick`; randomness is the seed; the disk is `Ready` and `persisted`. What a role remembers lives in that
role's object and goes with it.
"""

from consensus.chains import check_append, check_certified
from consensus.commit import Acknowledger, Commit
from consensus.configuration import has_quorum
from consensus.errors import Contradiction, InvariantViolation, ProtocolViolation, require
from consensus.follower import Following, replace_from
from consensus.leader import Leadership
from consensus.log import Log
from consensus.messages import (
    Answer,
    Append,
    AppendReply,
    Certificate,
    CertifiedBlocks,
    Configuration,
    Entry,
    HardState,
    Message,
    NodeId,
    PreVote,
    PreVoteReply,
    Ready,
    Reason,
    Role,
    Vote,
    VoteReply,
)
from consensus.outbox import Outbox
from consensus.parts import Parts
from consensus.ports import CoreSettings, LogReader, Restored, Signer
from consensus.progress import FollowerView
from consensus.timeouts import Timeouts


class Campaign:
    """Asking for votes: first whether there would be any (`role` PRE_CANDIDATE), then in earnest (CANDIDATE).

    `votes` is a set of voters, this node among them once its own vote is durable; `term` is the one they are for.
    """

    def __init__(self, role: Role, term: int) -> None:
        self.role = role
        self.term = term
        self.votes: set[NodeId] = set()


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
        self._acknowledger = Acknowledger(settings.node_id, log, signer)
        self._parts = Parts(settings, log, self._commit, self._outbox, self._acknowledger, signer)
        self._settings = settings
        self._signer = signer
        self._timeouts = Timeouts(
            settings.seed, settings.node_id, settings.election_ticks_min, settings.election_ticks_max
        )
        self._now = 0
        self._timer_start = 0
        self._timeout_ticks = self._timeouts.draw_ticks()
        self._state: Following | Campaign | Leadership = Following(self._parts, None, 0)
        self._term_leader: NodeId | None = None
        self._step_down_reason = ""
        self._barred_for = Reason.NONE
        self._failed = False

    # what may be looked at

    @property
    def node_id(self) -> NodeId:
        return self._settings.node_id

    @property
    def role(self) -> Role:
        if isinstance(self._state, Leadership):
            return Role.LEADER
        return self._state.role if isinstance(self._state, Campaign) else Role.FOLLOWER

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

    @property
    def barred(self) -> bool:
        """Refused by a quorum as a leader: stays out of elections until `mend`."""
        return self._barred_for is not Reason.NONE

    @property
    def step_down_reason(self) -> str:
        """Why this node last gave up leading of its own accord; empty if it never did."""
        return self._step_down_reason

    @property
    def barred_for(self) -> Reason:
        """Why, or NONE: of several reasons that of the refusal which completed the quorum."""
        return self._barred_for

    @property
    def can_propose(self) -> bool:
        return isinstance(self._state, Leadership) and self._state.can_propose

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
        self._now += 1
        if self._failed:
            return
        if isinstance(self._state, Leadership):
            reason = self._state.tick(self._now)
            if reason:
                self._step_down(reason)
        elif self._now - self._timer_start >= self._timeout_ticks:
            self._reset_timer()
            if self._may_campaign():
                self._campaign(Role.PRE_CANDIDATE)

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
                self._step_pre_vote(sender, message)
            case Vote():
                self._step_vote(sender, message)
            case PreVoteReply() | VoteReply():
                self._step_vote_reply(sender, message)

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
        if certificate.term > self.term:
            self._become_follower(certificate.term, None)
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
        elif self._state.role is Role.CANDIDATE:
            self._count_own_vote()

    def disk_failed(self) -> None:
        """A write failed: for ever after this node says nothing and writes nothing, until it is started again."""
        self._become_follower(self.term, None)
        self._outbox.drop_held()
        self._outbox.take()
        self._failed = True

    def mend(self) -> None:
        """What a quorum refused was put right (a clock, say): this node may campaign again."""
        self._barred_for = Reason.NONE

    # what goes out

    def has_ready(self) -> bool:
        if self._failed:
            return False
        return self._outbox.has_messages or self._log.writes.dirty or self._commit.has_news

    def ready(self) -> Ready:
        """Everything to do since the last one; see Ready for the order. Several may be unpersisted at once."""
        require(not self._failed, "a node whose disk failed has nothing to do")
        writes = self._log.writes
        batch = writes.take(self._now) if writes.dirty else (0, None, (), None)
        return Ready(self._outbox.take(), *batch, committed=self._commit.take_news())

    # terms and roles

    def _become_follower(self, term: int, leader: NodeId | None) -> None:
        if term > self.term:
            self._log.writes.remember(HardState(term, None))
            self._outbox.drop_held()
            self._term_leader = None
        if isinstance(self._state, Leadership):
            self._reset_timer()
        self._state = Following(self._parts, leader, self._now)

    def _step_down(self, reason: str) -> None:
        self._step_down_reason = reason
        self._become_follower(self.term, None)

    def _reset_timer(self) -> None:
        self._timer_start = self._now
        self._timeout_ticks = self._timeouts.draw_ticks()

    def _may_campaign(self) -> bool:
        disk_answers = self._log.writes.oldest_age_ticks(self._now) <= self._settings.election_ticks_max
        return self._barred_for is Reason.NONE and disk_answers and self.node_id in self.configuration.voters

    def _campaign(self, role: Role) -> None:
        """Ask everyone, in the term after this one. Only a real candidacy enters that term, and votes for itself."""
        campaign = self._state = Campaign(role, self.term + 1)
        log = self._log
        request: PreVote | Vote
        if role is Role.PRE_CANDIDATE:
            request = PreVote(campaign.term, log.last_height, log.last_term)
        else:
            log.writes.remember(HardState(campaign.term, self.node_id))
            self._outbox.drop_held()
            self._term_leader = None
            request = Vote(campaign.term, log.last_height, log.last_term)
        for voter in self.configuration.voters:
            if voter != self.node_id:
                self._outbox.send(voter, request)
        if role is Role.PRE_CANDIDATE:
            self._count(campaign, self.node_id)

    def _count_own_vote(self) -> None:
        if isinstance(self._state, Campaign) and self._log.writes.hard_state_durable:
            self._count(self._state, self.node_id)

    def _count(self, campaign: Campaign, voter: NodeId) -> None:
        campaign.votes.add(voter)
        if not has_quorum(self.configuration, campaign.votes):
            return
        if campaign.role is Role.PRE_CANDIDATE:
            self._campaign(Role.CANDIDATE)
        else:
            require(campaign.term == self.term, "an election is won in the present term")
            self._term_leader = self.node_id
            leadership = self._state = Leadership(self._parts, self._now)
            leadership.append(None, self._now)

    # elections

    def _up_to_date(self, message: PreVote | Vote) -> bool:
        own = (self._log.last_term, self._log.last_height)
        return (message.last_term, message.last_height) >= own

    def _sees_leader(self) -> bool:
        """Whether an election would only disturb: this node leads, or heard from a leader lately."""
        if isinstance(self._state, Following):
            return self._state.hears_leader(self._now)
        return isinstance(self._state, Leadership)

    def _step_pre_vote(self, sender: NodeId, message: PreVote) -> None:
        """Answers a question; neither term, vote nor timer moves."""
        if message.term <= self.term:
            self._outbox.send(sender, PreVoteReply(self.term, granted=False))
        elif not self._sees_leader():
            granted = self._up_to_date(message)
            self._outbox.send(sender, PreVoteReply(message.term if granted else self.term, granted))

    def _step_vote(self, sender: NodeId, message: Vote) -> None:
        if message.term > self.term:
            if self._sees_leader():
                return
            self._become_follower(message.term, None)
        vote = self._log.writes.hard_state.vote
        granted = (
            message.term == self.term
            and vote in (None, sender)
            and self._term_leader in (None, sender)
            and self._up_to_date(message)
        )
        signature = b""
        if granted:
            self._log.writes.remember(HardState(self.term, sender))
            self._reset_timer()
            if isinstance(self._state, Campaign):
                self._become_follower(self.term, None)
            signature = self._signer.vote(self.term, sender)
        self._outbox.send(sender, VoteReply(self.term, granted, signature))

    def _step_vote_reply(self, sender: NodeId, message: PreVoteReply | VoteReply) -> None:
        """Counted only for the question now being asked, of this kind and in this term."""
        if not message.granted:
            if message.term > self.term:
                self._become_follower(message.term, None)
            return
        wanted = Role.PRE_CANDIDATE if isinstance(message, PreVoteReply) else Role.CANDIDATE
        campaign = self._state
        if isinstance(campaign, Campaign) and campaign.role is wanted and campaign.term == message.term:
            self._count(campaign, sender)

    # replication

    def _step_append(self, sender: NodeId, message: Append) -> bool:
        """Whether the logs agree where the message begins."""
        check_append(sender, message)
        if message.term < self.term:
            self._outbox.send(sender, AppendReply(self.term, Answer.CONFLICT, 0))
            return False
        if message.term == self.term and self._term_leader not in (None, sender):
            raise ProtocolViolation(sender, f"leads term {self.term}, which {self._term_leader} leads")
        if self.leader != sender or message.term > self.term:
            self._become_follower(message.term, sender)
        following = self._state
        if not isinstance(following, Following):
            raise InvariantViolation("whoever takes an Append follows")
        self._term_leader = sender
        following.heard_tick = self._now
        self._reset_timer()
        height = self._commit.height
        try:
            return following.step(message)
        finally:
            self._commit_may_move(self._commit.height > height)

    def _step_append_reply(self, sender: NodeId, message: AppendReply) -> None:
        if message.term > self.term:
            self._become_follower(message.term, None)
        elif message.term == self.term and isinstance(self._state, Leadership):
            self._commit_may_move(self._state.step(sender, message, self._now))
            if self._state.refused_by_quorum:
                self._barred_for = message.reason
                self._step_down("a quorum refuses its block")

    def _commit_may_move(self, moved: bool) -> None:
        if moved:
            self._acknowledger.forget(self._commit.height)
            if isinstance(self._state, Leadership):
                self._state.tell_commit(self._now)

    def _take_certified(self, blocks: CertifiedBlocks) -> None:
        """Append what the certificate proves, over whatever uncommitted blocks stand in its way."""
        log, certificate = self._log, blocks.certificate
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
            return
