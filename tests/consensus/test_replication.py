"""Replication and commit: one hand-written interleaving for each way they have gone wrong elsewhere."""

from dataclasses import replace

import pytest

from consensus.errors import Contradiction, InvariantViolation, ProtocolViolation
from consensus.follower import replace_from
from consensus.leader import UNCOMMITTED_BLOCKS_MAX
from consensus.messages import (
    Acknowledgement,
    Answer,
    Append,
    AppendReply,
    Certificate,
    Configuration,
    Entry,
    Reason,
    Role,
)
from consensus.ports import CoreSettings
from consensus.progress import State
from tests.consensus.nodes import (
    FIVE,
    GENESIS,
    THREE,
    Node,
    accept,
    acknowledgement,
    append,
    certify,
    conflict,
    elect,
    extend,
    follower,
    led,
    make_block,
    make_chain,
    only,
)


def heights(entries: tuple[Entry, ...]) -> list[int]:
    return [entry.height for entry in entries]


# what a follower keeps


def test_an_old_short_append_removes_nothing() -> None:
    chain = make_chain(1, 1, 1)
    node = follower(term=1)
    node.step("n2", append(1, chain[0], *chain[1:]))
    (reply,) = only(node.take(), AppendReply, "n2")
    assert (reply.answer, reply.rejected_height, reply.height) == (Answer.CONFLICT, 1, 0)
    node.step("n2", append(1, None, *chain))
    node.persist()
    for stale in (append(1, chain[0], chain[1]), append(1, chain[0]), append(1, None, chain[0]), append(1, None)):
        node.step("n2", stale)
        node.persist()
        assert node.log() == chain
        assert list(node.disk.blocks.values()) == chain


def test_only_what_was_verified_is_accepted() -> None:
    mine = make_chain(1, 1, 1, 1, 2, 2, 2, 2)
    node = follower(mine, term=3)
    theirs = extend(mine[:6], 3)
    node.step("n2", append(3, mine[3], *mine[4:6]))
    node.persist()
    (reply,) = only(node.take(), AppendReply, "n2")
    assert (reply.answer, reply.height) == (Answer.ACCEPTED, 6)
    assert node.log() == mine, "what lies above was not contradicted yet"
    node.step("n2", append(3, theirs[5], theirs[6]))
    node.persist()
    assert node.log() == theirs


def test_a_partly_overlapping_append_replaces_from_the_first_difference() -> None:
    mine = make_chain(1, 1, 1, 1, 1, 1)
    theirs = extend(mine[:5], 2, 2)
    node = follower(mine, term=2)
    node.step("n2", append(2, mine[3], *theirs[4:]))
    node.pump()
    assert [batch.truncate_from for batch in node.pending] == [6]
    node.persist()
    assert list(node.disk.blocks.values()) == theirs
    (reply,) = only(node.take(), AppendReply, "n2")
    assert (reply.answer, reply.height) == (Answer.ACCEPTED, 7)
    assert [ack.height for ack in reply.acknowledgements] == [6, 7], "blocks of this term, and no others"


def test_an_append_below_the_commit_is_taken_from_there() -> None:
    chain = make_chain(1, 1, 1, 1, 1)
    node = follower(chain[:3], term=1)
    node.step("n2", append(1, chain[2], certificate=certify(chain[2], "n2", "n3")))
    assert node.core.commit_height == 3
    node.step("n2", append(1, None, *chain))
    node.persist()
    assert node.log() == chain
    node.step("n2", append(1, None, chain[0]))
    assert node.log() == chain
    assert only(node.take(), AppendReply, "n2")[-1].height == 5


@pytest.mark.parametrize("prev", [0, 2, 3])
def test_an_append_that_denies_a_certified_block_is_the_senders_fault(prev: int) -> None:
    chain = make_chain(1, 1, 1)
    node = follower(chain, term=1)
    node.step("n2", append(1, chain[2], certificate=certify(chain[2], "n2", "n3")))
    other = make_chain(2, 2, 2, 2, data=b"other")
    message = append(2, other[prev - 1] if prev else None, *other[prev:])
    with pytest.raises(ProtocolViolation, match="certified"):
        node.core.step("n3", message)
    assert node.log() == chain


