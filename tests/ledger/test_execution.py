"""Execution: the order of the checks, the window of ids, atomicity, and the same outcome everywhere."""

from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.block import BLOCK_HASH
from ledger.contracts import Action
from ledger.contracts.context import VALUE_BYTES_MAX, Context
from ledger.encoding import decode, encode
from ledger.errors import Rejection
from ledger.execution import (
    RESULT_BYTES_MAX,
    Outcome,
    TxResult,
    admit,
    decode_result,
    execute,
    history_leaf,
    results_root,
)
from ledger.keys import sha256
from ledger.transaction import UNTIL_AHEAD_MAX_MS, Transaction, decode_transaction
from tests.ledger.founding import (
    CHAIN,
    NOW_MS,
    Ledger,
    account_of,
    addition,
    amendment,
    registration,
    revocation,
    rotation,
    sign,
)


@pytest.fixture
def ledger() -> Ledger:
    ledger = Ledger()
    assert ledger.run(sign([registration("doctor", "clinician")], by="north-admin")) == ["ok"]
    return ledger


def add(record: str, *, by: str = "doctor", key: str | None = None, until: int = NOW_MS + 60_000) -> Transaction:
    return sign([addition(record)], by=by, key=key, bodies=[b"sealed"], until=until)


class TestWhoSigns:
    def test_nobody_knows_the_account(self, ledger: Ledger) -> None:
        assert ledger.run(add("r", by="stranger")) == ["unregistered"]
        assert ledger.run(add("r", by="stranger", key="doctor")) == ["unregistered"]

    def test_another_member_s_key(self, ledger: Ledger) -> None:
        assert ledger.run(add("r", key="north-admin")) == ["wrong_signer"]

    def test_a_rotated_key_between_admission_and_execution(self, ledger: Ledger) -> None:
        pooled = add("r")
        admit(pooled, ledger.get, ledger.time_ms)
        assert ledger.run(sign([rotation("doctor", "doctor-2", 1)], by="doctor"), pooled) == [
            "ok",
            "wrong_signer",
        ]
        with pytest.raises(Rejection, match="wrong_signer"):
            admit(add("s"), ledger.get, ledger.time_ms)
        admit(add("s", key="doctor-2"), ledger.get, ledger.time_ms)

    def test_a_revoked_member_between_admission_and_execution(self, ledger: Ledger) -> None:
        pooled = add("r")
        admit(pooled, ledger.get, ledger.time_ms)
        assert ledger.run(sign([revocation("doctor", 1)], by="north-admin")) == ["ok"]
        before = dict(ledger.state)
        assert ledger.run(pooled) == ["revoked"]
        assert ledger.state == before
        with pytest.raises(Rejection, match="revoked"):
            admit(add("s"), ledger.get, ledger.time_ms)

    def test_the_order_inside_a_block_decides(self, ledger: Ledger) -> None:
        assert ledger.run(add("r"), sign([revocation("doctor", 1)], by="north-admin"), add("s")) == [
            "ok",
            "ok",
            "revoked",
        ]

    def test_a_member_acts_in_the_block_that_registers_it(self, ledger: Ledger) -> None:
        assert ledger.run(sign([registration("nurse", "clinician")], by="north-admin"), add("r", by="nurse")) == [
            "ok",
            "ok",
        ]

    def test_admission_asks_the_same_as_execution(self, ledger: Ledger) -> None:
        at_ms = NOW_MS + 10
        refused = [
            add("a", by="stranger"),
            add("b", key="north-admin"),
            add("c", until=at_ms - 1),
            add("d", until=at_ms + UNTIL_AHEAD_MAX_MS + 1),
        ]
        for transaction in refused:
            with pytest.raises(Rejection) as caught:
                admit(transaction, ledger.get, at_ms)
            assert ledger.run(transaction, at_ms=at_ms) == [caught.value.code]


