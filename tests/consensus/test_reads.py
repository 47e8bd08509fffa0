"""Linearizable reads: one hand-written interleaving for each way they have gone wrong elsewhere."""

from dataclasses import replace

import pytest

from consensus.answers import READS_MAX
from consensus.errors import InvariantViolation, ProtocolViolation
from consensus.messages import (
    Answer,
    Append,
    AppendReply,
    Configuration,
    ReadIndex,
    ReadIndexReply,
    ReadState,
    Reason,
    Role,
)
from consensus.reads import PEER_REQUESTS_MAX
from tests.consensus.nodes import FIVE, THREE, Node, accept, append, certify, extend, follower, led, make_chain, only
from tests.consensus.test_membership import WITH_LEARNER, answer, settled


def echo(round_heard: int, height: int = 1, term: int = 1, *, binding: bool = True) -> AppendReply:
    return AppendReply(term, Answer.ACCEPTED, height, round=round_heard, binding=binding)


def taken(node: Node) -> list[ReadState]:
    node.pump()
    reads, node.reads = node.reads, []
    return reads


def test_a_read_waits_for_a_round_that_began_after_it() -> None:
    node = settled(FIVE)
    node.core.read(7)
    (beat,) = only(node.take(), Append, "n2")
    assert (beat.round, beat.entries) == (1, ()), "it is sent at once"
    assert taken(node) == []
    node.step("n2", echo(0))
    node.step("n3", echo(1))
    node.step("n3", echo(1))
    assert taken(node) == [], "one other that answered since is no quorum of five"
    node.step("n2", echo(1))
    assert taken(node) == [ReadState(7, 1)]


def test_reads_that_come_during_a_round_share_the_next() -> None:
    node = settled()
    for token in (1, 2, 3):
        node.core.read(token)
    assert [message.round for message in only(node.take(), Append, "n2")] == [1]
    node.step("n2", echo(1))
    assert taken(node) == [ReadState(1, 1)]
    assert [message.round for message in only(node.take(), Append, "n2")] == [2]
    node.step("n3", echo(2))
    assert taken(node) == [ReadState(2, 1), ReadState(3, 1)]
    node.step("n2", echo(2))
    assert taken(node) == []


def test_a_lost_round_is_made_good_by_the_next_heartbeat() -> None:
    node = settled()
    node.core.read(1)
    node.core.read(2)
    node.take()
    node.tick(2)
    (beat,) = only(node.take(), Append, "n3")
    assert beat.round == 2, "which serves the reads of both"
    node.step("n3", echo(2))
    assert taken(node) == [ReadState(1, 1), ReadState(2, 1)]


def test_a_read_waits_for_a_certified_block_of_the_leaders_own_term() -> None:
    """The commit that a new leader knows of may lag that of the old one."""
    node = led(1, 1)
    node.core.read(7)
    node.step("n2", echo(0, height=2, term=2))
    assert (taken(node), only(node.take(), Append, "n2")[-1].round) == ([], 0)
    answer(node, "n2")
    assert only(node.take(), Append, "n3")[-1].round == 1
    node.step("n2", echo(1, height=3, term=2))
    assert taken(node) == [ReadState(7, 3)]


def test_a_deposed_leader_answers_no_read() -> None:
    """Frozen for two timeouts, with another leader by then: no clock of its own may tell it that it still leads."""
    node = settled()
    node.core.read(7)
    for other in ("n2", "n3"):
        node.step(other, AppendReply(2, Answer.CONFLICT, 0))
    assert node.role() is Role.FOLLOWER
    assert taken(node) == [ReadState(7, None)], "exactly one answer: ask again"


def test_a_leader_that_is_cut_off_gives_every_read_an_answer_in_time() -> None:
    node = settled()
    for token in range(3):
        node.core.read(token)
        node.tick()
    node.tick(16)
    assert taken(node) == []
    node.tick(1)
    assert taken(node) == [ReadState(0, None)]
    node.tick(2)
    assert taken(node) == [ReadState(1, None), ReadState(2, None)]


def test_a_leader_gives_up_what_waits_for_its_first_block() -> None:
    node = led()
    node.core.read(1)
    for _ in range(19):
        node.tick()
        node.step("n2", echo(0, height=0))
    assert taken(node) == []
    node.tick()
    assert taken(node) == [ReadState(1, None)]


