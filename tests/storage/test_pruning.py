"""Pruning: what goes, what stays, and a crash at every step of it."""

from pathlib import Path

import pytest

from ledger.errors import Rejection
from ledger.receipt import verify_receipt
from storage import schema
from storage.boot import check_newest
from storage.check import check_store
from storage.report import CheckReport
from storage.store import Store
from tests.fakes.disk import PowerLossDisk
from tests.ledger.founding import GENESIS, NOW_MS
from tests.storage.spans import MINUTE_MS, Span, installed


def prune(store: Store, height: int) -> int:
    base = store.prunable(height)
    if base > store.base.height:
        store.prune(base)
        store.write_base()
        while store.sweep():
            pass
    return base


def checked(disk: PowerLossDisk) -> CheckReport:
    return check_store(disk, GENESIS, PowerLossDisk(), lambda *_: None)


def content(disk: PowerLossDisk, tables: bytes) -> dict[bytes, bytes]:
    return {key: value for key, value in disk.view().range(b"", b"\xff") if key[:1] in tables}


def test_what_goes_and_what_stays() -> None:
    span = Span(minutes=50)
    whole = content(span.disk, b"sphdg")
    assert prune(span.store, 30) == 30
    assert content(span.disk, b"sphdg") == whole, "state, tree, history, bodies and configurations stay"
    heights = {
        table: sorted(schema.height_of(key) or 0 for key in content(span.disk, table)) for table in (b"b", b"x")
    }
    assert heights == {b"b": list(range(31, 52)), b"x": list(range(31, 52))}
    assert sorted(schema.height_of(key) or 0 for key in content(span.disk, b"l")) == [0, *range(30, 52)]
    assert len(content(span.disk, b"t")) == 21
    assert checked(span.disk).problems == []
    assert check_newest(span.disk, GENESIS) == 21
    span.reopen()
    assert span.store.base.height == 30
    span.run(2)
    assert checked(span.disk).problems == []


def test_the_base_is_still_known() -> None:
    """D13: right after pruning and after a restart, term and hash at the base, nothing below."""
    span = Span(minutes=40)
    known = span.store.term_hash(20)
    prune(span.store, 20)
    for _ in range(2):
        assert span.store.term_hash(20) == known
        assert span.store.term_hash(19) is None
        assert span.store.entries(21, 22, 1 << 20)[0].parent == (known or (0, b""))[1]
        span.reopen()


def test_receipts_of_pruned_transactions() -> None:
    span = Span(minutes=40)
    old, new = span.transactions[5], span.transactions[30]
    saved = span.store.receipt(old.id)
    prune(span.store, 20)
    with pytest.raises(Rejection) as refused:
        span.store.receipt(old.id)
    assert refused.value.code == "pruned"
    assert verify_receipt(span.store.receipt(new.id), GENESIS).code == "ok"
    span.run(3)
    extended = verify_receipt(span.store.extend_receipt(saved), GENESIS)
    before = verify_receipt(saved, GENESIS)
    assert (extended.id, extended.code, extended.height) == (before.id, before.code, before.height)
    assert extended.seal.sealed_height == span.store.sealed_height


@pytest.mark.parametrize("lost", range(6))
def test_power_lost_at_every_batch(lost: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """F8: after each batch of a prune the store opens, checks, and the sweep goes on to the same end."""
    monkeypatch.setattr("storage.base.SWEEP_KEYS_MAX", 30)
    span = Span(minutes=40)
    base = span.store.prunable(25)
    span.store.prune(base)
    steps = 0
    if lost:
        span.store.write_base()
        steps = 1
        while steps < lost:
            span.store.sweep()
            steps += 1
    span.disk.power_loss()
    span.disk.open()
    assert checked(span.disk).problems == []
    check_newest(span.disk, GENESIS)
    span.chain.store = Store(span.disk, GENESIS)
    assert span.store.base.height == (base if lost else 0)
    while span.store.sweep():
        pass
    prune(span.store, 25)
    other = Span(minutes=40)
    prune(other.store, 25)
    assert content(span.disk, b"blrcxg").keys() == content(other.disk, b"blrcxg").keys()
    assert checked(span.disk).problems == []


def test_only_what_is_sealed_and_certified_goes() -> None:
    span = Span(minutes=10)
    span.run(20, certified=False)
    sealed = span.store.sealed_height
    assert sealed is not None
    assert span.store.prunable(30) <= sealed
    span.reopen()
    assert span.store.prunable(8) == 8
    span.store.prune(8)
    assert span.store.prunable(9) == 8, "one move at a time"


def test_damage_in_a_pruned_store_is_found(tmp_path: Path) -> None:
    span = Span(minutes=40)
    prune(span.store, 25)
    whole = content(span.disk, b"blrcxtsphudgme")
    for key in list(whole):
        span.disk.damage(key, whole[key][:-1] + bytes((whole[key][-1] ^ 1,)))
        assert checked(span.disk).problems, schema.name_of(key)
        span.disk.damage(key, whole[key])
        if key[:1] != b"d":
            span.disk.damage(key, None)
            needed = checked(span.disk).problems
            span.disk.damage(key, whole[key])
            assert needed, schema.name_of(key)
    assert checked(span.disk).problems == []


def test_an_installed_store_checks_and_prunes(tmp_path: Path) -> None:
    source = Span(minutes=60)
    shelf, kept = source.take(tmp_path)
    disk = PowerLossDisk()
    installed(source, shelf, kept, disk)
    assert checked(disk).problems == []
    assert check_newest(disk, GENESIS) > 10
    span = source
    span.disk, span.chain.store = disk, Store(disk, GENESIS)
    span.run(40)
    assert span.store.roots(span.store.executed_height).time_ms == NOW_MS + 100 * MINUTE_MS
    assert prune(span.store, 50) == kept.manifest.base, "no block of these came with its certificate"
    assert prune(span.store, 70) == 70
    assert checked(disk).problems == []


def test_who_forgot_an_id_answers_as_who_did_not() -> None:
    """An old transaction that a leader puts into a block again settles nothing, remembered or not."""
    kept, pruned = Span(minutes=30), Span(minutes=30)
    assert prune(pruned.store, 10) == 10
    codes = set()
    for span, known in ((kept, 4), (pruned, None)):
        old, young = span.transactions[3], span.transactions[28]
        place = span.store.tx_status(old.id)
        assert (place.height if place else None) == known
        span.run(1)
        later = NOW_MS + (span.minute + 5) * MINUTE_MS
        commit = span.chain.add(old, young, time_ms=later)
        codes.add(tuple(result.code for result in commit.results))
        place = span.store.tx_status(old.id)
        assert (place.height if place else None) == known, "as before"
        assert (span.store.tx_status(young.id) or place).height == 29  # type: ignore[union-attr]
        assert checked(span.disk).problems == []
    assert len(codes) == 1
