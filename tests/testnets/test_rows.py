"""What the faults are, before anything is broken."""

import pytest

from carequorum.devnet import DevnetNode
from tests.testnets.rows import FAULTS, able_to_lead, between, ring_cuts, ring_of, seen_voters


def nodes(voters: int, learners: int) -> tuple[list[DevnetNode], list[DevnetNode]]:
    return (
        [DevnetNode(f"v{number}", f"Voter {number}") for number in range(voters)],
        [DevnetNode(f"l{number}", f"Learner {number}", "other", "learner") for number in range(learners)],
    )


def test_every_row_of_the_table_is_there_once() -> None:
    names = [fault.name for fault in FAULTS]
    assert len(set(names)) == len(names) == 11
    # All but those without a majority, and the one with a promise of its own, bound the gap.
    free = {fault.name for fault in FAULTS if fault.limits.gap_s is None}
    assert free == {"all killed at once", "no majority", "10 % loss everywhere"}
    assert {fault.limits.gap_s for fault in FAULTS} == {None, 3.0}
    # None can pass though nothing was broken.
    assert all(fault.limits.shown for fault in FAULTS)


def test_parts_are_cut_from_each_other_both_ways_and_not_in_themselves() -> None:
    (a, b, c), (learner,) = nodes(3, 1)
    assert between([[a, b], [c, learner]]) == {
        ("v0", "v2"),
        ("v0", "l0"),
        ("v1", "v2"),
        ("v1", "l0"),
        ("v2", "v0"),
        ("l0", "v0"),
        ("v2", "v1"),
        ("l0", "v1"),
    }


def test_a_voter_is_seen_by_who_is_cut_from_it_in_neither_direction() -> None:
    voting, learning = nodes(4, 1)
    order = [*voting, *learning]
    assert seen_voters(order, set(), voting[0]) == 4
    assert seen_voters(order, {("v0", "v1"), ("v2", "v0"), ("v1", "v2"), ("v0", "l0")}, voting[0]) == 2


@pytest.mark.parametrize(("voters", "learners"), [(4, 1), (6, 1), (5, 0)])
def test_in_the_ring_no_node_sees_all_others_and_a_majority_is_connected(voters: int, learners: int) -> None:
    voting, learning = nodes(voters, learners)
    for leader in voting:
        order = ring_of(voting, learning, leader)
        assert sorted(node.id for node in order) == sorted(node.id for node in [*voting, *learning])
        cuts = ring_cuts(order)
        assert len(set(cuts)) == len(cuts) == 2 * len(order)
        assert all(any(node.id in cut for cut in cuts) for node in order)
        assert able_to_lead(order, cuts)


def test_of_four_voters_the_leader_in_the_ring_loses_its_majority() -> None:
    voting, learning = nodes(4, 1)
    for leader in voting:
        order = ring_of(voting, learning, leader)
        assert leader not in able_to_lead(order, ring_cuts(order))
