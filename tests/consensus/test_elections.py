"""Elections, votes and terms: one hand-written interleaving for each way they have gone wrong elsewhere."""

import pytest

from consensus.errors import InvariantViolation, ProtocolViolation
from consensus.messages import (
    Answer,
    AppendReply,
    Configuration,
    HardState,
    PreVote,
    PreVoteReply,
    Role,
    Vote,
    VoteReply,
)
from consensus.outbox import HELD_MAX
from consensus.ports import CoreSettings
from consensus.timeouts import Timeouts
from tests.consensus.nodes import (
    FIVE,
    THREE,
    Disk,
    Node,
    accept,
    append,
    elect,
    follower,
    make_chain,
    only,
)


def test_a_vote_leaves_only_after_the_disk_holds_it() -> None:
    node = follower(make_chain(1), term=1)
    node.step("n2", Vote(5, last_height=1, last_term=1))
    assert node.take() == []
    node.persist()
    assert node.take() == [("n2", VoteReply(5, granted=True, signature=b"vote/n1/5/n2"))]


def test_a_vote_lost_with_the_power_was_never_sent_and_one_kept_binds() -> None:
    node = follower(make_chain(1), term=1)
    node.step("n2", Vote(5, last_height=1, last_term=1))
    assert node.take() == []
    forgetful = Node("n1", THREE, node.disk)
    forgetful.step("n3", Vote(5, last_height=1, last_term=1))
    forgetful.persist()
    assert only(forgetful.take(), VoteReply, "n3")[0].granted

    again = Node("n1", THREE, forgetful.disk)
    again.step("n2", Vote(5, last_height=1, last_term=1))
    again.persist()
    assert again.take() == [("n2", VoteReply(5, granted=False, signature=b""))]


def test_a_stored_term_below_the_log_is_corruption() -> None:
    with pytest.raises(InvariantViolation, match="stored term"):
        follower(make_chain(1, 5), term=4)


def test_a_vote_for_an_earlier_candidacy_does_not_count() -> None:
    node = follower(make_chain(1), term=1)
    for _ in range(2):
        node.tick(20)
        node.step("n2", PreVoteReply(node.core.term + 1, granted=True))
        node.persist()
    assert (node.core.role, node.core.term) == (Role.CANDIDATE, 3)
    node.step("n2", VoteReply(2, granted=True, signature=b""))
    assert node.role() is Role.CANDIDATE
    node.step("n2", VoteReply(3, granted=True, signature=b""))
    assert node.role() is Role.LEADER


def test_a_late_pre_vote_is_no_vote() -> None:
    node = follower(make_chain(1), term=1)
    node.tick(20)
    node.step("n2", PreVoteReply(2, granted=True))
    node.persist()
    assert node.role() is Role.CANDIDATE
    node.step("n3", PreVoteReply(2, granted=True))
    assert node.role() is Role.CANDIDATE


def test_one_voter_counts_once() -> None:
    node = follower(make_chain(1), term=1, configuration=FIVE)
    node.tick(20)
    for voter in ("n2", "n3"):
        node.step(voter, PreVoteReply(2, granted=True))
    node.persist()
    for _ in range(3):
        node.step("n2", VoteReply(2, granted=True, signature=b""))
    assert node.role() is Role.CANDIDATE
    node.step("n3", VoteReply(2, granted=True, signature=b""))
    assert node.role() is Role.LEADER


def test_votes_of_learners_and_strangers_do_not_count() -> None:
    node = follower(make_chain(1), term=1, configuration=Configuration(("n1", "n2", "n3"), ("n4",)))
    node.tick(20)
    for outsider in ("n4", "n9"):
        node.step(outsider, PreVoteReply(2, granted=True))
    assert node.role() is Role.PRE_CANDIDATE


def test_a_candidate_does_not_count_itself_before_its_disk_does() -> None:
    node = follower(configuration=Configuration(("n1",)))
    node.tick(20)
    assert node.role() is Role.CANDIDATE
    assert node.take() == []
    node.persist()
    assert node.role() is Role.LEADER
    assert node.core.commit_height == 1, "alone, it commits its first block once its disk holds it"
    assert node.committed[-1].signatures[0][0] == "n1"


@pytest.mark.parametrize(
    ("last_height", "last_term", "granted"),
    [(3, 1, False), (4, 2, True), (9, 1, False), (3, 2, False), (4, 1, False), (1, 3, True), (5, 2, True)],
)
def test_up_to_date_means_last_term_then_last_height(last_height: int, last_term: int, granted: bool) -> None:
    for request in (PreVote(7, last_height, last_term), Vote(7, last_height, last_term)):
        node = follower(make_chain(1, 1, 1, 2), term=3)
        node.step("n2", request)
        node.persist()
        (_, reply) = node.take()[0]
        assert isinstance(reply, PreVoteReply | VoteReply)
        assert reply.granted is granted