class TestOnce:
    def test_a_replay_in_the_same_block_and_in_a_later_one(self, ledger: Ledger) -> None:
        transaction = add("r")
        assert ledger.run(transaction, transaction) == ["ok", "duplicate"]
        before = dict(ledger.state)
        assert ledger.run(transaction) == ["duplicate"]
        assert ledger.state == before

    def test_another_signature_over_the_same_envelope_is_the_same_transaction(self, ledger: Ledger) -> None:
        transaction = add("r")
        body = decode(transaction.data, len(transaction.data))["body"]
        other = decode_transaction(encode({"body": body, "signature": b"\1" * 64}))
        first, second = ledger.block([transaction, other]).results
        assert (first.code, second.code) == ("ok", "duplicate")
        assert first.id == second.id
        assert first.envelope != second.envelope

    def test_a_failed_inclusion_counts_as_the_first(self, ledger: Ledger) -> None:
        transaction = add("r", by="nurse")
        registered = sign([registration("nurse", "clinician")], by="north-admin")
        assert ledger.run(transaction, registered, transaction) == ["unregistered", "ok", "duplicate"]
        assert ledger.run(transaction) == ["duplicate"]

    def test_at_every_later_time_it_is_a_duplicate_or_expired(self, ledger: Ledger) -> None:
        start_ms = ledger.time_ms + 1
        until = start_ms + UNTIL_AHEAD_MAX_MS
        transaction = add("r", until=until)
        assert ledger.run(transaction, at_ms=start_ms) == ["ok"]
        before = dict(ledger.state)
        for at_ms in (start_ms + 1, until - 1, until):
            assert ledger.run(transaction, at_ms=at_ms) == ["duplicate"]
        for at_ms in (until + 1, until + UNTIL_AHEAD_MAX_MS):
            assert ledger.run(transaction, at_ms=at_ms) == ["expired"]
        assert ledger.state == before

    def test_one_that_came_too_early_executes_once_when_its_time_comes(self, ledger: Ledger) -> None:
        """Were the early inclusion the one remembered, the window would have passed it before `until` did."""
        start_ms = ledger.time_ms + 1
        until = start_ms + UNTIL_AHEAD_MAX_MS + 100_000
        transaction = add("r", until=until)
        assert ledger.run(transaction, transaction, at_ms=start_ms) == ["until_too_far"] * 2
        assert ledger.run(transaction, at_ms=start_ms + UNTIL_AHEAD_MAX_MS + 1) == ["ok"]
        assert ledger.run(transaction, at_ms=until) == ["duplicate"]

    def test_the_time_is_asked_before_the_id_and_the_id_before_the_member(self, ledger: Ledger) -> None:
        transaction = add("r", until=NOW_MS + 100)
        assert ledger.run(transaction, sign([revocation("doctor", 1)], by="north-admin")) == ["ok", "ok"]
        assert ledger.run(transaction, at_ms=NOW_MS + 100) == ["duplicate"]
        assert ledger.run(transaction, at_ms=NOW_MS + 101) == ["expired"]

    def test_what_lies_beyond_the_window_is_not_asked_about(self) -> None:
        """A node that still knows an older inclusion decides as one that has forgotten it."""
        transaction = sign([registration("n", "patient")], by="north-admin")
        outcomes = []
        for included_ms in (None, NOW_MS - UNTIL_AHEAD_MAX_MS - 1):
            ledger = Ledger()
            if included_ms is not None:
                ledger.included[transaction.id] = included_ms
            outcomes.append(execute(NOW_MS, 1, [transaction], ledger))
        assert outcomes[0] == outcomes[1]
        ledger.included[transaction.id] = NOW_MS - UNTIL_AHEAD_MAX_MS
        assert execute(NOW_MS, 1, [transaction], ledger).results[0].code == "duplicate"


