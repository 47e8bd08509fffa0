"""Records: who adds them, and how a subject's records hang together."""

import pytest

from ledger.contracts import Action, records
from ledger.contracts.context import BodyReference, Context, read_as
from ledger.errors import Rejection
from ledger.keys import sha256
from ledger.transaction import body_commitment
from tests.ledger.founding import (
    CHAIN,
    Ledger,
    account_of,
    addition,
    amendment,
    registration,
    revocation,
    sign,
)


@pytest.fixture
def ledger() -> Ledger:
    ledger = Ledger()
    members = [
        registration("doctor", "clinician"),
        registration("colleague", "clinician"),
        registration("patient", "patient"),
    ]
    second = [registration("surgeon", "clinician", admin="south-admin")]
    assert ledger.run(sign(members, by="north-admin"), sign(second, by="south-admin")) == ["ok", "ok"]
    return ledger


def record(ledger: Ledger, name: str) -> records.Record | None:
    return read_as(ledger.get, records.Record, records.record_path(sha256(name.encode())))


def version(ledger: Ledger, name: str, number: int) -> records.Record | None:
    return read_as(ledger.get, records.Record, records.version_path(sha256(name.encode()), number))


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


def test_an_amendment_replaces_a_version_and_keeps_it(ledger: Ledger) -> None:
    first = sign([addition("r")], by="doctor", bodies=[b"sealed"])
    assert ledger.run(sign([addition("older")], by="surgeon", bodies=[b"x"]), first) == ["ok", "ok"]
    assert ledger.run(sign([addition("newer")], by="surgeon", bodies=[b"y"])) == ["ok"]
    original, head = record(ledger, "r"), subject(ledger, "subject")
    assert original is not None
    amending = sign([amendment("r", 1)], by="doctor", bodies=[b"sealed again"])
    assert ledger.run(amending, at_ms=ledger.time_ms + 9) == ["ok"]
    assert record(ledger, "r") == records.Record(
        author=account_of("doctor"),
        body=BodyReference(commitment=body_commitment(b"sealed again"), size=12),
        format=1,
        height=4,
        organisation="north",
        previous=sha256(b"older"),
        subject=sha256(b"subject"),
        time=ledger.time_ms,
        transaction=amending.id,
        version=2,
    )
    assert version(ledger, "r", 1) == original
    assert version(ledger, "r", 2) is None
    assert subject(ledger, "subject") == head


def test_every_version_stays(ledger: Ledger) -> None:
    assert ledger.run(sign([addition("r")], by="doctor", bodies=[b"1"])) == ["ok"]
    for number in range(1, 5):
        assert ledger.run(sign([amendment("r", number)], by="doctor", bodies=[b"%d" % (number + 1)])) == ["ok"]
    kept = [version(ledger, "r", number) for number in range(1, 5)] + [record(ledger, "r")]
    assert [each.version for each in kept if each is not None] == [1, 2, 3, 4, 5]
    assert [each.body.commitment for each in kept if each is not None] == [
        body_commitment(b"%d" % number) for number in range(1, 6)
    ]


def test_a_colleague_amends_what_an_author_who_left_wrote(ledger: Ledger) -> None:
    assert ledger.run(sign([addition("r")], by="doctor", bodies=[b"x"])) == ["ok"]
    assert ledger.run(sign([revocation("doctor", 1)], by="north-admin")) == ["ok"]
    assert ledger.run(sign([amendment("r", 1)], by="colleague", bodies=[b"y"])) == ["ok"]
    newest, kept = record(ledger, "r"), version(ledger, "r", 1)
    assert newest is not None
    assert kept is not None
    assert (kept.author, newest.author) == (account_of("doctor"), account_of("colleague"))
    assert ledger.run(sign([amendment("r", 2)], by="doctor", bodies=[b"z"])) == ["revoked"]


@pytest.mark.parametrize(
    ("by", "action", "code"),
    [
        ("patient", amendment("r", 1), "not_clinician"),
        ("north-admin", amendment("r", 1), "not_clinician"),
        ("patient", amendment("none", 1), "not_clinician"),
        ("doctor", amendment("none", 1), "no_such_record"),
        ("doctor", amendment("r", 1, "another"), "no_such_record"),
        ("surgeon", amendment("r", 1, "another"), "no_such_record"),
        ("surgeon", amendment("r", 1), "not_allowed"),
        ("surgeon", amendment("r", 7), "not_allowed"),
        ("doctor", amendment("r", 2), "stale_version"),
        ("colleague", amendment("r", 2**53), "stale_version"),
    ],
)
def test_an_amendment_is_refused(ledger: Ledger, by: str, action: records.Amend, code: str) -> None:
    assert ledger.run(sign([addition("r")], by="doctor", bodies=[b"x"])) == ["ok"]
    before = dict(ledger.state)
    assert ledger.run(sign([action], by=by, bodies=[b"y"])) == [code]
    assert ledger.state == before


def test_one_of_two_amendments_of_the_same_version_wins(ledger: Ledger) -> None:
    assert ledger.run(sign([addition("r")], by="doctor", bodies=[b"x"])) == ["ok"]
    assert ledger.run(
        sign([amendment("r", 1)], by="doctor", bodies=[b"y"]),
        sign([amendment("r", 1)], by="colleague", bodies=[b"z"]),
    ) == ["ok", "stale_version"]
    newest = record(ledger, "r")
    assert newest is not None
    assert (newest.version, newest.author) == (2, account_of("doctor"))


def test_a_record_is_added_and_amended_at_once_or_not_at_all(ledger: Ledger) -> None:
    both: list[Action] = [addition("r"), amendment("r", 1, body=1), amendment("r", 2, body=2)]
    assert ledger.run(sign(both, by="doctor", bodies=[b"x", b"y", b"z"])) == ["ok"]
    newest = record(ledger, "r")
    assert newest is not None
    assert (newest.version, newest.body.commitment) == (3, body_commitment(b"z"))
    before = dict(ledger.state)
    stale = [amendment("r", 3), amendment("r", 3, body=1)]
    assert ledger.run(sign(stale, by="doctor", bodies=[b"v", b"w"])) == ["stale_version"]
    assert ledger.state == before


def test_a_body_that_the_transaction_does_not_have(ledger: Ledger) -> None:
    """The decoder refuses such a transaction; the contract does not rely on it."""
    assert ledger.run(sign([addition("known")], by="doctor", bodies=[b"x"])) == ["ok"]
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
        with pytest.raises(Rejection, match="body_missing"):
            records.amend(context, amendment("known", 1, body=index))
    assert context.writes == {}
