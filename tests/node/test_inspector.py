"""Each rule by which a block from elsewhere is refused, alone: what it is, and the reason that the leader is told."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from consensus.messages import Configuration, Entry, Reason
from ledger.block import Block, seal_block
from ledger.encoding import encode
from ledger.genesis import Genesis, Parameters
from ledger.keys import SigningKey, sha256
from ledger.membership import Change as MembershipChange
from ledger.transaction import Transaction, decode_transaction
from node.comparison import Holdings
from node.evidence import Witness
from node.inspector import BLOCK_OVERHEAD_BYTES, BlockRefusedError, Inspector, Parent, Roots
from node.membership import Place
from tests.fakes.disk import PowerLossDisk
from tests.ledger.founding import GENESIS, NOW_MS, VOTERS, make_genesis
from tests.node.tampering import entry_of, resealed
from tests.storage.chains import Chain, doctor, node_key

SKEW_MS = 30_000
LEADER = VOTERS[0]
OTHER = b"\x01" * 32

Change = Callable[[Block], Entry]


class Desk:
    """An inspector at genesis, a good block of height 1, and what the witness was told."""

    def __init__(self, genesis: Genesis = GENESIS) -> None:
        self.chain = Chain(PowerLossDisk())
        roots = self.chain.store.roots(0)
        self.roots = Roots(roots.history, roots.state)
        configuration = GENESIS.configuration()
        self.parent = Parent(GENESIS.time, 0, self.roots, Place(0, configuration), configuration.digest())
        self.voted: MembershipChange | None = None
        self.good = self.chain.seal(doctor(), doctor())
        self.evidence: list[str] = []
        self.known: dict[bytes, Transaction] = {}
        self.executed: dict[int, Roots] = {0: self.roots}
        self.now_ms = NOW_MS
        self.inspector = Inspector(
            genesis,
            Witness(lambda kind, node, proof: self.evidence.append(node), Holdings((), lambda node, vote: None)),
            voted=lambda height, configuration: self.voted,
            known=lambda name: self.known.get(name),
            roots_at=lambda height: self.executed.get(height),
            now_ms=lambda: self.now_ms,
            clock_skew_ms=SKEW_MS,
        )

    def inspect(self, entry: Entry, *, certified: bool = False) -> Block:
        return self.inspector.inspect(entry, self.parent, certified=certified)

    def refusal(self, entry: Entry, *, certified: bool = False) -> tuple[Reason, str]:
        with pytest.raises(BlockRefusedError) as caught:
            self.inspect(entry, certified=certified)
        return caught.value.reason, str(caught.value)


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_the_good_block_passes(desk: Desk) -> None:
    """Each row below differs from it in one thing."""
    assert desk.inspect(entry_of(desk.good)) == desk.good
    assert desk.inspect(entry_of(desk.good), certified=True) == desk.good


def header_with(**changes: Any) -> Change:
    """Sealed again by its leader, and the entry says what the header says."""
    return lambda block: entry_of(resealed(block, node_key(LEADER), **changes))


def entry_with(**changes: Any) -> Change:
    """The good block in an entry that says something else."""
    return lambda block: replace(entry_of(block), **changes)


def unlike_its_entry(**changes: Any) -> Change:
    """A header that is not what the entry says, under the entry's hash of it."""

    def make(block: Block) -> Entry:
        other = resealed(block, node_key(LEADER), **changes)
        return replace(entry_of(block), data=other.data, hash=other.hash)

    return make


def transactions_with(change: Callable[[Transaction], Transaction]) -> Change:
    def make(block: Block) -> Entry:
        first, second = block.transactions
        return entry_of(resealed(block, node_key(LEADER), [first, change(second)]))

    return make


def forged(transaction: Transaction) -> Transaction:
    """Its bytes under a signature that does not verify."""
    body = encode(transaction.envelope)
    return decode_transaction(encode({"body": body, "signature": transaction.signature[::-1]}))


