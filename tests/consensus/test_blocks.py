"""What a leader makes and what a follower may refuse: one entry is one block, its height is its index."""

from itertools import pairwise

import pytest

from consensus.configuration import can_block, quorum
from consensus.errors import InvariantViolation
from consensus.messages import Answer, Append, AppendReply, Configuration, Reason, Role, Vote, VoteReply
from tests.consensus.nodes import FIVE, accept, append, elect, follower, led, make_block, make_chain, only
from tests.consensus.test_membership import settled

# refusals


def test_a_follower_takes_what_precedes_a_refused_block_and_says_why() -> None:
    chain = make_chain(1, 1, 1)
    node = follower(term=1)
    node.core.refuse("n2", append(1, None, *chain), 2, Reason.BAD_TIME)
    node.persist()
    assert node.log() == chain[:1]
    replies = only(node.take(), AppendReply, "n2")
    assert AppendReply(1, Answer.REFUSED, 2, reason=Reason.BAD_TIME, binding=True) in replies
    assert replies[-1].height == 1
    assert replies[-1].answer is Answer.ACCEPTED


def test_a_block_that_does_not_connect_is_a_conflict_and_no_refusal() -> None:
    chain = make_chain(1, 1, 1)
    node = follower(term=1)
    node.core.refuse("n2", append(1, chain[1], chain[2]), 3, Reason.BAD_ROOTS)
    assert [reply.answer for reply in only(node.take(), AppendReply, "n2")] == [Answer.CONFLICT]
    with pytest.raises(InvariantViolation):
        node.core.refuse("n2", append(1, chain[1], chain[2]), 4, Reason.BAD_ROOTS)
    with pytest.raises(InvariantViolation):
        node.core.refuse("n2", append(1, chain[1], chain[2]), 3, Reason.NONE)


def refusal(height: int) -> AppendReply:
    return AppendReply(1, Answer.REFUSED, height, reason=Reason.BAD_TIME)


def test_a_refusal_is_tried_again_with_the_next_heartbeat_only() -> None:
    node = led()
    node.step("n2", refusal(1))
    assert only(node.take(), Append, "n2") == []
    node.tick(2)
    assert [message.entries for message in only(node.take(), Append, "n2")] == [()]
    node.step("n2", AppendReply(1, Answer.ACCEPTED, 0))
    assert [len(message.entries) for message in only(node.take(), Append, "n2")] == [1]
    assert node.role() is Role.LEADER


def test_a_leader_without_a_quorum_beside_its_refusers_stays_out_of_elections_until_mended() -> None:
    node = led(configuration=Configuration(("n1", "n2", "n3", "n4"), ("n5",)))
    for other in ("n2", "n2", "n5"):
        node.step(other, refusal(1))
        assert not node.core.barred
    node.step("n3", refusal(1))
    assert (node.core.barred, node.core.barred_for, node.core.role) == (True, Reason.BAD_TIME, Role.FOLLOWER)
    node.tick(100)
    assert node.role() is Role.FOLLOWER
    node.core.mend()
    node.tick(20)
    assert node.role() is Role.PRE_CANDIDATE


def test_it_is_barred_for_the_newest_refusal_that_stands() -> None:
    """Not for the answer that it steps down at, which may be no refusal, or not be one that counts."""
    node = settled(FIVE)
    node.core.propose(b"late")
    for other, reason in (("n2", Reason.BAD_ROOTS), ("n3", Reason.BAD_TIME)):
        node.step(other, AppendReply(1, Answer.REFUSED, 2, reason=reason, binding=True))
    assert node.core.propose_change(Configuration(("n1", "n2", "n3", "n4"))) == 3
    node.step("n4", AppendReply(1, Answer.ACCEPTED, 1, binding=True))
    assert (node.core.role, node.core.barred_for) == (Role.FOLLOWER, Reason.BAD_TIME)


def test_of_two_voters_the_refused_one_stands_aside_and_votes_for_the_other() -> None:
    node = led(configuration=Configuration(("n1", "n2")))
    node.step("n2", refusal(1))
    assert (node.core.barred, node.core.role) == (True, Role.FOLLOWER)
    node.take()
    node.step("n2", Vote(2, 1, 1))
    node.persist()
    assert only(node.take(), VoteReply, "n2")[0].granted


@pytest.mark.parametrize(("voters", "enough"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (6, 3), (7, 4)])
def test_so_many_refusers_bar_a_leader_that_the_others_are_no_quorum(voters: int, enough: int) -> None:
    names = tuple(f"n{number}" for number in range(1, voters + 1))
    barred = [count for count in range(voters + 1) if can_block(Configuration(names), names[:count])]
    assert barred[0] == enough == voters - quorum(voters) + 1


def test_a_follower_that_cannot_judge_yet_bars_nobody_and_is_asked_again() -> None:
    node = led()
    for other in ("n2", "n3"):
        node.step(other, AppendReply(1, Answer.REFUSED, 1, reason=Reason.BEHIND))
    assert (node.core.barred, node.core.role) == (False, Role.LEADER)
    node.take()
    node.tick(2)
    node.step("n2", AppendReply(1, Answer.ACCEPTED, 0))
    assert [len(message.entries) for message in only(node.take(), Append, "n2")] == [0, 1]


def test_a_follower_that_changed_its_mind_refuses_no_longer() -> None:
    node = led()
    (block,) = node.log()
    node.step("n2", refusal(1))
    node.step("n2", accept(1, block, voter="n2"))
    node.step("n3", refusal(1))
    assert not node.core.barred
    assert node.core.commit_height == 1


# the chain


def test_height_term_and_parent_come_from_the_log_alone() -> None:
    node = led(1, 1)
    for expected in (4, 5, 6):
        assert node.core.propose(b"x") == expected
    log = node.log()
    assert [entry.term for entry in log] == [1, 1, 2, 2, 2, 2]
    assert all(above.parent == below.hash for below, above in pairwise(log))
    assert log[:2] == make_chain(1, 1), "older blocks keep their bytes"


def test_a_new_leader_begins_with_an_empty_block_above_its_log() -> None:
    node = led(1, 1)
    assert node.log()[2] == make_block(3, 2, node.log()[1].hash, b"")


def test_a_proposal_while_the_tail_is_not_durable_builds_on_the_tail() -> None:
    node = elect(follower())
    assert node.core.durable_height == 0
    assert [node.core.propose(b"a"), node.core.propose(b"b")] == [2, 3]
    node.persist()
    assert [entry.height for entry in node.disk.blocks.values()] == [1, 2, 3]
