import base64
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.encoding import decode, encode
from ledger.errors import Rejection
from ledger.keys import SigningKey, account_id, sha256, tag
from ledger.request import READ_REQUEST, REQUEST_BYTES_MAX, SKEW_MS, sign_request, verify_request
from ledger.transaction import TRANSACTION

KEY = SigningKey(bytes(range(32)))
BY = account_id(KEY.public)
PATH = "/v1/bodies/" + "ab" * 32 + "?x=1"
NOW = 1_800_000_000_000
ASKED: dict[str, Any] = {"node": "hospital-a", "method": "GET", "path": PATH, "body": b"{}", "now_ms": NOW}


def header() -> str:
    return sign_request(KEY, BY, "hospital-a", "GET", PATH, b"{}", NOW)


def data_of(value: str) -> bytes:
    token = value.removeprefix("CareQuorum ")
    return base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))


def header_of(data: bytes) -> str:
    return "CareQuorum " + base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def resigned(purpose: bytes = READ_REQUEST, **changes: Any) -> str:
    """The request with some fields changed and signed again by its key."""
    fields = {**decode(decode(data_of(header()), REQUEST_BYTES_MAX)["body"], REQUEST_BYTES_MAX), **changes}
    body = encode({key: value for key, value in fields.items() if value is not ...})
    return header_of(encode({"body": body, "signature": KEY.sign(purpose, sha256(body))}))


def code(value: str | None, **changes: Any) -> str:
    with pytest.raises(Rejection) as caught:
        verify_request(value, **{**ASKED, **changes})
    return caught.value.code


def test_a_signed_request_verifies_for_what_it_names() -> None:
    request = verify_request(header(), **ASKED)
    assert (request.by, request.key, request.time) == (BY, KEY.public, NOW)


@pytest.mark.parametrize(
    "changes",
    [
        {"node": "hospital-b"},
        {"method": "POST"},
        {"path": PATH + "2"},
        {"path": PATH.partition("?")[0]},
        {"body": b""},
    ],
)
def test_it_is_good_for_nothing_else(changes: dict[str, Any]) -> None:
    assert code(header(), **changes) == "bad_read_request"


def test_it_is_good_only_around_its_time() -> None:
    for shift in (-SKEW_MS, 0, SKEW_MS):
        verify_request(header(), **{**ASKED, "now_ms": NOW + shift})
    for shift in (-SKEW_MS - 1, SKEW_MS + 1):
        assert code(header(), now_ms=NOW + shift) == "stale_read_request"


def test_without_one_the_read_is_refused() -> None:
    assert code(None) == "no_read_request"


@pytest.mark.parametrize(
    "value",
    [
        "",
        "CareQuorum",
        "CareQuorum ",
        "Bearer abc",
        "CareQuorum !!!!",
        "CareQuorum abc=",
        "CareQuorum a",
        "CareQuorum é",
        header().replace("CareQuorum", "carequorum"),
        header() + "=",
        header() + " ",
        header().replace("CareQuorum ", "CareQuorum  "),
        "CareQuorum " + "A" * 100_000,
    ],
)
def test_another_form_is_refused(value: str) -> None:
    assert code(value) == "bad_read_request"


def test_spare_bits_of_the_last_character_are_not_free() -> None:
    """Two tokens for one value: only the one that encoding gives is accepted."""
    names = ["a", "aa", "aaa"]
    headers = {name: sign_request(KEY, BY, name, "GET", PATH, b"{}", NOW) for name in names}
    node, value = next((name, each) for name, each in headers.items() if len(data_of(each)) % 3)
    verify_request(value, **{**ASKED, "node": node})
    last = value[-1]
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    twin = value[:-1] + alphabet[alphabet.index(last) + 1]
    assert data_of(twin) == data_of(value)
    assert code(twin, node=node) == "bad_read_request"


@pytest.mark.parametrize(
    "changes",
    [{"format": 2}, {"surprise": 1}, {"time": ...}, {"time": -1}, {"by": b"short"}, {"key": "text"}, {"path": ""}],
)
def test_another_structure_is_refused(changes: dict[str, Any]) -> None:
    assert code(resigned(**changes)) == "bad_read_request"


def test_a_signature_for_another_purpose_is_none() -> None:
    assert code(resigned(TRANSACTION)) == "bad_signature"
    assert code(resigned(tag("acknowledgement"))) == "bad_signature"
    assert code(resigned(key=SigningKey(bytes(32)).public)) == "bad_signature"


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_no_single_bit_is_free(data: st.DataObject) -> None:
    whole = bytearray(data_of(header()))
    bit = data.draw(st.integers(0, len(whole) * 8 - 1))
    whole[bit // 8] ^= 1 << bit % 8
    assert code(header_of(bytes(whole))) in {"bad_read_request", "bad_signature", "stale_read_request"}
