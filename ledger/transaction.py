"""Transactions: what a member signs, and the checks that need no state.

A transaction on the wire is the canonical map {body, signature}, where `body` is itself canonical bytes: the
envelope. The id is the hash of the envelope alone, so that two signatures over one envelope are one
transaction; trees and caches use the hash of the whole, so that the bytes that were checked are the bytes
that are stored.
"""

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from ledger.contracts import ACTION_NAMES, Action
from ledger.contracts.context import BodyReference
from ledger.encoding import decode, decode_as, encode
from ledger.errors import Rejection
from ledger.keys import (
    AccountId,
    Bytes32,
    Hash,
    PublicKey,
    Signature,
    SigningKey,
    sha256,
    sha256_after,
    tag,
    verify,
)

TRANSACTION = tag("transaction")
TRANSACTION_ID = tag("transaction-id")
TRANSACTION_HASH = tag("transaction-hash")
BODY = tag("body")
FORMAT = 1

_id_of = sha256_after(TRANSACTION_ID)
_hash_of = sha256_after(TRANSACTION_HASH)
_commitment_of = sha256_after(BODY)

NONCE_BYTES = 16
UNTIL_AHEAD_MAX_MS = 600_000
ENVELOPE_BYTES_MAX = 64 * 1024
BODY_BYTES_MAX = 1024 * 1024
ACTIONS_MAX = 64
BODIES_MAX = 64
BODIES_BYTES_MAX = 8 * 1024 * 1024


class Reference(BodyReference, frozen=True, forbid_unknown_fields=True):
    """A BodyReference as the wire must carry it."""

    commitment: Bytes32
    size: Annotated[int, Meta(ge=1, le=2**53)]


class Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is signed. `until` is the last block time, in ms, at which it may be included."""

    actions: Annotated[list[Action], Meta(min_length=1, max_length=ACTIONS_MAX)]
    bodies: Annotated[list[Reference], Meta(max_length=BODIES_MAX)]
    by: AccountId
    chain: Hash
    format: int
    key: PublicKey
    nonce: Annotated[bytes, Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]
    until: Annotated[int, Meta(ge=0, le=2**53)]


class _Wire(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    body: bytes
    signature: Signature


_stored_wire = msgspec.msgpack.Decoder(_Wire)
_stored_envelope = msgspec.msgpack.Decoder(Envelope)


class Transaction(msgspec.Struct, frozen=True):
    """A decoded transaction. `data` is what came and what is stored; `id` and `hash` are 32 bytes."""

    envelope: Envelope
    id: bytes
    hash: bytes
    data: bytes
    body_digest: bytes
    signature: bytes


def sign_transaction(envelope: Envelope, key: SigningKey) -> Transaction:
    """The transaction that `key` signs, or Rejection("wrong_signer") if the envelope names another key."""
    if key.public != envelope.key:
        raise Rejection("wrong_signer", "the envelope names another key")
    body = encode(envelope)
    signature = key.sign(TRANSACTION, sha256(body))
    return decode_transaction(encode({"body": body, "signature": signature}))


def decode_transaction(data: bytes, own_hash: bytes | None = None) -> Transaction:
    """Parse; the signature is `check_signature`'s. `own_hash` is the `transaction_hash` of `data`, from whoever has
    looked it up by that already.

    Raises Rejection: too_large, not_canonical, unsigned, unknown_format, unknown_action, bad_structure.
    """
    try:
        signed = decode_as(_Wire, data, ENVELOPE_BYTES_MAX)
    except Rejection:
        _require_signed(decode(data, ENVELOPE_BYTES_MAX))
        raise
    try:
        envelope = decode_as(Envelope, signed.body, ENVELOPE_BYTES_MAX)
    except Rejection:
        _require_known(decode(signed.body, ENVELOPE_BYTES_MAX))
        raise
    if envelope.format != FORMAT:
        raise Rejection("unknown_format", "this envelope format is not known here")
    used = sorted([action.body for action in envelope.actions if hasattr(action, "body")])
    if used != list(range(len(envelope.bodies))):
        raise Rejection("bad_structure", "every body is named by exactly one action")
    sizes = [reference.size for reference in envelope.bodies]
    if max(sizes, default=0) > BODY_BYTES_MAX or sum(sizes) > BODIES_BYTES_MAX:
        raise Rejection("too_large", f"a body has at most {BODY_BYTES_MAX} bytes, all have {BODIES_BYTES_MAX}")
    digest = sha256(signed.body)
    return Transaction(
        envelope=envelope,
        id=_id_of(digest),
        hash=own_hash or transaction_hash(data),
        data=data,
        body_digest=digest,
        signature=signed.signature,
    )


def stored_envelope(data: bytes) -> Envelope:
    """The envelope of a transaction that was checked before it was stored: parsed, and not checked again.

    A fifth of the cost of `decode_transaction`. Raises msgspec.MsgspecError where the store is damaged.
    """
    return _stored_envelope.decode(_stored_wire.decode(data).body)


def transaction_hash(data: bytes) -> bytes:
    """The hash of the signed bytes, by which trees, pools and caches know a transaction."""
    return _hash_of(data)


def bodies_bytes(transaction: Transaction) -> int:
    """What the bodies that it names weigh."""
    return sum(reference.size for reference in transaction.envelope.bodies)


def check_signature(transaction: Transaction, chain: bytes) -> None:
    """The stateless half of admission: Rejection("wrong_chain") or ("bad_signature")."""
    if transaction.envelope.chain != chain:
        raise Rejection("wrong_chain", "signed for another network")
    if not verify(transaction.envelope.key, TRANSACTION, transaction.body_digest, transaction.signature):
        raise Rejection("bad_signature", "the signature does not verify under the envelope's key")


def check_time(envelope: Envelope, time_ms: int) -> None:
    """Rejection("expired") or ("until_too_far") for inclusion at block time `time_ms`."""
    if envelope.until < time_ms:
        raise Rejection("expired", f"until {envelope.until} is before {time_ms}")
    if envelope.until > time_ms + UNTIL_AHEAD_MAX_MS:
        raise Rejection("until_too_far", f"until is more than {UNTIL_AHEAD_MAX_MS} ms ahead")


def body_commitment(body: bytes) -> bytes:
    """The 32-byte commitment to a body. Sealed bodies carry their own salt, so equal contents do not show."""
    return _commitment_of(body)


def body_reference(body: bytes) -> Reference:
    """How an envelope names `body`."""
    return Reference(commitment=body_commitment(body), size=len(body))


def check_bodies(transaction: Transaction, bodies: Sequence[bytes]) -> None:
    """Rejection("body_mismatch") unless `bodies` are, in order, what the envelope commits to."""
    references = transaction.envelope.bodies
    if len(bodies) != len(references):
        raise Rejection("body_mismatch", f"{len(bodies)} bodies came, {len(references)} are named")
    for index, (reference, body) in enumerate(zip(references, bodies, strict=True)):
        if len(body) != reference.size or body_commitment(body) != reference.commitment:
            raise Rejection("body_mismatch", f"body {index} does not match its commitment")


def _require_signed(wire: Any) -> None:
    """Say "unsigned" before "malformed"."""
    if isinstance(wire, dict) and "body" in wire and not wire.get("signature"):
        raise Rejection("unsigned", "a transaction carries a signature")


def _require_known(value: Any) -> None:
    """Say "unknown" before "malformed": what a newer peer would send deserves the clearer code."""
    if not isinstance(value, dict):
        raise Rejection("bad_structure", "an envelope is a map")
    if value.get("format") != FORMAT:
        raise Rejection("unknown_format", "this envelope format is not known here")
    actions = value.get("actions")
    for action in actions if isinstance(actions, list) else ():
        name = action.get("do") if isinstance(action, dict) else None
        if not isinstance(name, str) or name not in ACTION_NAMES:
            raise Rejection("unknown_action", "no contract has this action")