def test_echoes_of_learners_count_for_nothing_and_none_is_invented() -> None:
    node = settled(WITH_LEARNER)
    node.core.read(1)
    node.step("n4", echo(1))
    assert taken(node) == []
    with pytest.raises(ProtocolViolation, match="round"):
        node.core.step("n2", echo(2))
    node.step("n2", AppendReply(1, Answer.REFUSED, 1, reason=Reason.BEHIND, round=1, binding=True))
    assert taken(node) == [ReadState(1, 1)], "a refusal is an answer, too"


def test_the_echo_of_one_that_may_not_vote_counts_for_no_read() -> None:
    """It may have elected another leader, on the disk that it lost, and tells this one that it hears it."""
    node = settled()
    node.core.read(1)
    node.step("n2", echo(1, binding=False))
    assert taken(node) == []
    restarted = Node("n2", THREE, must_compare=True)
    restarted.step("n1", replace(only(node.take(), Append, "n2")[-1], entries=()))
    restarted.persist()
    told = only(restarted.take(), AppendReply, "n1")[-1]
    assert (told.round, told.binding) == (1, False)
    node.step("n2", told)
    assert taken(node) == []
    node.step("n2", echo(1))
    assert taken(node) == [ReadState(1, 1)], "once it compared, it counts"


def test_a_leader_that_is_left_alone_answers_what_waited_for_another() -> None:
    two = Configuration(("n1", "n2"))
    node = settled(two)
    assert node.core.propose_change(Configuration(("n1",))) == 2
    node.core.read(1)
    answer(node, "n2")
    assert (node.core.commit_height, node.core.configuration) == (3, Configuration(("n1",)))
    node.core.read(2)
    assert taken(node) == [ReadState(1, 1), ReadState(2, 3)]


def test_what_has_its_echoes_since_fewer_are_needed_is_answered_with_the_next_heartbeat() -> None:
    """No answer came that would have shown it: the joint state is left because a transfer was given up."""
    node = settled(Configuration(("n1", "n2", "n3", "n4")))
    assert node.core.propose_change(THREE) == 2
    assert node.core.transfer("n2")
    answer(node, "n2", "n3")
    node.tick(10)
    node.core.read(1)
    node.step("n2", echo(only(node.take(), Append, "n2")[-1].round, height=2))
    assert taken(node) == [], "two are a quorum of the three, and not of the four"
    node.tick(12)
    assert (node.core.last_height, node.core.commit_height, node.core.configuration) == (3, 2, THREE)
    assert taken(node) == [ReadState(1, 2)]


def test_alone_a_leader_needs_nobody() -> None:
    node = follower(configuration=Configuration(("n1",)))
    node.tick(20)
    node.persist(1)
    assert node.role() is Role.LEADER
    node.core.read(1)
    assert taken(node) == []
    node.persist()
    assert taken(node) == [ReadState(1, 1)]
    node.core.read(2)
    assert taken(node) == [ReadState(2, 1)]


# followers


def following(term: int = 1) -> Node:
    node = follower(make_chain(1), term=1)
    node.step("n2", append(term, make_chain(1)[0]))
    node.persist()
    node.take()
    return node


def test_a_follower_asks_its_leader_once_for_all_that_wait() -> None:
    node = following()
    for token in (5, 6, 7):
        node.core.read(token)
    assert node.take() == [("n2", ReadIndex(1, 5))]
    node.step("n2", ReadIndexReply(1, 5, 41))
    assert taken(node) == [ReadState(5, 41)]
    assert node.take() == [("n2", ReadIndex(1, 6))]
    node.step("n2", ReadIndexReply(1, 5, 40))
    node.step("n3", ReadIndexReply(1, 6, 40))
    assert taken(node) == [], "late, or of another"
    node.step("n2", ReadIndexReply(1, 6, None))
    assert taken(node) == [ReadState(6, None), ReadState(7, None)]
    node.core.read(8)
    node.core.read(8)
    with pytest.raises(InvariantViolation, match="once"):
        node.core.tick()


def test_a_lost_request_holds_nobody_up_and_is_answered_in_time() -> None:
    node = following()
    node.core.read(1)
    node.core.read(2)
    node.take()
    for tick in range(19):
        node.tick()
        node.step("n2", append(1, make_chain(1)[0]))
        assert only(node.take(), ReadIndex, "n2") == ([ReadIndex(1, 2)] if tick == 0 else [])
    assert taken(node) == []
    node.tick()
    assert taken(node) == [ReadState(1, None)]
    node.step("n2", append(1, make_chain(1)[0]))
    node.tick()
    assert taken(node) == [ReadState(2, None)]


