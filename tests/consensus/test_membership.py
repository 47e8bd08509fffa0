"""Membership: joint consensus over the chain, one interleaving for each way it has gone wrong elsewhere."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus import membership
from consensus.configuration import after_joint, has_quorum, is_one_step, joint_step
from consensus.errors import InvariantViolation, ProtocolViolation
from consensus.messages import (
    Answer,
    Append,
    AppendReply,
    CertifiedBlocks,
    Configuration,
    Entry,
    PreVote,
    PreVoteReply,
    Reason,
    Role,
    Slot,
    TimeoutNow,
    Vote,
    VoteReply,
)
from consensus.ports import CoreSettings
from tests.consensus.nodes import (
    THREE,
    Node,
    PlainSigner,
    accept,
    append,
    block_hash,
    certify,
    elect,
    extend,
    follower,
    led,
    make_chain,
    only,
)

WITH_LEARNER = Configuration(("n1", "n2", "n3"), ("n4",))
FOUR = Configuration(("n1", "n2", "n3", "n4"))
JOINT_FOUR = Configuration(FOUR.voters, (), THREE.voters)
WITHOUT_ME = Configuration(("n2", "n3"))
JOINT_WITHOUT_ME = Configuration(("n2", "n3"), (), THREE.voters)


def changed(block: Entry, configuration: Configuration) -> Entry:
    return Entry(block.height, block.term, block.parent, block.hash, block.data, configuration)


def answer(node: Node, *others: str) -> None:
    """`others` hold the leader's whole log, and sign what is of its term."""
    node.persist()
    for other in others:
        node.step(other, accept(node.core.term, *node.log(), voter=other))
    node.persist()


def settled(configuration: Configuration = THREE, settings: CoreSettings | None = None) -> Node:
    """A leader in term 1 whose first block is certified."""
    node = led(configuration=configuration, settings=settings)
    answer(node, *[voter for voter in configuration.voters if voter != "n1"])
    node.take()
    return node


# quorums


def test_while_joint_a_majority_of_each_side_is_needed_and_never_of_the_union() -> None:
    joint = Configuration(("n3", "n4", "n5"), (), ("n1", "n2", "n3"))
    assert not has_quorum(joint, ("n3", "n4", "n5")), "one of three old voters"
    assert not has_quorum(joint, ("n1", "n2", "n3"))
    assert has_quorum(joint, ("n1", "n3", "n4"))
    disjoint = Configuration(("n3",), (), ("n1", "n2", "n3"))
    assert not has_quorum(disjoint, ("n1", "n2"))
    assert has_quorum(disjoint, ("n1", "n3"))


NAMES = st.sets(st.sampled_from(["n1", "n2", "n3", "n4", "n5", "n6"]), min_size=1)


@settings(max_examples=150, deadline=None)
@given(NAMES, NAMES, NAMES, NAMES)
def test_quorums_of_one_step_always_meet(voters: set[str], learners: set[str], one: set[str], two: set[str]) -> None:
    before = Configuration(tuple(sorted(voters)), tuple(sorted(learners - voters)))
    for moved in sorted(voters | learners):
        target = Configuration(tuple(sorted(voters ^ {moved})), tuple(sorted(learners - voters - {moved})))
        joint = joint_step(before, target)
        if not is_one_step(before, joint):
            assert voters == {moved}, "only the last voter cannot go"
            continue
        path = (before, joint, after_joint(joint))
        assert is_one_step(joint, path[2])
        for older, newer in pairwise(path):
            if has_quorum(older, one) and has_quorum(newer, two):
                assert one & two


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (THREE, FOUR),
        (THREE, JOINT_FOUR),
        (WITH_LEARNER, FOUR),
        (WITH_LEARNER, Configuration(FOUR.voters, ("n4",), THREE.voters)),
        (WITH_LEARNER, Configuration(FOUR.voters, ("n5",), THREE.voters)),
        (WITH_LEARNER, Configuration(FOUR.voters, (), ("n1", "n2"))),
        (THREE, Configuration(("n1",), (), THREE.voters)),
        (THREE, Configuration(("n1", "n2", "n4"), (), THREE.voters)),
        (THREE, Configuration((), (), THREE.voters)),
        (THREE, THREE),
        (THREE, Configuration(THREE.voters, ("n4", "n5"))),
        (THREE, Configuration(THREE.voters, ("n3",))),
        (THREE, Configuration(THREE.voters, ("n4",), THREE.voters)),
        (WITH_LEARNER, Configuration(("n4", "n1", "n2", "n3"), (), THREE.voters)),
        (JOINT_FOUR, THREE),
        (JOINT_FOUR, Configuration(FOUR.voters, ("n5",))),
        (JOINT_FOUR, JOINT_FOUR),
    ],
    ids=str,
)
def test_no_other_step_is_one_step(before: Configuration, after: Configuration) -> None:
    assert not is_one_step(before, after)


