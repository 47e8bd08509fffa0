"""Snapshots: taken at a sealed height, installed elsewhere, equal to replay."""

from pathlib import Path

from storage.index import WINDOW_MS
from storage.store import Store
from tests.fakes.disk import PowerLossDisk
from tests.ledger.founding import GENESIS
from tests.storage.spans import MINUTE_MS, Span, follow, installed


def content(disk: PowerLossDisk, tables: bytes) -> dict[bytes, bytes]:
    """What the disk holds in these tables."""
    return {key: value for key, value in disk.view().range(b"", b"\xff") if key[:1] in tables}


def test_snapshot_equals_replay(tmp_path: Path) -> None:
    source = Span(minutes=60)
    shelf, kept = source.take(tmp_path)
    joined = PowerLossDisk()
    store = installed(source, shelf, kept, joined)
    base = kept.manifest.base
    assert base == 61 - WINDOW_MS // MINUTE_MS - 1, "the window of ids, and no more"
    assert (store.executed_height, store.sealed_height) == (source.store.executed_height, kept.manifest.height)
    assert store.roots(store.executed_height) == source.store.roots(store.executed_height)
    # State, tree and history are the very same bytes; so is what lies in the window.
    assert content(joined, b"sph") == content(source.disk, b"sph")
    for table in b"bxt":
        kept_there = content(joined, bytes((table,)))
        there = content(source.disk, bytes((table,)))
        assert kept_there.items() <= there.items()
    assert len(content(joined, b"b")) == store.executed_height - base
    blocks = len(content(source.disk, b"b"))
    source.run(3)
    more = [
        (commit.block, source.store.certificate(commit.height))
        for commit in (source.chain.add(time_ms=10**8 + at) for at in range(2))
    ]
    assert blocks == 61
    for height in range(62, 65):
        block = source.store._log.block(height)
        follow(store, (block, source.store.certificate(height)))
    follow(store, *more)
    assert store.roots(66) == source.store.roots(66)
    assert Store(joined, GENESIS).roots(66) == source.store.roots(66)
