"""Compaction: what is at and below the log's base is gone, and its edge stays known, at once and after a restart."""

import pytest

from consensus.errors import InvariantViolation, ProtocolViolation
from consensus.messages import (
    Answer,
    Append,
    AppendReply,
    CertifiedBlocks,
    Configuration,
    Entry,
    HardState,
)
from consensus.ports import CoreSettings
from consensus.progress import State
from tests.consensus.nodes import (
    THREE,
    Disk,
    Node,
    accept,
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
from tests.consensus.test_membership import WITH_LEARNER, answer, changed

CHAIN = make_chain(1, 1, 1, 2, 2, 2)


def compacted(restarted: bool, height: int = 4, held: int = 6) -> Node:
    """A follower in term 2 that committed 5 and compacted up to `height`."""
    node = follower(CHAIN[:held], term=2)
    node.step("n2", append(2, CHAIN[4], certificate=certify(CHAIN[4], "n2", "n3")))
    node.persist()
    node.core.compact(height)
    node.disk.compact(height, THREE)
    if restarted:
        node.disk.certificate = certify(CHAIN[4], "n2", "n3")
        node = Node("n1", THREE, node.disk)
    node.take()
    return node


BOTH = pytest.mark.parametrize("restarted", [False, True], ids=["at once", "after a restart"])


@BOTH
def test_the_base_is_known_and_nothing_below_it(restarted: bool) -> None:
    node = compacted(restarted)
    assert (node.core.base_height, node.core.last_height, node.core.commit_height) == (4, 6, 5)
    assert node.core.term_hash(4) == (2, CHAIN[3].hash)
    assert (node.core.term_hash(3), node.core.entry(4), node.core.entry(5)) == (None, None, CHAIN[4])


@BOTH
@pytest.mark.parametrize("height", [4, 5])
def test_an_append_after_the_base_is_taken_or_refused_as_ever(restarted: bool, height: int) -> None:
    """AE(prev=base), where base is the commit itself, or below it."""
    node = compacted(restarted, height)
    prev = CHAIN[height - 1]
    node.step("n2", append(2, prev, *CHAIN[height:]))
    node.persist()
    reply = only(node.take(), AppendReply, "n2")[-1]
    assert (reply.answer, reply.height) == (Answer.ACCEPTED, 6)
    other = make_block(height, 2, prev.parent, b"other")
    with pytest.raises(ProtocolViolation, match="certified"):
        node.core.step("n2", append(2, other))
    assert node.log() == CHAIN[height:]


@BOTH
def test_an_append_from_below_the_base_is_taken_from_the_commit_up(restarted: bool) -> None:
    node = compacted(restarted, held=5)
    node.step("n2", append(2, None, *CHAIN))
    node.persist()
    assert (node.log(), only(node.take(), AppendReply, "n2")[-1].height) == (CHAIN[4:], 6)
    node.step("n2", append(2, CHAIN[0], CHAIN[1]))
    node.step("n2", append(2, None))
    assert node.log() == CHAIN[4:]
    assert only(node.take(), AppendReply, "n2")[-1].height == 6


@BOTH
def test_a_search_for_the_common_prefix_ends_at_the_commit_above_the_base(restarted: bool) -> None:
    node = compacted(restarted)
    theirs = extend(CHAIN[:5], 3, 3, 3)
    node.step("n3", append(3, theirs[7]))
    node.persist()
    (reply,) = only(node.take(), AppendReply, "n3")
    assert (reply.answer, reply.rejected_height) == (Answer.CONFLICT, 8)
    node.step("n3", append(3, theirs[5]))
    (reply,) = only(node.take(), AppendReply, "n3")
    assert (reply.answer, reply.height, reply.hint_term) == (Answer.CONFLICT, 5, 2)
    node.step("n3", append(3, theirs[4], *theirs[5:]))
    node.persist()
    assert node.log() == theirs[4:]


@BOTH
def test_certified_blocks_from_below_the_base_are_taken_from_the_commit_up(restarted: bool) -> None:
    node = compacted(restarted, held=5)
    longer = extend(CHAIN, 3)
    assert node.core.step_certified("n3", CertifiedBlocks(tuple(longer), certify(longer[6], "n2", "n3")))
    assert node.core.step_certified("n3", CertifiedBlocks(tuple(longer[:3]), certify(longer[2], "n2", "n3")))
    assert (node.core.commit_height, node.log()) == (7, longer[4:])


def test_a_whole_log_may_go_and_the_next_block_still_follows() -> None:
    node = follower(CHAIN, term=2)
    node.step("n2", append(2, CHAIN[5], certificate=certify(CHAIN[5], "n2", "n3")))
    node.core.compact(6)
    assert (node.core.base_height, node.log()) == (6, [])
    longer = extend(CHAIN, 2)
    node.step("n2", append(2, CHAIN[5], longer[6]))
    node.persist()
    assert node.log() == longer[6:]


def test_only_what_is_certified_and_durable_goes_and_the_base_never_falls() -> None:
    node = follower(CHAIN[:3], term=2)
    longer = CHAIN
    node.step("n2", append(2, longer[2], *longer[3:], certificate=certify(longer[4], "n2", "n3")))
    assert (node.core.commit_height, node.core.durable_height) == (5, 3)
    with pytest.raises(InvariantViolation, match="durable"):
        node.core.compact(4)
    with pytest.raises(InvariantViolation, match="certified"):
        node.core.compact(6)
    node.core.compact(3)
    node.core.compact(3)
    with pytest.raises(InvariantViolation, match="certified"):
        node.core.compact(2)
    assert node.log() == longer[3:], "what is on its way to the disk stays in memory"


def test_the_configuration_in_effect_at_the_base_stays() -> None:
    chain = make_chain(1, 1, 1, 1)
    chain[1] = changed(chain[1], WITH_LEARNER)
    five = Configuration(THREE.voters, ("n4", "n5"))
    chain[3] = changed(chain[3], five)
    node = follower(chain, term=1)
    node.step("n2", append(1, chain[3], certificate=certify(chain[3], "n2", "n3")))
    node.core.compact(1)
    assert node.core.configurations() == ((0, THREE), (2, WITH_LEARNER), (4, five))
    node.core.compact(3)
    assert node.core.configurations() == ((2, WITH_LEARNER), (4, five))
    assert node.core.configuration_at(3) == WITH_LEARNER
    node.disk.compact(3, WITH_LEARNER)
    again = Node("n1", THREE, node.disk)
    assert (again.core.configuration, again.core.configuration_at(3)) == (five, WITH_LEARNER)


# a leader and who is below its base


def compacted_leader() -> tuple[Node, list[Entry]]:
    """A leader of term 3 over CHAIN and its own 7, certified and compacted up to 5; n3 was not heard."""
    node = led(1, 1, 1, 2, 2, 2)
    answer(node, "n2")
    assert node.core.commit_height == 7
    node.core.compact(5)
    node.disk.compact(5, THREE)
    node.take()
    return node, CHAIN


def view(node: Node, name: str) -> tuple[int, State]:
    return next((seen.match, seen.state) for seen in node.core.followers() if seen.node_id == name)


def test_who_is_below_the_base_gets_heartbeats_at_it_and_nothing_else() -> None:
    node, chain = compacted_leader()
    for rejected in (6, 5):
        node.step("n3", conflict(3, rejected=rejected, height=2, hint_term=1))
        node.tick()
    node.take()
    for _ in range(4):
        node.tick(2)
        sent = only(node.take(), Append, "n3")
        assert {(message.prev_height, message.prev_hash, message.entries) for message in sent} == {
            (5, chain[4].hash, ())
        }
        assert sent[-1].certificate == node.core.certificate, "which tells its shell how far behind it is"
        node.step("n3", conflict(3, rejected=5, height=2, hint_term=1))
    assert view(node, "n3") == (0, State.PROBE)
    node.step("n3", AppendReply(3, Answer.ACCEPTED, 5))
    assert [[block.height for block in message.entries] for message in only(node.take(), Append, "n3")] == [[6, 7]]
    assert view(node, "n3") == (5, State.REPLICATE)


def test_who_once_agreed_and_fell_below_the_base_gets_them_too() -> None:
    node = led(1, 1, 1, 2, 2, 2)
    node.step("n3", AppendReply(3, Answer.ACCEPTED, 3))
    answer(node, "n2")
    node.core.compact(5)
    node.disk.compact(5, THREE)
    node.take()
    node.tick(6)
    assert {message.prev_height for message in only(node.take(), Append, "n3")} <= {5, 7}
    for _ in range(2):
        node.step("n3", conflict(3, rejected=5, height=3, hint_term=1))
        node.tick(2)
        assert {message.prev_height for message in only(node.take(), Append, "n3")} == {5}
    node.step("n3", AppendReply(3, Answer.ACCEPTED, 6))
    assert [block.height for block in only(node.take(), Append, "n3")[-1].entries] == [7]


def test_the_leaders_search_ends_at_its_base() -> None:
    node, _ = compacted_leader()
    node.step("n3", conflict(3, rejected=6, height=5, hint_term=0))
    assert [message.prev_height for message in only(node.take(), Append, "n3")] == [5]


def test_a_restarted_leader_over_a_compacted_log_leads_on() -> None:
    before, chain = compacted_leader()
    before.persist()
    before.disk.certificate = before.core.certificate
    node = elect(Node("n1", THREE, before.disk))
    answer(node, "n2")
    assert (node.core.base_height, node.core.commit_height, node.core.last_height) == (5, 8, 8)
    node.take()
    node.step("n3", AppendReply(4, Answer.ACCEPTED, 5))
    entries = [block.height for message in only(node.take(), Append, "n3") for block in message.entries]
    assert entries == [6, 7, 8]
    assert node.core.entry(6) == chain[5]


def test_what_the_disk_says_of_its_base_must_fit() -> None:
    disk = Disk(CHAIN, HardState(2))
    disk.compact(4, THREE)
    disk.certificate = certify(CHAIN[2], "n2", "n3")
    with pytest.raises(InvariantViolation, match="below the log's base"):
        Node("n1", THREE, disk)
    disk.certificate = certify(make_block(4, 2, CHAIN[2].hash, b"other"), "n2", "n3")
    with pytest.raises(InvariantViolation, match="stored certificate"):
        Node("n1", THREE, disk)
    disk.certificate = certify(CHAIN[3], "n2", "n3")
    assert Node("n1", THREE, disk).core.commit_height == 4
    small = CoreSettings("n1", replicate_gap_blocks=1)
    assert Node("n1", THREE, disk, small).core.certificate == disk.certificate
    assert accept(2, CHAIN[4], voter="n2").height == 5
