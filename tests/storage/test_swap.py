"""A store built from a snapshot takes the place of another, whenever the machine stops."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from consensus.messages import HardState
from storage.install import BadSnapshot, install
from storage.leveldb import LevelDb
from storage.port import StorageFailure
from storage.shelf import Kept, Shelf
from storage.snapshot import Manifest, chunk_hash
from storage.store import Store
from storage.swap import carry, finish_swap, fresh_folder, make_ready
from tests.fakes.disk import PowerLossDisk
from tests.ledger.founding import GENESIS
from tests.storage.chains import Chain, doctor, entry_of
from tests.storage.spans import Span, before, installed


class Stopped(Exception):  # noqa: N818 - it is what happens to the machine
    """The machine stops here."""


class Failing(PowerLossDisk):
    """Stops at one of its batches."""

    def __init__(self, at: int) -> None:
        super().__init__(only_synced=True)
        self._at = at

    def write(self, batch: Any, *, sync: bool) -> None:
        if self.batches == self._at:
            raise Stopped
        super().write(batch, sync=sync)


@pytest.fixture
def source() -> Span:
    return Span(minutes=30)


def chunks_of(shelf: Shelf, kept: Kept) -> Iterator[bytes]:
    for index in range(len(kept.manifest.chunks)):
        data = shelf.chunk(kept.id, index)
        assert data is not None
        yield data


def test_d8_half_an_installation_is_no_store(source: Span, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At whichever batch it stops, what is there does not open; whole, it is equal to replay."""
    monkeypatch.setattr("storage.install.BATCH_BYTES", 2_000)
    shelf, kept = source.take(tmp_path)
    whole = Failing(-1)
    install(whole, GENESIS, kept.manifest, chunks_of(shelf, kept))
    assert whole.batches > 5
    for at in range(whole.batches):
        disk = Failing(at)
        with pytest.raises(Stopped):
            install(disk, GENESIS, kept.manifest, chunks_of(shelf, kept))
        disk.close()
        disk.open()
        if at:
            with pytest.raises(StorageFailure):
                Store(disk, GENESIS)