class TestOutcome:
    def test_an_empty_block_changes_nothing(self, ledger: Ledger) -> None:
        assert ledger.block([]) == Outcome((), {})
        assert results_root([]) == sha256(b"")

    def test_results_name_the_transactions_in_order(self, ledger: Ledger) -> None:
        transactions = [add("r"), add("r"), add("s")]
        outcome = ledger.block(transactions)
        assert outcome.results == (
            TxResult("ok", transactions[0].hash, transactions[0].id),
            TxResult("record_exists", transactions[1].hash, transactions[1].id),
            TxResult("ok", transactions[2].hash, transactions[2].id),
        )

    def test_writes_are_canonical_and_only_what_changed(self, ledger: Ledger) -> None:
        before = dict(ledger.state)
        outcome = ledger.block([add("r"), add("s"), add("r")])
        assert {key.split("/")[1] for key in outcome.writes} == {"record", "subject"}
        assert len(outcome.writes) == 3
        for key, value in outcome.writes.items():
            assert value is not None
            assert encode(decode(value, VALUE_BYTES_MAX)) == value != before.get(key)

    def test_each_key_is_read_from_below_once_a_block(self, ledger: Ledger) -> None:
        asked: list[str] = []

        class Counting(Ledger):
            def get(self, key: str) -> bytes | None:
                asked.append(key)
                return ledger.get(key)

        execute(ledger.time_ms, 2, [add(f"r{index}") for index in range(5)], Counting())
        assert len(asked) == len(set(asked)) == 1 + 5 + 1  # the author, the records, the subject

    def test_a_damaged_state_value_is_a_fault_and_not_a_result(self, ledger: Ledger) -> None:
        """Recorded as a result, it would make this node's results differ from the others'."""
        path = f"identity/account/{account_of('doctor').hex()}"
        for damaged in (b"", b"\xc1", encode({"format": 1}), ledger.state[path] + b"\0"):
            ledger.state[path] = damaged
            with pytest.raises(msgspec.MsgspecError):
                ledger.block([add("r")])


class TestEncodings:
    def test_results_root_binds_every_part_of_every_result(self) -> None:
        one, two = TxResult("ok", bytes(32), bytes(32)), TxResult("expired", b"\1" * 32, b"\2" * 32)
        roots = [
            results_root(results)
            for results in (
                [one, two],
                [two, one],
                [one],
                [one, two, two],
                [msgspec.structs.replace(one, code="duplicate"), two],
                [msgspec.structs.replace(one, envelope=b"\1" * 32), two],
                [msgspec.structs.replace(one, id=b"\1" * 32), two],
            )
        ]
        assert len(set(roots)) == len(roots)
        assert results_root([one]) == sha256(b"\0", one.encode())  # RFC 9162: the leaf is the root

    def test_a_result_comes_back_and_nothing_else_does(self) -> None:
        result = TxResult("ok", bytes(32), b"\1" * 32)
        assert decode_result(result.encode()) == result
        for value, code in (
            ({"code": "ok", "envelope": bytes(32)}, "bad_structure"),
            ({"code": "ok", "envelope": bytes(32), "id": bytes(31)}, "bad_structure"),
            ({"code": 1, "envelope": bytes(32), "id": bytes(32)}, "bad_structure"),
            ({"code": "c" * RESULT_BYTES_MAX, "envelope": bytes(32), "id": bytes(32)}, "too_large"),
        ):
            with pytest.raises(Rejection) as caught:
                decode_result(encode(value))
            assert caught.value.code == code

    def test_history_leaf(self) -> None:
        root = results_root([])
        leaf = history_leaf(CHAIN, 0, 0, root)
        assert decode(leaf, 1024) == {"block": CHAIN, "count": 0, "height": 0, "results": root}
        block = sha256(BLOCK_HASH)
        leaves = {leaf, history_leaf(block, 0, 0, root), history_leaf(CHAIN, 1, 0, root)}
        assert len(leaves | {history_leaf(CHAIN, 0, 1, root), history_leaf(CHAIN, 0, 0, block)}) == 5


def test_a_state_value_has_a_bound() -> None:
    context = Context(lambda key: None, CHAIN, 1, 0, bytes(32), bytes(32), [])
    context.put("contract/key", b"\0" * (VALUE_BYTES_MAX - 8))
    with pytest.raises(Rejection, match="state_too_large"):
        context.put("contract/other", b"\0" * VALUE_BYTES_MAX)
    assert list(context.writes) == ["contract/key"]


# The same blocks give the same outcome: chains of random transactions, most of which have a chance.

