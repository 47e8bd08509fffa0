"""What a contract sees while one transaction executes: who signs, when, and the state so far."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeVar

import msgspec

from ledger.encoding import encode
from ledger.errors import Rejection

VALUE_BYTES_MAX = 64 * 1024
# Of each shape, the decoded values kept for transactions that read the same bytes again, accounts above all; the one
# not read for longest goes.
DECODED_MAX = 256

Read = Callable[[str], bytes | None]
T = TypeVar("T")

# By shape, of which there are as many as the contracts name.
_decoders: dict[Any, Callable[[bytes], Any]] = {}


class BodyReference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A body that travels beside the transaction: its salted commitment (32 bytes) and its size in bytes."""

    commitment: bytes
    size: int


def read_as(read: Read, shape: type[T], key: str) -> T | None:
    """The state value at `key` as `shape`, or None if absent. It may be shared: never to be changed.

    State values are only ever written by `Context.put`, so they are canonical already and are not encoded
    again to prove it. One that does not decode is a damaged store, hence msgspec's error and never a
    Rejection, which would be recorded as the transaction's result.
    """
    data = read(key)
    if data is None:
        return None
    found: T = _decoder_of(shape)(data)
    return found


def _decoder_of(shape: Any) -> Callable[[bytes], Any]:
    decoder = _decoders.get(shape)
    if decoder is None:
        decoder = _decoders[shape] = lru_cache(DECODED_MAX)(msgspec.msgpack.Decoder(shape).decode)
    return decoder


@dataclass(slots=True)
class Context:
    """One transaction's view. Writes stay here until every action of the transaction has succeeded.

    `below` answers with the canonical bytes of a state value as the transactions before left it, None if
    absent. State keys are text: the contract's name, a slash, then the contract's own path.
    """

    below: Read
    chain: bytes
    height: int
    time_ms: int
    by: bytes
    transaction: bytes
    bodies: Sequence[BodyReference]
    writes: dict[str, bytes | None] = field(default_factory=dict)

    def read(self, key: str) -> bytes | None:
        """The canonical bytes at `key` as this transaction's earlier actions left them, or None."""
        return self.writes[key] if key in self.writes else self.below(key)

    def get_as(self, shape: type[T], key: str) -> T | None:
        """The value at `key` as `shape`, or None."""
        return read_as(self.read, shape, key)

    def put(self, key: str, value: object) -> None:
        """Write a value, or fail the transaction with Rejection("state_too_large")."""
        data = encode(value)
        if len(data) > VALUE_BYTES_MAX:
            raise Rejection("state_too_large", f"{key}: {len(data)} bytes, at most {VALUE_BYTES_MAX}")
        self.writes[key] = data

    def delete(self, key: str) -> None:
        """Leave nothing at `key`."""
        self.writes[key] = None

    def body(self, index: int) -> BodyReference:
        """The transaction's body number `index`, or Rejection("body_missing")."""
        if not 0 <= index < len(self.bodies):
            raise Rejection("body_missing", f"the transaction has no body {index}")
        return self.bodies[index]
