"""The one table of what travels between peers: number, name, shape, lane, size.

A message is MessagePack: its fields as an array, in the order below, decoded by msgspec into exactly these shapes.
None of this is signed or stored as such, so it need not be canonical; what is signed travels inside as bytes.
The consensus values cross as shapes of the same field names, which add the bounds that the wire needs.

Raises Rejection, the peer's mistake: "bad_message", "message_too_large", "unknown_kind".
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from consensus import messages as consensus
from ledger.block import HEADER_BYTES_MAX
from ledger.errors import Rejection
from ledger.finality import CERTIFICATE_BYTES_MAX, VOTERS_MAX, NodeId
from ledger.keys import Hash, Signature
from ledger.transaction import BODIES_MAX, BODY_BYTES_MAX, ENVELOPE_BYTES_MAX
from network.port import SharedTransaction

PROTOCOL_VERSION = 2

KIB, MIB = 1024, 1024 * 1024
BLOCK_BYTES_MAX = 8 * MIB + HEADER_BYTES_MAX + 64 * KIB
APPEND_BYTES_MAX = 10 * MIB
APPEND_ENTRIES_MAX = 1_024
ACKNOWLEDGEMENTS_MAX = 1_024
BLOCKS_BYTES_MAX = 16 * MIB
BLOCKS_MAX = 4_096
BODIES_BYTES_MAX = 4 * MIB
COMMITMENTS_MAX = 4_096
MANIFEST_BYTES_MAX = 1 * MIB
PROOF_BYTES_MAX = 14 * MIB
CHUNK_BYTES_MAX = 1 * MIB
ANNOUNCE_IDS_MAX = 1_024
# A transaction with all its bodies; what is larger cannot be gossiped, and must be refused where it enters.
TRANSACTION_BYTES_MAX = 16 * MIB
BATCH_BYTES_MAX = 60 * KIB
BATCH_TRANSACTIONS_MAX = 256
# What the array and length prefixes of a message may add to the sizes above.
FRAMING_BYTES_MAX = 64 * KIB

Number = Annotated[int, Meta(ge=0, le=2**53)]


class Lane(IntEnum):
    """A connection of its own, so that no buffer between two machines is shared. Greetings use both."""

    CONTROL = 1
    GOSSIP = 2


class Stream(IntEnum):
    """What waits for what on one lane: a lower number leaves first, between any two frames."""

    URGENT = 0
    BLOCKS = 1
    SYNC = 2
    GOSSIP = 3


class _Shape(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, gc=False):
    """Everything on the wire: positional, immutable, with no field more or less than named."""


class VoteShown(_Shape, frozen=True):
    term: Number
    candidate: NodeId
    signature: Signature


class AcknowledgementShown(_Shape, frozen=True):
    term: Number
    height: Number
    hash: Hash
    signature: Signature


class HeaderShown(_Shape, frozen=True):
    header: Annotated[bytes, Meta(max_length=HEADER_BYTES_MAX)]
    signature: Signature


class Statements(_Shape, frozen=True):
    vote: VoteShown | None
    acknowledgement: AcknowledgementShown | None
    header: HeaderShown | None
    certified_height: Number


class Hello(msgspec.Struct, array_like=True, frozen=True):
    """The first message each way, and what its sender holds from the receiver under that one's signature.

    Later versions may append fields, so that each side can name what differs.
    """

    version: Number
    chain: Annotated[bytes, Meta(max_length=64)]
    node: Annotated[str, Meta(max_length=64)]
    statements: Statements | None = None


class Goodbye(_Shape, frozen=True):
    """Why a connection ends, from the side that accepted it, signed by its node's key."""

    reason: Annotated[str, Meta(max_length=32)]
    signature: Signature


class PreVote(_Shape, frozen=True):
    term: Number
    last_height: Number
    last_term: Number


class PreVoteReply(_Shape, frozen=True):
    term: Number
    granted: bool


class Vote(_Shape, frozen=True):
    term: Number
    last_height: Number
    last_term: Number
    transfer: bool


class VoteReply(_Shape, frozen=True):
    """The signature is empty where the vote was not granted."""

    term: Number
    granted: bool
    signature: Annotated[bytes, Meta(max_length=64)]


class Configuration(_Shape, frozen=True):
    voters: Annotated[tuple[NodeId, ...], Meta(max_length=VOTERS_MAX)]
    learners: Annotated[tuple[NodeId, ...], Meta(max_length=VOTERS_MAX)]
    old_voters: Annotated[tuple[NodeId, ...], Meta(max_length=VOTERS_MAX)]


class Entry(_Shape, frozen=True):
    height: Number
    term: Number
    parent: Hash
    hash: Hash
    data: Annotated[bytes, Meta(max_length=BLOCK_BYTES_MAX)]
    configuration: Configuration | None


class Certificate(_Shape, frozen=True):
    term: Number
    height: Number
    hash: Hash
    signatures: Annotated[tuple[tuple[NodeId, Signature], ...], Meta(max_length=VOTERS_MAX)]


