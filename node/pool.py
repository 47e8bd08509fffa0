"""Transactions that wait for a block, with their bodies. Memory only: `accepted` is not durable.

Bounds, and what happens at each:

- transactions and bytes in all: beyond them the newcomer is refused with "pool_full";
- a share for each organisation and each member: beyond it that one is refused, the others go on;
- clients of this node may fill all but PEER_RESERVE of the pool: what peers gossip always has room.

A transaction stays until a committed block holds it or block time has passed its `until`.
"""

import time
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from ledger.block import BLOCK_BODIES_BYTES_MAX
from ledger.errors import Rejection
from ledger.transaction import Transaction

PEER_RESERVE = 0.25

# What a block spends on each transaction beside its bytes: the length before it.
LENGTH_BYTES = 5

Owner = TypeVar("Owner")


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """`member_share` and `organisation_share` are fractions of both bounds, in (0, 1]."""

    transactions_max: int
    bytes_max: int
    organisation_share: float
    member_share: float


class Pooled(NamedTuple):
    """One waiting transaction; `size` counts its bytes and its bodies'; `arrived_s` is monotonic time."""

    transaction: Transaction
    bodies: tuple[bytes, ...]
    organisation: str
    size: int
    arrived_s: float


class _Bound(NamedTuple):
    """What some may hold together. Numbers need not be whole: they are shares."""

    transactions: float
    bytes: float
    whose: str


@dataclass(slots=True)
class _Use:
    count: int = 0
    size: int = 0

    def add(self, size: int) -> None:
        self.count += 1
        self.size += size

    def drop(self, size: int) -> None:
        self.count -= 1
        self.size -= size
        assert min(self.count, self.size) >= 0, "the pool's books balance"


class Pool:
    """Arrival order is block order; lookups by id, by transaction hash and by body commitment."""

    def __init__(self, limits: PoolLimits) -> None:
        # Of the pool in all, of one organisation, of one member.
        shares = (
            _bound(limits, limits.organisation_share, "the organisation's"),
            _bound(limits, limits.member_share, "the member's"),
        )
        self._from_clients = (_bound(limits, 1.0 - PEER_RESERVE, "the pool's"), *shares)
        self._from_peers = (_bound(limits, 1.0, "the pool's"), *shares)
        self._by_id: dict[bytes, Pooled] = {}
        self._id_by_hash: dict[bytes, bytes] = {}
        self._body: dict[bytes, tuple[bytes, int]] = {}
        self._all = _Use()
        self._earliest_until: int | None = None
        self._members: dict[bytes, _Use] = {}
        self._organisations: dict[str, _Use] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def __contains__(self, tx_id: bytes) -> bool:
        return tx_id in self._by_id

    def __iter__(self) -> Iterator[bytes]:
        """Ids, oldest first."""
        return iter(self._by_id)

    @property
    def size(self) -> int:
        """Bytes held, bodies included."""
        return self._all.size

    @property
    def earliest_until(self) -> int | None:
        """No waiting transaction has an `until` before this; None when none has waited since the last expiry."""
        return self._earliest_until

    @property
    def has_room(self) -> bool:
        """Whether anything at all could still be taken from a peer."""
        whole = self._from_peers[0]
        return self._all.count < whole.transactions and self._all.size < whole.bytes

    def get(self, tx_id: bytes) -> Pooled | None:
        return self._by_id.get(tx_id)

    def by_hash(self, transaction_hash: bytes) -> Transaction | None:
        """The transaction whose signature was already checked under this hash of its signed bytes."""
        tx_id = self._id_by_hash.get(transaction_hash)
        return None if tx_id is None else self._by_id[tx_id].transaction

    def body(self, commitment: bytes) -> bytes | None:
        held = self._body.get(commitment)
        return None if held is None else held[0]

    def add(self, transaction: Transaction, bodies: Iterable[bytes], organisation: str, *, from_peer: bool) -> bool:
        """Take a checked transaction; False if its id is here already. Raises Rejection("pool_full")."""
        if transaction.id in self._by_id:
            return False
        kept = tuple(bodies)
        size = len(transaction.data) + sum(map(len, kept))
        member = transaction.envelope.by
        of_organisation = self._organisations.get(organisation) or _Use()
        of_member = self._members.get(member) or _Use()
        uses = (self._all, of_organisation, of_member)
        for use, bound in zip(uses, self._from_peers if from_peer else self._from_clients, strict=True):
            if use.count + 1 > bound.transactions or use.size + size > bound.bytes:
                raise Rejection("pool_full", f"{bound.whose} share of waiting transactions is used up")
        until = transaction.envelope.until
        self._earliest_until = until if self._earliest_until is None else min(until, self._earliest_until)
        self._by_id[transaction.id] = Pooled(transaction, kept, organisation, size, time.monotonic())
        self._id_by_hash[transaction.hash] = transaction.id
        for reference, body in zip(transaction.envelope.bodies, kept, strict=True):
            users = self._body.get(reference.commitment, (body, 0))[1]
            self._body[reference.commitment] = (body, users + 1)
        self._organisations[organisation] = of_organisation
        self._members[member] = of_member
        for use in uses:
            use.add(size)
        return True

    def remove(self, tx_id: bytes) -> Pooled | None:
        pooled = self._by_id.pop(tx_id, None)
        if pooled is None:
            return None
        transaction = pooled.transaction
        del self._id_by_hash[transaction.hash]
        for reference in transaction.envelope.bodies:
            body, users = self._body[reference.commitment]
            if users == 1:
                del self._body[reference.commitment]
            else:
                self._body[reference.commitment] = (body, users - 1)
        self._all.drop(pooled.size)
        _drop(self._members, transaction.envelope.by, pooled.size)
        _drop(self._organisations, pooled.organisation, pooled.size)
        return pooled

    def expire(self, block_time_ms: int) -> list[bytes]:
        """Remove and return the ids whose `until` is before `block_time_ms`, the time of a committed block."""
        if self._earliest_until is None or self._earliest_until >= block_time_ms:
            return []
        gone = [tx_id for tx_id, pooled in self._by_id.items() if pooled.transaction.envelope.until < block_time_ms]
        for tx_id in gone:
            self.remove(tx_id)
        left = (pooled.transaction.envelope.until for pooled in self._by_id.values())
        self._earliest_until = min(left, default=None)
        return gone

    def take(
        self,
        count_max: int,
        bytes_max: int,
        skip: Container[bytes],
        fits: Callable[[Transaction], bool],
    ) -> list[Transaction]:
        """The oldest transactions not in `skip` that `fits` accepts, within both bounds and that on a block's bodies.

        They stay in the pool.
        """
        taken: list[Transaction] = []
        room, bodies_room = bytes_max, BLOCK_BODIES_BYTES_MAX
        for tx_id, pooled in self._by_id.items():
            if len(taken) == count_max:
                break
            transaction = pooled.transaction
            if tx_id in skip or not fits(transaction):
                continue
            size = len(transaction.data) + LENGTH_BYTES
            bodies = pooled.size - len(transaction.data)
            if size > room or bodies > bodies_room:
                break
            room, bodies_room = room - size, bodies_room - bodies
            taken.append(transaction)
        return taken


def _bound(limits: PoolLimits, share: float, whose: str) -> _Bound:
    return _Bound(limits.transactions_max * share, limits.bytes_max * share, whose)


def _drop(books: dict[Owner, _Use], owner: Owner, size: int) -> None:
    use = books[owner]
    use.drop(size)
    if use.count == 0:
        del books[owner]