MEMBERS = ("ann", "ben", "cat")
KEYS = ("ann", "ann-2", "ben", "ben-2", "cat")
SIGNERS = ("ann", "ann", "ben", "ben", "cat", "north-admin", "north-admin", "south-admin")


def founded() -> Ledger:
    """Ann is a clinician of north, Ben of south; Cat may come."""
    ledger = Ledger()
    assert ledger.run(
        sign([registration("ann", "clinician")], by="north-admin"),
        sign([registration("ben", "clinician", admin="south-admin")], by="south-admin"),
    ) == ["ok", "ok"]
    return ledger


@st.composite
def transactions(draw: st.DrawFn) -> Transaction:
    by = draw(st.sampled_from(SIGNERS))
    key = draw(st.sampled_from([name for name in (*KEYS, by, by, by) if name.startswith(by)]))
    until = draw(st.integers(NOW_MS + 3, NOW_MS + 30))
    if by in MEMBERS and draw(st.sampled_from((True, True, False))):
        record = draw(st.text("rst", min_size=1, max_size=3))
        writes: list[Action] = [addition(record), amendment(record, 1), amendment(record, 2)]
        write = draw(st.sampled_from(writes))
        return sign([write], by=by, key=key, bodies=[b"x"], until=until)
    name = st.sampled_from((by,) if by in MEMBERS else MEMBERS)
    version = st.sampled_from((1, 1, 2))
    role = st.sampled_from(("admin", "clinician", "clinician"))
    action = st.one_of(
        st.builds(registration, name, role, st.just(by)),
        st.builds(rotation, name, st.sampled_from(KEYS), version),
        st.builds(revocation, name, version),
    )
    return sign(draw(st.lists(action, min_size=1, max_size=2)), by=by, key=key, until=until)


@st.composite
def chains(draw: st.DrawFn) -> list[list[Transaction]]:
    """A few blocks of a few transactions, some of which are included more than once."""
    pool = draw(st.lists(transactions(), min_size=4, max_size=12))
    return draw(st.lists(st.lists(st.sampled_from(pool), max_size=6), min_size=2, max_size=5))


def replay(blocks: Sequence[Sequence[Transaction]], *, backwards: bool) -> tuple[list[Outcome], Ledger]:
    """Execute all blocks; `backwards` decodes the transactions afresh and reorders the state."""
    ledger = founded()
    outcomes = []
    for block in blocks:
        if backwards:
            ledger.state = dict(reversed(ledger.state.items()))
        fresh = [decode_transaction(transaction.data) for transaction in block] if backwards else block
        outcomes.append(ledger.block(fresh))
    return outcomes, ledger


@given(chains())
@settings(max_examples=60, deadline=None)
def test_the_same_blocks_give_the_same_outcome(blocks: list[list[Transaction]]) -> None:
    """Also on a node that catches up later: results, changes and state are equal to the last byte."""
    outcomes, ledger = replay(blocks, backwards=False)
    again, other = replay(blocks, backwards=True)
    assert [outcome.results for outcome in outcomes] == [outcome.results for outcome in again]
    assert [outcome.writes for outcome in outcomes] == [outcome.writes for outcome in again]
    assert ledger.state == other.state
    assert [results_root(outcome.results) for outcome in outcomes] == [
        results_root(outcome.results) for outcome in again
    ]


@given(chains())
@settings(max_examples=60, deadline=None)
def test_nothing_but_what_succeeds_changes_the_state(blocks: list[list[Transaction]]) -> None:
    """A chain stripped of every transaction that failed ends in the same state, and each id succeeds once."""
    outcomes, ledger = replay(blocks, backwards=False)
    succeeded = [
        [transaction for transaction, result in zip(block, outcome.results, strict=True) if result.code == "ok"]
        for block, outcome in zip(blocks, outcomes, strict=True)
    ]
    stripped, other = replay(succeeded, backwards=True)
    assert ledger.state == other.state
    assert all(result.code == "ok" for outcome in stripped for result in outcome.results)
    ids = [transaction.id for block in succeeded for transaction in block]
    assert len(ids) == len(set(ids))
