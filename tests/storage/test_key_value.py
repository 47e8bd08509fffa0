"""The one contract of the key-value port, run against LevelDB and against the fake that stands in for it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from storage.leveldb import LevelDb
from storage.port import KeyValue, StorageFailure
from tests.fakes.disk import PowerLossDisk

Reopen = Callable[[], KeyValue]


@pytest.fixture(params=["leveldb", "fake"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Reopen]:
    """Opens the one database of the test, closing it first if it is open."""
    fake = PowerLossDisk()
    opened: list[KeyValue] = []

    def again() -> KeyValue:
        for kv in opened:
            kv.close()
        opened.clear()
        opened.append(fake.open() if request.param == "fake" else LevelDb(tmp_path / "db"))
        return opened[0]

    yield again
    for kv in opened:
        kv.close()


def test_gets_what_was_put_and_none_for_what_was_not(reopen: Reopen) -> None:
    kv = reopen()
    kv.write([(b"a", b"1"), (b"empty", b"")], sync=True)
    assert (kv.get(b"a"), kv.get(b"empty"), kv.get(b"b")) == (b"1", b"", None)


def test_a_batch_applies_in_order(reopen: Reopen) -> None:
    kv = reopen()
    kv.write([(b"a", b"1"), (b"a", None), (b"b", None), (b"b", b"2")], sync=False)
    assert (kv.get(b"a"), kv.get(b"b")) == (None, b"2")


def test_deleting_what_is_not_there_is_nothing(reopen: Reopen) -> None:
    kv = reopen()
    kv.write([(b"a", None)], sync=False)
    assert kv.get(b"a") is None


def test_a_range_is_ordered_by_bytes_and_leaves_its_stop_out(reopen: Reopen) -> None:
    kv = reopen()
    kv.write([(key, key) for key in (b"b\xff", b"a", b"b\x00", b"c", b"b")], sync=False)
    expected = [(key, key) for key in (b"b", b"b\x00", b"b\xff")]
    assert list(kv.range(b"b", b"c")) == expected
    assert list(kv.range(b"b", b"c", reverse=True)) == expected[::-1]
    assert list(kv.range(b"d", b"e")) == []


def test_everything_survives_closing(reopen: Reopen) -> None:
    reopen().write([(b"a", b"1")], sync=False)
    assert reopen().get(b"a") == b"1"


def test_a_closed_store_answers_nothing(reopen: Reopen) -> None:
    kv = reopen()
    kv.close()
    with pytest.raises(StorageFailure):
        kv.get(b"a")
    with pytest.raises(StorageFailure):
        list(kv.range(b"a", b"b"))
    with pytest.raises(StorageFailure):
        kv.write([(b"a", b"1")], sync=False)
    reopen()


def test_a_failed_write_latches_until_opened_again(reopen: Reopen) -> None:
    """LevelDB is made to fail by closing it underneath, the fake by its own switch."""
    kv = reopen()
    kv.write([(b"a", b"1")], sync=True)
    if isinstance(kv, PowerLossDisk):
        kv.fail_next_write = True
    else:
        kv.close()
    with pytest.raises(StorageFailure):
        kv.write([(b"a", b"2")], sync=True)
    with pytest.raises(StorageFailure):
        kv.write([(b"a", b"3")], sync=True)
    kv = reopen()
    assert kv.get(b"a") == b"1"
    kv.write([(b"a", b"4")], sync=True)
    assert kv.get(b"a") == b"4"