def test_asking_again_is_answered_again() -> None:
    node = follower(term=1)
    for _ in range(2):
        node.step("n2", Vote(2, 0, 0))
        node.persist()
        assert only(node.take(), VoteReply, "n2")[0].granted
    node.step("n3", Vote(2, 0, 0))
    node.persist()
    assert not only(node.take(), VoteReply, "n3")[0].granted


def test_a_vote_for_an_earlier_term_is_refused() -> None:
    node = follower(term=5)
    node.step("n2", Vote(4, 9, 4))
    assert node.take() == [("n2", VoteReply(5, granted=False, signature=b""))]
    assert node.disk.hard_state == HardState(5, None)


def test_a_pre_vote_moves_neither_term_nor_vote_nor_timer() -> None:
    asked, left = follower(term=5), follower(term=5)
    for tick in range(60):
        asked.step("n2", PreVote(9, 0, 0))
        asked.tick()
        left.tick()
        assert asked.core.role is left.core.role, f"at tick {tick}"
    assert asked.core.term == 5
    assert asked.disk.hard_state == HardState(5, None)


def test_a_granted_vote_restarts_the_timer() -> None:
    node = follower(term=5)
    for term in range(6, 30):
        node.step("n2", Vote(term, 0, 0))
        node.persist()
        node.tick(9)
        assert node.role() is Role.FOLLOWER


def test_a_refused_vote_does_not_restart_the_timer() -> None:
    node = follower(make_chain(5), term=5)
    for term in range(6, 26):
        node.step("n2", Vote(term, 0, 0))
        node.tick()
    assert node.role() is Role.PRE_CANDIDATE


def test_granting_ends_ones_own_campaign() -> None:
    node = follower(term=1)
    node.step("n2", append(2, None))
    node.persist()
    node = Node("n1", THREE, node.disk)
    node.tick(20)
    assert node.role() is Role.PRE_CANDIDATE
    node.step("n3", Vote(2, 0, 0))
    assert node.role() is Role.FOLLOWER
    node.step("n2", PreVoteReply(3, granted=True))
    assert (node.core.role, node.core.term) == (Role.FOLLOWER, 2)


def test_pre_candidates_do_not_hide_behind_a_dead_leader() -> None:
    one, two = follower(node_id="n2"), follower(node_id="n3")
    for node in (one, two):
        node.step("n1", append(1, None))
        node.persist()
        node.tick(20)
        assert node.role() is Role.PRE_CANDIDATE
        assert node.core.leader is None
    two.take()
    two.step("n2", PreVote(2, 0, 0))
    assert only(two.take(), PreVoteReply, "n2") == [PreVoteReply(2, granted=True)]


def test_whoever_hears_a_leader_is_not_disturbed() -> None:
    node = follower(term=1)
    node.step("n2", append(2, None))
    node.persist()
    node.take()
    node.tick(9)
    node.step("n3", PreVote(50, 9, 9))
    node.step("n3", Vote(50, 9, 9))
    node.persist()
    assert (node.core.term, node.take()) == (2, [])
    node.tick()
    node.step("n3", Vote(50, 9, 9))
    assert node.core.term == 50


def test_a_leader_is_not_disturbed_either() -> None:
    node = elect(follower(term=1))
    node.step("n3", Vote(50, 9, 9))
    node.step("n3", PreVote(50, 9, 9))
    assert (node.core.role, node.core.term, node.core.leader) == (Role.LEADER, 2, "n1")


def test_a_node_behind_in_terms_learns_the_newer_one() -> None:
    ahead = follower(term=8)
    ahead.step("n2", PreVote(6, 0, 0))
    assert ahead.take() == [("n2", PreVoteReply(8, granted=False))]
    behind = follower(term=5, node_id="n2")
    behind.tick(20)
    behind.step("n1", PreVoteReply(8, granted=False))
    assert (behind.core.role, behind.core.term) == (Role.FOLLOWER, 8)


def test_an_idle_leader_that_hears_no_quorum_steps_down() -> None:
    node = elect(follower(configuration=FIVE))
    node.persist()
    block = node.log()[0]
    for other in ("n2", "n3"):
        node.step(other, accept(1, block, voter=other))
    assert node.core.commit_height == 1
    for _ in range(20):
        node.tick()
        node.step("n2", AppendReply(1, Answer.ACCEPTED, 1))
        assert node.role() is Role.LEADER
    node.tick()
    assert node.role() is Role.FOLLOWER
    assert node.core.step_down_reason == "it hears no quorum"


def test_a_leader_whose_block_finds_no_quorum_steps_down() -> None:
    node = elect(follower())
    node.persist()
    for _ in range(21):
        assert node.role() is Role.LEADER
        node.tick()
        for other in ("n2", "n3"):
            node.step(other, AppendReply(1, Answer.ACCEPTED, 0))
    assert node.role() is Role.FOLLOWER


