"""Receipts after changes of voters: from genesis, by steps that the voters before have certified."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger import merkle, state_tree
from ledger.block import FORMAT, HEADER_BYTES_MAX, Header, block_hash, decode_header, seal_block, tx_root
from ledger.encoding import encode
from ledger.errors import Rejection
from ledger.execution import TxResult, history_leaf, results_root
from ledger.finality import CERTIFICATE_BYTES_MAX, VOTERS_MAX, Seal, make_certificate, sign_acknowledgement
from ledger.keys import sha256
from ledger.membership import Change, Configuration, Step, configuration_after, with_voter, without
from ledger.receipt import STEP_BYTES_MAX, make_receipt, make_state_answer, verify_receipt, verify_state_answer
from tests.ledger.founding import CHAIN, GENESIS, make_genesis, node_key
from tests.ledger.test_receipt import mutations

RESULT = TxResult(code="ok", envelope=bytes(32), id=sha256(b"id"))
LEAVES = [history_leaf(CHAIN, 0, 0, results_root([])), history_leaf(b"1" * 32, 1, 1, results_root([RESULT]))]
STATE_ROOT, _UPDATED = state_tree.update(lambda path: None, {"a": b"1"})
PAGES = {path: page for path, page in _UPDATED.items() if page is not None}
NORTH, SOUTH, WEST = GENESIS.configuration().voters
EVERYONE = tuple(sorted({*GENESIS.configuration().voters, "x-1", "x-2"}))


def majority(names: Sequence[str]) -> list[str]:
    return sorted(names)[: len(names) // 2 + 1]


def quorums(configuration: Configuration) -> list[str]:
    """As few as can certify a block."""
    old = configuration.old_voters or {}
    return sorted({*majority(list(configuration.voters)), *(majority(list(old)) if old else ())})


@dataclass
class Reign:
    """A chain of which only what changes the voters is made, and the seals."""

    configuration: Configuration = field(default_factory=GENESIS.configuration)
    steps: list[Step] = field(default_factory=list)
    height: int = 2

    def header(self, **changed: Any) -> Header:
        fields: dict[str, Any] = {
            "chain": CHAIN,
            "change": None,
            "configuration": self.configuration.digest(),
            "count": 0,
            "executed_height": 1,
            "format": FORMAT,
            "height": self.height,
            "history_root": merkle.root_of(LEAVES),
            "parent": b"p" * 32,
            "proof": None,
            "proposer": next(iter(self.configuration.voters)),
            "state_root": STATE_ROOT,
            "term": 7,
            "time": 1_234,
            "tx_root": tx_root([]),
        }
        return Header(**(fields | changed))

    def seal(self, signers: Sequence[str] | None = None, chain: bytes = CHAIN, **changed: Any) -> Seal:
        """Of the next block, under the configuration as it is."""
        header = self.header(**({"chain": chain} | changed))
        block = seal_block(header, [], node_key(header.proposer))
        signatures = [
            (name, sign_acknowledgement(node_key(name), chain, header.term, header.height, block.hash))
            for name in (quorums(self.configuration) if signers is None else signers)
        ]
        certificate = make_certificate(header.term, header.height, block.hash, signatures)
        return Seal(certificate=certificate.encode(), header=block.header_data, signature=block.signature)

    def step(self, change: Change, signers: Sequence[str] | None = None, **changed: Any) -> Step:
        """Blocks c and p. The step's certificate is c's."""
        self.configuration = configuration_after(self.configuration, change, leaves=False)
        made = Step(self.seal(signers, **({"change": change} | changed)), self.configuration.voters)
        self.configuration = configuration_after(self.configuration, None, leaves=True)
        self.height += 2
        self.steps.append(made)
        return made

    def promote(self, node: str, signers: Sequence[str] | None = None, **changed: Any) -> Step:
        learners = sorted({*self.configuration.learners, node})
        self.configuration = msgspec.structs.replace(self.configuration, learners=learners)
        return self.step(with_voter(self.configuration, node, node_key(node).public), signers, **changed)

    def remove(self, node: str, signers: Sequence[str] | None = None, **changed: Any) -> Step:
        return self.step(without(self.configuration, node), signers, **changed)


def receipt(seal: Seal, steps: Sequence[Step]) -> bytes:
    path = merkle.inclusion_path(LEAVES, 1)
    return make_receipt(seal, steps, LEAVES[1], path, RESULT, [], 0)


def two_steps() -> Reign:
    reign = Reign()
    reign.promote("x-1")
    reign.remove("north-1")
    return reign


def refusal(seal: Seal, steps: Sequence[Step]) -> str:
    """The code, which is the same for a receipt and for a state answer."""
    answer = make_state_answer(seal, steps, "a", b"1", state_tree.prove(PAGES.get, "a"))
    codes = set()
    for verify, data in ((verify_receipt, receipt(seal, steps)), (verify_state_answer, answer)):
        with pytest.raises(Rejection) as caught:
            verify(data, GENESIS)
        codes.add(caught.value.code)
    (code,) = codes
    return code


def test_a_receipt_leads_from_genesis_over_every_step() -> None:
    reign = Reign()
    for number, move in enumerate((reign.promote, reign.promote, reign.remove, reign.remove)):
        move(("x-1", "x-2", "north-1", "x-1")[number])
        verified = verify_receipt(receipt(reign.seal(), reign.steps), GENESIS)
        assert (verified.id, verified.seal.certified_height) == (RESULT.id, reign.height)
        assert verified.seal.steps == number + 1


def test_a_state_answer_does_too() -> None:
    reign = two_steps()
    answer = make_state_answer(reign.seal(), reign.steps, "a", b"1", state_tree.prove(PAGES.get, "a"))
    assert verify_state_answer(answer, GENESIS).value == b"1"


def test_a_leader_that_removed_itself_may_have_proposed_the_seal() -> None:
    reign = two_steps()
    verify_receipt(receipt(reign.seal(proposer="north-1"), reign.steps), GENESIS)
    reign.promote("x-2")
    assert refusal(reign.seal(proposer="north-1"), reign.steps) == "bad_seal"


def test_no_bit_of_a_receipt_with_two_steps_is_free() -> None:
    reign = two_steps()
    data = receipt(reign.seal(), reign.steps)
    verify_receipt(data, GENESIS)
    for mutated in mutations(data):
        with pytest.raises(Rejection):
            verify_receipt(mutated, GENESIS)


def rearranged() -> dict[str, tuple[Seal, list[Step], str]]:
    """What somebody who holds true receipts could put together."""
    true, other = two_steps(), two_steps()
    seal = true.seal()
    first, second = true.steps
    # A step of a chain whose genesis has the same voters.
    swapped = msgspec.structs.replace(first, voters={**first.voters, "x-1": node_key("x-2").public})
    return {
        "no steps": (seal, [], "bad_seal"),
        "the first left out": (seal, [second], "bad_step"),
        "the last left out": (seal, [first], "bad_seal"),
        "out of order": (seal, [second, first], "bad_step"),
        "twice": (seal, [first, first, second], "bad_step"),
        "one too many": (Reign().seal(), [first], "bad_seal"),
        "the voters before": (Reign(height=9).seal(), [first, second], "bad_seal"),
        "the seal of a joint block": (second.seal, [first], "bad_seal"),
        "a seal at the step": (Reign(true.configuration, [], 4).seal(), [first, second], "bad_seal"),
        "a seal below the step": (Reign(true.configuration, [], 3).seal(), [first, second], "bad_seal"),
        "voters not those of the step": (other.seal(), [swapped, second], "bad_step"),
    }


def voters_with(reign: Reign, *nodes: str) -> dict[str, bytes]:
    added = {node: node_key(node).public for node in nodes}
    return dict(sorted({**reign.configuration.voters, **added}.items()))


def swap(reign: Reign, old: dict[str, bytes], new: dict[str, bytes]) -> None:
    """What all voters, old and new, could only do together against the rules."""
    reign.configuration = Configuration([], None, old, reign.configuration.steps, new)
    step = Step(reign.seal(sorted({*old, *new})), new)
    reign.configuration = Configuration([], None, None, reign.configuration.steps + 1, new)
    reign.height += 2
    reign.steps.append(step)


def two_at_once(reign: Reign) -> None:
    old = reign.configuration.voters
    new = voters_with(reign, "x-1", "x-2")
    swap(reign, old, new)


def keys_swapped(reign: Reign) -> None:
    old = reign.configuration.voters
    swap(reign, old, {**voters_with(reign, "x-1"), NORTH: old[SOUTH], SOUTH: old[NORTH]})


def one_for_another(reign: Reign) -> None:
    old = reign.configuration.voters
    swap(reign, old, {name: key for name, key in voters_with(reign, "x-1").items() if name != NORTH})


def nobody_changes(reign: Reign) -> None:
    swap(reign, reign.configuration.voters, reign.configuration.voters)


def descending(reign: Reign) -> None:
    reign.promote("x-1")
    reign.height = 2
    reign.remove(NORTH)


def only_the_new(reign: Reign) -> None:
    # Two are a quorum of the three that remain, and none of the four that there were.
    reign.promote("x-1")
    reign.remove(NORTH, [SOUTH, WEST])


def not_joint(reign: Reign) -> None:
    # A true block of the new voters, which says nothing of where they come from.
    configuration = Configuration([], None, None, 0, voters_with(reign, "x-1"))
    reign.promote("x-1", configuration=configuration.digest())


def of_another_number(reign: Reign) -> None:
    # The number of the step is under its certificate.
    configuration = Configuration([], None, reign.configuration.voters, 1, voters_with(reign, "x-1"))
    reign.promote("x-1", configuration=configuration.digest())


# What some of the voters could put together, or all of them against the rules; each is a "bad_step".
SIGNED: dict[str, Callable[[Reign], object]] = {
    # Two of three old voters are a quorum of them, and two of four new ones are none.
    "the old voters alone": lambda reign: reign.promote("x-1", [NORTH, SOUTH]),
    "a minority": lambda reign: reign.promote("x-1", ["x-1", NORTH]),
    "the new voters alone": only_the_new,
    "nobody": lambda reign: reign.promote("x-1", []),
    "a stranger signs too": lambda reign: reign.promote("x-1", [NORTH, SOUTH, WEST, "x-2"]),
    "a stranger proposes": lambda reign: reign.promote("x-1", proposer="x-2"),
    "of another network": lambda reign: reign.promote("x-1", chain=b"x" * 32),
    "of another configuration": lambda reign: reign.promote("x-1", configuration=bytes(32)),
    "not joint": not_joint,
    "of another number": of_another_number,
    "two voters at once": two_at_once,
    "keys swapped": keys_swapped,
    "one voter for another": one_for_another,
    "nobody changes": nobody_changes,
    "heights do not ascend": descending,
}


def forged() -> dict[str, tuple[Seal, list[Step], str]]:
    found = rearranged()
    for name, make in SIGNED.items():
        reign = Reign()
        make(reign)
        found[name] = (reign.seal(), reign.steps, "bad_step")
    return found


@pytest.mark.parametrize("name", forged())
def test_forged_steps_are_refused(name: str) -> None:
    seal, steps, code = forged()[name]
    assert refusal(seal, steps) == code


def test_the_same_voters_again_are_not_the_same_configuration() -> None:
    """Else the steps between could be left out, and an old seal shown as a new one."""
    reign = Reign()
    before = reign.seal()
    reign.promote("x-1")
    reign.remove("x-1")
    assert reign.configuration.voters == GENESIS.configuration().voters
    verify_receipt(receipt(reign.seal(), reign.steps), GENESIS)
    assert refusal(reign.seal(), []) == "bad_seal"
    assert refusal(before, reign.steps) == "bad_seal"


def test_steps_that_were_verified_are_still_those_of_one_network() -> None:
    """Even where the other has the same voters."""
    other = make_genesis("another")
    assert other.configuration() == GENESIS.configuration()
    reign = two_steps()
    verify_receipt(receipt(reign.seal(), reign.steps), GENESIS)
    with pytest.raises(Rejection, match="bad_step"):
        verify_receipt(receipt(reign.seal(chain=other.chain_id()), reign.steps), other)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.sampled_from(EVERYONE), max_size=8), st.data())
def test_any_walk_verifies_and_no_other_selection_of_its_steps_does(walk: list[str], data: st.DataObject) -> None:
    reign = Reign()
    for node in walk:
        if node not in reign.configuration.voters:
            reign.promote(node)
        elif len(reign.configuration.voters) > 1:
            reign.remove(node)
    seal = reign.seal()
    assert verify_receipt(receipt(seal, reign.steps), GENESIS).seal.steps == len(reign.steps)
    chosen = data.draw(st.lists(st.sampled_from(range(len(walk) or 1)), max_size=len(walk) + 1))
    selection = [reign.steps[index] for index in chosen if index < len(reign.steps)]
    if selection != reign.steps:
        assert refusal(seal, selection) in {"bad_seal", "bad_step"}


def test_the_largest_step_fits() -> None:
    names = [f"{number:02}".rjust(32, "n") for number in range(VOTERS_MAX)]
    keys = {name: node_key(name).public for name in names}
    learners = [name.replace("n", "l") for name in names]
    configuration = Configuration(learners, None, {name: keys[name] for name in names[:-1]}, 1023, keys)
    reign = Reign(configuration=configuration, height=2**53)
    change = Change(learners, keys)
    big = 2**53
    seal = reign.seal(names, change=change, term=big, time=big, executed_height=big - 1, count=10_000)
    assert len(encode(Step(seal, keys))) <= STEP_BYTES_MAX
    assert decode_header(seal.header).change == change
    # And a block that carries the certificate of all of them.
    leaving = reign.header(proof=seal.certificate, term=big, time=big, executed_height=big - 1, count=10_000)
    assert decode_header(leaving.encode()).proof == seal.certificate
    assert len(leaving.encode()) <= HEADER_BYTES_MAX
    assert len(seal.certificate) <= CERTIFICATE_BYTES_MAX
    assert block_hash(seal.header) != block_hash(leaving.encode())