# when a change may begin


def test_nothing_changes_before_a_block_of_the_leaders_own_term_is_certified() -> None:
    node = led(configuration=WITH_LEARNER)
    assert node.core.why_no_change(THREE) == membership.NO_OWN_BLOCK
    assert node.core.propose_change(THREE) is None
    answer(node, "n2")
    assert node.core.why_no_change(THREE) == ""
    assert node.core.propose_change(THREE) == 2
    assert (node.core.configuration, node.log()[1].configuration) == (THREE, THREE), "in effect from append"


def test_a_second_change_waits_for_the_first() -> None:
    node = settled()
    five = Configuration(THREE.voters, ("n4", "n5"))
    assert node.core.propose_change(WITH_LEARNER) == 2
    assert node.core.why_no_change(five) == membership.CHANGE_UNDER_WAY
    node.persist()
    again = elect(Node("n1", THREE, node.disk))
    assert again.core.configuration == WITH_LEARNER
    assert again.core.why_no_change(five) == membership.NO_OWN_BLOCK
    answer(node, "n2")
    assert node.core.propose_change(five) == 3


def test_only_a_leader_changes_anything() -> None:
    node = follower()
    assert node.core.why_no_change(WITH_LEARNER) == membership.NOT_LEADER
    assert node.core.propose_change(WITH_LEARNER) is None


def test_what_is_no_single_step_is_refused() -> None:
    node = settled()
    for target in (FOUR, THREE, Configuration(("n1",)), JOINT_FOUR):
        assert node.core.why_no_change(target) == membership.NOT_ONE_STEP
        assert node.core.propose_change(target) is None


def test_a_learner_is_promoted_only_close_to_the_head_and_while_it_answers() -> None:
    node = settled(WITH_LEARNER, CoreSettings("n1", promote_gap_blocks=2))
    assert node.core.why_no_change(FOUR) == membership.LEARNER_UNREACHABLE, "it never answered"
    node.step("n4", AppendReply(1, Answer.ACCEPTED, 0, binding=True))
    assert node.core.why_no_change(FOUR) == ""
    for _ in range(2):
        node.core.propose(b"x")
    answer(node, "n2")
    assert node.core.why_no_change(FOUR) == membership.LEARNER_BEHIND
    node.step("n4", AppendReply(1, Answer.ACCEPTED, 1, binding=True))
    assert node.core.why_no_change(FOUR) == ""
    for _ in range(21):
        node.tick()
        node.step("n2", AppendReply(1, Answer.ACCEPTED, 3, binding=True))
    assert node.core.why_no_change(FOUR) == membership.LEARNER_UNREACHABLE
    assert node.core.why_no_change(THREE) == "", "who is gone can still be removed"


def test_a_learner_that_may_not_vote_is_not_promoted() -> None:
    node = settled(WITH_LEARNER)
    node.step("n4", AppendReply(1, Answer.ACCEPTED, 1, binding=False))
    assert node.core.why_no_change(FOUR) == membership.LEARNER_MAY_NOT_VOTE
    node.step("n4", AppendReply(1, Answer.ACCEPTED, 1, binding=True))
    assert node.core.why_no_change(FOUR) == ""


