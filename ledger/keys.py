"""Hashes and Ed25519 signatures, each under a tag of its own.

Everything that is hashed or signed starts with a tag that names what it is, so that bytes made for one
purpose never verify for another. Ed25519 is libsodium's, through PyNaCl, and nothing else's: libraries
disagree on the edge cases, and here a disagreement would be a fork.
"""

import hashlib
from collections.abc import Callable
from typing import Annotated

from msgspec import Meta
from nacl.bindings import (
    crypto_core_ed25519_is_valid_point,
    crypto_sign,
    crypto_sign_open,
    crypto_sign_seed_keypair,
)
from nacl.exceptions import CryptoError

Bytes32 = Annotated[bytes, Meta(min_length=32, max_length=32)]
Hash = Bytes32
PublicKey = Bytes32
AccountId = Bytes32
Signature = Annotated[bytes, Meta(min_length=64, max_length=64)]

HASH_BYTES = 32
SIGNATURE_BYTES = 64


def tag(name: str) -> bytes:
    """The prefix of one purpose: readable, versioned, ended by a zero byte so that no tag begins another."""
    return b"carequorum/1/" + name.encode("ascii") + b"\0"


_ACCOUNT = tag("account")


def sha256(*parts: bytes) -> bytes:
    """SHA-256 of the concatenation."""
    return hashlib.sha256(b"".join(parts)).digest()


def sha256_after(prefix: bytes) -> Callable[[bytes], bytes]:
    """SHA-256 of `prefix ‖ data`, as a function of `data`. For what is hashed often: half the cost."""
    begun = hashlib.sha256(prefix)

    def digest(data: bytes) -> bytes:
        hasher = begun.copy()
        hasher.update(data)
        return hasher.digest()

    return digest


def account_id(first_key: bytes) -> bytes:
    """The 32-byte name of an account: the hash of its first public key. Later keys do not change it."""
    return sha256(_ACCOUNT, first_key)


def is_valid_key(public_key: bytes) -> bool:
    """Whether a key may be registered: a canonical point of the prime-order subgroup (no small order)."""
    return len(public_key) == 32 and bool(crypto_core_ed25519_is_valid_point(public_key))


class SigningKey:
    """An Ed25519 key pair from its 32-byte seed. It never shows the seed when printed."""

    __slots__ = ("_secret", "public")

    def __init__(self, seed: bytes) -> None:
        self.public, self._secret = crypto_sign_seed_keypair(seed)

    def sign(self, purpose: bytes, digest: bytes) -> bytes:
        """The 64-byte signature over `purpose ‖ digest`; `purpose` is a `tag(...)`."""
        signed: bytes = crypto_sign(purpose + digest, self._secret)
        return signed[:SIGNATURE_BYTES]

    def __repr__(self) -> str:
        return f"SigningKey(public={self.public.hex()})"


def verify(public_key: bytes, purpose: bytes, digest: bytes, signature: bytes) -> bool:
    """Whether `signature` is that key's over `purpose ‖ digest`. Costs about 60 µs; check once, remember."""
    if len(public_key) != 32 or len(signature) != SIGNATURE_BYTES:
        return False
    try:
        crypto_sign_open(signature + purpose + digest, public_key)
    except (CryptoError, ValueError):
        return False
    return True
