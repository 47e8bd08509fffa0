"""Sealed records open as what they are, to whom they are for, and tell nobody else more than a size class."""

import secrets

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_encrypt

from carequorum import sealing
from carequorum.custody import wrap_key
from carequorum.sealing import (
    CONTENT_BYTES_MAX,
    CONTENT_TYPE_CHARACTERS_MAX,
    PADDED_BYTES_MAX,
    Content,
    Label,
    open_record,
    padded_size,
    seal_record,
)
from ledger.encoding import decode, encode
from ledger.errors import Rejection
from ledger.keys import SigningKey, sha256
from ledger.transaction import BODY_BYTES_MAX

AUTHOR_SEED, PATIENT_SEED, STRANGER_SEED = (sha256(name) for name in (b"author", b"patient", b"stranger"))
READERS = [SigningKey(AUTHOR_SEED).public, SigningKey(PATIENT_SEED).public]
LABEL = Label(author=b"a" * 32, chain=b"c" * 32, record=b"r" * 32, subject=b"s" * 32, version=2)
CONTENT = b'{"resourceType":"Observation","valueString":"confidential finding"}'
TYPE = "application/fhir+json"


def refusal(body: bytes, label: Label = LABEL, seed: bytes = PATIENT_SEED) -> str:
    with pytest.raises(Rejection) as caught:
        open_record(body, label, [seed])
    return caught.value.code


@settings(deadline=None, max_examples=40)
@given(content=st.binary(max_size=5_000), content_type=st.text(max_size=CONTENT_TYPE_CHARACTERS_MAX))
def test_every_reader_opens_exactly_what_was_sealed(content: bytes, content_type: str) -> None:
    body = seal_record(content, content_type, LABEL, READERS)
    for seed in (AUTHOR_SEED, PATIENT_SEED):
        assert open_record(body, LABEL, [STRANGER_SEED, seed]) == Content(content, content_type)


def test_a_stranger_opens_nothing() -> None:
    assert refusal(seal_record(CONTENT, TYPE, LABEL, READERS), seed=STRANGER_SEED) == "not_a_reader"


def test_the_largest_content_makes_a_body_that_the_ledger_takes_and_one_byte_more_is_refused() -> None:
    largest = secrets.token_bytes(CONTENT_BYTES_MAX)
    content_type = "\N{GRINNING FACE}" * CONTENT_TYPE_CHARACTERS_MAX
    readers = [SigningKey(sha256(bytes([number]))).public for number in range(7)]
    body = seal_record(largest, content_type, LABEL, [*READERS[1:], *readers])
    assert len(body) <= BODY_BYTES_MAX
    assert open_record(body, LABEL, [PATIENT_SEED]) == Content(largest, content_type)
    with pytest.raises(Rejection, match="too_large"):
        seal_record(largest + b"x", TYPE, LABEL, READERS)


def test_a_content_type_is_bounded() -> None:
    with pytest.raises(Rejection, match="bad_structure"):
        seal_record(CONTENT, "x" * (CONTENT_TYPE_CHARACTERS_MAX + 1), LABEL, READERS)


@pytest.mark.parametrize("field", ["author", "chain", "record", "subject"])
def test_a_body_opens_as_no_other_record(field: str) -> None:
    body = seal_record(CONTENT, TYPE, LABEL, READERS)
    assert refusal(body, msgspec.structs.replace(LABEL, **{field: b"x" * 32})) == "bad_body"


@pytest.mark.parametrize("version", [1, 3])
def test_a_body_opens_as_no_other_version(version: int) -> None:
    body = seal_record(CONTENT, TYPE, LABEL, READERS)
    assert refusal(body, msgspec.structs.replace(LABEL, version=version)) == "bad_body"