def test_a_leader_that_contradicts_itself_in_its_term_is_not_followed_there() -> None:
    chain = make_chain(1, 2)
    node = follower(term=1)
    node.step("n2", append(2, None, *chain))
    node.persist()
    other = make_block(2, 2, chain[0].hash, b"other")
    with pytest.raises(ProtocolViolation, match="its own block"):
        node.core.step("n2", append(2, chain[0], other))
    assert node.log() == chain


@pytest.mark.parametrize(
    "message",
    [
        Append(3, 0, 0, GENESIS, (make_block(2, 1, GENESIS),), None),
        Append(3, 0, 0, GENESIS, (make_block(1, 4, GENESIS),), None),
        Append(3, 0, 0, GENESIS, (make_block(1, 1, b"x" * 32),), None),
        Append(3, 0, 0, GENESIS, (make_block(1, 0, GENESIS),), None),
        Append(3, 0, 0, GENESIS, tuple(make_chain(2, 1)), None),
        Append(3, 4, 4, b"x" * 32, (), None),
        Append(3, -1, 0, GENESIS, (), None),
        Append(3, 0, 0, GENESIS, (), Certificate(4, 1, b"x" * 32, ())),
    ],
    ids=["gap", "later term", "parent", "term 0", "falling terms", "later prev", "below 0", "later certificate"],
)
def test_an_append_that_does_not_hang_together_changes_nothing(message: Append) -> None:
    node = follower(term=1)
    with pytest.raises(ProtocolViolation):
        node.core.step("n2", message)
    assert (node.core.term, node.core.leader, node.core.last_height) == (1, None, 0)


def test_an_older_leader_is_told_the_term() -> None:
    node = follower(term=5)
    node.step("n2", append(4, None, *make_chain(4)))
    assert node.take() == [("n2", AppendReply(5, Answer.CONFLICT, 0))]
    assert (node.core.leader, node.core.last_height) == (None, 0)


def test_blocks_beyond_what_the_disk_keeps_up_with_wait() -> None:
    settings = CoreSettings("n1", append_bytes_max=10, uncommitted_bytes_max=10)
    chain = make_chain(1, 1, 1, data=b"12345678")
    node = follower(settings=settings)
    for number, block in enumerate(chain):
        node.step("n2", append(1, chain[number - 1] if number else None, block))
    assert node.core.last_height == 2
    node.persist()
    node.step("n2", append(1, chain[1], chain[2]))
    assert node.core.last_height == 3


# acknowledgements


def test_acknowledgements_wait_for_the_disk_and_for_nothing_else() -> None:
    chain = make_chain(1, 2, 2)
    node = follower(chain[:1], term=2)
    node.step("n2", append(2, chain[0], chain[1]))
    node.step("n2", append(2, chain[1], chain[2]))
    assert node.take() == []
    node.persist(1)
    (reply,) = only(node.take(), AppendReply, "n2")
    assert reply.height == 2
    assert reply.acknowledgements == (Acknowledgement(2, chain[1].hash, acknowledgement("n1", 2, 2, chain[1].hash)),)
    node.persist(1)
    (reply,) = only(node.take(), AppendReply, "n2")
    assert [ack.height for ack in reply.acknowledgements] == [3]


def test_a_lost_answer_is_made_good_by_the_next_heartbeat() -> None:
    chain = make_chain(2, 2)
    node = follower(term=2)
    node.step("n2", append(2, None, *chain))
    node.persist()
    node.take()
    node.step("n2", append(2, None))
    (reply,) = only(node.take(), AppendReply, "n2")
    assert (reply.height, [ack.height for ack in reply.acknowledgements]) == (2, [2])


