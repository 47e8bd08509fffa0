"""The rules by which a block that changes the membership is refused: c begins the change, p completes it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from consensus.messages import Configuration as Members
from consensus.messages import Entry, Reason
from ledger.block import Block
from ledger.finality import make_certificate, sign_acknowledgement
from ledger.membership import Change, Configuration, configuration_after, with_learner, with_voter, without
from node.inspector import BlockRefusedError, Parent
from storage.configurations import members_of
from tests.ledger.founding import CHAIN, GENESIS, VOTERS
from tests.node.tampering import resealed
from tests.node.test_inspector import Desk
from tests.storage.chains import node_key

LEADER, SECOND, THIRD = VOTERS
JOINER = "zone-1"
START = GENESIS.configuration()
PROMOTION = with_voter(START, JOINER, node_key(JOINER).public)
OUT = without(START, LEADER)
JOINT = configuration_after(START, PROMOTION, leaves=False)
AFTER = configuration_after(JOINT, None, leaves=True)


def carried(block: Block, configuration: Configuration | None) -> Entry:
    header = block.header
    members = None if configuration is None else members_of(configuration)
    return Entry(header.height, header.term, header.parent, block.hash, block.data, members)


class Steps(Desk):
    """An inspector at genesis, and above it c (a promotion), then p."""

    def __init__(self, change: Change = PROMOTION) -> None:
        super().__init__()
        self.voted = change
        self.after = configuration_after(START, change, leaves=False)
        self.c = self.made(change=change, configuration=self.after.digest())
        self.above_c = self.parent.child(self.c.header)

    def made(self, proposer: str = LEADER, **changes: Any) -> Block:
        return resealed(self.good, node_key(proposer), [], proposer=proposer, **changes)

    def proof(self, signers: Sequence[str] = (LEADER, SECOND, THIRD), **other: Any) -> bytes:
        term, height = other.get("term", 1), other.get("height", 1)
        digest = other.get("hash", self.c.hash)
        signatures = [(node, sign_acknowledgement(node_key(node), CHAIN, term, height, digest)) for node in signers]
        return make_certificate(term, height, digest, signatures).encode()

    def p(self, proof: bytes | None, configuration: Configuration = AFTER, **changes: Any) -> Block:
        at: dict[str, Any] = {"height": 2, "parent": self.c.hash, "time": self.c.header.time + 1} | changes
        return self.made(configuration=configuration.digest(), proof=proof, **at)

    def judge(self, entry: Entry, parent: Parent, *, certified: bool) -> tuple[Reason, str]:
        with pytest.raises(BlockRefusedError) as caught:
            self.inspector.inspect(entry, parent, certified=certified)
        return caught.value.reason, str(caught.value)


@pytest.fixture
def steps() -> Steps:
    return Steps()


@pytest.mark.parametrize("change", [PROMOTION, OUT, with_learner(START, "newcomer"), without(START, JOINER)], ids=str)
def test_a_voted_change_passes(change: Change) -> None:
    steps = Steps(change)
    entry = carried(steps.c, steps.after)
    for certified in (False, True):
        assert steps.inspector.inspect(entry, steps.parent, certified=certified) == steps.c
    assert steps.above_c.place.configuration == steps.after
    assert steps.above_c.digest == steps.after.digest()


@pytest.mark.parametrize("signers", [(LEADER, SECOND, THIRD), (LEADER, SECOND, JOINER)], ids=["old", "with the new"])
def test_what_completes_it_passes(steps: Steps, signers: Sequence[str]) -> None:
    p = steps.p(steps.proof(signers))
    for certified in (False, True):
        assert steps.inspector.inspect(carried(p, AFTER), steps.above_c, certified=certified) == p
    assert steps.above_c.child(p.header).place.configuration == AFTER


def test_nobody_voted_for_it(steps: Steps) -> None:
    """Where its voters certified it they judged it."""
    for voted in (None, OUT):
        steps.voted = voted
        entry = carried(steps.c, steps.after)
        reason, detail = steps.judge(entry, steps.parent, certified=False)
        assert (reason, "nobody voted" in detail) == (Reason.BAD_STRUCTURE, True)
        assert steps.inspector.inspect(entry, steps.parent, certified=True) == steps.c


def test_what_this_node_cannot_judge_yet(steps: Steps) -> None:
    def behind(height: int, configuration: Configuration) -> Change | None:
        raise BlockRefusedError(Reason.BEHIND, f"height {height}")

    steps.inspector._voted = behind
    entry = carried(steps.c, steps.after)
    assert steps.judge(entry, steps.parent, certified=False) == (Reason.BEHIND, "height 0")
    assert steps.inspector.inspect(entry, steps.parent, certified=True) == steps.c


def c_with(**changes: Any) -> Callable[[Steps], tuple[Entry, Parent]]:
    def make(steps: Steps) -> tuple[Entry, Parent]:
        given: dict[str, Any] = {"change": PROMOTION, "configuration": JOINT.digest()} | changes
        steps.voted = given["change"]
        return carried(steps.made(**given), JOINT), steps.parent

    return make


def c_as(configuration: Members | None) -> Callable[[Steps], tuple[Entry, Parent]]:
    return lambda steps: (replace(carried(steps.c, JOINT), configuration=configuration), steps.parent)


def p_with(
    make: Callable[[Steps], Block], configuration: Configuration = AFTER
) -> Callable[[Steps], tuple[Entry, Parent]]:
    return lambda steps: (carried(make(steps), configuration), steps.above_c)


WRONG: dict[str, tuple[Callable[[Steps], tuple[Entry, Parent]], str]] = {
    "two voters at once": (
        c_with(change=Change([], {**PROMOTION.voters, "newcomer": node_key("newcomer").public})),
        "by one",
    ),
    "a voter that never learned": (
        c_with(change=with_voter(START, "newcomer", node_key("newcomer").public)),
        "was a learner",
    ),
    "a voter under another key": (
        c_with(change=Change([], PROMOTION.voters | {SECOND: node_key("other").public})),
        "keeps its key",
    ),
    "nothing that changes": (c_with(change=Change([JOINER], START.voters)), "one learner"),
    "the voters that are to be, at once": (c_with(configuration=AFTER.digest()), "another configuration"),
    "the voters that were": (c_with(configuration=START.digest()), "another configuration"),
    "an entry without the change": (c_as(None), "other members"),
    "an entry with other members": (c_as(members_of(AFTER)), "other members"),
    "a change in a joint configuration": (
        p_with(lambda steps: steps.p(None, JOINT, change=OUT, executed_height=1), JOINT),
        "nothing changes in a joint",
    ),
    "a proof where nothing is joint": (
        lambda steps: (carried(steps.made(proof=steps.proof(height=0, term=0, hash=CHAIN)), None), steps.parent),
        "a proof leaves a joint",
    ),
    "joint no longer, without a proof": (p_with(lambda steps: steps.p(None)), "another configuration"),
    "a proof by the old voters alone": (p_with(lambda steps: steps.p(steps.proof([LEADER, SECOND]))), "no quorum"),
    "a proof by one of them and the new": (p_with(lambda steps: steps.p(steps.proof([LEADER, JOINER]))), "no quorum"),
    "a proof with a stranger": (
        p_with(lambda steps: steps.p(steps.proof([LEADER, SECOND, THIRD, "west-9"]))),
        "is no voter",
    ),
    "a proof of another block": (p_with(lambda steps: steps.p(steps.proof(hash=CHAIN))), "another block"),
    "a proof of another height": (p_with(lambda steps: steps.p(steps.proof(height=2))), "another block"),
    "a proof of another term": (p_with(lambda steps: steps.p(steps.proof(term=2))), "another term"),
    "a proof that is none": (p_with(lambda steps: steps.p(b"proof")), "block 2"),
    "a change on a state that is not the newest": (
        c_with(height=2, executed_height=0),
        "newest state",
    ),
}


@pytest.mark.parametrize("certified", [False, True])
@pytest.mark.parametrize("name", WRONG)
def test_what_no_block_may_do_to_the_membership(steps: Steps, name: str, certified: bool) -> None:
    make, sentence = WRONG[name]
    entry, parent = make(steps)
    reason, detail = steps.judge(entry, parent, certified=certified)
    assert reason is Reason.BAD_STRUCTURE
    assert sentence in detail


def test_who_is_voted_out_proposes_until_the_next_change_and_no_more() -> None:
    """It may be the only one that can still lead the others to the block that completes its removal."""
    steps = Steps(OUT)
    after = configuration_after(steps.after, None, leaves=True)
    p = steps.p(steps.proof(), after)
    assert steps.inspector.inspect(carried(p, after), steps.above_c, certified=False) == p
    above = steps.p(None, after, height=3, parent=p.hash, time=p.header.time + 1)
    parent = steps.above_c.child(p.header)
    assert steps.inspector.inspect(carried(above, None), parent, certified=False) == above
    later = replace(parent, place=replace(parent.place, configuration=msgspec.structs.replace(after, left=None)))
    reason, detail = steps.judge(carried(above, None), later, certified=False)
    assert (reason, "no voter" in detail) == (Reason.BAD_STRUCTURE, True)
