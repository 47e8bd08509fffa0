"""Receipts and state answers: true ones verify with genesis alone, and nothing else does."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest

from ledger import merkle, state_tree
from ledger.block import FORMAT as BLOCK_FORMAT
from ledger.block import Header, block_hash, seal_block, tx_root
from ledger.encoding import decode, encode
from ledger.errors import Rejection
from ledger.execution import TxResult, history_leaf, results_root
from ledger.finality import Seal, make_certificate, sign_acknowledgement
from ledger.genesis import Genesis
from ledger.keys import sha256
from ledger.receipt import (
    RECEIPT_BYTES_MAX,
    STATE_ANSWER_BYTES_MAX,
    make_receipt,
    make_state_answer,
    verify_receipt,
    verify_state_answer,
)
from ledger.state_tree import OtherLeaf, StateProof, tree_key
from tests.ledger.founding import CHAIN, GENESIS, VOTERS, make_genesis, node_key

NODE_KEYS = {node.id: node_key(node.id) for node in GENESIS.nodes}
LEARNER = "zone-1"
STATE = {f"records/record/{number:02x}": b"value %d" % number for number in range(24)}
PRESENT, ABSENT = "records/record/05", "records/record/ff"


@dataclass
class Chain:
    """The history of a few executed blocks and a state, with the seals that a test asks for."""

    leaves: list[bytes] = field(default_factory=list)
    results: list[list[TxResult]] = field(default_factory=list)
    nodes: dict[tuple[int, int], bytes] = field(default_factory=dict)
    pages: dict[bytes, state_tree.Page] = field(default_factory=dict)

    def get(self, level: int, index: int) -> bytes | None:
        return self.nodes.get((level, index))

    def execute(self, block: bytes, results: list[TxResult]) -> None:
        leaf = history_leaf(block, len(self.leaves), len(results), results_root(results))
        self.nodes.update(merkle.append(len(self.leaves), merkle.leaf_hash(leaf), self))
        self.leaves.append(leaf)
        self.results.append(results)

    def header(self, **changed: Any) -> Header:
        """The header of the next block, which carries the roots of now."""
        size = len(self.leaves)
        fields = {
            "chain": CHAIN,
            "change": None,
            "configuration": GENESIS.configuration().digest(),
            "count": 0,
            "executed_height": size - 1,
            "format": BLOCK_FORMAT,
            "height": size,
            "history_root": merkle.root(size, self),
            "parent": b"p" * 32,
            "proof": None,
            "proposer": VOTERS[0],
            "state_root": state_tree.root(self.pages.get),
            "term": 7,
            "time": 1_234,
            "tx_root": tx_root([]),
        }
        return Header(**(fields | changed))

    def receipt(self, height: int, index: int, seal: Seal) -> bytes:
        path = merkle.path(height, len(self.leaves), self)
        results = self.results[height]
        result_path = merkle.inclusion_path([item.encode() for item in results], index)
        return make_receipt(seal, [], self.leaves[height], path, results[index], result_path, index)

    def answer(self, key: str, seal: Seal) -> bytes:
        return make_state_answer(seal, [], key, STATE.get(key), state_tree.prove(self.pages.get, key))


def result(number: int, code: str = "ok") -> TxResult:
    return TxResult(code=code, envelope=sha256(b"envelope", bytes([number])), id=sha256(b"id", bytes([number])))


def make_seal(
    header: Header,
    *,
    signers: tuple[str, ...] = VOTERS[:2],
    proposer: str | None = None,
    certified: Callable[[Header], tuple[int, int, bytes]] = lambda header: (
        header.term,
        header.height,
        block_hash(header.encode()),
    ),
    chain: bytes = CHAIN,
) -> Seal:
    """A seal of `header`; each argument is one thing that a forger could do differently."""
    block = seal_block(header, [], NODE_KEYS[proposer or header.proposer])
    term, height, digest = certified(header)
    signatures = [(name, sign_acknowledgement(NODE_KEYS[name], chain, term, height, digest)) for name in signers]
    certificate = make_certificate(term, height, digest, signatures)
    return Seal(certificate=certificate.encode(), header=block.header_data, signature=block.signature)


@pytest.fixture(scope="module")
def chain() -> Chain:
    chain = Chain()
    _, pages = state_tree.update(chain.pages.get, STATE)
    chain.pages.update({path: page for path, page in pages.items() if page is not None})
    chain.execute(CHAIN, [])
    chain.execute(b"1" * 32, [result(1), result(2, "key_in_use"), result(3)])
    chain.execute(b"2" * 32, [])
    chain.execute(b"3" * 32, [result(4)])
    return chain


@pytest.fixture(scope="module")
def seal(chain: Chain) -> Seal:
    return make_seal(chain.header())


def refusal(verify: Callable[[bytes, Genesis], object], data: bytes, genesis: Genesis = GENESIS) -> str:
    with pytest.raises(Rejection) as caught:
        verify(data, genesis)
    return caught.value.code


def mutations(data: bytes) -> Iterator[bytes]:
    for bit in range(len(data) * 8):
        mutated = bytearray(data)
        mutated[bit // 8] ^= 1 << bit % 8
        yield bytes(mutated)


def test_a_receipt_tells_what_became_of_a_transaction(chain: Chain, seal: Seal) -> None:
    for height, results in enumerate(chain.results):
        for index, expected in enumerate(results):
            verified = verify_receipt(chain.receipt(height, index, seal), GENESIS)
            assert (verified.id, verified.envelope, verified.code) == (
                expected.id,
                expected.envelope,
                expected.code,
            )
            assert (verified.height, verified.index, verified.block) == (height, index, b"%d" % height * 32)
            assert verified.seal.sealed_height == 3
            assert (verified.seal.certified_height, verified.seal.certified_term) == (4, 7)
            assert verified.seal.certified_time_ms == 1_234


def test_a_state_answer_tells_presence_and_absence(chain: Chain, seal: Seal) -> None:
    for key in (PRESENT, ABSENT):
        verified = verify_state_answer(chain.answer(key, seal), GENESIS)
        assert (verified.key, verified.value) == (key, STATE.get(key))
        assert verified.seal.sealed_height == 3
        assert verified.seal.state_root == state_tree.root(chain.pages.get)


def test_no_bit_of_a_receipt_is_free(chain: Chain, seal: Seal) -> None:
    data = chain.receipt(1, 1, seal)
    for mutated in mutations(data):
        with pytest.raises(Rejection):
            verify_receipt(mutated, GENESIS)


def test_no_bit_of_a_state_answer_is_free(chain: Chain, seal: Seal) -> None:
    absent_by_place = next(
        key
        for key in (f"absent/{number}" for number in range(1_000))
        if state_tree.prove(chain.pages.get, key).other is None
    )
    absent_by_leaf = next(
        key
        for key in (f"absent/{number}" for number in range(1_000))
        if state_tree.prove(chain.pages.get, key).other is not None
    )
    for key in (PRESENT, absent_by_place, absent_by_leaf):
        data = chain.answer(key, seal)
        verify_state_answer(data, GENESIS)
        for mutated in mutations(data):
            try:
                verified = verify_state_answer(mutated, GENESIS)
            except Rejection:
                continue
            # One place proves every key absent that would be there: another question, and its true answer.
            assert key != PRESENT
            assert verified.key != key
            assert verified.key not in STATE
            assert verified.value is None


def test_cut_and_lengthened_receipts_are_refused(chain: Chain, seal: Seal) -> None:
    data = chain.receipt(3, 0, seal)
    for length in range(len(data)):
        assert refusal(verify_receipt, data[:length]) == "not_canonical"
    assert refusal(verify_receipt, data + b"\0") == "not_canonical"
    assert refusal(verify_receipt, bytes(RECEIPT_BYTES_MAX + 1)) == "too_large"
    assert refusal(verify_state_answer, bytes(STATE_ANSWER_BYTES_MAX + 1)) == "too_large"


def test_another_network_does_not_accept_it(chain: Chain, seal: Seal) -> None:
    other = make_genesis("another")
    assert refusal(verify_receipt, chain.receipt(1, 0, seal), other) == "wrong_chain"
    assert refusal(verify_state_answer, chain.answer(PRESENT, seal), other) == "wrong_chain"


def forged_seals(chain: Chain) -> dict[str, tuple[Seal, str]]:
    """What a minority of voters, or one that holds old signatures, could put together."""
    header = chain.header()
    good = make_seal(header)
    other = make_seal(chain.header(time=9_999))
    digest = block_hash(header.encode())
    return {
        "a minority": (make_seal(header, signers=VOTERS[:1]), "bad_certificate"),
        "nobody": (make_seal(header, signers=()), "bad_certificate"),
        "a learner helps": (make_seal(header, signers=(VOTERS[0], LEARNER)), "bad_certificate"),
        "acknowledged elsewhere": (make_seal(header, chain=b"x" * 32), "bad_certificate"),
        "another block's certificate": (
            msgspec.structs.replace(good, certificate=other.certificate),
            "bad_seal",
        ),
        "another height": (make_seal(header, certified=lambda h: (h.term, h.height + 1, digest)), "bad_seal"),
        "another term": (make_seal(header, certified=lambda h: (h.term + 1, h.height, digest)), "bad_seal"),
        "a learner proposes": (make_seal(chain.header(proposer=LEARNER)), "bad_seal"),
        "a stranger proposes": (make_seal(chain.header(proposer="x"), proposer=LEARNER), "bad_seal"),
        "another voter signed": (make_seal(header, proposer=VOTERS[1]), "bad_seal"),
        "another header's signature": (msgspec.structs.replace(good, signature=other.signature), "bad_seal"),
        "another configuration": (make_seal(chain.header(configuration=b"k" * 32)), "bad_seal"),
        "another chain in the header": (make_seal(chain.header(chain=b"x" * 32)), "wrong_chain"),
        "a later header format": (make_seal(chain.header(format=3)), "unknown_format"),
        "roots of its own height": (make_seal(chain.header(executed_height=4)), "bad_block"),
    }


def test_forged_seals_are_refused(chain: Chain) -> None:
    for name, (forged, code) in forged_seals(chain).items():
        answer = make_state_answer(forged, [], PRESENT, STATE[PRESENT], state_tree.prove(chain.pages.get, PRESENT))
        assert (name, refusal(verify_state_answer, answer)) == (name, code)
        # A receipt's own paths are checked before the seal, and hang from the executed height.
        if code != "bad_block":
            assert (name, refusal(verify_receipt, chain.receipt(1, 0, forged))) == (name, code)


def changed(data: bytes, change: Callable[[Any], None]) -> bytes:
    value = decode(data, RECEIPT_BYTES_MAX)
    change(value)
    return encode(value)


RECEIPT_CHANGES: dict[str, tuple[Callable[[Any], None], str]] = {
    "code": (lambda r: r["result"].update(code="ok"), "bad_receipt"),
    "id": (lambda r: r["result"].update(id=bytes(32)), "bad_receipt"),
    "index": (lambda r: r.update(index=0), "bad_receipt"),
    "index beyond": (lambda r: r.update(index=3), "bad_receipt"),
    "count": (lambda r: r["leaf"].update(count=4), "bad_receipt"),
    "height": (lambda r: r["leaf"].update(height=2), "bad_receipt"),
    "height beyond": (lambda r: r["leaf"].update(height=4), "bad_receipt"),
    "longer result path": (lambda r: r["result_path"].append(bytes(32)), "bad_receipt"),
    "shorter result path": (lambda r: r["result_path"].pop(), "bad_receipt"),
    "longer history path": (lambda r: r["history_path"].append(bytes(32)), "bad_receipt"),
    "shorter history path": (lambda r: r["history_path"].pop(), "bad_receipt"),
    "endless path": (lambda r: r["result_path"].extend([bytes(32)] * 65), "bad_structure"),
    "later format": (lambda r: r.update(format=3), "unknown_format"),
    "extra field": (lambda r: r.update(note="x"), "bad_structure"),
    "missing field": (lambda r: r.pop("index"), "bad_structure"),
    "negative index": (lambda r: r.update(index=-1), "bad_structure"),
    "text for bytes": (lambda r: r["result"].update(id="A" * 43 + "="), "bad_structure"),
}


@pytest.mark.parametrize("name", RECEIPT_CHANGES)
def test_changed_receipts_are_refused(name: str, chain: Chain, seal: Seal) -> None:
    change, code = RECEIPT_CHANGES[name]
    assert refusal(verify_receipt, changed(chain.receipt(1, 1, seal), change)) == code


def hide(answer: Any) -> None:
    answer["value"] = None


def hide_behind_another(answer: Any) -> None:
    answer["value"] = None
    answer["proof"]["other"] = {"key_hash": tree_key(ABSENT), "value_hash": bytes(32)}


ANSWER_CHANGES: dict[str, tuple[Callable[[Any], None], str]] = {
    "value": (lambda a: a.update(value=b"value 6"), "bad_state_answer"),
    "no value": (hide, "bad_state_answer"),
    "no value, by another leaf": (hide_behind_another, "bad_state_answer"),
    "key": (lambda a: a.update(key="records/record/06"), "bad_state_answer"),
    "longer proof": (lambda a: a["proof"]["siblings"].append(bytes(32)), "bad_state_answer"),
    "shorter proof": (lambda a: a["proof"]["siblings"].pop(), "bad_state_answer"),
    "endless proof": (lambda a: a["proof"]["siblings"].extend([bytes(32)] * 257), "bad_structure"),
    "later format": (lambda a: a.update(format=3), "unknown_format"),
    "extra field": (lambda a: a["proof"].update(note="x"), "bad_structure"),
    "text for bytes": (lambda a: a.update(value="dmFsdWUgNQ=="), "bad_structure"),
}


@pytest.mark.parametrize("name", ANSWER_CHANGES)
def test_changed_state_answers_are_refused(name: str, chain: Chain, seal: Seal) -> None:
    change, code = ANSWER_CHANGES[name]
    assert refusal(verify_state_answer, changed(chain.answer(PRESENT, seal), change)) == code


def test_a_present_value_may_be_empty_but_is_not_absent(seal: Seal) -> None:
    chain = Chain()
    chain.execute(CHAIN, [])
    _, pages = state_tree.update(chain.pages.get, {"a": b"", "b": b"1"})
    chain.pages.update({path: page for path, page in pages.items() if page is not None})
    own = make_seal(chain.header())
    proof = state_tree.prove(chain.pages.get, "a")
    assert verify_state_answer(make_state_answer(own, [], "a", b"", proof), GENESIS).value == b""
    assert refusal(verify_state_answer, make_state_answer(own, [], "a", None, proof)) == "bad_state_answer"
    assert refusal(verify_state_answer, make_state_answer(seal, [], "a", b"", proof)) == "bad_state_answer"


def test_absence_takes_no_leaf_of_the_key_itself(chain: Chain, seal: Seal) -> None:
    proof = state_tree.prove(chain.pages.get, PRESENT)
    itself = OtherLeaf(tree_key(PRESENT), sha256(STATE[PRESENT]))
    answer = make_state_answer(seal, [], PRESENT, None, StateProof(itself, proof.siblings))
    assert refusal(verify_state_answer, answer) == "bad_state_answer"