@pytest.mark.parametrize("why", ["silent", "stopping", "may not vote"])
def test_no_change_that_those_who_answer_could_not_commit(why: str) -> None:
    """n3 cannot sign, and the healthy n2 is voted out by mistake: nothing would ever be certified again."""
    node = settled()
    node.step("n3", AppendReply(1, Answer.ACCEPTED, 1, stopping=why == "stopping", binding=why != "may not vote"))
    for _ in range(21 if why == "silent" else 1):
        node.tick()
        node.step("n2", AppendReply(1, Answer.ACCEPTED, 1, binding=True))
    without_n2, without_n3 = Configuration(("n1", "n3")), Configuration(("n1", "n2"))
    assert node.core.why_no_change(without_n2) == membership.TOO_FEW_ANSWER
    assert node.core.propose_change(without_n2) is None
    assert node.core.why_no_change(without_n3) == "", "which is the way out"
    assert node.core.why_no_change(Configuration(("n2", "n3"))) == membership.TOO_FEW_ANSWER, "of the new voters one"


def test_a_change_keeps_within_what_may_be_uncommitted() -> None:
    node = settled(settings=CoreSettings("n1", append_bytes_max=4, uncommitted_bytes_max=4))
    node.core.propose(b"1234")
    assert node.core.why_no_change(WITH_LEARNER) == membership.TOO_MUCH_UNCOMMITTED


# joint consensus


class Recorder(PlainSigner):
    def __init__(self, node_id: str) -> None:
        super().__init__(node_id)
        self.slots: list[tuple[Slot, object]] = []

    def seal(self, slot: Slot, payload: object) -> tuple[bytes, bytes]:
        self.slots.append((slot, payload))
        return super().seal(slot, payload)


def test_a_promotion_is_joint_until_both_quorums_signed_the_top_of_the_log() -> None:
    signer = Recorder("n1")
    node = elect(Node("n1", WITH_LEARNER, signer=signer))
    answer(node, "n2", "n4")
    assert node.core.propose_change(FOUR, b"payload") == 2
    assert node.core.configuration == JOINT_FOUR
    assert signer.slots[1] == (Slot(2, 1, node.log()[0].hash, JOINT_FOUR, change=True), b"payload")
    assert node.core.propose(b"x") is None
    assert node.core.why_no_change(Configuration(("n1", "n2"))) == membership.CHANGE_UNDER_WAY
    answer(node, "n2")
    assert node.core.commit_height == 1, "two of four new voters are no quorum, though two of three old ones are"
    answer(node, "n4")
    assert node.core.commit_height == 2
    assert (node.core.last_height, node.core.configuration) == (3, FOUR)
    (slot, payload) = signer.slots[2]
    proof = node.core.certificate
    assert proof is not None
    assert (slot, payload) == (Slot(3, 1, node.log()[1].hash, FOUR, change=False, proof=proof), None)
    assert (proof.height, proof.hash) == (slot.height - 1, slot.parent)
    assert {voter for voter, _ in proof.signatures} == {"n1", "n2", "n4"}
    assert node.core.can_propose, "from append on the new voters alone decide"
    answer(node, "n2")
    assert node.core.commit_height == 2
    answer(node, "n3")
    assert node.core.commit_height == 3
    assert node.core.configurations() == ((0, WITH_LEARNER), (2, JOINT_FOUR), (3, FOUR))
    assert node.core.configuration_at(2) == JOINT_FOUR