def of_another_chain(transaction: Transaction) -> Transaction:
    envelope = msgspec.structs.replace(transaction.envelope, chain=make_genesis("another").chain_id())
    body = encode(envelope)
    return decode_transaction(encode({"body": body, "signature": transaction.signature}))


def raw(change: Callable[[Block], bytes]) -> Change:
    return lambda block: replace(entry_of(block), data=change(block))


def miscounted(block: Block) -> bytes:
    """A header that names other transactions than those beside it."""
    return seal_block(block.header, list(block.transactions[:1]), node_key(LEADER)).data


def with_the_same_twice(block: Block) -> bytes:
    first = block.transactions[0]
    return resealed(block, node_key(LEADER), [first, first]).data


def with_an_unsigned_transaction(block: Block) -> bytes:
    unsigned = encode({"body": encode(block.transactions[0].envelope)})
    value = {"header": block.header_data, "signature": block.signature, "transactions": [unsigned]}
    return encode(value)


STRUCTURE: dict[str, tuple[Change, str]] = {
    "another chain": (header_with(chain=OTHER), "another chain"),
    "another hash": (entry_with(hash=OTHER), "its hash"),
    "another height": (unlike_its_entry(height=2), "its height"),
    "another term": (unlike_its_entry(term=2), "its term"),
    "another parent": (unlike_its_entry(parent=OTHER), "its parent"),
    "other members than its header": (entry_with(configuration=Configuration(("a",))), "other members"),
    "another configuration": (header_with(configuration=OTHER), "another configuration"),
    "an unknown proposer": (header_with(proposer="nobody"), "no voter"),
    "a proposer that only learns": (header_with(proposer="zone-1"), "no voter"),
    "the time of its parent": (header_with(time=GENESIS.time), "not after its parent's"),
    "a time before its parent": (header_with(time=0), "not after its parent's"),
    "an executed height not below its own": (header_with(executed_height=1), "bad_block"),
    "another header format": (header_with(format=1), "unknown_format"),
    "no MessagePack": (raw(lambda block: b"\xc1"), "not_canonical"),
    "a trailing byte": (raw(lambda block: block.data + b"\x00"), "not_canonical"),
    "a field too many": (raw(lambda block: encode({"header": b"", "more": 1})), "bad_structure"),
    "other transactions than its root": (raw(miscounted), "bad_block"),
    "the same signed bytes twice": (raw(with_the_same_twice), "bad_block"),
    "an unsigned transaction": (raw(with_an_unsigned_transaction), "unsigned"),
    "more bytes than a block has": (
        raw(lambda block: bytes(GENESIS.parameters.block_bytes_max + BLOCK_OVERHEAD_BYTES + 1)),
        "too_large",
    ),
}


@pytest.mark.parametrize("certified", [False, True])
@pytest.mark.parametrize("name", STRUCTURE)
def test_bad_structure(desk: Desk, name: str, certified: bool) -> None:
    change, sentence = STRUCTURE[name]
    reason, detail = desk.refusal(change(desk.good), certified=certified)
    assert reason is Reason.BAD_STRUCTURE
    assert sentence in detail


def test_too_many_transactions() -> None:
    limited = msgspec.structs.replace(GENESIS, parameters=Parameters(block_transactions_max=1))
    desk = Desk(limited)
    block = resealed(desk.good, node_key(LEADER), chain=limited.chain_id())
    assert desk.refusal(entry_of(block)) == (Reason.BAD_STRUCTURE, "block 1: it has too many transactions")


def test_an_executed_height_that_falls(desk: Desk) -> None:
    desk.parent = replace(desk.parent, executed_height=1)
    block = resealed(desk.good, node_key(LEADER), height=3)
    reason, detail = desk.refusal(entry_of(block))
    assert (reason, "executed_height falls" in detail) == (Reason.BAD_STRUCTURE, True)


