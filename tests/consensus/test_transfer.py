"""Leader transfer and stopping: one hand-written interleaving for each way they have gone wrong elsewhere."""

import pytest

from consensus.messages import (
    Answer,
    Append,
    AppendReply,
    Configuration,
    PreVote,
    Role,
    TimeoutNow,
    Vote,
    VoteReply,
)
from tests.consensus.nodes import (
    FIVE,
    THREE,
    Disk,
    Node,
    accept,
    append,
    conflict,
    elect,
    follower,
    led,
    make_chain,
    only,
)
from tests.consensus.test_membership import WITH_LEARNER, answer, settled


def test_the_target_first_catches_up_and_nothing_is_proposed_meanwhile() -> None:
    node = settled()
    node.core.propose(b"x")
    assert node.core.transfer("n2")
    assert (node.core.transferring, node.core.can_propose) == (True, False)
    assert node.core.propose(b"y") is None
    assert only(node.take(), TimeoutNow, "n2") == []
    node.step("n2", accept(1, *node.log(), voter="n2"))
    assert only(node.take(), TimeoutNow, "n2") == [TimeoutNow(1)]
    assert node.core.transfer("n3") is False, "one attempt at a time"


def test_transfer_skips_the_pre_vote_and_the_lease_and_no_other_rule() -> None:
    leader = settled()
    target = Node("n2", THREE, Disk(leader.log(), leader.disk.hard_state))
    target.step("n1", append(1, leader.log()[0]))
    target.take()
    leader.core.transfer("n2")
    (told,) = only(leader.take(), TimeoutNow, "n2")
    target.step("n1", told)
    assert (target.core.role, target.core.term) == (Role.CANDIDATE, 2)
    target.persist()
    (asked,) = only(target.take(), Vote, "n1")
    assert asked.transfer
    leader.step("n2", asked)
    assert leader.role() is Role.FOLLOWER
    leader.persist()
    (reply,) = only(leader.take(), VoteReply, "n2")
    target.step("n1", reply)
    assert target.role() is Role.LEADER


def test_the_flag_alone_makes_nobody_a_leader() -> None:
    node = follower(make_chain(1, 1), term=1)
    node.step("n2", append(1, make_chain(1, 1)[1]))
    node.step("n3", Vote(2, last_height=1, last_term=1, transfer=True))
    node.persist()
    assert not only(node.take(), VoteReply, "n3")[0].granted, "the log rule stays"
    node.step("n3", Vote(2, last_height=2, last_term=1, transfer=True))
    node.step("n2", Vote(2, last_height=2, last_term=1, transfer=True))
    node.persist()
    assert [m.granted for _, m in node.take() if isinstance(m, VoteReply)] == [True, False], "one vote a term stays"


def test_an_order_to_campaign_counts_only_from_ones_own_leader_in_its_term() -> None:
    node = follower(term=3)
    node.step("n2", append(3, None))
    node.step("n3", TimeoutNow(3))
    node.step("n2", TimeoutNow(2))
    node.step("n2", TimeoutNow(4))
    assert (node.core.role, node.core.term) == (Role.FOLLOWER, 3)
    node.step("n2", TimeoutNow(3))
    assert (node.core.role, node.core.term) == (Role.CANDIDATE, 4)


def test_an_attempt_is_given_up_after_an_election_timeout() -> None:
    node = settled()
    assert node.core.transfer("n2")
    orders = 0
    for _ in range(20):
        assert node.core.transferring
        node.tick()
        for other in ("n2", "n3"):
            node.step(other, AppendReply(1, Answer.ACCEPTED, 1, binding=True))
        orders += len(only(node.take(), TimeoutNow, "n2"))
    assert (node.core.transferring, node.core.can_propose) == (False, True)
    assert orders == 1 + 19 // 2, "one at once, and one with each heartbeat, should it be lost"


def test_an_attempt_ends_when_the_target_stops() -> None:
    node = settled()
    node.core.propose(b"x")
    node.core.transfer("n2")
    node.step("n2", AppendReply(1, Answer.ACCEPTED, 1, stopping=True, binding=True))
    node.tick()
    assert not node.core.transferring


@pytest.mark.parametrize("target", ["n1", "n4", "n9", None])
def test_never_to_a_learner_a_stranger_or_oneself(target: str | None) -> None:
    node = settled(Configuration(("n1",), ("n4",)))
    node.step("n4", AppendReply(1, Answer.ACCEPTED, 1, binding=True))
    assert not node.core.transfer(target)
    assert not follower().core.transfer(target)