class Append(_Shape, frozen=True):
    term: Number
    prev_height: Number
    prev_term: Number
    prev_hash: Hash
    entries: Annotated[tuple[Entry, ...], Meta(max_length=APPEND_ENTRIES_MAX)]
    certificate: Certificate | None
    round: Number


class Acknowledgement(_Shape, frozen=True):
    """The signature is empty where the sender is a learner."""

    height: Number
    hash: Hash
    signature: Annotated[bytes, Meta(max_length=64)]


class AppendReply(_Shape, frozen=True):
    term: Number
    answer: consensus.Answer
    height: Number
    rejected_height: Number
    hint_term: Number
    acknowledgements: Annotated[tuple[Acknowledgement, ...], Meta(max_length=ACKNOWLEDGEMENTS_MAX)]
    reason: consensus.Reason
    round: Number
    stopping: bool
    binding: bool


class TimeoutNow(_Shape, frozen=True):
    term: Number


class ReadIndex(_Shape, frozen=True):
    term: Number
    request: Number


class ReadIndexReply(_Shape, frozen=True):
    term: Number
    request: Number
    height: Number | None


class GetBlocks(_Shape, frozen=True):
    """Certified blocks from this height up, at most so many bytes of them."""

    request: Number
    from_height: Number
    bytes_max: Number


class Blocks(_Shape, frozen=True):
    """The answer: as stored, consecutive, ending at the block of the certificate. Empty: there are none.

    Blocks up to `base` are pruned.
    """

    request: Number
    blocks: Annotated[list[Annotated[bytes, Meta(max_length=BLOCK_BYTES_MAX)]], Meta(max_length=BLOCKS_MAX)]
    certificate: Annotated[bytes, Meta(max_length=CERTIFICATE_BYTES_MAX)] | None
    base: Number


class GetBodies(_Shape, frozen=True):
    request: Number
    commitments: Annotated[list[Hash], Meta(max_length=COMMITMENTS_MAX)]


class Bodies(_Shape, frozen=True):
    """Those held among the ones asked for, as far as one answer reaches."""

    request: Number
    bodies: Annotated[list[Annotated[bytes, Meta(max_length=BODY_BYTES_MAX)]], Meta(max_length=COMMITMENTS_MAX)]


class GetSnapshot(_Shape, frozen=True):
    """The newest snapshot that the peer has."""

    request: Number


class Snapshot(_Shape, frozen=True):
    """The answer: its manifest and what proves it. Empty: there is none."""

    request: Number
    manifest: Annotated[bytes, Meta(max_length=MANIFEST_BYTES_MAX)]
    proof: Annotated[bytes, Meta(max_length=PROOF_BYTES_MAX)]


class GetChunk(_Shape, frozen=True):
    """One chunk of the snapshot whose manifest has this id."""

    request: Number
    snapshot: Hash
    index: Number


class Chunk(_Shape, frozen=True):
    """The answer. Empty: the peer has no such chunk (any more)."""

    request: Number
    data: Annotated[bytes, Meta(max_length=CHUNK_BYTES_MAX)]


class Shared(_Shape, frozen=True):
    envelope: Annotated[bytes, Meta(max_length=ENVELOPE_BYTES_MAX)]
    bodies: Annotated[list[Annotated[bytes, Meta(max_length=BODY_BYTES_MAX)]], Meta(max_length=BODIES_MAX)]


class Transactions(_Shape, frozen=True):
    items: Annotated[list[Shared], Meta(max_length=BATCH_TRANSACTIONS_MAX)]


class Announce(_Shape, frozen=True):
    """Ids of transactions that the sender's pool holds."""

    ids: Annotated[list[Hash], Meta(max_length=ANNOUNCE_IDS_MAX)]


class GetTransactions(_Shape, frozen=True):
    ids: Annotated[list[Hash], Meta(max_length=ANNOUNCE_IDS_MAX)]


@dataclass(frozen=True, slots=True)
class Kind:
    """One row of the table. `lane` None: a greeting, on either lane. `value`: the consensus class that it carries."""

    number: int
    name: str
    shape: type[Any]
    lane: Lane | None
    stream: Stream
    bytes_max: int
    decoder: msgspec.msgpack.Decoder[Any]
    value: type[Any] | None


def _kind(
    number: int,
    shape: type[Any],
    lane: Lane | None,
    stream: Stream,
    bytes_max: int,
    value: type[Any] | None = None,
) -> Kind:
    name = shape.__name__.lower()
    return Kind(number, name, shape, lane, stream, bytes_max, msgspec.msgpack.Decoder(shape), value)


_CONTROL, _GOSSIP = Lane.CONTROL, Lane.GOSSIP

