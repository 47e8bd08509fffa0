"""Blocks: a signed header over transactions, linked to its parent. Height 0 is genesis itself.

A header carries the roots of an *earlier* height, `executed_height`, because blocks are ordered first and
executed once committed. Its hash leaves the signature out, so that one proposal has one name.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta

from ledger.encoding import ITEMS_MAX, decode_as, encode
from ledger.errors import Rejection
from ledger.finality import CERTIFICATE_BYTES_MAX, NodeId
from ledger.keys import Hash, Signature, SigningKey, sha256, tag, verify
from ledger.membership import Change
from ledger.merkle import root_of
from ledger.transaction import Transaction, bodies_bytes, decode_transaction, transaction_hash

BLOCK_HASH = tag("block")
BLOCK_SIGNATURE = tag("block-signature")
FORMAT = 2
# Room for a change of 64 voters and as many learners, or for the certificate of 64 of them.
HEADER_BYTES_MAX = 1024 + CERTIFICATE_BYTES_MAX

# What the bodies that one block names weigh in all: what a node must hold in memory to take the block whole.
BLOCK_BODIES_BYTES_MAX = 16 * 1024 * 1024

Height = Annotated[int, Meta(ge=0, le=2**53)]


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`time` in ms; the roots are those after `executed_height`; `configuration` is the digest of the one in effect
    at this block. `change` begins a change of it; `proof`, the parent's certificate, ends a joint one."""

    chain: Hash
    change: Change | None
    configuration: Hash
    count: Annotated[int, Meta(ge=0, le=10_000)]
    executed_height: Height
    format: int
    height: Annotated[int, Meta(ge=1, le=2**53)]
    history_root: Hash
    parent: Hash
    proof: Annotated[bytes, Meta(max_length=CERTIFICATE_BYTES_MAX)] | None
    proposer: NodeId
    state_root: Hash
    term: Annotated[int, Meta(ge=1, le=2**53)]
    time: Annotated[int, Meta(ge=0, le=2**53)]
    tx_root: Hash

    def encode(self) -> bytes:
        return encode(self)


class _Wire(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    header: bytes
    signature: Signature
    transactions: Annotated[list[bytes], Meta(max_length=ITEMS_MAX)]


_stored_wire = msgspec.msgpack.Decoder(_Wire)


@dataclass(frozen=True, slots=True)
class Block:
    """A decoded block; `data` is what travels and what is stored."""

    header: Header
    hash: bytes
    header_data: bytes
    signature: bytes
    transactions: tuple[Transaction, ...]
    data: bytes


def block_hash(header_data: bytes) -> bytes:
    return sha256(BLOCK_HASH, header_data)


def tx_root(transactions: tuple[Transaction, ...] | list[Transaction]) -> bytes:
    """The RFC 9162 root over the hashes of the signed transactions, in block order."""
    return root_of([transaction.hash for transaction in transactions])


def seal_block(header: Header, transactions: list[Transaction], key: SigningKey) -> Block:
    """Sign a header over its transactions. The header must already carry their root and count."""
    header_data = header.encode()
    digest = block_hash(header_data)
    signature = key.sign(BLOCK_SIGNATURE, digest)
    data = encode(
        {
            "header": header_data,
            "signature": signature,
            "transactions": [transaction.data for transaction in transactions],
        }
    )
    return Block(header, digest, header_data, signature, tuple(transactions), data)


def decode_block(data: bytes, bytes_max: int, known: Callable[[bytes], Transaction | None] | None = None) -> Block:
    """Parse a block and check what needs no keys and no state: forms, count, tx_root.

    `known` may answer a transaction's hash with the one already decoded (and checked) under that hash, so
    that gossip and blocks do not decode it twice. Raises Rejection.
    """
    wire = decode_as(_Wire, data, bytes_max)
    header = decode_header(wire.header)
    transactions = []
    for item in wire.transactions:
        own_hash = transaction_hash(item)
        found = known(own_hash) if known else None
        transactions.append(found if found is not None else decode_transaction(item, own_hash))
    if len({transaction.hash for transaction in transactions}) != len(transactions):
        raise Rejection("bad_block", "it holds the same signed transaction twice")
    if sum(map(bodies_bytes, transactions)) > BLOCK_BODIES_BYTES_MAX:
        raise Rejection("bad_block", f"its bodies have more than {BLOCK_BODIES_BYTES_MAX} bytes in all")
    if header.count != len(transactions) or header.tx_root != tx_root(transactions):
        raise Rejection("bad_block", "tx_root or count does not match the transactions")
    return Block(header, block_hash(wire.header), wire.header, wire.signature, tuple(transactions), data)


def header_of(data: bytes) -> tuple[Header, bytes]:
    """Header and hash of a whole block's bytes, its transactions left undecoded. Raises Rejection."""
    wire = decode_as(_Wire, data, len(data))
    return decode_header(wire.header), block_hash(wire.header)


def stored_header(data: bytes) -> tuple[bytes, bytes]:
    """Header and signature, as bytes, of a block that was checked before it was stored."""
    wire = _stored_wire.decode(data)
    return wire.header, wire.signature


def stored_transactions(data: bytes) -> list[bytes]:
    """The signed transactions of a block that was checked before it was stored; see `stored_envelope`."""
    return _stored_wire.decode(data).transactions


def decode_header(data: bytes) -> Header:
    header = decode_as(Header, data, HEADER_BYTES_MAX)
    if header.format != FORMAT:
        raise Rejection("unknown_format", f"header format {header.format}")
    if header.executed_height >= header.height:
        raise Rejection("bad_block", "executed_height is not below the height")
    return header


def verify_header(block: bytes, signature: bytes, proposer_key: bytes) -> bool:
    """Whether the proposer signed the header whose hash is `block`."""
    return verify(proposer_key, BLOCK_SIGNATURE, block, signature)
