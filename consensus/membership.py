"""Changing the membership, as the leader sees it: when it may, and when a removed member has heard enough.

| why a change waits               | until                                                                  |
|----------------------------------|------------------------------------------------------------------------|
| not_leader                       | this node leads                                                        |
| transfer_under_way               | another leads, or the attempt is given up                              |
| no_block_of_its_term_committed   | the leader's first block is certified                                  |
| change_under_way                 | the change before it is certified, and has left the joint state        |
| not_one_step                     | never: that is no single step from the configuration                   |
| learner_unreachable              | the learner answers again                                              |
| learner_behind                   | the learner is within `promote_gap_blocks` of the log                  |
| learner_may_not_vote             | the learner compared notes after its start; never, if it is forsworn   |
| too_few_answer                   | voters answer who are a quorum of the new voters and of the present    |
| too_much_uncommitted             | what is uncommitted has room for one more block                        |
"""

from collections.abc import Sequence
from dataclasses import dataclass

from consensus.configuration import has_quorum, is_one_step, joint_step
from consensus.messages import Configuration, NodeId
from consensus.parts import Parts
from consensus.progress import FollowerView

NOT_LEADER = "not_leader"
TRANSFER_UNDER_WAY = "transfer_under_way"
NO_OWN_BLOCK = "no_block_of_its_term_committed"
CHANGE_UNDER_WAY = "change_under_way"
NOT_ONE_STEP = "not_one_step"
LEARNER_UNREACHABLE = "learner_unreachable"
LEARNER_BEHIND = "learner_behind"
LEARNER_MAY_NOT_VOTE = "learner_may_not_vote"
TOO_FEW_ANSWER = "too_few_answer"
TOO_MUCH_UNCOMMITTED = "too_much_uncommitted"


def why_not_yet(parts: Parts, target: Configuration, followers: Sequence[FollowerView]) -> str:
    """Why a leader may not append the change to `target` now, as far as log and followers say; or an empty string."""
    configurations, certificate = parts.log.configurations, parts.commit.certificate
    current = configurations.current
    if certificate is None or certificate.term != parts.term:
        return NO_OWN_BLOCK
    if current.joint or configurations.newest_height > parts.commit.height:
        return CHANGE_UNDER_WAY
    if target.joint or not is_one_step(current, joint_step(current, target)):
        return NOT_ONE_STEP
    promoted = {*target.voters} - {*current.voters}
    why = next((_why_not_promoted(parts, view) for view in followers if view.node_id in promoted), "")
    if why:
        return why
    # In effect from append, so that nothing could be certified any more, not even a way back.
    ticks_max = parts.settings.election_ticks_max
    voting = {parts.settings.node_id, *(view.node_id for view in followers if view.counts(ticks_max))}
    return "" if has_quorum(joint_step(current, target), voting) else TOO_FEW_ANSWER


def _why_not_promoted(parts: Parts, view: FollowerView) -> str:
    settings = parts.settings
    if not view.heard or view.silent_ticks > settings.election_ticks_max or view.stopping:
        return LEARNER_UNREACHABLE
    if not view.binding:
        return LEARNER_MAY_NOT_VOTE
    return LEARNER_BEHIND if parts.log.last_height - view.match > settings.promote_gap_blocks else ""


@dataclass(slots=True)
class Departure:
    """A member removed by the block at `height`. `deadline` is set once that block is certified."""

    height: int
    deadline: int | None = None


class Departures:
    """Removed members, who are sent to until the certificate of their removal was sent them once.

    Bounded by time: an election timeout after that certificate a member is given up.
    """

    def __init__(self) -> None:
        self._departures: dict[NodeId, Departure] = {}

    def begin(self, member: NodeId, height: int) -> None:
        self._departures.setdefault(member, Departure(height))

    def cancel(self, member: NodeId) -> None:
        """The core does not insist that ids are single-use: whoever is a member again stays."""
        self._departures.pop(member, None)

    def over(self, parts: Parts, told_height: dict[NodeId, int], now: int) -> list[NodeId]:
        """Who needs nothing any more. `told_height`: up to where each holds the log, or will when all arrives."""
        gone: list[NodeId] = []
        for member, departure in self._departures.items():
            if parts.commit.height < departure.height:
                continue
            if departure.deadline is None:
                departure.deadline = now + parts.settings.election_ticks_max
            if told_height[member] >= departure.height or now >= departure.deadline:
                gone.append(member)
        for member in gone:
            del self._departures[member]
        return gone
