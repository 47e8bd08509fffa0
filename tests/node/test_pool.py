"""The pool alone: bounds and shares, bodies that several transactions name, expiry, and books that balance."""

from collections.abc import Callable, Container
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.errors import Rejection
from ledger.transaction import Transaction, body_commitment
from node.pool import LENGTH_BYTES, PEER_RESERVE, Pool, PoolLimits
from tests.ledger.founding import NOW_MS, account_of, addition, sign

WIDE = PoolLimits(1_000, 1 << 30, organisation_share=1.0, member_share=1.0)


def record(name: str, *, by: str = "doctor", body: bytes = b"sealed", until: int = NOW_MS + 60_000) -> Transaction:
    return sign([addition(name)], by=by, bodies=[body], until=until)


def put(
    pool: Pool, transaction: Transaction, organisation: str = "north", body: bytes = b"sealed", *, peer: bool = False
) -> bool:
    return pool.add(transaction, [body], organisation, from_peer=peer)


def size_of(transaction: Transaction, body: bytes = b"sealed") -> int:
    return len(transaction.data) + len(body)


def earliest(pool: Pool) -> int | None:
    return pool.earliest_until


def fits(transaction: Transaction) -> bool:
    return True


def take(
    pool: Pool,
    *,
    count_max: int = 1_000,
    bytes_max: int = 1 << 20,
    skip: Container[bytes] = (),
    accept: Callable[[Transaction], bool] = fits,
) -> list[Transaction]:
    return pool.take(count_max, bytes_max, skip, accept)


def test_what_is_put_in_is_found_by_id_hash_and_body_and_gone_once_removed() -> None:
    pool, transaction = Pool(WIDE), record("one")
    assert put(pool, transaction)
    pooled = pool.get(transaction.id)
    assert pooled is not None
    assert (pooled.transaction, pooled.bodies, pooled.size) == (transaction, (b"sealed",), size_of(transaction))
    assert pool.by_hash(transaction.hash) is transaction
    assert pool.body(body_commitment(b"sealed")) == b"sealed"
    assert (len(pool), pool.size, list(pool)) == (1, size_of(transaction), [transaction.id])
    assert pool.remove(transaction.id) == pooled
    assert pool.remove(transaction.id) is None
    assert (len(pool), pool.size, list(pool)) == (0, 0, [])
    assert (pool.get(transaction.id), pool.by_hash(transaction.hash)) == (None, None)
    assert pool.body(body_commitment(b"sealed")) is None


def test_the_same_id_counts_once() -> None:
    pool, transaction = Pool(WIDE), record("one")
    assert put(pool, transaction)
    assert not put(pool, transaction)
    assert not put(pool, transaction, peer=True)
    assert (len(pool), pool.size) == (1, size_of(transaction))


def test_a_body_stays_while_anyone_names_it() -> None:
    pool, first, second = Pool(WIDE), record("one"), record("two")
    put(pool, first)
    put(pool, second)
    pool.remove(first.id)
    assert pool.body(body_commitment(b"sealed")) == b"sealed"
    pool.remove(second.id)
    assert pool.body(body_commitment(b"sealed")) is None


def offer(pool: Pool, transaction: Transaction, organisation: str = "north", *, peer: bool = False) -> bool:
    """Whether it is taken. If not, it was refused as `pool_full` and changed nothing."""
    before, known = (len(pool), pool.size, list(pool)), transaction.id in pool
    try:
        return put(pool, transaction, organisation, peer=peer)
    except Rejection as rejection:
        code = rejection.code
    assert code == "pool_full"
    assert (len(pool), pool.size, list(pool)) == before
    assert not known
    return False


def fill(pool: Pool, count: int, *, by: str = "doctor", organisation: str = "north", peer: bool = False) -> int:
    """How many of `count` new transactions are taken."""
    made = [record(f"{by} {index}", by=by) for index in range(count)]
    return sum(offer(pool, transaction, organisation, peer=peer) for transaction in made)


def test_a_member_has_its_share() -> None:
    pool = Pool(PoolLimits(100, 1 << 30, organisation_share=0.5, member_share=0.25))
    assert fill(pool, 30) == 25
    assert fill(pool, 30, by="nurse") == 25
    assert fill(pool, 1, by="another") == 0
    assert fill(pool, 1, by="southern", organisation="south") == 1


def test_clients_leave_the_reserve_to_peers() -> None:
    pool = Pool(PoolLimits(100, 1 << 30, organisation_share=1.0, member_share=1.0))
    assert fill(pool, 100) == 100 * (1 - PEER_RESERVE)
    assert fill(pool, 30, peer=True) == 25
    assert fill(pool, 1) == 0


def test_room_comes_back() -> None:
    pool = Pool(PoolLimits(4, 1 << 30, organisation_share=1.0, member_share=0.25))
    assert fill(pool, 2, peer=True) == 1
    pool.remove(next(iter(pool)))
    assert fill(pool, 2, peer=True) == 1