def test_a_new_leader_leaves_the_joint_state_that_it_finds() -> None:
    """Crash right after the joint block: whoever leads next must not stay joint for ever."""
    chain = make_chain(1, 1)
    chain[1] = changed(chain[1], JOINT_FOUR)
    node = elect(follower(chain, term=1, configuration=WITH_LEARNER))
    assert node.core.configuration == JOINT_FOUR, "the log says so, after a restart too"
    answer(node, "n2")
    assert node.core.last_height == 3, "its first block is there, and not certified by both"
    assert not node.core.can_propose
    answer(node, "n3", "n4")
    assert (node.core.last_height, node.core.configuration) == (4, FOUR)
    proof = node.core.certificate
    assert proof is not None
    assert (proof.height, proof.term) == (3, 2), "not the old joint block: that is of an earlier term"


def test_elections_need_both_quorums_while_joint() -> None:
    chain = make_chain(1, 1)
    chain[1] = changed(chain[1], Configuration(("n1", "n2"), (), THREE.voters))
    node = follower(chain, term=1)
    node.tick(20)
    assert {to for to, message in node.take() if isinstance(message, PreVote)} == {"n2", "n3"}
    node.step("n3", PreVoteReply(2, granted=True))
    assert node.role() is Role.PRE_CANDIDATE, "both old voters, one of the two new ones"
    node.step("n2", PreVoteReply(2, granted=True))
    node.persist()
    node.step("n3", VoteReply(2, granted=True, signature=b""))
    assert node.role() is Role.CANDIDATE
    node.step("n2", VoteReply(2, granted=True, signature=b""))
    assert node.role() is Role.LEADER


def test_a_configuration_goes_with_its_block() -> None:
    chain = make_chain(1, 1)
    chain[1] = changed(chain[1], WITH_LEARNER)
    node = follower(chain, term=1)
    assert node.core.configuration == WITH_LEARNER
    node.step("n2", append(2, chain[0], *extend(chain[:1], 2)[1:]))
    assert node.core.configuration == THREE


def test_a_learner_answers_a_candidate_that_knows_it_as_a_voter() -> None:
    node = follower(make_chain(1), term=1, node_id="n4", configuration=WITH_LEARNER)
    node.step("n3", Vote(2, 2, 1))
    node.persist()
    assert only(node.take(), VoteReply, "n3")[0].granted


@pytest.mark.parametrize("node_id", ["n4", "n9"])
def test_who_is_no_voter_never_campaigns(node_id: str) -> None:
    node = follower(term=1, node_id=node_id, configuration=WITH_LEARNER)
    node.step("n2", append(2, None))
    node.persist()
    node.take()
    node.step("n2", TimeoutNow(2))
    node.tick(100)
    assert (node.core.role, node.take()) == (Role.FOLLOWER, [])


def test_old_voters_campaign_until_the_joint_state_is_left() -> None:
    chain = make_chain(1, 1, 1)
    chain[1] = changed(chain[1], JOINT_WITHOUT_ME)
    node = follower(chain[:2], term=1)
    node.tick(20)
    assert node.role() is Role.PRE_CANDIDATE
    chain[2] = changed(chain[2], WITHOUT_ME)
    node = follower(chain, term=1)
    node.tick(20)
    assert node.role() is Role.PRE_CANDIDATE, "the block that removes it may still be lost"
    node.step("n2", append(1, chain[2], certificate=certify(chain[2], "n2", "n3")))
    node.tick(100)
    assert node.role() is Role.FOLLOWER


def test_a_removed_voter_leads_once_more_where_only_it_can() -> None:
    """n1 alone holds the block that makes n2 the only voter: n2 needs its vote, and does not get it."""
    before = Configuration(("n1", "n2"))
    chain = make_chain(1, 1, 1)
    chain[1] = changed(chain[1], Configuration(("n2",), (), before.voters))
    chain[2] = changed(chain[2], Configuration(("n2",)))
    node = follower(chain, term=1, configuration=before)
    node.step("n2", Vote(2, last_height=2, last_term=1))
    node.persist()
    assert not only(node.take(), VoteReply, "n2")[0].granted
    node.tick(20)
    assert node.role() is Role.PRE_CANDIDATE, "its own vote is none"
    elect(node)
    assert not node.core.can_propose
    answer(node, "n2")
    assert (node.core.commit_height, node.core.role) == (4, Role.FOLLOWER)
    assert only(node.take(), TimeoutNow, "n2") == [TimeoutNow(3)]
    node.tick(100)
    assert node.role() is Role.FOLLOWER