KINDS = (
    _kind(1, Hello, None, Stream.URGENT, HEADER_BYTES_MAX + 2 * KIB),
    _kind(2, Goodbye, None, Stream.URGENT, 1 * KIB),
    _kind(16, PreVote, _CONTROL, Stream.URGENT, 1 * KIB, consensus.PreVote),
    _kind(17, PreVoteReply, _CONTROL, Stream.URGENT, 1 * KIB, consensus.PreVoteReply),
    _kind(18, Vote, _CONTROL, Stream.URGENT, 1 * KIB, consensus.Vote),
    _kind(19, VoteReply, _CONTROL, Stream.URGENT, 1 * KIB, consensus.VoteReply),
    _kind(20, Append, _CONTROL, Stream.BLOCKS, APPEND_BYTES_MAX, consensus.Append),
    _kind(21, AppendReply, _CONTROL, Stream.URGENT, 256 * KIB, consensus.AppendReply),
    _kind(22, TimeoutNow, _CONTROL, Stream.URGENT, 1 * KIB, consensus.TimeoutNow),
    _kind(23, ReadIndex, _CONTROL, Stream.URGENT, 1 * KIB, consensus.ReadIndex),
    _kind(24, ReadIndexReply, _CONTROL, Stream.URGENT, 1 * KIB, consensus.ReadIndexReply),
    _kind(32, GetBlocks, _CONTROL, Stream.SYNC, 1 * KIB),
    _kind(33, Blocks, _CONTROL, Stream.SYNC, BLOCKS_BYTES_MAX + FRAMING_BYTES_MAX),
    _kind(34, GetBodies, _CONTROL, Stream.SYNC, COMMITMENTS_MAX * 34 + KIB),
    _kind(35, Bodies, _CONTROL, Stream.SYNC, BODIES_BYTES_MAX + FRAMING_BYTES_MAX),
    _kind(36, GetSnapshot, _CONTROL, Stream.SYNC, 1 * KIB),
    _kind(37, Snapshot, _CONTROL, Stream.SYNC, MANIFEST_BYTES_MAX + PROOF_BYTES_MAX + KIB),
    _kind(38, GetChunk, _CONTROL, Stream.SYNC, 1 * KIB),
    _kind(39, Chunk, _CONTROL, Stream.SYNC, CHUNK_BYTES_MAX + KIB),
    _kind(48, Transactions, _GOSSIP, Stream.GOSSIP, TRANSACTION_BYTES_MAX + FRAMING_BYTES_MAX),
    _kind(49, Announce, _GOSSIP, Stream.GOSSIP, ANNOUNCE_IDS_MAX * 34 + KIB),
    _kind(50, GetTransactions, _GOSSIP, Stream.GOSSIP, ANNOUNCE_IDS_MAX * 34 + KIB),
)

KIND_BY_NUMBER = {kind.number: kind for kind in KINDS}
_KIND_BY_CLASS = {kind.value or kind.shape: kind for kind in KINDS}
_encode = msgspec.msgpack.Encoder().encode
GOODBYE_NUMBER = _KIND_BY_CLASS[Goodbye].number


def kind_of(message: object) -> Kind:
    return _KIND_BY_CLASS[type(message)]


def stream_of(kind: Kind, message: object) -> Stream:
    """A heartbeat, which is an Append without entries, does not queue behind blocks."""
    if isinstance(message, consensus.Append) and not message.entries:
        return Stream.URGENT
    return kind.stream


def encode(message: object) -> bytes:
    """The bytes of a message. ValueError where it is larger than its row allows: that is our own mistake."""
    kind = kind_of(message)
    if kind.value is not None:
        message = msgspec.convert(message, kind.shape, from_attributes=True)
    data = _encode(message)
    if len(data) > kind.bytes_max:
        raise ValueError(f"{kind.name} of {len(data)} bytes, at most {kind.bytes_max}")
    return data


def decode(kind: Kind, data: bytes | bytearray | memoryview) -> Any:
    """The message of that kind: one of the shapes above, or the consensus value that it stands for."""
    if len(data) > kind.bytes_max:
        raise Rejection("message_too_large", f"{kind.name} of {len(data)} bytes")
    try:
        message = kind.decoder.decode(data)
        if kind.value is not None:
            message = msgspec.convert(message, kind.value, from_attributes=True)
    except msgspec.DecodeError as error:
        # The text of a msgspec error names a path and a type, never a value.
        raise Rejection("bad_message", f"{kind.name}: {error}") from None
    except UnicodeDecodeError:
        raise Rejection("bad_message", f"{kind.name}: text that is not UTF-8") from None
    return message


def transaction_bytes(transaction: SharedTransaction) -> int:
    """Envelope and bodies together: what TRANSACTION_BYTES_MAX bounds."""
    return len(transaction.envelope) + sum(map(len, transaction.bodies))


def transaction_batches(transactions: Iterable[SharedTransaction]) -> Iterable[Transactions]:
    """Messages of at most BATCH_BYTES_MAX and BATCH_TRANSACTIONS_MAX; one larger transaction goes alone."""
    batch: list[Shared] = []
    batch_bytes = 0
    for transaction in transactions:
        size = transaction_bytes(transaction)
        if batch and (batch_bytes + size > BATCH_BYTES_MAX or len(batch) == BATCH_TRANSACTIONS_MAX):
            yield Transactions(batch)
            batch, batch_bytes = [], 0
        batch.append(Shared(transaction.envelope, list(transaction.bodies)))
        batch_bytes += size
    if batch:
        yield Transactions(batch)