def test_a_block_is_not_acknowledged_once_the_term_has_passed() -> None:
    chain = make_chain(2)
    node = follower(term=2)
    node.step("n2", append(2, None, *chain))
    node.step("n3", append(3, None))
    node.persist()
    assert all(not message.acknowledgements for _, message in node.take() if isinstance(message, AppendReply)), (
        "term 2 is over, whatever the disk holds by now"
    )
    node.step("n3", append(3, chain[0]))
    (reply,) = only(node.take(), AppendReply, "n3")
    assert (reply.height, reply.acknowledgements) == (1, ())


def test_a_restarted_node_acknowledges_again_what_it_holds_of_its_term() -> None:
    chain = make_chain(2)
    node = follower(term=2)
    node.step("n2", append(2, None, *chain))
    node.persist()
    again = Node("n1", THREE, node.disk)
    again.step("n2", append(2, chain[0]))
    (reply,) = only(again.take(), AppendReply, "n2")
    assert [ack.height for ack in reply.acknowledgements] == [1]


def test_a_learner_accepts_and_signs_nothing() -> None:
    node = follower(term=2, configuration=Configuration(("n2", "n3"), ("n1",)))
    node.step("n2", append(2, None, *make_chain(2)))
    node.persist()
    (reply,) = only(node.take(), AppendReply, "n2")
    assert (reply.height, reply.acknowledgements) == (1, ())


# commit


def test_the_leader_counts_itself_only_after_its_own_disk() -> None:
    node = elect(follower())
    node.pump()
    (block,) = node.log()
    node.step("n2", accept(1, block, voter="n2"))
    assert node.core.commit_height == 0
    node.persist()
    assert node.core.certificate == certify(block, "n1", "n2")
    assert node.committed == [certify(block, "n1", "n2")]


def test_copies_of_an_older_block_commit_nothing() -> None:
    """Figure 8 of the Raft paper: block 2 of term 2 is on three of five disks, and still not committed."""
    node = led(1, 2, configuration=FIVE)
    old, own = node.log()[1], node.log()[2]
    for voter in ("n2", "n3", "n4", "n5"):
        node.step(voter, AppendReply(3, Answer.ACCEPTED, 2))
    forged = Acknowledgement(2, old.hash, b"of a later term")
    for voter in ("n2", "n3", "n4", "n5"):
        node.step(voter, AppendReply(3, Answer.ACCEPTED, 2, acknowledgements=(forged,)))
    assert node.core.known_certificate is None
    node.step("n2", accept(3, own, voter="n2"))
    assert node.core.commit_height == 0
    node.step("n3", accept(3, own, voter="n3"))
    assert node.core.commit_height == 3


def test_acknowledgements_of_another_block_of_strangers_or_doubled_do_not_count() -> None:
    node = led(configuration=Configuration(FIVE.voters, ("n6",)))
    (block,) = node.log()
    other = make_block(1, 1, GENESIS, b"other")
    node.step("n2", accept(1, other, voter="n2"))
    node.step("n3", accept(1, other, voter="n3"))
    for _ in range(3):
        node.step("n4", accept(1, block, voter="n4"))
    node.step("n6", accept(1, block, voter="n6"))
    node.step("n9", accept(1, block, voter="n9"))
    assert node.core.commit_height == 0
    node.step("n5", accept(1, block, voter="n5"))
    assert node.core.certificate == certify(block, "n1", "n4", "n5")


def test_a_certificate_travels_at_once() -> None:
    node = led()
    (block,) = node.log()
    node.step("n2", accept(1, block, voter="n2"))
    sent = node.take()
    for other in ("n2", "n3"):
        assert [message.certificate for message in only(sent, Append, other)] == [certify(block, "n1", "n2")]


