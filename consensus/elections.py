"""Terms and roles: who leads, and how this node asks to. The table of roles stands in `core`.

| message               | answered                                                    | moves                       |
|-----------------------|-------------------------------------------------------------|-----------------------------|
| PreVote               | unless a leader is heard; granted if up to date             | nothing                     |
| Vote                  | unless a leader is heard and it is no transfer; as above,   | term, vote, timer if granted|
|                       | one vote a term, none where the term's leader is known      |                             |
| TimeoutNow            | by campaigning at once, if it is this node's leader's       | as a candidacy              |
"""

from consensus.configuration import has_quorum
from consensus.errors import require
from consensus.follower import Following
from consensus.leader import Leadership
from consensus.messages import (
    HardState,
    NodeId,
    PreVote,
    PreVoteReply,
    Reason,
    Role,
    TimeoutNow,
    Vote,
    VoteReply,
)
from consensus.parts import Parts
from consensus.timeouts import Timeouts


class Campaign:
    """Asking for votes: first whether there would be any (`role` PRE_CANDIDATE), then in earnest (CANDIDATE).

    `votes` is a set of voters, this node among them once its own vote is durable; `term` is the one they are for.
    """

    def __init__(self, role: Role, term: int) -> None:
        self.role = role
        self.term = term
        self.votes: set[NodeId] = set()


