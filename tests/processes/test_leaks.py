"""The search for clear text: it finds what is there, however written, and only that."""

import json
import secrets

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.processes.leaks import PIECE_BYTES, STRING_BYTES_MIN, Finder, Leak, forms, not_public, strings
from tests.processes.planting import WRITINGS

TEXTS = ["Kreiger964", "Þórdís Ægisdóttir", 'he said: "no"\n\\ \x7f', "urn:uuid:7b56c4af-b745-4603-bf5a-f4adfc2c5912"]

a_text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=80).filter(
    lambda text: len(text.encode()) >= STRING_BYTES_MIN
)


@pytest.mark.parametrize("writing", WRITINGS)
@settings(deadline=None, max_examples=60)
@given(text=a_text, before=st.binary(max_size=40), after=st.binary(max_size=40))
def test_a_text_is_found_however_it_is_written(writing: str, text: str, before: bytes, after: bytes) -> None:
    # The bars: digits alone are found only where no other digits stand beside them.
    data = before + b"|" + WRITINGS[writing](text).encode() + b"|" + after
    assert text.encode() in {leak.text for leak in Finder([text.encode()]).find(data)}


@pytest.mark.parametrize("text", TEXTS)
def test_every_form_is_told_from_the_others(text: str) -> None:
    encoded = text.encode()
    if len(encoded) <= PIECE_BYTES:
        for form, data in forms(encoded):
            found = Finder([encoded]).find(b"\x00\x01\x02" + data + b"\x03")
            assert Leak(encoded, form, 3) in found


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("writing", WRITINGS)
def test_a_text_that_differs_in_its_first_or_last_character_is_not_found(text: str, writing: str) -> None:
    short = text[:20]
    finder = Finder([short.encode()])
    for other in ("\u00a7" + short[1:], short[:-1] + "\u00a7"):
        assert finder.find(WRITINGS[writing](other).encode()) == []


def test_at_every_offset_of_data_of_every_length() -> None:
    finder = Finder([b"Kreiger964"])
    for before in range(20):
        for after in range(20):
            assert [leak.offset for leak in finder.find(bytes(before) + b"Kreiger964" + bytes(after))] == [before]
    assert [finder.find(bytes(length)) for length in range(30)] == [[] for _ in range(30)]


def test_a_long_text_is_found_by_any_of_its_pieces() -> None:
    text = "".join(f"{number:03} §" for number in range(40))
    encoded = text.encode()
    finder = Finder([encoded])
    for start in range(0, len(text) - 40, 7):
        cut = text[start : start + 2 * PIECE_BYTES]
        assert {leak.text for leak in finder.find(json.dumps(cut).encode())} == {encoded}
    assert {leak.text for leak in finder.find(text[-30:].encode())} == {encoded}
    assert finder.find(text[1:20].encode()) == []


@pytest.mark.parametrize("code", ["44054006", "6175551234", "deadbeef"])
def test_digits_count_where_they_stand_alone(code: str) -> None:
    finder = Finder([code.encode()])
    for around in ('"{}"', "code={}&", "{}", "\x08{}\x00", "X{}"):
        assert [leak.form for leak in finder.find(around.format(code).encode())] == ["raw"]
    for around in ("0{}", "{}9", "a{}", "{}f", "1.5{}7", "ab" * 20 + "{}" + "0" * 24):
        assert finder.find(around.format(code).encode()) == []
    within_and_alone = f"7{code} {code} {code}7".encode()
    assert [leak.offset for leak in finder.find(within_and_alone)] == [len(code) + 2]


def test_digits_too_many_for_one_piece_are_found_by_their_pieces() -> None:
    passphrase = secrets.token_hex(32).encode()
    assert {leak.text for leak in Finder([passphrase]).find(b"ab" + passphrase[10:] + b"cd")} == {passphrase}


def test_nothing_is_found_in_a_million_random_bytes() -> None:
    texts = [secrets.token_hex(10).encode() for _ in range(2_000)]
    assert Finder(texts).find(secrets.token_bytes(1_000_000)) == []


def test_too_short_a_text_is_refused() -> None:
    with pytest.raises(ValueError, match="7 bytes"):
        Finder([b"Kreiger"])


def test_string_values_are_taken_at_any_depth_and_names_of_elements_are_not() -> None:
    resource = {
        "resourceType": "MedicationRequest",
        "id": "short",
        "contained": [{"telecom": [{"value": "555-0100-22"}, "Dąbrowsk", "Dąbrows", 12345678]}],
        "birthDate": "1961-07-09",
        "maritalStatus": None,
    }
    expected = {"MedicationRequest", "555-0100-22", "Dąbrowsk", "Dąbrows", "1961-07-09"}
    assert strings(json.dumps(resource).encode()) == expected


def test_what_stands_in_genesis_is_public() -> None:
    genesis = '{"organisations": [{"kind": "hospital", "name": "Riverside General Hospital"}]}'
    values = {"hospital", "General Hospital", "Riverside Clinic"}
    assert not_public(values, genesis) == {"Riverside Clinic"}
