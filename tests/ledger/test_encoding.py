"""One value, one encoding: what the decoder takes is exactly what the encoder gives."""

import struct
from typing import Literal

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.encoding import DEPTH_MAX, ITEMS_MAX, convert, decode, decode_as, encode
from ledger.errors import Rejection

LIMIT = 1 << 20

scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=40) | st.binary(max_size=300)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=8), inner, max_size=20),
    max_leaves=30,
)


def refusal(data: bytes, limit: int = LIMIT) -> str:
    with pytest.raises(Rejection) as caught:
        decode(data, limit)
    return caught.value.code


@settings(max_examples=200, deadline=None)
@given(values)
def test_what_is_encoded_is_decoded(value: object) -> None:
    assert decode(encode(value), LIMIT) == value


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text(max_size=8), scalars, max_size=8), st.randoms(use_true_random=False))
def test_the_order_of_a_map_does_not_show(value: dict[str, object], random: object) -> None:
    keys = list(value)
    random.shuffle(keys)  # type: ignore[attr-defined]
    assert encode({key: value[key] for key in keys}) == encode(value)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_accepted_bytes_are_the_only_ones_of_their_value(data: bytes) -> None:
    try:
        value = decode(data, LIMIT)
    except Rejection:
        return
    assert encode(value) == data