def test_no_altered_byte_of_a_body_opens() -> None:
    """A box that the reader cannot use is not the reader's to check: so here there is one reader."""
    body = seal_record(b"", "", LABEL, READERS[1:])
    # The ciphertext is long and all alike: every byte outside of it, and every 16th inside.
    start = body.index(b"ciphertext") + 13
    for place in (*range(start), *range(start, start + 1_040, 16), *range(start + 1_040, len(body))):
        altered = bytearray(body)
        altered[place] ^= 0x01
        assert refusal(bytes(altered)) in {
            "bad_body",
            "not_a_reader",
            "not_canonical",
            "bad_structure",
            "unknown_format",
        }


def test_a_truncated_body_and_no_body_are_refused() -> None:
    body = seal_record(CONTENT, TYPE, LABEL, READERS)
    assert refusal(body[:-1]) == "not_canonical"
    assert refusal(b"") == "not_canonical"
    assert refusal(encode({"format": 1})) == "bad_structure"
    assert refusal(b"x" * (BODY_BYTES_MAX + 1)) == "too_large"


def test_another_format_is_refused() -> None:
    fields = decode(seal_record(CONTENT, TYPE, LABEL, READERS), BODY_BYTES_MAX)
    assert refusal(encode(fields | {"format": 2})) == "unknown_format"


def test_an_author_cannot_wrap_two_keys_around_one_ciphertext() -> None:
    """Two readers with two keys: whatever the ciphertext is made to mean, the check fits at most one of them."""
    fields = decode(seal_record(CONTENT, TYPE, LABEL, READERS[:1]), BODY_BYTES_MAX)
    fields["wraps"] = sorted([*fields["wraps"], *wrap_key(b"k" * 32, READERS[1:])])
    assert refusal(encode(fields)) == "bad_body"


def test_padding_that_is_not_by_the_rule_is_refused() -> None:
    """An author's own hand could hide something there, or make a reader's parser differ from another's."""
    record_key, salt, nonce = b"k" * 32, b"s" * 32, b"n" * 24
    honest = sealing._pad(encode({"content": CONTENT, "content_type": TYPE}))
    for padded in (honest[:-1] + b"x", honest + bytes(1024), honest[:-1], b"\xff" * 8, b""):
        ciphertext = crypto_aead_xchacha20poly1305_ietf_encrypt(
            padded, encode(LABEL), nonce, sha256(sealing.CONTENT_KEY, record_key, salt)
        )
        body = {
            "ciphertext": ciphertext,
            "format": 1,
            "key_check": sha256(sealing.KEY_CHECK, record_key, salt, encode(LABEL)),
            "nonce": nonce,
            "salt": salt,
            "wraps": wrap_key(record_key, READERS),
        }
        assert refusal(encode(body)) == "bad_body"


def test_a_body_shows_no_content_and_two_of_the_same_content_have_nothing_in_common() -> None:
    first, second = (seal_record(CONTENT, TYPE, LABEL, READERS) for _ in range(2))
    for body in (first, second):
        assert not any(word in body for word in (b"confidential", b"Observation", b"fhir", b"resourceType"))
    for field in ("ciphertext", "key_check", "nonce", "salt"):
        assert decode(first, BODY_BYTES_MAX)[field] != decode(second, BODY_BYTES_MAX)[field]


def test_a_body_tells_one_of_21_sizes() -> None:
    classes = {padded_size(size) for size in range(1, PADDED_BYTES_MAX + 1, 97)} | {padded_size(PADDED_BYTES_MAX)}
    assert len(classes) == 21
    assert (min(classes), max(classes)) == (1024, PADDED_BYTES_MAX)
    sizes = {len(seal_record(b"x" * size, TYPE, LABEL, READERS)) for size in range(0, 900, 50)}
    assert len(sizes) == 1


@given(size=st.integers(1, PADDED_BYTES_MAX - 1))
def test_padding_grows_with_what_it_pads_and_less_than_doubles_it(size: int) -> None:
    assert size <= padded_size(size) <= padded_size(size + 1)
    assert padded_size(size) < max(2 * size, 1025)


def test_content_does_not_show_when_printed() -> None:
    assert "confidential" not in repr(Content(CONTENT, TYPE))
