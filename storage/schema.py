"""Every key and every record of the database, in one place. One prefix byte a table; heights are 8 bytes,
big-endian.

key                          value
b ‖ height                   block as it travelled
l ‖ height                   link: term (8) ‖ hash (32) ‖ parent (32), so that the log is read without blocks
d ‖ commitment               body
r ‖ height                   roots: history (32) ‖ state (32) ‖ block time, ms (8) ‖ certified height (8), sealed
c ‖ height                   certificate, canonical; only some heights have one
x ‖ height                   canonical list of the block's encoded results
t ‖ transaction id           height (8) ‖ index (4) ‖ result code (ASCII); the inclusion that settled the id
s ‖ state key (UTF-8)        state value, canonical
p ‖ nibble path              page of the state tree
h ‖ level (1) ‖ index (8)    node of the history log
u ‖ height                   Undo: the state values before it; only above the sealed height
g ‖ height                   configuration in effect from that height on, sealed
m ‖ "log"                    LogRecord, sealed
m ‖ "executed"               ExecutedRecord, sealed
m ‖ "base"                   BaseRecord, sealed; see `base`, also for what is missing below it
e ‖ index (4)                Evidence, sealed
w ‖ node id (UTF-8)          promises.HeldVote, sealed: the newest vote held from that node
m ‖ "forsworn"               promises.Forsworn, sealed; only on a node that must not vote

Each value can be told from a changed one. What follows from the chain is derived again and compared. What does
not follow from it ends in its own hash, as sealed: the two records, evidence, configurations, and the roots, whose
certified height is the newest at or below theirs with a stored certificate, so that a missing certificate is missed.
Their state is EMPTY where a snapshot was installed that did not prove it, below that snapshot's height only.
"""

import struct
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import msgspec

from ledger.encoding import decode_as, encode
from ledger.errors import Rejection
from ledger.keys import HASH_BYTES, Hash, sha256, tag
from storage.port import StorageFailure

FORMAT = 2
# Nothing we write ourselves is larger: the largest is an undo record, about a block's state values.
RECORD_BYTES_MAX = 256 * 1024 * 1024

LOG_KEY = b"mlog"
EXECUTED_KEY = b"mexecuted"
FORSWORN_KEY = b"mforsworn"
VOTES_BEGIN, VOTES_END = b"w", b"x"

_SEAL = tag("stored-record")
_HEIGHT = struct.Struct(">cQ")
_LINK = struct.Struct(">Q32s32s")
_ROOTS = struct.Struct(">32s32sQQ")
_PLACE = struct.Struct(">QI")
_NODE = struct.Struct(">cBQ")
_EVIDENCE = struct.Struct(">cI")

T = TypeVar("T")


class Link(NamedTuple):
    """A block's place in the chain. At height 0: term 0, the chain id, and zeros for a parent."""

    term: int
    hash: bytes
    parent: bytes

    def encode(self) -> bytes:
        return _LINK.pack(*self)


class Roots(NamedTuple):
    """What was true after a height executed. `certified` is 0 where no certificate is stored at or below
    it.
    """

    history: bytes
    state: bytes
    time_ms: int
    certified: int

    def encode(self) -> bytes:
        data = _ROOTS.pack(*self)
        return data + sha256(_SEAL, data)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a transaction was included, and with which code."""

    height: int
    index: int
    code: str

    def encode(self) -> bytes:
        return _PLACE.pack(self.height, self.index) + self.code.encode("ascii")


class LogRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The end of the log, and the hard state: the newest term, and whom this node voted for in it. `configured` is
    the height of the newest configuration along the log."""

    configured: int
    format: int
    hash: Hash
    height: int
    term: int
    vote: str | None


class ExecutedRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far execution came; the height whose certified header seals `sealed`, None before the first, and how many
    changes of voters led to the configuration of that header."""

    chain: Hash
    format: int
    hash: Hash
    height: int
    seal: int | None
    sealed: int | None
    steps: int


class Undo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The state values before a height, None where there was none. The tree's pages follow from them."""

    format: int
    state: dict[str, bytes | None]


class Evidence(NamedTuple):
    """Canonical proof that `node` signed two statements of this kind that contradict each other."""

    kind: str
    node: str
    proof: bytes


def block_key(height: int) -> bytes:
    return _HEIGHT.pack(b"b", height)


def link_key(height: int) -> bytes:
    return _HEIGHT.pack(b"l", height)