def test_a_follower_moves_only_on_a_certificate_of_what_it_holds() -> None:
    chain = make_chain(1, 1, 1)
    node = follower(term=1)
    node.step("n2", append(1, None, *chain[:2], certificate=certify(chain[2], "n2", "n3")))
    node.persist()
    assert (node.core.commit_height, node.committed) == (0, [])
    assert node.core.known_certificate == certify(chain[2], "n2", "n3")
    node.step("n2", append(1, chain[1], chain[2]))
    assert (node.core.commit_height, node.committed) == (3, []), "certified, but not yet on this disk"
    node.persist()
    assert node.committed == [certify(chain[2], "n2", "n3")]


def test_the_commit_never_falls() -> None:
    chain = make_chain(1, 1)
    node = follower(chain, term=1)
    node.step("n2", append(1, chain[1], certificate=certify(chain[1], "n2", "n3")))
    node.step("n3", append(2, chain[1], certificate=certify(chain[0], "n2", "n3")))
    assert (node.core.commit_height, node.committed) == (2, [certify(chain[1], "n2", "n3")])


def test_a_certificate_of_another_block_at_a_certified_height_stops_the_node() -> None:
    chain = make_chain(1, 1)
    node = follower(chain, term=1)
    certificate = certify(chain[1], "n2", "n3")
    node.step("n2", append(1, chain[1], certificate=certificate))
    other = certify(make_block(1, 1, GENESIS, b"other"), "n1", "n3")
    with pytest.raises(Contradiction) as caught:
        node.core.step("n2", append(1, chain[1], certificate=other))
    assert caught.value.certificate == other
    assert (caught.value.held_term, caught.value.held_hash) == (1, chain[0].hash)


def test_two_certificates_at_one_height_stop_the_node_even_before_its_log_gets_there() -> None:
    one, two = (make_block(9, 1, GENESIS, data) for data in (b"one", b"two"))
    node = follower()
    node.step("n2", append(1, None, certificate=certify(one, "n2", "n3")))
    with pytest.raises(Contradiction):
        node.core.step("n2", append(1, None, certificate=certify(two, "n2", "n3")))


def test_waiting_certificates_are_bounded_and_the_oldest_come_true() -> None:
    chain = make_chain(*[1] * 200)
    node = follower(term=1)
    for block in chain:
        node.step("n2", append(1, None, certificate=certify(block, "n2", "n3")))
    node.step("n2", append(1, None, *chain[:50]))
    node.persist()
    assert node.core.commit_height == 50
    node.step("n2", append(1, chain[49], *chain[50:]))
    node.persist()
    assert node.core.commit_height == 200


def test_a_stored_certificate_must_be_of_the_stored_log() -> None:
    node = follower(make_chain(1), term=1)
    node.disk.certificate = certify(make_block(1, 1, GENESIS, b"other"), "n1", "n2")
    with pytest.raises(InvariantViolation, match="stored certificate"):
        Node("n1", THREE, node.disk)


# what a leader knows of its followers


def view(node: Node, name: str) -> tuple[int, State]:
    return next((seen.match, seen.state) for seen in node.core.followers() if seen.node_id == name)


def test_match_never_falls() -> None:
    node = led(1, 1, 1)
    node.step("n2", AppendReply(2, Answer.ACCEPTED, 4))
    node.step("n2", AppendReply(2, Answer.ACCEPTED, 3))
    node.step("n2", conflict(2, rejected=3, height=0, hint_term=0))
    assert view(node, "n2") == (4, State.REPLICATE)


def test_a_follower_whose_disk_lost_what_it_accepted_is_begun_with_anew() -> None:
    """It was restored from a backup, say: whatever it may still vote for, it must be able to follow."""
    node = led(1, 1, 1)
    node.step("n2", AppendReply(2, Answer.ACCEPTED, 4))
    lost = conflict(2, rejected=4, height=2, hint_term=1)
    node.take()
    for _ in range(2):
        node.step("n2", lost)
        assert view(node, "n2") == (4, State.REPLICATE), "it may be an old answer that was overtaken"
    node.tick(2)
    (beat,) = only(node.take(), Append, "n2")
    assert (beat.prev_height, beat.round) == (4, 1)
    node.step("n2", replace(lost, round=1))
    (beat,) = only(node.take(), Append, "n2")
    assert (view(node, "n2"), beat.prev_height) == ((0, State.PROBE), 2)
    node.step("n2", AppendReply(2, Answer.ACCEPTED, 2, round=1))
    assert [heights(message.entries) for message in only(node.take(), Append, "n2")] == [[3, 4]]
    node.step("n2", AppendReply(2, Answer.ACCEPTED, 4, round=1))
    node.step("n2", replace(lost, round=1))
    assert view(node, "n2") == (4, State.REPLICATE)
    node.step("n2", conflict(2, rejected=0, height=0, hint_term=0))
    assert view(node, "n2") == (4, State.REPLICATE)


