"""How a record key is protected: one anonymous sealed box for each reader, and nothing else.

This is the only place that knows. A sealed box (libsodium: X25519, XSalsa20-Poly1305, a fresh sender key each time)
does not show whom it is for; the boxes are sorted by their random bytes, so that their order does not either. How
many there are shows. Accounts have Ed25519 keys, which libsodium maps to X25519.
"""

from collections.abc import Sequence

from nacl.bindings import (
    crypto_box_seal,
    crypto_box_seal_open,
    crypto_sign_ed25519_pk_to_curve25519,
    crypto_sign_ed25519_sk_to_curve25519,
    crypto_sign_seed_keypair,
)
from nacl.exceptions import CryptoError

from ledger.errors import Rejection
from ledger.keys import is_valid_key

RECORD_KEY_BYTES = 32
WRAP_BYTES = RECORD_KEY_BYTES + 48
READERS_MAX = 8


def wrap_key(record_key: bytes, readers: Sequence[bytes]) -> list[bytes]:
    """A box of WRAP_BYTES for each distinct Ed25519 public key in `readers`, 1 to READERS_MAX of them.

    Raises Rejection: "bad_key", "bad_readers".
    """
    assert len(record_key) == RECORD_KEY_BYTES, "a record key has one length"
    distinct = set(readers)
    if not 1 <= len(distinct) <= READERS_MAX:
        raise Rejection("bad_readers", f"{len(distinct)} readers; a record has 1 to {READERS_MAX}")
    for reader in distinct:
        if not is_valid_key(reader):
            raise Rejection("bad_key", "a reader's key is not a valid point of the prime-order group")
    return sorted(crypto_box_seal(record_key, crypto_sign_ed25519_pk_to_curve25519(reader)) for reader in distinct)


def unwrap_key(wraps: Sequence[bytes], seeds: Sequence[bytes]) -> bytes:
    """The record key from whichever box one of `seeds` (Ed25519, 32 bytes each) opens, the first seed tried first.

    Raises Rejection("not_a_reader") when none does.
    """
    for seed in seeds:
        public, secret = crypto_sign_seed_keypair(seed)
        box_public = crypto_sign_ed25519_pk_to_curve25519(public)
        box_secret = crypto_sign_ed25519_sk_to_curve25519(secret)
        for wrap in wraps:
            try:
                record_key: bytes = crypto_box_seal_open(wrap, box_public, box_secret)
            except CryptoError:
                continue
            if len(record_key) == RECORD_KEY_BYTES:
                return record_key
    raise Rejection("not_a_reader", "none of the wallet's keys opens this record")
