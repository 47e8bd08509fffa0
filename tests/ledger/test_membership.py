"""Configurations: which may follow on which, and what their digest tells apart."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.encoding import decode_as, encode
from ledger.errors import Rejection
from ledger.finality import VOTERS_MAX, quorum
from ledger.membership import (
    STEPS_MAX,
    Change,
    Configuration,
    configuration_after,
    configuration_digest,
    with_learner,
    with_voter,
    without,
)
from tests.ledger.founding import GENESIS, node_key

NAMES = [f"n{number}" for number in range(8)]


def voters(*names: str) -> dict[str, bytes]:
    return {name: node_key(name).public for name in names}


def configuration(*names: str, learners: list[str] | None = None, **fields: Any) -> Configuration:
    made = Configuration(learners=learners or [], left=None, old_voters=None, steps=0, voters=voters(*names))
    return msgspec.structs.replace(made, **fields)


THREE = configuration("a", "b", "c", learners=["x", "y"])
JOINT = configuration("a", "b", "c", "x", learners=["y"], old_voters=voters("a", "b", "c"))


def test_a_learner_comes_and_goes_by_one_block() -> None:
    more = configuration_after(THREE, with_learner(THREE, "w"), leaves=False)
    assert more == msgspec.structs.replace(THREE, learners=["w", "x", "y"])
    less = configuration_after(more, without(more, "x"), leaves=False)
    assert less == msgspec.structs.replace(THREE, learners=["w", "y"])
    assert not less.is_joint
    # Receipts need no proof of it.
    assert less.digest() == THREE.digest()


def test_a_learner_becomes_a_voter_through_a_joint_configuration() -> None:
    joint = configuration_after(THREE, with_voter(THREE, "x", node_key("x").public), leaves=False)
    assert joint == JOINT
    assert joint.is_joint
    assert joint.signers == voters("a", "b", "c", "x")
    after = configuration_after(joint, None, leaves=True)
    assert after == configuration("a", "b", "c", "x", learners=["y"], steps=1, left=voters("a", "b", "c"))


def test_a_voter_leaves_through_a_joint_configuration() -> None:
    joint = configuration_after(THREE, without(THREE, "b"), leaves=False)
    assert joint == configuration("a", "c", learners=["x", "y"], old_voters=voters("a", "b", "c"))
    assert joint.signers == voters("a", "b", "c")
    after = configuration_after(joint, None, leaves=True)
    assert (after.voters, after.left) == (voters("a", "c"), voters("a", "b", "c"))


def test_who_is_voted_out_may_propose_until_the_next_change_and_sign_nothing() -> None:
    joint = configuration_after(THREE, without(THREE, "b"), leaves=False)
    after = configuration_after(joint, None, leaves=True)
    assert (after.signers, after.proposers) == (voters("a", "c"), voters("a", "b", "c"))
    assert after.digest() == configuration_digest(voters("a", "c"), None, 1)
    for move in (without(after, "y"), without(after, "c"), with_voter(after, "x", node_key("x").public)):
        later = configuration_after(after, move, leaves=False)
        assert later.left is None
        assert "b" not in later.proposers


def test_a_block_that_says_nothing_changes_nothing() -> None:
    for parent in (THREE, JOINT):
        assert configuration_after(parent, None, leaves=False) is parent


def change(*names: str, learners: list[str] | None = None, **keys: bytes) -> Change:
    return Change(learners=THREE.learners if learners is None else learners, voters=voters(*names) | keys)


ILLEGAL: dict[str, tuple[Configuration, Change | None, bool]] = {
    "nothing": (THREE, change("a", "b", "c"), False),
    "two learners": (THREE, change("a", "b", "c", learners=["v", "w", "x", "y"]), False),
    "a learner for another": (THREE, change("a", "b", "c", learners=["w", "x"]), False),
    "learners out of order": (THREE, change("a", "b", "c", learners=["x", "w", "y"]), False),
    "a learner twice": (THREE, change("a", "b", "c", learners=["x", "x", "y"]), False),
    "voter and learner": (THREE, change("a", "b", "c", "x"), False),
    "two voters more": (THREE, change("a", "b", "c", "x", "y", learners=[]), False),
    "two voters less": (THREE, change("a"), False),
    "one voter for another": (THREE, change("a", "b", "x", learners=["y"]), False),
    "a voter that was no learner": (THREE, change("a", "b", "c", "w"), False),
    "a voter becomes a learner": (THREE, change("a", "b", learners=["c", "x", "y"]), False),
    "a removal and a learner": (THREE, change("a", "b", learners=["x"]), False),
    "another key": (THREE, change("a", "b", c=bytes(32)), False),
    "another key beside a removal": (THREE, change("a", b=bytes(32)), False),
    "a change within a change": (JOINT, change("a", "b", "c", "x", learners=[]), False),
    "back in a change": (JOINT, change("a", "b", "c"), False),
    "out of nothing": (THREE, None, True),
    "out and on": (JOINT, change("a", "b", "c", "x", learners=[]), True),
    "once too often": (msgspec.structs.replace(THREE, steps=STEPS_MAX), change("a", "b"), False),
}


@pytest.mark.parametrize("name", ILLEGAL)
def test_what_no_block_may_do(name: str) -> None:
    parent, wanted, leaves = ILLEGAL[name]
    with pytest.raises(Rejection, match="bad_change"):
        configuration_after(parent, wanted, leaves=leaves)


def test_the_digest_tells_every_part_but_the_learners() -> None:
    joint = JOINT.digest()
    others = [
        THREE.digest(),
        configuration_digest(JOINT.voters, None, 0),
        configuration_digest(JOINT.voters, JOINT.old_voters, 1),
        configuration_digest(voters("a", "b", "c"), JOINT.voters, 0),
        configuration_digest(voters("a", "b", "c", "x", "y"), JOINT.old_voters, 0),
        configuration_digest(JOINT.voters | {"x": bytes(32)}, JOINT.old_voters, 0),
        configuration_digest(JOINT.voters, voters("a", "b"), 0),
    ]
    assert len({joint, *others}) == len(others) + 1
    assert msgspec.structs.replace(JOINT, learners=[]).digest() == joint
    # Whatever order a map was filled in.
    assert configuration_digest(dict(reversed(JOINT.voters.items())), JOINT.old_voters, 0) == joint


def test_it_survives_encoding_and_its_bounds_hold() -> None:
    for each in (THREE, JOINT, GENESIS.configuration()):
        assert decode_as(Configuration, each.encode(), 64 * 1024) == each
    crowd = voters(*(f"v{number}" for number in range(VOTERS_MAX + 1)))
    for field, value in (("voters", crowd), ("voters", {}), ("old_voters", crowd), ("learners", sorted(crowd))):
        wrong = msgspec.structs.replace(JOINT, **{field: value})
        with pytest.raises(Rejection, match="bad_structure"):
            decode_as(Configuration, encode(msgspec.to_builtins(wrong, builtin_types=(bytes,))), 64 * 1024)


def moved(here: Configuration, what: str, node: str) -> Change:
    if what == "add":
        return with_learner(here, node)
    return without(here, node) if what == "remove" else with_voter(here, node, node_key(node).public)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(["add", "promote", "remove"]), st.sampled_from(NAMES)), max_size=20))
def test_along_any_legal_walk_neighbours_share_a_quorum(walk: list[tuple[str, str]]) -> None:
    here = configuration("n0", learners=["n1"])
    seen = {here.digest()}
    for what, node in walk:
        try:
            after = configuration_after(here, moved(here, what, node), leaves=False)
        except Rejection:
            continue
        if not after.voters:
            continue
        assert not set(after.learners) & after.voters.keys()
        if after.is_joint:
            old, new = here.voters.keys(), after.voters.keys()
            # Any quorum of the one and any of the other meet.
            assert quorum(len(old)) + quorum(len(new)) > len(old | new)
            after = configuration_after(after, None, leaves=True)
            assert after.digest() not in seen
            seen.add(after.digest())
        here = after
