"""Where a transaction stands, and who is woken when: forward only, and nothing kept for those who left."""

import asyncio

import pytest

from node import tracker as module
from node.http_types import TxStatus
from node.tracker import Tracker

ONE, TWO = b"1" * 32, b"2" * 32
PATIENCE_S = 20.0


class Ledger:
    """What the tracker looks up. As the executor does, the answer changes first; then who waits is told."""

    def __init__(self) -> None:
        self.at: dict[bytes, TxStatus] = {}
        self.tracker = Tracker(lambda tx_id: self.at.get(tx_id, TxStatus("unknown")))

    def commit(self, height: int, *ids: bytes) -> None:
        for index, tx_id in enumerate(ids):
            self.at[tx_id] = TxStatus("committed", height, index, "ok")
        self.tracker.committed(height, ids)

    def seal(self, height: int) -> None:
        for tx_id, found in self.at.items():
            if found.height is not None and found.height <= height:
                self.at[tx_id] = TxStatus("sealed", found.height, found.index, found.code)
        self.tracker.sealed(height)

    def drop(self, *ids: bytes) -> None:
        for tx_id in ids:
            self.at.pop(tx_id, None)
        self.tracker.dropped(ids)


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


async def begun(ledger: Ledger, tx_id: bytes, level: module.Level) -> "asyncio.Task[TxStatus]":
    """A wait that is under way."""
    task = asyncio.create_task(ledger.tracker.wait(tx_id, level, PATIENCE_S))
    await asyncio.sleep(0)
    assert not task.done()
    return task


@pytest.mark.asyncio
async def test_it_wakes_those_who_wait_for_this_transaction_alone(ledger: Ledger) -> None:
    first = [await begun(ledger, ONE, "committed") for _ in range(3)]
    other = await begun(ledger, TWO, "committed")
    ledger.commit(1, ONE)
    assert {(await task).status for task in first} == {"committed"}
    assert not other.done()
    ledger.commit(2, TWO)
    assert (await other).height == 2


@pytest.mark.asyncio
async def test_who_waits_for_the_seal_waits_on(ledger: Ledger) -> None:
    one, two = await begun(ledger, ONE, "sealed"), await begun(ledger, TWO, "sealed")
    ledger.commit(1, ONE)
    ledger.commit(2, TWO)
    ledger.seal(1)
    assert (await one).status == "sealed"
    assert not two.done()
    ledger.seal(3)
    assert (await two).status == "sealed"


@pytest.mark.asyncio
async def test_what_is_reached_already_is_answered_at_once(ledger: Ledger) -> None:
    ledger.commit(1, ONE)
    assert (await ledger.tracker.wait(ONE, "committed", 0.0)).status == "committed"
    ledger.seal(1)
    for level in ("committed", "sealed"):
        assert (await ledger.tracker.wait(ONE, level, 0.0)).status == "sealed"


@pytest.mark.parametrize("level", ["committed", "sealed"])
@pytest.mark.asyncio
async def test_dropped_ends_every_wait(ledger: Ledger, level: module.Level) -> None:
    ledger.at[ONE] = TxStatus("pending")
    waiting = await begun(ledger, ONE, level)
    ledger.drop(ONE)
    assert (await waiting) == TxStatus("dropped")
    assert ledger.tracker.status(ONE).status == "dropped"


def test_what_a_block_holds_was_not_dropped(ledger: Ledger) -> None:
    """It expired in this node's pool, and was in a block all the same: the block counts."""
    ledger.drop(ONE)
    ledger.commit(1, ONE)
    assert ledger.tracker.status(ONE).status == "committed"


def test_the_oldest_of_the_dropped_are_forgotten(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DROPPED_MAX", 2)
    ids = [bytes([number]) * 32 for number in range(3)]
    ledger.drop(*ids)
    assert [ledger.tracker.status(tx_id).status for tx_id in ids] == ["unknown", "dropped", "dropped"]


@pytest.mark.asyncio
async def test_when_the_time_is_over_it_says_how_far_it_came(ledger: Ledger) -> None:
    ledger.at[ONE] = TxStatus("pending")
    assert (await ledger.tracker.wait(ONE, "committed", 0.001)).status == "pending"
    ledger.commit(1, ONE)
    assert (await ledger.tracker.wait(ONE, "sealed", 0.001)).status == "committed"


@pytest.mark.asyncio
async def test_nothing_is_kept_for_those_who_left(ledger: Ledger) -> None:
    left, stays = await begun(ledger, ONE, "committed"), await begun(ledger, ONE, "committed")
    left.cancel()
    with pytest.raises(asyncio.CancelledError):
        await left
    assert ledger.tracker._waiting == 1
    ledger.commit(1, ONE)
    assert (await stays).status == "committed"
    assert (await ledger.tracker.wait(TWO, "committed", 0.001)).status == "unknown"
    assert (ledger.tracker._waiting, ledger.tracker._waiters) == (0, {})


@pytest.mark.asyncio
async def test_beyond_the_bound_nobody_waits(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAITERS_MAX", 1)
    waiting = await begun(ledger, ONE, "committed")
    assert (await ledger.tracker.wait(ONE, "committed", PATIENCE_S)).status == "unknown"
    ledger.commit(1, ONE)
    assert (await waiting).status == "committed"


def test_what_is_sealed_is_remembered_no_longer(ledger: Ledger) -> None:
    """Empty blocks leave nothing; the rest goes once it is sealed."""
    ledger.commit(1, ONE)
    ledger.commit(2)
    ledger.commit(3, TWO)
    ledger.seal(2)
    assert list(ledger.tracker._unsealed) == [(3, (TWO,))]
    ledger.seal(3)
    assert not ledger.tracker._unsealed
