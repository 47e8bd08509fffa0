"""Records: who adds them, and how a subject's records hang together."""

import pytest

from ledger.contracts import records
from ledger.contracts.context import BodyReference, Context, read_as
from ledger.errors import Rejection
from ledger.keys import sha256
from ledger.transaction import body_commitment
from tests.ledger.founding import (
    CHAIN,
    Ledger,
    account_of,
    addition,
    registration,
    revocation,
    sign,
)


@pytest.fixture
def ledger() -> Ledger:
    ledger = Ledger()
    members = [registration("doctor", "clinician"), registration("patient", "patient")]
    second = [registration("surgeon", "clinician", admin="south-admin")]
    assert ledger.run(sign(members, by="north-admin"), sign(second, by="south-admin")) == ["ok", "ok"]
    return ledger


def record(ledger: Ledger, name: str) -> records.Record | None:
    return read_as(ledger.get, records.Record, records.record_path(sha256(name.encode())))


def subject(ledger: Ledger, name: str) -> records.Subject | None:
    return read_as(ledger.get, records.Subject, records.subject_path(sha256(name.encode())))


def test_a_record_says_who_when_and_what_was_committed(ledger: Ledger) -> None:
    transaction = sign([addition("r")], by="doctor", bodies=[b"sealed"])
    assert ledger.run(transaction, at_ms=ledger.time_ms + 7) == ["ok"]
    assert record(ledger, "r") == records.Record(
        author=account_of("doctor"),
        body=BodyReference(commitment=body_commitment(b"sealed"), size=6),
        format=1,
        height=2,
        organisation="north",
        previous=None,
        subject=sha256(b"subject"),
        time=ledger.time_ms,
        transaction=transaction.id,
        version=1,
    )
    assert subject(ledger, "subject") == records.Subject(count=1, format=1, head=sha256(b"r"))


def test_a_subject_s_records_form_a_list_newest_first(ledger: Ledger) -> None:
    assert ledger.run(
        sign([addition("a"), addition("b", body=1)], by="doctor", bodies=[b"x", b"y"]),
        sign([addition("c")], by="surgeon", bodies=[b"z"]),
        sign([addition("other", "another")], by="doctor", bodies=[b"w"]),
    ) == ["ok", "ok", "ok"]
    assert ledger.run(sign([addition("d")], by="doctor", bodies=[b"v"])) == ["ok"]
    walked = []
    head = subject(ledger, "subject")
    assert head is not None
    at: bytes | None = head.head
    while at is not None:
        walked.append(at)
        found = read_as(ledger.get, records.Record, records.record_path(at))
        assert found is not None
        at = found.previous
    assert walked == [sha256(name) for name in (b"d", b"c", b"b", b"a")]
    assert head.count == 4
    assert subject(ledger, "another") == records.Subject(1, 1, sha256(b"other"))


@pytest.mark.parametrize("by", ["patient", "north-admin"])
def test_only_a_clinician_adds(ledger: Ledger, by: str) -> None:
    assert ledger.run(sign([addition("r")], by=by, bodies=[b"x"])) == ["not_clinician"]
    assert record(ledger, "r") is None
    assert subject(ledger, "subject") is None


def test_a_record_id_serves_once(ledger: Ledger) -> None:
    assert ledger.run(
        sign([addition("r")], by="doctor", bodies=[b"x"]),
        sign([addition("r", "another")], by="doctor", bodies=[b"y"]),
    ) == ["ok", "record_exists"]
    twice = sign([addition("s"), addition("s", body=1)], by="doctor", bodies=[b"x", b"y"])
    assert ledger.run(twice) == ["record_exists"]
    assert record(ledger, "s") is None
    assert subject(ledger, "another") is None


def test_all_of_a_transaction_s_actions_or_none(ledger: Ledger) -> None:
    both = [addition("new"), addition("r", body=1)]
    assert ledger.run(sign([addition("r")], by="doctor", bodies=[b"x"])) == ["ok"]
    before = dict(ledger.state)
    assert ledger.run(sign(both, by="doctor", bodies=[b"y", b"z"])) == ["record_exists"]
    assert ledger.state == before


def test_an_author_s_end_does_not_touch_what_was_written(ledger: Ledger) -> None:
    assert ledger.run(sign([addition("r")], by="doctor", bodies=[b"x"])) == ["ok"]
    kept = record(ledger, "r")
    assert ledger.run(sign([revocation("doctor", 1)], by="north-admin")) == ["ok"]
    assert record(ledger, "r") == kept is not None


def test_a_body_that_the_transaction_does_not_have(ledger: Ledger) -> None:
    """The decoder refuses such a transaction; the contract does not rely on it."""
    context = Context(
        below=ledger.get,
        chain=CHAIN,
        height=2,
        time_ms=0,
        by=account_of("doctor"),
        transaction=bytes(32),
        bodies=[BodyReference(bytes(32), 1)],
    )
    for index in (-1, 1, 63):
        with pytest.raises(Rejection, match="body_missing"):
            records.add(context, addition("r", body=index))
    assert context.writes == {}