@settings(max_examples=300, deadline=None)
@given(values, st.data())
def test_a_flipped_bit_never_gives_the_same_value(value: object, data: st.DataObject) -> None:
    good = encode(value)
    bit = data.draw(st.integers(0, len(good) * 8 - 1))
    mutated = bytearray(good)
    mutated[bit // 8] ^= 1 << bit % 8
    try:
        other = decode(bytes(mutated), LIMIT)
    except Rejection:
        return
    # Compared as text, because to Python 1 == True.
    assert repr(other) != repr(value)


LONG_FORMS = {
    "fixint as uint8": b"\xcc\x05",
    "fixint as int8": b"\xd0\x05",
    "uint8 as uint16": b"\xcd\x00\xff",
    "uint16 as uint32": b"\xce\x00\x00\xff\xff",
    "uint32 as uint64": b"\xcf" + struct.pack(">Q", 2**32 - 1),
    "positive as int64": b"\xd3" + struct.pack(">q", 2**40),
    "negative fixint as int8": b"\xd0\xff",
    "int8 as int16": b"\xd1\xff\x80",
    "int16 as int32": b"\xd2\xff\xff\x80\x00",
    "int32 as int64": b"\xd3" + struct.pack(">q", -(2**31)),
    "fixstr as str8": b"\xd9\x01a",
    "str8 as str16": b"\xda\x00\x20" + b"a" * 32,
    "str16 as str32": b"\xdb\x00\x00\x01\x00" + b"a" * 256,
    "bin8 as bin16": b"\xc5\x00\x01a",
    "bin16 as bin32": b"\xc6\x00\x00\x01\x00" + b"a" * 256,
    "fixarray as array16": b"\xdc\x00\x01\xc0",
    "array16 as array32": b"\xdd\x00\x00\x00\x10" + b"\xc0" * 16,
    "fixmap as map16": b"\xde\x00\x01\xa1a\xc0",
    "fixmap as map32": b"\xdf\x00\x00\x00\x01\xa1a\xc0",
}
FORBIDDEN = {
    "float32": b"\xca\x3f\x80\x00\x00",
    "float64": b"\xcb" + struct.pack(">d", 1.0),
    "not a number": b"\xcb" + struct.pack(">d", float("nan")),
    "extension": b"\xd4\x05\x00",
    "extension of length": b"\xc7\x03\x05abc",
    "timestamp 32": b"\xd6\xff\x00\x00\x00\x01",
    "timestamp 64": b"\xd7\xff" + bytes(8),
    "timestamp of impossible nanoseconds": b"\xd7\xff" + b"\xff" * 8,
    "timestamp of odd length": b"\xc7\x05\xff" + bytes(5),
    "never used": b"\xc1",
    "nothing": b"",
    "trailing byte": b"\xc0\x00",
    "cut string": b"\xa3ab",
    "cut list": b"\x92\xc0",
    "keys out of order": b"\x82\xa1b\xc0\xa1a\xc0",
    "keys out of order by bytes": b"\x82\xa2ab\xc0\xa1a\xc0",
    "duplicate key": b"\x82\xa1a\xc0\xa1a\xc0",
    "nil key": b"\x81\xc0\xc0",
    "integer key": b"\x81\x01\xc0",
    "bytes key": b"\x81\xc4\x01a\xc0",
    "list as key": b"\x81\x90\xc0",
    "mixed keys": b"\x82\xa1a\xc0\xc4\x01b\xc0",
    "invalid UTF-8": b"\xa1\xff",
    "overlong UTF-8": b"\xa2\xc0\x80",
    "surrogate": b"\xa3\xed\xa0\x80",
    "inside a list": b"\x91\xcc\x05",
    "inside a map": b"\x81\xa1a\xcc\x05",
}


@pytest.mark.parametrize("data", [*LONG_FORMS.values(), *FORBIDDEN.values()], ids=[*LONG_FORMS, *FORBIDDEN])
def test_what_is_not_canonical_is_refused(data: bytes) -> None:
    assert refusal(data) == "not_canonical"


def test_key_order_is_that_of_utf8_bytes() -> None:
    keys = ["", "A", "a", "aa", "\x7f", "é", "€", "\uffff", "\U00010000"]
    data = encode(dict.fromkeys(reversed(keys), 0))
    assert list(decode(data, LIMIT)) == sorted(keys, key=lambda key: key.encode("utf-8")) == keys


def test_depth_is_bounded_both_ways() -> None:
    value: object = 1
    for _ in range(DEPTH_MAX):
        value = [value]
    assert decode(encode(value), LIMIT) == value
    with pytest.raises(Rejection, match="not_canonical"):
        encode([value])
    for deeper in (DEPTH_MAX + 1, 600, 1_200, 100_000):
        assert refusal(b"\x91" * deeper + b"\x01") == "not_canonical"
        assert refusal(b"\x81\xa1a" * deeper + b"\x01") == "not_canonical"


def test_items_are_bounded_both_ways() -> None:
    full = encode([None] * ITEMS_MAX)
    assert len(decode(full, LIMIT)) == ITEMS_MAX
    assert refusal(b"\xdd" + struct.pack(">I", ITEMS_MAX + 1) + b"\xc0" * (ITEMS_MAX + 1)) == "not_canonical"
    assert refusal(b"\xdd\xff\xff\xff\xff" * 1_000) == "not_canonical"
    assert refusal(b"\xdf\xff\xff\xff\xff" * 1_000) == "not_canonical"
    with pytest.raises(Rejection, match="not_canonical"):
        encode([None] * (ITEMS_MAX + 1))


def test_length_is_bounded() -> None:
    data = encode(b"x" * 100)
    assert decode(data, len(data)) == b"x" * 100
    assert refusal(data, len(data) - 1) == "too_large"


@pytest.mark.parametrize(
    "value",
    [1.5, 2**64, -(2**63) - 1, object(), {1: 2}, {b"a": 1}, "\ud800", {"\ud800": 1}, {1, 2}, [[1.0]]],
    ids=repr,
)
def test_what_has_no_encoding_is_refused(value: object) -> None:
    with pytest.raises(Rejection, match="not_canonical"):
        encode(value)


class Named(msgspec.Struct, frozen=True, tag_field="do", tag="one.thing", forbid_unknown_fields=True):
    role: Literal["a", "b"]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"do": "Jane Doe", "role": "a"}, "value - at `$.do`"),
        ({"do": "one.thing", "role": "Jane Doe"}, "value - at `$.role`"),
        ({"do": "one.thing", "role": "a", "Jane Doe": 1}, "unknown field"),
        ({"do": "one.thing", "role": "a", "` - at `Jane Doe\n": 1}, "unknown field"),
        ({"do": "Jane Doe' - at `", "role": "a"}, "value - at `$.do`"),
        ({"do": 1946_03_09, "role": "a"}, "`$.do`"),
        ({"do": "one.thing"}, "missing required field `role`"),
        ({"do": "one.thing", "role": b"Jane Doe"}, "`$.role`"),
    ],
    ids=["tag", "choice", "field", "crafted field", "crafted tag", "number", "missing", "type"],
)
def test_a_refusal_names_the_place_and_not_the_content(value: object, said: str) -> None:
    with pytest.raises(Rejection) as caught:
        convert(Named, value)
    assert said in caught.value.detail
    assert "Doe" not in caught.value.detail
    assert "1946" not in caught.value.detail


class Pair(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    blob: bytes
    number: int


def test_a_struct_is_encoded_as_its_map() -> None:
    pair = Pair(blob=b"\x00\xff", number=7)
    assert encode(pair) == encode({"number": 7, "blob": b"\x00\xff"})
    assert decode_as(Pair, encode(pair), LIMIT) == pair
    assert encode([pair, {"in": pair}]) == encode([{"blob": b"\x00\xff", "number": 7}, {"in": pair}])


@pytest.mark.parametrize(
    "value",
    [
        {"blob": b"", "number": "7"},
        {"blob": b"", "number": True},
        {"blob": "AAAA", "number": 7},
        {"blob": b""},
        {"blob": b"", "number": 7, "other": None},
        [b"", 7],
        None,
    ],
    ids=["text for number", "bool for number", "base64 for bytes", "missing", "unknown", "list", "nil"],
)
def test_a_struct_is_taken_in_no_other_form(value: object) -> None:
    with pytest.raises(Rejection, match="bad_structure"):
        decode_as(Pair, encode(value), LIMIT)