@pytest.mark.parametrize(
    "change",
    [
        lambda block: entry_of(resealed(block, node_key(VOTERS[1]))),
        lambda block: entry_of(resealed(block, node_key(LEADER), proposer=VOTERS[1])),
        lambda block: entry_of(resealed(block, SigningKey(sha256(b"stranger")))),
        transactions_with(forged),
        transactions_with(of_another_chain),
    ],
    ids=["another voter's", "in another's name", "a stranger's", "a forged transaction", "one of another chain"],
)
def test_bad_signature(desk: Desk, change: Change) -> None:
    for certified in (False, True):
        reason, _ = desk.refusal(change(desk.good), certified=certified)
        assert reason is Reason.BAD_SIGNATURE


def test_what_was_checked_before_is_not_checked_again(desk: Desk) -> None:
    """By the hash of the signed bytes, so that nothing else passes for it."""
    bad = forged(desk.good.transactions[1])
    entry = entry_of(resealed(desk.good, node_key(LEADER), [desk.good.transactions[0], bad]))
    desk.known[bad.hash] = bad
    assert desk.inspect(entry).transactions[1] is bad
    del desk.known[bad.hash]
    assert desk.refusal(entry)[0] is Reason.BAD_SIGNATURE


@pytest.mark.parametrize("root", ["history_root", "state_root"])
def test_bad_roots(desk: Desk, root: str) -> None:
    entry = header_with(**{root: OTHER})(desk.good)
    for certified in (False, True):
        reason, _ = desk.refusal(entry, certified=certified)
        assert reason is Reason.BAD_ROOTS


def test_roots_that_this_node_cannot_know_yet(desk: Desk) -> None:
    """They are compared when the block is executed (storage.executed.Divergence)."""
    desk.executed.clear()
    assert desk.inspect(header_with(state_root=OTHER)(desk.good)).header.state_root == OTHER


@pytest.mark.parametrize(("ahead_ms", "refused"), [(SKEW_MS, False), (SKEW_MS + 1, True)])
def test_bad_time(desk: Desk, ahead_ms: int, refused: bool) -> None:
    """A certified block is not judged by this node's clock: a quorum has."""
    entry = header_with(time=NOW_MS + ahead_ms)(desk.good)
    desk.inspect(entry, certified=True)
    if refused:
        assert desk.refusal(entry)[0] is Reason.BAD_TIME
    else:
        desk.inspect(entry)


def test_the_time_right_after_a_parent_far_ahead(desk: Desk) -> None:
    """Nothing earlier is possible, so that it is no reason to refuse; a millisecond more is."""
    desk.parent = replace(desk.parent, time_ms=NOW_MS + 3_600_000)
    desk.inspect(header_with(time=NOW_MS + 3_600_001)(desk.good))
    assert desk.refusal(header_with(time=NOW_MS + 3_600_002)(desk.good))[0] is Reason.BAD_TIME


@pytest.mark.parametrize(("off_ms", "agrees"), [(0, True), (SKEW_MS, True), (SKEW_MS + 1, False)])
def test_clocks_agree_within_the_skew(desk: Desk, off_ms: int, agrees: bool) -> None:
    assert desk.inspector.clock_agrees(NOW_MS + off_ms) == agrees
    assert desk.inspector.clock_agrees(NOW_MS - off_ms) == agrees


def test_two_blocks_of_one_height_are_witnessed_even_where_the_second_is_refused(desk: Desk) -> None:
    desk.inspect(entry_of(desk.good))
    desk.refusal(header_with(state_root=OTHER)(desk.good))
    assert desk.evidence == [LEADER]


def test_a_header_that_nobody_signed_is_no_evidence(desk: Desk) -> None:
    desk.inspect(entry_of(desk.good))
    desk.refusal(entry_of(resealed(desk.good, node_key(VOTERS[1]), state_root=OTHER)))
    desk.refusal(header_with(proposer="nobody")(desk.good))
    assert desk.evidence == []