def test_a_read_ends_with_the_leader_that_was_asked() -> None:
    node = following()
    node.core.read(1)
    node.core.read(2)
    node.step("n3", append(2, make_chain(1)[0]))
    assert taken(node) == [ReadState(1, None), ReadState(2, None)]
    node.core.read(3)
    node.tick(20)
    assert node.role() is Role.PRE_CANDIDATE
    assert taken(node) == [ReadState(3, None)]
    node.core.read(4)
    assert taken(node) == [ReadState(4, None)], "a candidate knows of nobody to ask"
    fresh = follower()
    fresh.core.read(1)
    assert taken(fresh) == [ReadState(1, None)]
    node.step("n2", ReadIndexReply(9, 3, None))
    assert node.core.term == 9


def test_the_leader_serves_members_and_nobody_else() -> None:
    node = settled(WITH_LEARNER)
    node.take()
    node.step("n4", ReadIndex(1, 70))
    node.step("n9", ReadIndex(1, 71))
    node.step("n4", ReadIndex(0, 72))
    node.step("n2", echo(1))
    sent = node.take()
    assert only(sent, ReadIndexReply, "n9") == [ReadIndexReply(1, 71, None)]
    assert only(sent, ReadIndexReply, "n4") == [ReadIndexReply(1, 72, None), ReadIndexReply(1, 70, 1)]


def test_a_deposed_leader_tells_the_followers_that_asked() -> None:
    node = settled()
    node.step("n2", ReadIndex(1, 70))
    node.take()
    node.step("n3", AppendReply(2, Answer.CONFLICT, 0))
    assert only(node.take(), ReadIndexReply, "n2") == [ReadIndexReply(1, 70, None)]
    node.step("n2", ReadIndex(5, 71))
    assert node.core.term == 5
    node.persist()
    assert only(node.take(), ReadIndexReply, "n2") == [ReadIndexReply(5, 71, None)]


def test_what_waits_is_bounded() -> None:
    node = settled()
    for token in range(READS_MAX + 1):
        node.core.read(token)
    assert taken(node) == [ReadState(READS_MAX, None)]
    node.take()
    for request in range(PEER_REQUESTS_MAX + 1):
        node.step("n3", ReadIndex(1, request))
    assert only(node.take(), ReadIndexReply, "n3") == [ReadIndexReply(1, PEER_REQUESTS_MAX, None)]
    node.step("n2", echo(1))
    node.step("n2", echo(2))
    answered = taken(node)
    assert sorted(state.token for state in answered) == list(range(READS_MAX))
    assert len(only(node.take(), ReadIndexReply, "n3")) == PEER_REQUESTS_MAX
    node.core.read(9999)
    node.step("n2", echo(3))
    assert taken(node) == [ReadState(9999, 1)], "room again"


def test_a_follower_echoes_the_newest_round_of_its_term_in_every_answer() -> None:
    chain = make_chain(1, 1)
    node = follower(chain[:1], term=1)

    def answered(message: Append) -> AppendReply:
        node.step("n2", message)
        node.persist()
        return only(node.take(), AppendReply, "n2")[-1]

    heard = Append(1, 1, 1, chain[0].hash, (), None, 4)
    assert answered(heard).round == 4
    assert answered(append(1, chain[0])).round == 4, "an older one that was overtaken takes nothing back"
    assert answered(append(1, extend(chain, 1)[2])).round == 4, "a conflict"
    node.core.refuse("n2", Append(1, 1, 1, chain[0].hash, (chain[1],), None, 5), 2, Reason.BAD_TIME)
    assert {reply.round for reply in only(node.take(), AppendReply, "n2")} == {5}
    assert answered(append(2, chain[0], certificate=certify(chain[0], "n2", "n3"))).round == 0, "another term"


def test_a_node_whose_disk_failed_reads_nothing() -> None:
    node = settled()
    node.core.disk_failed()
    node.core.read(1)
    assert not node.core.has_ready()
    assert accept(1, *make_chain(1), voter="n2", round_heard=3).round == 3