class Elections:
    """The role, and what it takes to change it. What a role remembers lives in `state`, and goes with it.

    `now` counts ticks. `term_leader` is whoever was seen to lead the present term. `barred_for` is why a quorum was
    out of reach as a leader, NONE if it was not; `stopping` keeps this node out of elections for good.
    """

    def __init__(self, parts: Parts) -> None:
        settings = parts.settings
        self._parts = parts
        self._timeouts = Timeouts(
            settings.seed, settings.node_id, settings.election_ticks_min, settings.election_ticks_max
        )
        self.now = 0
        self._timer_start = 0
        self._timeout_ticks = self._timeouts.draw_ticks()
        self.state: Following | Campaign | Leadership = Following(parts, None, 0)
        self.term_leader: NodeId | None = None
        self.step_down_reason = ""
        self.barred_for = Reason.NONE
        self.stopping = False

    @property
    def role(self) -> Role:
        if isinstance(self.state, Leadership):
            return Role.LEADER
        return self.state.role if isinstance(self.state, Campaign) else Role.FOLLOWER

    # time

    def tick(self) -> None:
        self.now += 1
        if isinstance(self.state, Leadership):
            reason = self.state.tick(self.now)
            if reason:
                self.step_down(reason)
            return
        if isinstance(self.state, Following):
            self.state.tick(self.now)
        if self.now - self._timer_start >= self._timeout_ticks:
            self.reset_timer()
            if self._may_campaign():
                self._campaign(Role.PRE_CANDIDATE)
            elif isinstance(self.state, Following) and self.state.leader is not None:
                # Nobody is followed who is not heard: the shell looks for whom else to learn from.
                self.become_follower(self._parts.term, None)

    def reset_timer(self) -> None:
        self._timer_start = self.now
        self._timeout_ticks = self._timeouts.draw_ticks()

    # roles

    def become_follower(self, term: int, leader: NodeId | None) -> None:
        """Follow `leader`, or nobody yet, in `term`; the reads of the role before are answered."""
        if not isinstance(self.state, Campaign):
            self.state.reads.fail()
        if term > self._parts.term:
            self._parts.log.writes.remember(HardState(term, None))
            self._parts.outbox.drop_held()
            self.term_leader = None
        if isinstance(self.state, Leadership):
            self.reset_timer()
        self.state = Following(self._parts, leader, self.now, stopping=self.stopping)

    def step_down(self, reason: str) -> None:
        self.step_down_reason = reason
        self.become_follower(self._parts.term, None)

    def stop(self) -> None:
        """This node is about to stop: it goes on as it is, but asks for no votes, and says so to its leader."""
        self.stopping = True
        if isinstance(self.state, Campaign):
            self.become_follower(self._parts.term, None)
        elif isinstance(self.state, Following):
            self.state.stop()

    def forswear(self) -> None:
        """Whatever this node votes or leads for, it does so no longer."""
        self._parts.caution.forswear()
        if isinstance(self.state, Leadership):
            self.step_down("it forgot what it had said")
        elif isinstance(self.state, Campaign):
            self.become_follower(self._parts.term, None)

    # campaigning

    def _may_campaign(self) -> bool:
        parts = self._parts
        return (
            self.barred_for is Reason.NONE
            and not self.stopping
            and parts.caution.may_vote
            and parts.log.writes.oldest_age_ticks(self.now) <= parts.settings.election_ticks_max
            and self._has_a_say()
        )

    def _has_a_say(self) -> bool:
        """Whether the election is this node's business: it is a voter, or may be the only one that can still lead.

        A removed voter may hold the block that removes it while too few others do; until it knows that block to be
        certified it campaigns, without a vote of its own (Ongaro, section 4.2.2).
        """
        node_id, configurations = self._parts.settings.node_id, self._parts.log.configurations
        if configurations.newest_height > self._parts.commit.height and node_id in configurations.previous.electorate:
            return True
        return node_id in configurations.current.electorate

    def _campaign(self, role: Role, *, transfer: bool = False) -> None:
        """Ask everyone, in the term after this one. Only a real candidacy enters that term, and votes for itself."""
        if isinstance(self.state, Following):
            self.state.reads.fail()
        parts, node_id = self._parts, self._parts.settings.node_id
        campaign = self.state = Campaign(role, parts.term + 1)
        log = parts.log
        request: PreVote | Vote
        if role is Role.PRE_CANDIDATE:
            request = PreVote(campaign.term, log.last_height, log.last_term)
        else:
            log.writes.remember(HardState(campaign.term, node_id))
            parts.outbox.drop_held()
            self.term_leader = None
            request = Vote(campaign.term, log.last_height, log.last_term, transfer)
        for voter in log.configurations.current.electorate:
            if voter != node_id:
                parts.outbox.send(voter, request)
        if role is Role.PRE_CANDIDATE:
            self._count(campaign, node_id)

    def persisted(self) -> None:
        """The disk answered: a candidate's own vote may count now."""
        if (
            isinstance(self.state, Campaign)
            and self.state.role is Role.CANDIDATE
            and self._parts.log.writes.hard_state_durable
        ):
            self._count(self.state, self._parts.settings.node_id)

    def _count(self, campaign: Campaign, voter: NodeId) -> None:
        campaign.votes.add(voter)
        if not has_quorum(self._parts.log.configurations.current, campaign.votes):
            return
        if campaign.role is Role.PRE_CANDIDATE:
            self._campaign(Role.CANDIDATE)
        else:
            require(campaign.term == self._parts.term, "an election is won in the present term")
            self.term_leader = self._parts.settings.node_id
            leadership = self.state = Leadership(self._parts, self.now)
            leadership.append(None, self.now)

    def abandon_campaign(self) -> None:
        """The membership changed under a candidate: whom it asked, and whether it may, is to be decided anew."""
        if isinstance(self.state, Campaign):
            self.become_follower(self._parts.term, None)

    # messages

    def _up_to_date(self, message: PreVote | Vote) -> bool:
        own = (self._parts.log.last_term, self._parts.log.last_height)
        return (message.last_term, message.last_height) >= own

    def _sees_leader(self) -> bool:
        """Whether an election would only disturb: this node leads, or heard from a leader lately."""
        if isinstance(self.state, Following):
            return self.state.hears_leader(self.now)
        return isinstance(self.state, Leadership)

    def step_pre_vote(self, sender: NodeId, message: PreVote) -> None:
        """Answers a question; neither term, vote nor timer moves."""
        term, outbox = self._parts.term, self._parts.outbox
        if message.term <= term:
            outbox.send(sender, PreVoteReply(term, granted=False))
        elif not self._sees_leader():
            granted = self._up_to_date(message) and self._parts.caution.may_vote
            outbox.send(sender, PreVoteReply(message.term if granted else term, granted))

    def step_vote(self, sender: NodeId, message: Vote) -> None:
        parts = self._parts
        if message.term > parts.term:
            if self._sees_leader() and not message.transfer:
                return
            self.become_follower(message.term, None)
        vote = parts.log.writes.hard_state.vote
        granted = (
            message.term == parts.term
            and vote in (None, sender)
            and self.term_leader in (None, sender)
            and self._up_to_date(message)
            and parts.caution.may_vote
        )
        signature = b""
        if granted:
            parts.log.writes.remember(HardState(parts.term, sender))
            self.reset_timer()
            self.abandon_campaign()
            signature = parts.signer.vote(parts.term, sender)
        parts.outbox.send(sender, VoteReply(parts.term, granted, signature))

    def step_vote_reply(self, sender: NodeId, message: PreVoteReply | VoteReply) -> None:
        """Counted only for the question now being asked, of this kind and in this term."""
        if not message.granted:
            if message.term > self._parts.term:
                self.become_follower(message.term, None)
            return
        wanted = Role.PRE_CANDIDATE if isinstance(message, PreVoteReply) else Role.CANDIDATE
        campaign = self.state
        if isinstance(campaign, Campaign) and campaign.role is wanted and campaign.term == message.term:
            self._count(campaign, sender)

    def step_timeout_now(self, sender: NodeId, message: TimeoutNow) -> None:
        """Only from the leader that this node follows, in its term; whoever may not campaign lets it pass."""
        follows = isinstance(self.state, Following) and self.state.leader == sender
        if follows and message.term == self._parts.term and self._may_campaign():
            self.reset_timer()
            self._campaign(Role.CANDIDATE, transfer=True)