def test_a_leader_whose_disk_hangs_steps_down_and_does_not_campaign() -> None:
    node = elect(follower())
    node.persist()
    block = node.log()[-1]
    for other in ("n2", "n3"):
        node.step(other, accept(1, block, voter=other))
    assert node.core.commit_height == 1
    node.core.propose(b"x")
    node.pump()
    second = node.log()[-1]
    for other in ("n2", "n3"):
        node.step(other, accept(1, block, second, voter=other))
    assert node.core.commit_height == 2, "the others are a quorum without this node's disk"
    assert node.committed[-1].height == 1, "but it tells only what it holds itself"
    for _ in range(21):
        assert node.role() is Role.LEADER
        node.tick()
        for other in ("n2", "n3"):
            node.step(other, AppendReply(1, Answer.ACCEPTED, 2))
    assert node.role() is Role.FOLLOWER
    node.take()
    node.tick(100)
    assert (node.core.role, node.take()) == (Role.FOLLOWER, [])
    node.persist()
    node.tick(20)
    assert node.role() is Role.PRE_CANDIDATE


def test_a_failed_disk_silences_the_node_for_ever() -> None:
    node = elect(follower())
    node.core.disk_failed()
    assert not node.core.has_ready()
    node.step("n2", Vote(9, 9, 9))
    node.step("n2", append(9, None))
    node.core.persisted(1)
    node.tick(100)
    assert node.core.propose(b"x") is None
    assert not node.core.has_ready()
    assert node.role() is Role.FOLLOWER


def test_learners_never_campaign_but_answer_candidates() -> None:
    configuration = Configuration(("n2", "n3"), ("n1",))
    node = follower(term=1, configuration=configuration)
    node.tick(100)
    assert (node.core.role, node.take()) == (Role.FOLLOWER, [])
    node.step("n2", Vote(2, 0, 0))
    node.persist()
    assert only(node.take(), VoteReply, "n2")[0].granted


def test_who_may_not_campaign_forgets_a_silent_leader_too() -> None:
    node = follower(term=1, configuration=Configuration(("n2", "n3"), ("n1",)))
    node.step("n2", append(2, None))
    node.persist()
    node.tick(9)
    assert _leader(node) == "n2"
    node.tick(11)
    assert _leader(node) is None, "its shell must look for others to learn from"
    node.step("n2", append(2, None))
    assert _leader(node) == "n2"


def test_two_leaders_of_one_term_are_reported_and_the_first_is_kept() -> None:
    node = follower()
    node.step("n2", append(3, None))
    with pytest.raises(ProtocolViolation, match="n3"):
        node.core.step("n3", append(3, None))
    assert (node.core.leader, node.core.term) == ("n2", 3)
    leader = elect(follower())
    with pytest.raises(ProtocolViolation, match="leads term 1"):
        leader.core.step("n3", append(1, None))
    assert leader.core.role is Role.LEADER


def test_equal_seeds_give_each_node_its_own_timeouts() -> None:
    first = [Timeouts(7, "n1", 10, 20).draw_ticks() for _ in range(1)]
    draws = {name: [t.draw_ticks() for _ in range(50)] for name in FIVE.voters for t in [Timeouts(7, name, 10, 20)]}
    assert len({tuple(drawn) for drawn in draws.values()}) == 5
    assert {tick for drawn in draws.values() for tick in drawn} == set(range(10, 21))
    assert draws["n1"][0] == first[0], "a seed repeats itself"


@pytest.mark.parametrize(
    "wrong",
    [
        {"heartbeat_ticks": 6},
        {"heartbeat_ticks": 0},
        {"election_ticks_max": 10},
        {"append_bytes_max": 0},
        {"uncommitted_bytes_max": 10},
        {"inflight_messages_max": 0},
        {"replicate_gap_blocks": 0},
        {"inflight_bytes_max": 0},
        {"promote_gap_blocks": 0},
    ],
)
def test_settings_that_cannot_work_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"hold|bound"):
        CoreSettings("n1", **wrong)


def test_a_newer_term_ends_leadership_and_is_durable_before_it_is_spoken() -> None:
    node = elect(follower())
    node.persist()
    node.take()
    node.step("n2", AppendReply(9, Answer.CONFLICT, 0))
    assert (node.core.role, node.core.term, node.core.leader) == (Role.FOLLOWER, 9, None)
    node.step("n2", append(9, None))
    assert node.take() == []
    node.persist()
    assert only(node.take(), AppendReply, "n2")
    assert node.disk.hard_state == HardState(9, None)


def test_a_disk_that_hangs_in_a_new_term_does_not_pile_up_answers() -> None:
    node = Node("n1", THREE, Disk())
    for _ in range(1000):
        node.step("n2", append(9, None))
    node.persist()
    assert 0 < len(node.take()) <= HELD_MAX


def _leader(node: Node) -> str | None:
    return node.core.leader
