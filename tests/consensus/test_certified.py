"""Certified blocks from any peer: catching up, and what a certificate may and may not overrule."""

import pytest

from consensus.commit import WAITING_MAX
from consensus.errors import Contradiction, ProtocolViolation
from consensus.messages import AppendReply, Certificate, CertifiedBlocks, Entry, HardState, Reason, Role
from consensus.ports import CoreSettings
from tests.consensus.nodes import GENESIS, append, certify, elect, extend, follower, make_block, make_chain, only


def certified(*entries: Entry) -> CertifiedBlocks:
    return CertifiedBlocks(entries, certify(entries[-1], "n2", "n3"))


def test_a_chain_from_genesis_is_taken_and_told_once_it_is_durable() -> None:
    chain = make_chain(1, 1, 4)
    node = follower()
    assert node.core.step_certified("n3", certified(*chain))
    node.pump()
    assert (node.core.commit_height, node.committed, node.core.term) == (3, [], 4)
    node.persist()
    assert node.committed == [certify(chain[2], "n2", "n3")]
    assert node.disk.hard_state == HardState(4), "the term is at least the newest block's"


def test_it_overrules_uncommitted_blocks_from_the_first_difference_only() -> None:
    mine = make_chain(1, 1, 2, 2)
    theirs = extend(mine[:2], 3, 3)
    node = follower(mine, term=2)
    assert node.core.step_certified("n3", certified(*theirs[1:]))
    node.persist()
    assert list(node.disk.blocks.values()) == theirs
    assert node.core.commit_height == 4


def test_blocks_that_do_not_connect_are_left_alone() -> None:
    mine = make_chain(1, 1, 2, 2)
    theirs = extend(mine[:2], 3, 3, 3)
    node = follower(mine, term=2)
    assert not node.core.step_certified("n3", certified(theirs[4]))
    assert not node.core.step_certified("n3", certified(theirs[3]))
    assert (node.log(), node.core.term) == (mine, 2)


def test_blocks_already_held_move_the_commit_alone() -> None:
    chain = make_chain(1, 1, 1)
    node = follower(chain, term=1)
    for _ in range(2):
        assert node.core.step_certified("n3", certified(*chain[:2]))
        node.pump()
    assert (node.core.commit_height, node.committed) == (2, [certify(chain[1], "n2", "n3")])
    assert not node.pending


def test_an_older_certificate_is_not_lost_behind_a_newer_one_that_waits() -> None:
    chain = make_chain(1, 1, 1, 1)
    node = follower(term=1)
    node.step("n2", append(1, None, certificate=certify(chain[3], "n1", "n2")))
    assert node.core.step_certified("n3", certified(*chain[:2]))
    node.persist()
    assert node.core.commit_height == 2
    assert node.core.known_certificate == certify(chain[3], "n1", "n2")


def test_the_certificate_of_fetched_blocks_is_kept_though_very_many_wait() -> None:
    """A node that was paused hears the certificates of all it missed before it has the first of the blocks."""
    chain = make_chain(*[1] * (WAITING_MAX + 20))
    node = follower(term=1)
    for block in [*chain[: WAITING_MAX - 1], chain[-1]]:
        node.step("n2", append(1, None, certificate=certify(block, "n1", "n2")))
    fetched = chain[: WAITING_MAX + 10]
    assert node.core.step_certified("n3", certified(*fetched))
    node.persist()
    assert node.core.commit_height == len(fetched)
    assert node.committed[-1].height == len(fetched)
    assert node.core.known_certificate == certify(chain[-1], "n1", "n2")


def test_the_leader_is_answered_for_what_came_from_elsewhere() -> None:
    chain = make_chain(1, 1, 1)
    node = follower()
    node.step("n2", append(1, None))
    node.persist()
    node.take()
    node.core.step_certified("n3", certified(*chain))
    node.persist()
    node.step("n2", append(1, None))
    assert only(node.take(), AppendReply, "n2")[-1].height == 3


def test_a_leader_steps_down_for_a_newer_term_and_takes_the_blocks() -> None:
    node = elect(follower())
    node.persist()
    theirs = make_chain(2, 2, data=b"theirs")
    assert node.core.step_certified("n3", certified(*theirs))
    node.persist()
    assert (node.core.role, node.core.term, node.core.commit_height) == (Role.FOLLOWER, 2, 2)
    assert list(node.disk.blocks.values()) == theirs


def test_a_leader_that_lacks_a_certified_block_of_an_older_term_stops() -> None:
    node = elect(follower(term=4))
    node.persist()
    with pytest.raises(Contradiction, match="leader"):
        node.core.step_certified("n3", certified(*make_chain(3, data=b"theirs")))


def test_a_certified_chain_that_denies_a_certified_block_stops_the_node() -> None:
    chain = make_chain(1, 1)
    other = make_chain(1, 2, 2, data=b"other")
    node = follower(term=1)
    assert node.core.step_certified("n3", certified(*chain))
    node.persist()
    with pytest.raises(Contradiction):
        node.core.step_certified("n3", certified(*other))
    assert list(node.disk.blocks.values()) == chain
    with pytest.raises(Contradiction):
        node.core.step_certified("n3", certified(*other[:2]))


def test_a_certificate_cannot_overrule_a_block_of_its_own_or_a_later_term() -> None:
    mine = make_chain(1, 3)
    node = follower(mine, term=3)
    theirs = extend(mine[:1], 3, data=b"theirs")
    with pytest.raises(Contradiction):
        node.core.step_certified("n3", certified(theirs[1]))


@pytest.mark.parametrize(
    "blocks",
    [
        CertifiedBlocks((), Certificate(1, 1, GENESIS, ())),
        CertifiedBlocks(tuple(make_chain(1, 1)), certify(make_chain(1)[0], "n2", "n3")),
        CertifiedBlocks((make_chain(1)[0], make_chain(1, 1, 1)[2]), certify(make_chain(1, 1, 1)[2], "n2", "n3")),
        certified(make_block(0, 1, GENESIS)),
    ],
    ids=["empty", "another end", "gap", "height 0"],
)
def test_what_does_not_hang_together_is_the_senders_fault(blocks: CertifiedBlocks) -> None:
    node = follower()
    with pytest.raises(ProtocolViolation):
        node.core.step_certified("n3", blocks)
    assert (node.core.last_height, node.core.term) == (0, 0)


def test_what_the_disk_cannot_keep_up_with_is_asked_for_again_later() -> None:
    chain = make_chain(1, 1, 1, data=b"123456")
    node = follower(settings=CoreSettings("n1", append_bytes_max=10, uncommitted_bytes_max=10))
    assert node.core.step_certified("n3", certified(*chain[:2]))
    assert not node.core.step_certified("n3", certified(chain[2]))
    node.persist()
    assert node.core.step_certified("n3", certified(chain[2]))


def test_a_node_whose_disk_failed_takes_nothing() -> None:
    node = follower()
    node.core.disk_failed()
    assert not node.core.step_certified("n3", certified(*make_chain(1)))
    node.core.refuse("n2", append(1, None, *make_chain(1)), 1, Reason.BAD_TIME)
    assert not node.core.has_ready()