def test_d8_a_snapshot_is_there_when_it_is_whole(
    source: Span, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at any write, sync or rename, the next start has no snapshot, or all of it."""
    real, steps = {name: getattr(os, name) for name in ("replace", "rename", "fsync")}, 0

    def stopping(name: str, at: int) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            nonlocal steps
            steps += 1
            if steps == at:
                raise Stopped
            return real[name](*arguments)

        return call

    outcomes = []
    for at in range(1, 100):
        folder, steps = tmp_path / str(at), 0
        with monkeypatch.context() as patch:
            for name in real:
                patch.setattr(os, name, stopping(name, at))
            try:
                source.take(folder)
                break
            except Stopped:
                pass
        kept = Shelf(folder).kept()
        assert not list(folder.glob("*.partial"))
        outcomes.append(len(kept))
        for one in kept:
            assert list(chunks_of(Shelf(folder), one))
    assert sorted(set(outcomes)) == [0, 1]
    assert outcomes == sorted(outcomes)


def test_d15_snapshots_below_the_base_are_removed(source: Span, tmp_path: Path) -> None:
    shelf, old = source.take(tmp_path)
    for _ in range(3):
        source.run(1)
        shelf, _ = source.take(tmp_path)
    shelf.tidy(0)
    kept = [one.manifest.height for one in shelf.kept()]
    assert len(kept) == 2, "the newest"
    assert old.manifest.height not in kept
    shelf.tidy(kept[-1])
    assert [one.manifest.height for one in shelf.kept()] == kept[-1:]
    assert [one.manifest.height for one in Shelf(tmp_path).kept()] == kept[-1:]
    assert shelf.chunk(old.id, 0) is None


def test_d12_a_cut_off_or_foreign_stream_is_refused(source: Span, tmp_path: Path) -> None:
    """Whatever is left out, added, doubled or exchanged: nothing of it becomes a store."""
    shelf, kept = source.take(tmp_path)
    stream = b"".join(chunks_of(shelf, kept))

    def outcome(data: bytes, manifest: Manifest = kept.manifest) -> None:
        with pytest.raises((BadSnapshot, StorageFailure)):
            install(PowerLossDisk(), GENESIS, manifest, iter([data]))

    outcome(stream[:-1])
    outcome(stream[: len(stream) // 2])
    outcome(stream + stream)
    outcome(stream + b"\0\1\0\0\0\0s")
    outcome(b"")
    records = list(_records(stream))
    for place in range(0, len(records), max(len(records) // 60, 1)):
        outcome(b"".join(records[:place] + records[place + 1 :]))
        changed = records[place][:-1] + bytes((records[place][-1] ^ 1,))
        outcome(b"".join([*records[:place], changed, *records[place + 1 :]]))
        if place:
            outcome(b"".join([*records[: place - 1], records[place], records[place - 1], *records[place + 1 :]]))


def _records(stream: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(stream):
        end = at + 6 + int.from_bytes(stream[at : at + 2], "big") + int.from_bytes(stream[at + 2 : at + 6], "big")
        yield stream[at:end]
        at = end


def test_d4_fetching_goes_on_with_what_is_whole(
    source: Span, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.snapshot.CHUNK_BYTES", 1_000)
    shelf, kept = source.take(tmp_path / "theirs")
    mine = Shelf(tmp_path / "mine")
    fetched = mine.fetching()
    fetched.begin(kept.data, b"proof")
    count = len(kept.manifest.chunks)
    assert count > 5
    assert not fetched.put(0, b"something else")
    for index in (0, 2, 4):
        assert fetched.put(index, shelf.chunk(kept.id, index) or b"")
    (tmp_path / "mine/fetched/000002").write_bytes(b"damaged since")
    again = Shelf(tmp_path / "mine").fetching()
    assert again.manifest == kept.manifest
    assert again.missing() == [index for index in range(count) if index not in (0, 4)]
    again.begin(kept.data, b"proof")
    for index in again.missing():
        assert again.put(index, shelf.chunk(kept.id, index) or b"")
    assert [chunk_hash(data) for data in again.chunks()] == kept.manifest.chunks
    source.run(1)
    _, newer = source.take(tmp_path / "theirs")
    again.begin(newer.data, b"proof")
    assert again.missing() == list(range(len(newer.manifest.chunks))), "another snapshot begins at 0"


class Exchange:
    """An old store in a folder, with a vote of term 7, and a new one built beside it."""

    def __init__(self, folder: Path, source: Span, snapshots: Path) -> None:
        self.folder = folder / "ledger"
        old = LevelDb(self.folder)
        chain = Chain(old)
        chain.add(doctor())
        chain.store.persist(None, [], {}, HardState(7, "south-1"))
        assert chain.store.put_evidence("header", "west-1", b"proof")
        old.close()
        self.source, self.snapshots = source, snapshots

    def build(self) -> None:
        shelf, kept = self.source.take(self.snapshots)
        new = LevelDb(fresh_folder(self.folder))
        installed(self.source, shelf, kept, new)
        old = LevelDb(self.folder)
        carry(old, Store(old, GENESIS), new, Store(new, GENESIS))
        new.close()
        old.close()
        make_ready(self.folder)
        finish_swap(self.folder)

    def opened(self) -> tuple[int, HardState, int]:
        """After a start: how far it executed, what it promised, how much evidence it holds."""
        finish_swap(self.folder)
        assert [path.name for path in self.folder.parent.iterdir()] == ["ledger"]
        kv = LevelDb(self.folder, create=False)
        store = Store(kv, GENESIS)
        found = store.executed_height, store.hard_state(), len(store.evidence())
        kv.close()
        return found


def test_the_exchange_keeps_every_promise_whenever_it_stops(
    source: Span, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F8, F12: term, vote and evidence go along; the store is the old one or the new one, never none."""
    template = tmp_path / "template"
    template.mkdir()
    Exchange(template, source, tmp_path / "snapshots")
    new_height = source.store.executed_height
    real_rename, real_rmtree, steps = os.rename, shutil.rmtree, 0
    seen = set()
    for at in range(1, 30):
        folder = tmp_path / str(at)
        shutil.copytree(template, folder)
        exchange = Exchange.__new__(Exchange)
        exchange.folder, exchange.source, exchange.snapshots = folder / "ledger", source, tmp_path / "snapshots"
        steps = 0

        def step(action: Callable[..., Any], at: int = at) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                nonlocal steps
                # The snapshot's own folder is not what is tried here.
                if "ledger" in str(arguments[0]):
                    steps += 1
                    if steps == at:
                        raise Stopped
                return action(*arguments, **options)

            return call

        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", step(real_rename))
            patch.setattr(shutil, "rmtree", step(real_rmtree))
            try:
                exchange.build()
                whole = True
            except Stopped:
                whole = False
        executed, hard_state, evidence = exchange.opened()
        assert (hard_state, evidence) == (HardState(7, "south-1"), 1)
        seen.add(executed)
        if whole:
            break
    assert seen == {1, new_height}
    assert at > 3


def test_d2_the_log_above_the_snapshot_goes_along(source: Span, tmp_path: Path) -> None:
    """What this node has acknowledged above the snapshot is not forgotten by installing it."""
    shelf, kept = source.take(tmp_path)
    new = PowerLossDisk()
    store = installed(source, shelf, kept, new)
    for _ in range(3):
        source.chain.persist(source.chain.seal(executed=source.store.executed_height))
    assert source.store.last_height() == store.last_height() + 3
    carry(source.disk, source.store, new, store)
    assert store.term_hash(store.last_height()) == source.store.term_hash(store.last_height())
    assert store.last_height() == source.store.last_height()
    assert Store(new, GENESIS).last_height() == source.store.last_height()


def test_d1_a_log_that_contradicts_the_snapshot_is_left_behind(source: Span, tmp_path: Path) -> None:
    """Uncertified blocks of another leader at the snapshot's heights go; the certified ones stand."""
    shelf, kept = source.take(tmp_path)
    new = PowerLossDisk()
    store = installed(source, shelf, kept, new)
    end, tip = store.last_height(), store.term_hash(store.last_height())
    behind = Span(minutes=28)
    behind.chain.term = 3
    block = behind.chain.seal(executed=behind.store.executed_height)
    behind.chain.persist(block)
    more = behind.chain.seal(parent=entry_of(block), executed=behind.store.executed_height)
    behind.chain.persist(more)
    while behind.store.last_height() <= end:
        behind.chain.persist(behind.chain.seal(executed=behind.store.executed_height))
    carry(behind.disk, behind.store, new, store)
    assert (store.last_height(), store.term_hash(end)) == (end, tip)
    assert store.hard_state().term == 3, "what was promised goes along"


def test_d10_a_snapshot_is_of_one_height_whatever_came_since(source: Span, tmp_path: Path) -> None:
    """Blocks that were executed and written before the database is looked at change no byte of it."""
    height = source.store.sealed_height
    assert height is not None
    _, at_once = source.take(tmp_path / "at once")
    changed = dict(before(source.store, height))
    for _ in range(5):
        source.run(1)
        for key, value in before(source.store, source.store.executed_height - 1).items():
            changed.setdefault(key, value)
    later = Shelf(tmp_path / "later").take(source.disk.view(), height, changed, lambda: None)
    assert later is not None
    assert later.data == at_once.data
