"""After a restart: nothing is voted or acknowledged on the word of a disk that may have forgotten."""

from dataclasses import replace

import pytest

from consensus.caution import COMPARED_MAX
from consensus.messages import (
    Answer,
    AppendReply,
    CertifiedBlocks,
    Configuration,
    Entry,
    HardState,
    PreVote,
    PreVoteReply,
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
    append,
    certify,
    elect,
    follower,
    make_chain,
    only,
)
from tests.consensus.test_membership import settled


def restarted(configuration: Configuration = THREE, node_id: str = "n1", *, forsworn: bool = False) -> Node:
    disk = Disk(make_chain(1), HardState(1))
    return Node(node_id, configuration, disk, must_compare=not forsworn, forsworn=forsworn)


def refuses_everything(node: Node) -> bool:
    """No pre-vote, vote, candidacy or acknowledgement comes of `node`."""
    chain = make_chain(1, 1)
    node.step("n2", PreVote(node.core.term + 1, 9, 9))
    node.step("n2", Vote(node.core.term + 1, 9, 9))
    node.persist()
    node.step("n3", append(node.core.term, chain[0]))
    node.persist()
    node.step("n3", TimeoutNow(node.core.term))
    node.tick(60)
    sent = [message for _, message in node.take()]
    assert any(isinstance(message, VoteReply) for message in sent)
    assert any(isinstance(message, AppendReply) and message.answer is Answer.ACCEPTED for message in sent)
    granted = any(isinstance(message, PreVoteReply | VoteReply) and message.granted for message in sent)
    signed = any(isinstance(message, AppendReply) and message.acknowledgements for message in sent)
    return not granted and not signed and node.role() is Role.FOLLOWER


def test_before_it_compared_with_a_quorum_a_node_says_nothing_that_binds() -> None:
    node = restarted(FIVE)
    assert refuses_everything(node)
    node.core.compared("n2", 0)
    node.core.compared("n2", 0)
    node.core.compared("n9", 0)
    assert (node.core.may_vote, refuses_everything(node)) == (False, True)
    node.core.compared("n3", 0)
    assert node.core.may_vote
    node.tick(20)
    assert node.role() is Role.PRE_CANDIDATE


def test_it_tells_what_it_holds_meanwhile_and_signs_it_afterwards() -> None:
    chain = make_chain(1, 1)
    node = restarted()
    node.step("n2", append(1, chain[0], chain[1]))
    node.persist()
    (reply,) = only(node.take(), AppendReply, "n2")
    assert (reply.answer, reply.height, reply.acknowledgements) == (Answer.ACCEPTED, 2, ())
    node.core.compared("n3", 0)
    node.step("n2", append(1, chain[1]))
    (reply,) = only(node.take(), AppendReply, "n2")
    assert [acknowledgement.height for acknowledgement in reply.acknowledgements] == [2], (
        "which commits what is below"
    )


def test_while_joint_a_quorum_of_both_sides_is_compared_with() -> None:
    node = restarted(Configuration(("n1", "n2"), (), ("n1", "n2", "n3")))
    node.core.compared("n3", 0)
    assert not node.core.may_vote
    node.core.compared("n2", 0)
    assert node.core.may_vote


def test_once_compared_a_larger_electorate_takes_nothing_back() -> None:
    node = restarted(Configuration(("n1", "n2", "n3"), ("n4",)))
    node.core.compared("n2", 0)
    assert node.core.may_vote
    elect(node)
    assert node.role() is Role.LEADER


def test_a_learner_compares_with_a_quorum_of_the_others_before_it_votes() -> None:
    node = restarted(Configuration(("n2", "n3"), ("n1",)))
    node.core.compared("n2", 0)
    assert not node.core.may_vote
    node.core.compared("n3", 0)
    assert node.core.may_vote


def grown() -> list[Entry]:
    """Three voters, to which n4 and n5 come, one after the other: the last block brings FIVE."""
    three, four = THREE.voters, ("n1", "n2", "n3", "n4")
    steps = [
        Configuration(three, ("n4",)),
        Configuration(four, (), three),
        Configuration(four),
        Configuration(four, ("n5",)),
        Configuration(FIVE.voters, (), four),
        FIVE,
    ]
    return [replace(block, configuration=step) for block, step in zip(make_chain(*[1] * 6), steps, strict=True)]


def test_the_quorum_is_one_of_those_who_vote_where_the_others_are() -> None:
    """On an emptied disk there are still the three voters of genesis, of whom two are a quorum."""
    chain = grown()
    node = Node("n1", THREE, must_compare=True)
    node.core.compared("n2", 6)
    assert not node.core.may_vote
    node.core.step_certified("n2", CertifiedBlocks(tuple(chain), certify(chain[-1], "n2", "n3", "n4")))
    node.persist()
    assert (node.core.configuration, node.core.may_vote) == (FIVE, False)
    node.core.compared("n4", 7)
    assert not node.core.may_vote, "it is not there yet"
    node.core.compared("n5", 6)
    assert node.core.may_vote


def test_who_compared_counts_as_soon_as_it_is_a_voter_here() -> None:
    chain = grown()
    node = Node("n1", THREE, must_compare=True)
    for peer in ("n4", "n5"):
        node.core.compared(peer, 6)
    assert not node.core.may_vote
    node.core.step_certified("n2", CertifiedBlocks(tuple(chain), certify(chain[-1], "n2", "n3", "n4")))
    assert node.core.may_vote


def test_the_peers_compared_with_are_bounded_and_the_newest_stay() -> None:
    node = restarted()
    node.core.compared("n2", 1)
    for number in range(COMPARED_MAX):
        node.core.compared(f"m{number}", 0)
    node.step("n2", append(1, None, make_chain(1)[0], certificate=certify(make_chain(1)[0], "n2", "n3")))
    assert (node.core.commit_height, node.core.may_vote) == (1, False)
    node.core.compared("n3", 1)
    assert node.core.may_vote


def test_alone_there_is_nobody_to_compare_with() -> None:
    assert restarted(Configuration(("n1",))).core.may_vote


@pytest.mark.parametrize("at_start", [True, False])
def test_a_forsworn_node_follows_and_never_votes_again(at_start: bool) -> None:
    node = restarted(forsworn=at_start)
    if not at_start:
        node.core.forswear()
    for peer in ("n2", "n3"):
        node.core.compared(peer, 0)
    assert (node.core.forsworn, node.core.may_vote) == (True, False)
    assert refuses_everything(node)
    block = make_chain(1)[0]
    node.step("n3", append(node.core.term, block, certificate=certify(block, "n2", "n3")))
    assert node.core.commit_height == 1, "it goes on as one that only follows"


def test_a_leader_or_candidate_that_forgot_something_gives_up() -> None:
    leader = settled()
    leader.core.forswear()
    assert (leader.core.role, leader.core.step_down_reason) == (Role.FOLLOWER, "it forgot what it had said")
    candidate = follower(term=1)
    candidate.tick(20)
    assert candidate.role() is Role.PRE_CANDIDATE
    candidate.core.forswear()
    assert candidate.role() is Role.FOLLOWER
    candidate.tick(60)
    assert candidate.role() is Role.FOLLOWER