def body_key(commitment: bytes) -> bytes:
    return b"d" + commitment


def roots_key(height: int) -> bytes:
    return _HEIGHT.pack(b"r", height)


def certificate_key(height: int) -> bytes:
    return _HEIGHT.pack(b"c", height)


def results_key(height: int) -> bytes:
    return _HEIGHT.pack(b"x", height)


def transaction_key(tx_id: bytes) -> bytes:
    return b"t" + tx_id


def state_key(key: str) -> bytes:
    return b"s" + key.encode("utf-8")


def page_key(path: bytes) -> bytes:
    return b"p" + path


def history_key(level: int, index: int) -> bytes:
    return _NODE.pack(b"h", level, index)


def undo_key(height: int) -> bytes:
    return _HEIGHT.pack(b"u", height)


def configuration_key(height: int) -> bytes:
    return _HEIGHT.pack(b"g", height)


def evidence_key(index: int) -> bytes:
    return _EVIDENCE.pack(b"e", index)


def vote_key(node: str) -> bytes:
    return VOTES_BEGIN + node.encode("utf-8")


def decode_link(data: bytes, height: int) -> Link:
    return Link(*_unpack(_LINK, data, "link", height))


def decode_roots(data: bytes, height: int) -> Roots:
    return Roots(*_unpack(_ROOTS, _opened(data, f"roots of height {height}"), "roots", height))


def decode_place(data: bytes) -> Place:
    height, index = _PLACE.unpack_from(data)
    return Place(height, index, data[_PLACE.size :].decode("ascii"))


def seal(value: object) -> bytes:
    """The canonical bytes of a record that nothing else vouches for, and their hash."""
    data = encode(value)
    return data + sha256(_SEAL, data)


def unseal(shape: type[T], data: bytes, name: str) -> T:
    """A sealed record again. Raises StorageFailure naming it if a bit of it changed."""
    return parse(shape, _opened(data, name), name)


def parse(shape: type[T], data: bytes, name: str) -> T:
    """Canonical bytes that we stored, as `shape`, or StorageFailure naming them."""
    try:
        return decode_as(shape, data, RECORD_BYTES_MAX)
    except Rejection as error:
        raise StorageFailure(f"the stored {name} is not what was written: {error}") from None


def must(value: bytes | None, key: bytes) -> bytes:
    """What the chain says is stored, or StorageFailure naming what is missing."""
    if value is None:
        raise StorageFailure(f"{name_of(key)} is missing")
    return value


def require(condition: bool, fault: str) -> None:
    """StorageFailure with this text, unless the stored things fit together."""
    if not condition:
        raise StorageFailure(fault)


def name_of(key: bytes) -> str:
    """A key in words, for people: the table, then the height or the name. Holds no values."""
    table = _TABLES.get(key[:1])
    if table is None:
        return f"unknown key {key[:48].hex()}"
    if key[:1] in b"blrcxug" and len(key) == _HEIGHT.size:
        return f"{table} {int.from_bytes(key[1:], 'big')}"
    if key[:1] in b"smw":
        return f"{table} {key[1:].decode('utf-8', 'backslashreplace')}"
    return f"{table} {key[1:].hex()}"


def height_of(key: bytes) -> int | None:
    """The height that a key itself names, or None."""
    if key[:1] in b"blrcxug" and len(key) == _HEIGHT.size:
        return int.from_bytes(key[1:], "big")
    if key[:2] == b"h\0" and len(key) == _NODE.size:
        return int.from_bytes(key[2:], "big")
    return None


_TABLES = {
    b"b": "block",
    b"l": "link",
    b"d": "body",
    b"r": "roots",
    b"c": "certificate",
    b"x": "results",
    b"t": "transaction",
    b"s": "state",
    b"p": "state page",
    b"h": "history node",
    b"u": "undo",
    b"g": "configuration",
    b"m": "record",
    b"e": "evidence",
    b"w": "vote held from",
}


def _opened(data: bytes, name: str) -> bytes:
    body, digest = data[:-HASH_BYTES], data[-HASH_BYTES:]
    if sha256(_SEAL, body) != digest:
        raise StorageFailure(f"the stored {name} is not what was written")
    return body


def _unpack(form: struct.Struct, data: bytes, name: str, height: int) -> tuple[Any, ...]:
    if len(data) != form.size:
        raise StorageFailure(f"the stored {name} of height {height} has {len(data)} bytes, not {form.size}")
    return form.unpack(data)