def test_answers_of_an_earlier_term_say_nothing_about_this_one() -> None:
    node = led(1, 1, 1)
    node.step("n2", AppendReply(1, Answer.ACCEPTED, 3))
    for other in ("n2", "n3"):
        node.step(other, AppendReply(1, Answer.REFUSED, 3, reason=Reason.BAD_TIME))
    assert view(node, "n2") == (0, State.PROBE)
    assert node.core.role is Role.LEADER


def test_an_answer_beyond_the_leaders_log_is_the_senders_fault() -> None:
    node = led()
    with pytest.raises(ProtocolViolation, match="does not have"):
        node.core.step("n2", AppendReply(1, Answer.ACCEPTED, 2))


def test_a_conflict_that_answers_nothing_asked_changes_nothing() -> None:
    node = led(1, 1, 1, 1, 1, 1, 1, 1, 1)
    node.step("n2", conflict(2, rejected=9, height=4, hint_term=1))
    (probe,) = only(node.take(), Append, "n2")
    assert (probe.prev_height, probe.entries) == (4, ())
    node.step("n2", conflict(2, rejected=9, height=8, hint_term=1))
    assert only(node.take(), Append, "n2") == []
    node.step("n2", AppendReply(2, Answer.ACCEPTED, 4))
    (sent,) = only(node.take(), Append, "n2")
    assert (sent.prev_height, heights(sent.entries)) == (4, [5, 6, 7, 8, 9, 10])


def test_one_probe_a_term_finds_the_common_prefix() -> None:
    """Both logs diverge after height 10, over hundreds of blocks in alternating terms."""
    common = [1] * 10
    theirs = common + [2] * 200 + [4] * 200 + [6] * 200
    mine = common + [3] * 300 + [5] * 300
    node = follower(make_chain(*theirs), term=6, node_id="n2")
    leader = led(*mine, settings=CoreSettings("n1", replicate_gap_blocks=10_000, append_bytes_max=1))
    while leader.core.term <= node.core.term:
        leader.step("n3", AppendReply(6, Answer.CONFLICT, 0))
        leader.tick(20)
        elect(leader)
    probes = 0
    leader.persist()
    inbox = only(leader.take(), Append, "n2")
    while view(leader, "n2")[1] is State.PROBE:
        assert probes < 8, "two terms on one side, three on the other"
        probes += 1
        node.step("n1", inbox[-1])
        node.persist()
        for reply in only(node.take(), AppendReply, "n1"):
            leader.step("n2", reply)
        inbox = only(leader.take(), Append, "n2")
    assert view(leader, "n2")[0] == 10


def test_the_window_is_bounded_and_opens_again_after_every_answer_was_lost() -> None:
    node = led(settings=CoreSettings("n1", inflight_messages_max=2, append_bytes_max=1))
    node.step("n2", AppendReply(1, Answer.ACCEPTED, 1))
    node.step("n3", accept(1, node.log()[0], voter="n3"))
    node.take()
    for _ in range(6):
        node.core.propose(b"x")
    node.persist()
    sent = only(node.take(), Append, "n2")
    assert [heights(message.entries) for message in sent if message.entries] == [[2], [3]]
    seen: list[Append] = []
    for _ in range(6):
        node.tick()
        node.step("n3", AppendReply(1, Answer.ACCEPTED, 3))
        seen += only(node.take(), Append, "n2")
    assert {message.prev_height for message in seen} == {1, 3}, "first where nothing can conflict, then behind it all"
    node.step("n2", AppendReply(1, Answer.ACCEPTED, 3))
    assert [heights(message.entries) for message in only(node.take(), Append, "n2")] == [[4], [5]]


