"""Files are checked against the genesis file alone, and told in words."""

from pathlib import Path

import pytest

from carequorum.verify import (
    describe_receipt,
    describe_state,
    load_genesis,
    verify_receipt_file,
    verify_state_file,
)
from ledger.contracts.identity import organisation_path
from ledger.errors import Rejection
from ledger.genesis import GENESIS_BYTES_MAX
from ledger.receipt import RECEIPT_BYTES_MAX
from tests.carequorum.ports import Hospital
from tests.ledger.founding import GENESIS, account_of, make_genesis, registration, revocation, sign

ABSENT = "identity/account/" + "00" * 32


@pytest.fixture(scope="module")
def hospital() -> Hospital:
    return Hospital()


def receipt_of(hospital: Hospital, code: str) -> bytes:
    """The receipt of a transaction that ends with "ok", or changes nothing with "no_such_account"."""
    action = registration("nurse", "clinician") if code == "ok" else revocation("nobody", 1)
    transaction = sign([action], by="north-admin")
    hospital.submit([(transaction.data, [])])
    assert hospital.status(transaction.id).code == code
    return hospital.receipt(transaction.id)


@pytest.mark.parametrize("data", [GENESIS.encode(), GENESIS.to_json().encode()])
def test_a_genesis_file_is_read_in_either_form(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "genesis").write_bytes(data)
    assert load_genesis(tmp_path / "genesis") == GENESIS


@pytest.mark.parametrize(
    ("code", "words"), [("ok", "took effect"), ("no_such_account", "changed nothing: no_such_account")]
)
def test_a_receipt_file_is_verified_and_told(tmp_path: Path, hospital: Hospital, code: str, words: str) -> None:
    file = tmp_path / "receipt"
    file.write_bytes(receipt_of(hospital, code))
    receipt = verify_receipt_file(file, GENESIS)
    told = "\n".join(describe_receipt(receipt))
    assert receipt.code == code
    assert words in told
    assert receipt.id.hex() in told
    assert f"of block {receipt.height}, " in told
    assert "dated 1970-01-01T00:16:40." in told


def test_a_receipt_of_another_network_is_refused(tmp_path: Path, hospital: Hospital) -> None:
    file = tmp_path / "receipt"
    file.write_bytes(receipt_of(Hospital(), "ok"))
    with pytest.raises(Rejection, match="wrong_chain"):
        verify_receipt_file(file, make_genesis("another"))


@pytest.mark.parametrize(
    ("key", "words"), [(organisation_path("north"), "bytes after block"), (ABSENT, "nothing after block")]
)
def test_a_state_answers_file_is_verified_and_told(tmp_path: Path, hospital: Hospital, key: str, words: str) -> None:
    file = tmp_path / "answer"
    receipt_of(hospital, "no_such_account")
    file.write_bytes(hospital.state_answer(key))
    state = verify_state_file(file, GENESIS)
    told = "\n".join(describe_state(state))
    assert state.value == hospital.state(key)
    assert key in told
    assert words in told
    assert account_of("north-admin").hex() not in told


def test_what_is_no_file_or_too_long_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    with pytest.raises(Rejection, match="no_such_file"):
        load_genesis(tmp_path / "missing")
    with pytest.raises(Rejection, match="no_such_file"):
        verify_receipt_file(tmp_path, GENESIS)
    file = tmp_path / "long"
    file.write_bytes(b" " * (2 * GENESIS_BYTES_MAX + 1))
    with pytest.raises(Rejection, match="too_large"):
        load_genesis(file)
    file.write_bytes(b" " * (RECEIPT_BYTES_MAX + 1))
    with pytest.raises(Rejection, match="too_large"):
        verify_receipt_file(file, GENESIS)


@pytest.mark.parametrize("data", [b"", b"{", b"{}", b"\x80", b"\xff{"])
def test_what_is_no_genesis_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "genesis").write_bytes(data)
    with pytest.raises(Rejection):
        load_genesis(tmp_path / "genesis")