# removal


def test_a_removed_leader_goes_on_without_counting_itself_and_hands_over() -> None:
    node = settled()
    assert node.core.propose_change(WITHOUT_ME) == 2
    answer(node, "n2")
    assert node.core.commit_height == 1, "itself and one are two of three old voters, and one of two new ones"
    answer(node, "n3")
    assert (node.core.commit_height, node.core.last_height) == (2, 3)
    assert node.core.configuration == WITHOUT_ME
    assert node.core.propose(b"x") is None
    answer(node, "n2")
    assert (node.core.commit_height, node.core.role) == (2, Role.LEADER), "its own copy counts for nothing"
    node.take()
    answer(node, "n3")
    assert (node.core.commit_height, node.core.role) == (3, Role.FOLLOWER)
    certificate = node.core.certificate
    assert certificate is not None
    assert [voter for voter, _ in certificate.signatures] == ["n2", "n3"]
    sent = node.take()
    assert len(only(sent, TimeoutNow, "n2") + only(sent, TimeoutNow, "n3")) == 1
    assert only(sent, Append, "n2")[-1].certificate == certificate, "they know before one of them campaigns"
    node.tick(100)
    assert node.role() is Role.FOLLOWER


def test_a_removed_leader_that_finds_no_successor_follows_all_the_same() -> None:
    node = settled()
    node.core.propose_change(WITHOUT_ME)
    answer(node, "n2", "n3")
    node.take()
    for other in ("n2", "n3"):
        reply = accept(1, *node.log(), voter=other)
        node.step(other, replace(reply, stopping=True))
    assert node.role() is Role.FOLLOWER
    assert not [message for _, message in node.take() if isinstance(message, TimeoutNow)]


def test_a_removed_member_is_told_the_certificate_of_its_removal_once() -> None:
    node = settled()
    node.core.propose_change(Configuration(("n1", "n2")))
    answer(node, "n2", "n3")
    assert (node.core.last_height, node.core.configuration.members) == (3, ("n1", "n2"))
    assert "n3" in [view.node_id for view in node.core.followers()]
    node.take()
    answer(node, "n2")
    assert node.core.commit_height == 3
    certificates = [message.certificate for message in only(node.take(), Append, "n3")]
    assert certificates[-1] == node.core.certificate
    assert [view.node_id for view in node.core.followers()] == ["n2"]
    node.tick(2)
    assert only(node.take(), Append, "n3") == []
    node.step("n3", AppendReply(1, Answer.ACCEPTED, 3, binding=True))
    assert node.role() is Role.LEADER, "what a stranger answers is not heard"


def test_a_removed_member_that_is_down_is_given_up_after_an_election_timeout() -> None:
    node = led()
    answer(node, "n2")
    node.core.propose_change(Configuration(("n1", "n2")))
    answer(node, "n2")
    answer(node, "n2")
    assert (node.core.commit_height, node.core.last_height) == (3, 3), "the dead one is not needed"
    for _ in range(20):
        assert "n3" in [view.node_id for view in node.core.followers()]
        node.tick()
        node.step("n2", AppendReply(1, Answer.ACCEPTED, 3, binding=True))
    assert "n3" not in [view.node_id for view in node.core.followers()]


def test_a_learner_that_is_taken_back_before_it_was_let_go_stays() -> None:
    node = settled(WITH_LEARNER)
    node.core.propose_change(THREE)
    answer(node, "n2")
    assert node.core.propose_change(WITH_LEARNER) == 3
    answer(node, "n2")
    for _ in range(25):
        node.tick()
        node.step("n2", AppendReply(1, Answer.ACCEPTED, 3, binding=True))
    assert [view.node_id for view in node.core.followers()] == ["n2", "n3", "n4"]