@pytest.mark.parametrize(("shares", "room"), [((1.0, 1.0), 4), ((0.5, 0.5), 2), ((1.0, 0.25), 1)])
def test_bytes_count_as_transactions_do(shares: tuple[float, float], room: int) -> None:
    size = size_of(record("some name"))
    pool = Pool(PoolLimits(1_000, 4 * size + 20, *shares))
    assert sum(offer(pool, record(f"some nam{index}"), peer=True) for index in range(6)) == room
    assert pool.size <= 4 * size + 20


def test_a_body_that_two_name_counts_for_each() -> None:
    """So that the books do not depend on who leaves first."""
    pool, body = Pool(WIDE), bytes(1_000)
    first, second = record("one", body=body), record("two", body=body)
    put(pool, first, body=body)
    put(pool, second, body=body)
    assert pool.size == size_of(first, body) + size_of(second, body)


def test_expiry_removes_what_block_time_has_passed() -> None:
    pool = Pool(WIDE)
    early, on_time, late = (record(str(ms), until=NOW_MS + ms) for ms in (10, 20, 30))
    for transaction in (late, early, on_time):
        put(pool, transaction)
    assert earliest(pool) == NOW_MS + 10
    assert pool.expire(NOW_MS + 10) == []
    assert pool.expire(NOW_MS + 20) == [early.id]
    assert earliest(pool) == NOW_MS + 20
    assert list(pool) == [late.id, on_time.id]
    assert set(pool.expire(NOW_MS + 1_000)) == {late.id, on_time.id}
    assert (earliest(pool), len(pool), pool.size) == (None, 0, 0)


def test_expiry_after_the_earliest_was_committed() -> None:
    """`earliest_until` may be too early then, never too late."""
    pool = Pool(WIDE)
    early, late = record("a", until=NOW_MS + 10), record("b", until=NOW_MS + 20)
    put(pool, early)
    put(pool, late)
    pool.remove(early.id)
    assert pool.expire(NOW_MS + 15) == []
    assert earliest(pool) == NOW_MS + 20


def test_the_oldest_are_taken_first_and_stay() -> None:
    pool = Pool(WIDE)
    made = [record(str(index)) for index in range(5)]
    for transaction in made:
        put(pool, transaction)
    assert take(pool) == made
    assert take(pool, count_max=2) == made[:2]
    assert take(pool, skip={made[0].id, made[2].id}) == [made[1], made[3], made[4]]
    assert take(pool, accept=lambda transaction: transaction is not made[0]) == made[1:]
    assert len(pool) == 5


def test_a_block_s_bytes_are_a_bound() -> None:
    """Each spends its length prefix too; one that does not fit ends the block, so that it is not passed for ever."""
    pool = Pool(WIDE)
    made = [record(str(index)) for index in range(3)]
    for transaction in made:
        put(pool, transaction)
    two = sum(len(transaction.data) + LENGTH_BYTES for transaction in made[:2])
    assert take(pool, bytes_max=two) == made[:2]
    assert take(pool, bytes_max=two - 1) == made[:1]
    assert take(pool, bytes_max=len(made[0].data)) == []


NAMES = ("doctor", "nurse", "southern")
CANDIDATES = [record(f"{index}", by=NAMES[index % 3], until=NOW_MS + index) for index in range(12)]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from(CANDIDATES), st.booleans()),
        st.tuples(st.just("remove"), st.sampled_from(CANDIDATES)),
        st.tuples(st.just("expire"), st.integers(0, 14)),
    ),
    max_size=40,
)


@given(STEPS)
@settings(max_examples=100, deadline=None)
def test_the_books_balance(steps: list[tuple[Any, ...]]) -> None:
    limits = PoolLimits(8, 8 * size_of(CANDIDATES[0]) + 40, organisation_share=0.75, member_share=0.5)
    pool = Pool(limits)
    held: dict[bytes, Transaction] = {}
    for step in steps:
        if step[0] == "add":
            transaction, peer = step[1], step[2]
            organisation = "south" if transaction.envelope.by == account_of("southern") else "north"
            known = transaction.id in held
            if offer(pool, transaction, organisation, peer=peer):
                assert not known
                held[transaction.id] = transaction
        elif step[0] == "remove":
            assert (pool.remove(step[1].id) is None) == (step[1].id not in held)
            held.pop(step[1].id, None)
        else:
            gone = pool.expire(NOW_MS + step[1])
            assert set(gone) == {tx for tx, item in held.items() if item.envelope.until < NOW_MS + step[1]}
            for tx_id in gone:
                del held[tx_id]
        assert list(pool) == list(held)
        assert pool.size == sum(size_of(item) for item in held.values()) <= limits.bytes_max
        assert len(pool) <= limits.transactions_max
        assert all(pool.by_hash(item.hash) is item for item in held.values())
        members = [item.envelope.by for item in held.values()]
        assert all(members.count(member) <= 4 for member in members)
        assert sum(member != account_of("southern") for member in members) <= 6
        first = earliest(pool)
        assert all(first is not None and first <= item.envelope.until for item in held.values())
    for tx_id in list(held):
        pool.remove(tx_id)
    assert (pool.size, pool.body(body_commitment(b"sealed"))) == (0, None)
