"""Sealed records: what becomes of content before it leaves its author's process.

A body is the canonical map {ciphertext, format, key_check, nonce, salt, wraps}:

wraps       the record key, 32 random bytes, protected as `custody` says
salt        32 random bytes: the body's commitment tells nothing about the content, even once the body is erased
ciphertext  XChaCha20-Poly1305 over the padded content, under sha256(tag, record key, salt), with the label
            {author, chain, record, subject, version} as additional data: a body opens only as the record, and the
            version of it, that it was made for
key_check   sha256(tag, record key, salt, label). Poly1305 alone does not bind the key: without this an author could
            wrap two keys under which one ciphertext opens to two contents, one for each reader

Content type and length are inside. What is sealed is padded with zeros to the next of 1, 2, 4, 8, 16, 32, 64 KiB,
then to the next multiple of 64 KiB up to 960 KiB: so the size of a body tells one of 21 classes.
"""

import secrets
from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta
from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_decrypt,
    crypto_aead_xchacha20poly1305_ietf_encrypt,
)
from nacl.exceptions import CryptoError

from carequorum.custody import READERS_MAX, RECORD_KEY_BYTES, WRAP_BYTES, unwrap_key, wrap_key
from ledger.encoding import decode_as, encode
from ledger.errors import Rejection
from ledger.keys import AccountId, Bytes32, Hash, sha256, tag
from ledger.transaction import BODY_BYTES_MAX

CONTENT_KEY = tag("record-content-key")
KEY_CHECK = tag("record-key-check")
FORMAT = 1

PADDED_BYTES_MIN = 1024
PADDED_STEP_BYTES = 64 * 1024
PADDED_BYTES_MAX = 15 * PADDED_STEP_BYTES
CONTENT_TYPE_CHARACTERS_MAX = 128
# What surrounds the content inside the seal: its length, the map's keys, a content type (up to 4 bytes a character).
FRAME_BYTES_MAX = 64 + 4 * CONTENT_TYPE_CHARACTERS_MAX
CONTENT_BYTES_MAX = PADDED_BYTES_MAX - FRAME_BYTES_MAX
_LENGTH_BYTES = 4
_NONCE_BYTES = 24
_SALT_BYTES = 32

Wrap = Annotated[bytes, Meta(min_length=WRAP_BYTES, max_length=WRAP_BYTES)]


class Label(msgspec.Struct, frozen=True):
    """Which version of which record a body is: the ledger knows all of it, and the seal holds for this label alone.

    `author` wrote this version.
    """

    author: AccountId
    chain: Hash
    record: Bytes32
    subject: Bytes32
    version: int


@dataclass(frozen=True, slots=True)
class Content:
    """What was sealed: the exact bytes, and their media type such as "application/fhir+json"."""

    data: bytes
    content_type: str

    def __repr__(self) -> str:
        return f"Content({len(self.data)} bytes)"


class _Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    ciphertext: bytes
    format: int
    key_check: Hash
    nonce: Annotated[bytes, Meta(min_length=_NONCE_BYTES, max_length=_NONCE_BYTES)]
    salt: Annotated[bytes, Meta(min_length=_SALT_BYTES, max_length=_SALT_BYTES)]
    wraps: Annotated[list[Wrap], Meta(min_length=1, max_length=READERS_MAX)]


class _Sealed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    content: bytes
    content_type: Annotated[str, Meta(max_length=CONTENT_TYPE_CHARACTERS_MAX)]


def seal_record(content: bytes, content_type: str, label: Label, readers: list[bytes]) -> bytes:
    """The sealed body of a record that each of `readers` (current Ed25519 public keys) can open.

    The author reads later only if its own key is among them. Raises Rejection: "too_large" for more than
    CONTENT_BYTES_MAX bytes, "bad_structure" for a content type of more than 128 characters, "bad_readers", "bad_key".
    """
    if len(content) > CONTENT_BYTES_MAX:
        raise Rejection("too_large", f"{len(content)} bytes of content, at most {CONTENT_BYTES_MAX}")
    if len(content_type) > CONTENT_TYPE_CHARACTERS_MAX:
        raise Rejection("bad_structure", f"a content type has at most {CONTENT_TYPE_CHARACTERS_MAX} characters")
    record_key, salt, nonce = (secrets.token_bytes(size) for size in (RECORD_KEY_BYTES, _SALT_BYTES, _NONCE_BYTES))
    ciphertext: bytes = crypto_aead_xchacha20poly1305_ietf_encrypt(
        _pad(encode({"content": content, "content_type": content_type})),
        encode(label),
        nonce,
        sha256(CONTENT_KEY, record_key, salt),
    )
    body = encode(
        _Body(
            ciphertext=ciphertext,
            format=FORMAT,
            key_check=sha256(KEY_CHECK, record_key, salt, encode(label)),
            nonce=nonce,
            salt=salt,
            wraps=wrap_key(record_key, readers),
        )
    )
    assert len(body) <= BODY_BYTES_MAX, "the largest padded size leaves room for keys and boxes"
    return body


def open_record(body: bytes, label: Label, seeds: list[bytes]) -> Content:
    """The content of a sealed body, by a reader's Ed25519 seeds (newest first, retired ones after it).

    Raises Rejection: "not_a_reader"; "bad_body" when the body was altered, or belongs to another label; and as
    `ledger.encoding.decode_as` for what is no sealed body at all.
    """
    sealed = decode_as(_Body, body, BODY_BYTES_MAX)
    if sealed.format != FORMAT:
        raise Rejection("unknown_format", f"sealed body format {sealed.format}")
    record_key = unwrap_key(sealed.wraps, seeds)
    if sealed.key_check != sha256(KEY_CHECK, record_key, sealed.salt, encode(label)):
        raise Rejection("bad_body", "made for another record or version, or with two keys")
    try:
        padded = crypto_aead_xchacha20poly1305_ietf_decrypt(
            sealed.ciphertext, encode(label), sealed.nonce, sha256(CONTENT_KEY, record_key, sealed.salt)
        )
    except (CryptoError, ValueError):
        raise Rejection("bad_body", "the ciphertext was altered") from None
    inner = decode_as(_Sealed, _unpad(padded), PADDED_BYTES_MAX)
    return Content(inner.content, inner.content_type)


def padded_size(size: int) -> int:
    """The class, in bytes, that `size` bytes are padded to."""
    if size <= PADDED_STEP_BYTES:
        return max(PADDED_BYTES_MIN, 1 << (size - 1).bit_length())
    return -(-size // PADDED_STEP_BYTES) * PADDED_STEP_BYTES


def _pad(data: bytes) -> bytes:
    framed = len(data).to_bytes(_LENGTH_BYTES, "big") + data
    return framed.ljust(padded_size(len(framed)), b"\0")


def _unpad(padded: bytes) -> bytes:
    end = _LENGTH_BYTES + int.from_bytes(padded[:_LENGTH_BYTES], "big")
    data = padded[_LENGTH_BYTES:end]
    if _pad(data) != padded:
        raise Rejection("bad_body", "the padding is not by the rule")
    return data