def test_what_was_lost_on_the_way_is_sent_again() -> None:
    node = led()
    node.step("n2", AppendReply(1, Answer.ACCEPTED, 1))
    node.core.propose(b"x")
    node.persist()
    node.take()
    node.step("n2", conflict(1, rejected=2, height=1, hint_term=1))
    (again,) = only(node.take(), Append, "n2")
    assert (again.prev_height, heights(again.entries)) == (1, [2])
    node.step("n2", conflict(1, rejected=1, height=0, hint_term=0))
    assert only(node.take(), Append, "n2") == [], "what it once accepted it is not asked about again"


def test_a_probe_with_blocks_is_not_repeated_before_it_is_answered() -> None:
    node = led()
    node.core.propose(b"x")
    node.pump()
    assert [message.entries for message in only(node.take(), Append, "n2")] == []
    node.tick(2)
    assert [message.entries for message in only(node.take(), Append, "n2")] == [()]
    node.step("n2", AppendReply(1, Answer.ACCEPTED, 0))
    assert [heights(message.entries) for message in only(node.take(), Append, "n2")] == [[1, 2]]


def test_one_block_larger_than_a_message_still_travels() -> None:
    node = led(settings=CoreSettings("n1", append_bytes_max=4))
    node.step("n2", AppendReply(1, Answer.ACCEPTED, 1))
    node.core.propose(b"much more than four bytes")
    node.core.propose(b"and")
    node.core.propose(b"b")
    sizes = [heights(message.entries) for message in only(node.take(), Append, "n2")]
    assert sizes == [[2], [3], [4]]


def test_a_follower_far_behind_gets_heartbeats_and_fetches_for_itself() -> None:
    settings = CoreSettings("n1", replicate_gap_blocks=3)
    node = led(1, 1, 1, 1, 1, 1, settings=settings)
    node.step("n2", accept(2, node.log()[-1], voter="n2"))
    assert node.core.commit_height == 7
    node.take()
    node.step("n3", conflict(2, rejected=6, height=2, hint_term=1))
    node.step("n3", AppendReply(2, Answer.ACCEPTED, 2))
    assert [message.entries for message in only(node.take(), Append, "n3")] == [()]
    node.step("n3", AppendReply(2, Answer.ACCEPTED, 4))
    assert [heights(message.entries) for message in only(node.take(), Append, "n3")] == [[5, 6, 7]]


def test_proposals_are_refused_by_followers_and_beyond_the_uncommitted_limits() -> None:
    assert follower().core.propose(b"x") is None
    node = led(settings=CoreSettings("n1", append_bytes_max=10, uncommitted_bytes_max=10))
    assert node.core.propose(b"123456") == 2
    assert node.core.propose(b"123456") == 3
    assert not node.core.can_propose
    assert node.core.propose(b"") is None
    node.persist()
    node.step("n2", accept(1, *node.log()[:2], voter="n2"))
    assert node.core.commit_height == 2
    assert node.core.propose(b"7") == 4
    empty = led()
    while empty.core.propose(b"") is not None:
        assert empty.core.last_height <= UNCOMMITTED_BLOCKS_MAX
    assert empty.core.last_height == UNCOMMITTED_BLOCKS_MAX


def test_nothing_committed_can_be_removed_whoever_asks() -> None:
    chain = make_chain(1, 1)
    node = follower(chain, term=1)
    node.step("n2", append(1, chain[1], certificate=certify(chain[0], "n2", "n3")))
    with pytest.raises(InvariantViolation, match="committed"):
        replace_from(node.core._parts, chain)
    assert node.log() == chain
