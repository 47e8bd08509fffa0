"""Events follow from blocks and results alone; their ids grow along the chain."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.block import decode_block, stored_transactions
from ledger.contracts import HANDLERS, Action
from ledger.errors import Rejection
from ledger.events import (
    CONTRACTS,
    Event,
    EventId,
    Filter,
    end_of,
    end_of_transaction,
    events_of,
    parse_event_id,
)
from ledger.execution import TxResult, stored_result
from ledger.keys import sha256
from ledger.transaction import ACTIONS_MAX, Transaction, decode_transaction, stored_envelope
from tests.fakes.disk import PowerLossDisk
from tests.ledger.founding import NOW_MS, account_of, addition, amendment, registration, revocation, rotation, sign
from tests.storage.chains import Chain, doctor, record

BLOCK_BYTES_MAX = 1024 * 1024
IDS = st.builds(EventId, st.integers(0, 2**53), st.integers(0, 9_999), st.integers(0, ACTIONS_MAX - 1))


def events(transaction: Transaction, code: str = "ok", height: int = 3, index: int = 2) -> tuple[Event, ...]:
    result = TxResult(code, transaction.hash, transaction.id)
    return events_of(height, index, NOW_MS, transaction.envelope, result)


def register_and_revoke() -> Transaction:
    return sign([registration("nurse", "clinician"), revocation("doctor", 1)], by="north-admin")


@given(IDS)
def test_an_id_is_read_as_it_is_written(event_id: EventId) -> None:
    assert parse_event_id(str(event_id)) == event_id
    assert parse_event_id(str(event_id.height)) == end_of(event_id.height)


@given(IDS)
def test_ends_are_above_what_they_end_and_below_what_follows(event_id: EventId) -> None:
    height, index = event_id.height, event_id.index
    assert event_id < end_of_transaction(height, index) < EventId(height, index + 1, 0)
    assert end_of_transaction(height, index) < end_of(height) < EventId(height + 1, 0, 0)


@pytest.mark.parametrize(
    "text",
    [
        *("", "a", "1.", "1.2", "1.2.", "1.2.3.4", "-1", "+1", "1_0", " 1", "1\n", "1.2.3\n", "\u0663"),
        *("01", "1.02.3", "1.2.03", "1.2.100", "1.10000.0", "1" * 17),
    ],
)
def test_what_is_no_id_is_refused(text: str) -> None:
    with pytest.raises(Rejection, match="bad_event_id"):
        parse_event_id(text)


def test_each_action_that_took_effect_is_an_event() -> None:
    transaction = register_and_revoke()
    first, second = events(transaction)
    assert (str(first.id), str(second.id)) == ("3.2.0", "3.2.1")
    assert {(each.transaction, each.by, each.time_ms, each.code) for each in (first, second)} == {
        (transaction.id, account_of("north-admin"), NOW_MS, "ok")
    }
    assert [each.actions for each in (first, second)] == [(action,) for action in transaction.envelope.actions]


def test_a_transaction_that_changed_nothing_is_one_event_with_all_it_wanted() -> None:
    transaction = register_and_revoke()
    (event,) = events(transaction, code="stale_version")
    assert (str(event.id), event.code) == ("3.2.0", "stale_version")
    assert event.actions == tuple(transaction.envelope.actions)
    assert event.contracts == ("identity", "identity")


def test_an_event_carries_the_bodies_that_its_actions_name() -> None:
    actions: list[Action] = [addition("one", body=1), addition("two", body=0)]
    transaction = sign(actions, by="doctor", bodies=[b"first", b"second"])
    first, second = transaction.envelope.bodies
    assert [event.bodies for event in events(transaction)] == [(second,), (first,)]
    assert [event.bodies for event in events(transaction, code="record_exists")] == [(second, first)]


@pytest.mark.parametrize(
    ("action", "accounts", "subjects"),
    [
        (registration("nurse", "clinician"), ["nurse"], []),
        (rotation("doctor", "doctor-2", 1), ["doctor"], []),
        (revocation("doctor", 1), ["doctor"], []),
        (addition("one", "rosa"), [], ["rosa"]),
        (amendment("one", 3, "rosa"), [], ["rosa"]),
    ],
)
def test_what_an_action_concerns(action: Action, accounts: list[str], subjects: list[str]) -> None:
    bodies = [b"body"] if hasattr(action, "body") else []
    (event,) = events(sign([action], by="north-admin", bodies=bodies))
    assert event.accounts == tuple(account_of(name) for name in accounts)
    assert event.subjects == tuple(sha256(name.encode()) for name in subjects)


def test_every_action_has_a_contract() -> None:
    assert {handler.__module__.rpartition(".")[2] for handler in HANDLERS.values()} == CONTRACTS


def test_a_filter_admits_what_fits_all_of_it() -> None:
    written, registered = events(sign([addition("one", "rosa")], by="doctor", bodies=[b"body"])) + events(doctor())
    rosa, member = sha256(b"rosa"), account_of("doctor")
    cases = [
        (Filter(), {written, registered}),
        (Filter(contract="records"), {written}),
        (Filter(contract="identity"), {registered}),
        (Filter(subject=rosa), {written}),
        (Filter(subject=sha256(b"leo")), set()),
        (Filter(member=member), {written, registered}),
        (Filter(member=account_of("north-admin")), {registered}),
        (Filter(contract="identity", member=member), {registered}),
        (Filter(contract="identity", subject=rosa), set()),
    ]
    for wanted, admitted in cases:
        assert {event for event in (written, registered) if wanted.admits(event)} == admitted


def test_stored_bytes_read_without_checks_are_what_checked_ones_are() -> None:
    chain = Chain(PowerLossDisk())
    chain.add(doctor(), record("one"), sign([revocation("doctor", 1)], by="north-admin", key="stranger"))
    data = chain.store.block_data(1)
    whole = decode_block(data, BLOCK_BYTES_MAX)
    transactions = stored_transactions(data)
    assert [decode_transaction(each) for each in transactions] == list(whole.transactions)
    assert [stored_envelope(each) for each in transactions] == [each.envelope for each in whole.transactions]
    results = chain.store.encoded_results(1)
    assert tuple(stored_result(each) for each in results) == chain.store.results(1)
    assert [each.code for each in chain.store.results(1)] == ["ok", "ok", "wrong_signer"]


def test_the_limits_of_an_id_hold_every_transaction() -> None:
    last = EventId(1, 9_999, ACTIONS_MAX - 1)
    assert parse_event_id(str(last)) == last
    assert parse_event_id(str(end_of_transaction(1, 9_999))) == end_of_transaction(1, 9_999)