def test_never_to_a_silent_or_stopping_peer() -> None:
    node = elect(follower(configuration=FIVE))
    answer(node, "n2", "n3")
    assert not node.core.transfer("n4"), "it was never heard"
    node.step("n2", AppendReply(1, Answer.ACCEPTED, 1, stopping=True, binding=True))
    assert not node.core.transfer("n2")
    for _ in range(11):
        node.tick()
        for other in ("n2", "n5"):
            node.step(other, AppendReply(1, Answer.ACCEPTED, 0, stopping=other == "n2", binding=True))
    assert not node.core.transfer("n3"), "it was not heard lately"
    assert node.core.transfer()
    node.step("n5", accept(1, *node.log(), voter="n5"))
    assert only(node.take(), TimeoutNow, "n5") == [TimeoutNow(1)]


def test_the_best_voter_is_the_one_that_holds_most() -> None:
    node = settled()
    node.core.propose(b"x")
    node.step("n3", accept(1, *node.log(), voter="n3"))
    node.take()
    assert node.core.transfer()
    assert only(node.take(), TimeoutNow, "n3") == [TimeoutNow(1)]


def test_never_to_one_that_may_not_vote() -> None:
    node = settled()
    node.step("n2", AppendReply(1, Answer.ACCEPTED, 1, binding=False))
    assert not node.core.transfer("n2")
    assert node.core.transfer("n3")
    node.step("n3", AppendReply(1, Answer.ACCEPTED, 1, binding=False))
    node.tick()
    assert not node.core.transferring, "it started anew meanwhile, and could not campaign"


def test_the_joint_state_is_not_left_during_a_transfer_but_after_it() -> None:
    node = settled(WITH_LEARNER)
    node.step("n4", AppendReply(1, Answer.ACCEPTED, 1, binding=True))
    node.core.propose_change(Configuration(("n1", "n2", "n3", "n4")))
    assert node.core.transfer("n2")
    assert node.core.why_no_change(THREE) == "transfer_under_way"
    answer(node, "n2", "n3", "n4")
    assert (node.core.commit_height, node.core.last_height) == (2, 2)
    for _ in range(20):
        node.tick()
        for other in ("n2", "n3"):
            node.step(other, AppendReply(1, Answer.ACCEPTED, 2, binding=True))
    assert (node.core.transferring, node.core.last_height) == (False, 3)


def test_a_stopping_node_says_so_at_once_and_with_every_answer() -> None:
    chain = make_chain(1)
    node = follower(chain, term=1)
    node.step("n2", append(1, chain[0]))
    node.take()
    node.core.stop()
    assert node.core.stopping
    (reply,) = only(node.take(), AppendReply, "n2")
    assert (reply.answer, reply.height, reply.stopping) == (Answer.ACCEPTED, 1, True)
    for message in (append(1, chain[0]), append(1, make_chain(1, 1)[1]), append(2, None)):
        node.step("n2", message)
        node.persist()
        assert only(node.take(), AppendReply, "n2")[-1].stopping


def test_a_stopping_node_neither_campaigns_nor_obeys_but_votes() -> None:
    node = follower(term=1)
    node.core.stop()
    node.step("n2", append(2, None))
    node.persist()
    node.step("n2", TimeoutNow(2))
    node.tick(100)
    assert node.role() is Role.FOLLOWER
    node.step("n3", Vote(3, 0, 0))
    node.persist()
    assert only(node.take(), VoteReply, "n3")[0].granted


def test_stopping_ends_a_campaign_and_leaves_a_leader_leading() -> None:
    node = follower(term=1)
    node.tick(20)
    assert only(node.take(), PreVote, "n2")
    node.core.stop()
    assert node.role() is Role.FOLLOWER
    leader = settled()
    leader.core.stop()
    assert leader.role() is Role.LEADER
    assert leader.core.transfer(), "its one attempt"
    failed = follower()
    failed.core.disk_failed()
    failed.core.stop()
    assert not failed.core.has_ready()


def test_flow_control_counts_bytes_beside_messages() -> None:
    from consensus.ports import CoreSettings

    node = led(settings=CoreSettings("n1", append_bytes_max=4, inflight_bytes_max=10, inflight_messages_max=100))
    node.step("n2", AppendReply(1, Answer.ACCEPTED, 1, binding=True))
    node.take()
    for _ in range(6):
        node.core.propose(b"1234")
    node.pump()
    sent = [message.entries[0].height for message in only(node.take(), Append, "n2")]
    assert sent == [2, 3, 4], "the one that passes 10 bytes still goes"
    node.step("n2", AppendReply(1, Answer.ACCEPTED, 2, binding=True))
    assert [message.entries[0].height for message in only(node.take(), Append, "n2")] == [5]
    node.step("n2", conflict(1, rejected=5, height=2, hint_term=1))
    assert [message.entries[0].height for message in only(node.take(), Append, "n2")] == [3], "a probe, one at a time"
    node.step("n2", AppendReply(1, Answer.ACCEPTED, 3, binding=True))
    assert [message.entries[0].height for message in only(node.take(), Append, "n2")] == [4, 5, 6]