def test_a_new_leader_tells_whom_its_predecessor_removed() -> None:
    chain = make_chain(1, 1, 1)
    chain[1] = changed(chain[1], Configuration(("n1", "n2"), (), THREE.voters))
    chain[2] = changed(chain[2], Configuration(("n1", "n2")))
    node = elect(follower(chain, term=1))
    assert "n3" in [view.node_id for view in node.core.followers()]
    assert "n3" not in node.core.configuration.members


def test_a_refusal_by_a_removed_member_no_longer_counts() -> None:
    node = settled(WITH_LEARNER)
    for _ in range(2):
        node.step("n4", AppendReply(1, Answer.REFUSED, 1, reason=Reason.BAD_TIME))
    node.core.propose_change(THREE)
    node.step("n3", AppendReply(1, Answer.REFUSED, 2, reason=Reason.BAD_TIME))
    assert not node.core.barred


def test_a_new_learner_is_sent_the_log() -> None:
    node = settled()
    node.core.propose_change(WITH_LEARNER)
    node.tick(2)
    (beat,) = only(node.take(), Append, "n4")[-1:]
    assert (beat.prev_height, beat.entries) == (1, (node.log()[1],)) or beat.entries == ()
    node.step("n4", AppendReply(1, Answer.CONFLICT, 0, rejected_height=beat.prev_height))
    node.step("n4", AppendReply(1, Answer.ACCEPTED, 0, binding=True))
    assert [entry.height for entry in only(node.take(), Append, "n4")[-1].entries] == [1, 2]


# what others send


def test_a_leader_that_takes_two_steps_at_once_is_not_followed_there() -> None:
    chain = make_chain(1, 1)
    chain[1] = changed(chain[1], FOUR)
    node = follower(term=1)
    with pytest.raises(ProtocolViolation, match="membership"):
        node.core.step("n2", append(1, None, *chain))
    assert (node.core.last_height, node.core.configuration) == (0, THREE)
    with pytest.raises(ProtocolViolation, match="membership"):
        node.core.step_certified("n3", CertifiedBlocks(tuple(chain), certify(chain[1], "n2", "n3")))
    assert node.core.last_height == 0


def test_certified_blocks_bring_their_configurations() -> None:
    chain = make_chain(1, 1, 1)
    chain[1] = changed(chain[1], JOINT_FOUR)
    chain[2] = changed(chain[2], FOUR)
    node = follower(configuration=WITH_LEARNER, node_id="n4")
    assert node.core.step_certified("n3", CertifiedBlocks(tuple(chain), certify(chain[2], "n1", "n2", "n3")))
    assert node.core.configuration == FOUR
    node.persist()
    node.tick(20)
    assert node.role() is Role.PRE_CANDIDATE, "it was promoted, and may campaign"


def test_a_campaign_ends_when_certified_blocks_change_who_votes() -> None:
    node = follower(make_chain(1), term=3)
    node.tick(20)
    assert node.role() is Role.PRE_CANDIDATE
    chain = make_chain(1, 3)
    chain[1] = changed(chain[1], WITH_LEARNER)
    assert node.core.step_certified("n3", CertifiedBlocks((chain[1],), certify(chain[1], "n2", "n3")))
    assert node.role() is Role.FOLLOWER
    node.step("n2", PreVoteReply(4, granted=True))
    assert node.core.term == 3


def test_the_disk_cannot_make_up_a_membership() -> None:
    chain = make_chain(1, 1)
    chain[1] = changed(chain[1], FOUR)
    with pytest.raises(InvariantViolation, match="one step"):
        follower(chain, term=1)


def test_hashes_here_are_made_as_the_signer_makes_them() -> None:
    node = settled()
    assert node.log()[0].hash == block_hash(1, 1, node.log()[0].parent, b"")
