"""What LevelDB must do beyond the port's contract: hold its lock, and find damage instead of skipping it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from storage.leveldb import LevelDb
from storage.port import StorageFailure


class FailingBatch:
    """A plyvel write batch whose disk is full."""

    def put(self, key: bytes, value: bytes) -> None: ...

    def delete(self, key: bytes) -> None: ...

    def write(self) -> None:
        raise OSError(28, "No space left on device")


def test_a_failed_write_is_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kv = LevelDb(tmp_path / "db")
    kv.write([(b"a", b"1")], sync=True)
    working = kv._db

    class FullDisk:
        def write_batch(self, sync: bool) -> FailingBatch:
            return FailingBatch()

    monkeypatch.setattr(kv, "_db", FullDisk())
    with pytest.raises(StorageFailure, match="writing"):
        kv.write([(b"a", b"2")], sync=True)
    monkeypatch.setattr(kv, "_db", working)
    with pytest.raises(StorageFailure, match="no writes after a failed one"):
        kv.write([(b"a", b"3")], sync=True)
    assert kv.get(b"a") == b"1"
    kv.close()


@pytest.mark.parametrize("honest", [True, False])
def test_a_sync_is_asked_of_leveldb_unless_it_is_to_be_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, honest: bool
) -> None:
    kv = LevelDb(tmp_path / "db", sync=honest)
    asked: list[bool] = []
    working = kv._db

    class Recorder:
        def write_batch(self, sync: bool) -> object:
            asked.append(sync)
            return working.write_batch(sync=sync)

    monkeypatch.setattr(kv, "_db", Recorder())
    kv.write([(b"a", b"1")], sync=True)
    kv.write([(b"a", b"1")], sync=False)
    assert asked == [honest, False]
    working.close()


def test_a_new_folder_s_own_entry_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr("storage.leveldb._sync_folder", synced.append)
    for _ in range(2):
        LevelDb(tmp_path / "db").close()
    assert synced == [tmp_path]


def test_one_folder_one_owner(tmp_path: Path) -> None:
    kv = LevelDb(tmp_path / "db")
    with pytest.raises(StorageFailure, match="in use"):
        LevelDb(tmp_path / "db")
    kv.close()
    LevelDb(tmp_path / "db").close()


def test_another_process_holds_it(tmp_path: Path) -> None:
    kv = LevelDb(tmp_path / "db")
    code = "import sys, pathlib; from storage.leveldb import LevelDb; LevelDb(pathlib.Path(sys.argv[1]))"
    found = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "db")], capture_output=True, text=True, check=False
    )
    kv.close()
    assert found.returncode != 0
    assert "is in use by a running node" in found.stderr


def test_opening_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StorageFailure, match="cannot be opened"):
        LevelDb(tmp_path / "none", create=False)
    assert not (tmp_path / "none").exists()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageFailure, match="cannot be opened"):
        LevelDb(tmp_path / "file")


def test_a_new_folder_is_for_its_owner_alone(tmp_path: Path) -> None:
    LevelDb(tmp_path / "db").close()
    assert (tmp_path / "db").stat().st_mode & 0o077 == 0


def test_a_flipped_bit_in_the_write_ahead_log_refuses_to_open(tmp_path: Path) -> None:
    """With LevelDB's defaults the batches after the flipped bit would be dropped, and the store would open."""
    kv = LevelDb(tmp_path / "db")
    for number in range(200):
        kv.write([(b"%03d" % number, os.urandom(100))], sync=True)
    kv.close()
    (log,) = (tmp_path / "db").glob("*.log")
    data = bytearray(log.read_bytes())
    data[len(data) // 2] ^= 1
    log.write_bytes(data)
    with pytest.raises(StorageFailure, match=r"cannot be opened"):
        LevelDb(tmp_path / "db")


def test_a_flipped_bit_in_a_table_is_an_error_and_not_a_missing_value(tmp_path: Path) -> None:
    kv = LevelDb(tmp_path / "db")
    kv.write([(b"%05d" % number, bytes(100)) for number in range(1000)], sync=True)
    kv._db.compact_range()
    kv.close()
    (table,) = (tmp_path / "db").glob("*.ldb")
    data = bytearray(table.read_bytes())
    data[1000] ^= 1
    table.write_bytes(data)
    kv = LevelDb(tmp_path / "db", create=False)
    with pytest.raises(StorageFailure, match="checksum"):
        kv.get(b"00005")
    with pytest.raises(StorageFailure, match="checksum"):
        list(kv.range(b"0", b"9"))
    kv.close()


def test_a_database_without_its_current_file_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    """LevelDB would take the folder for a new one, and delete the tables that it does not know."""
    folder = tmp_path / "db"
    kv = LevelDb(folder)
    kv.write([(b"a", b"1")], sync=True)
    kv.close()
    (folder / "CURRENT").unlink()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(StorageFailure, match="CURRENT"):
        LevelDb(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_view_stays_as_it_was_and_compaction_gives_space_back(tmp_path: Path) -> None:
    db = LevelDb(tmp_path / "db")
    db.write([(b"b%06d" % number, bytes(1_000)) for number in range(20_000)], sync=True)
    # What lies in a table; LevelDB leaves alone what was deleted before it came into one.
    db.compact(b"b", b"c")
    view = db.view()
    db.write([(b"b%06d" % number, None) for number in range(20_000)], sync=True)
    db.write([(b"c", b"new")], sync=True)
    assert view.get(b"b000007") == bytes(1_000)
    assert view.get(b"c") is None
    assert sum(1 for _ in view.range(b"b", b"d")) == 20_000
    assert next(view.range(b"b", b"d", reverse=True))[0] == b"b019999"
    view.close()
    before = sum(path.stat().st_size for path in (tmp_path / "db").iterdir())
    db.compact(b"b", b"c")
    after = sum(path.stat().st_size for path in (tmp_path / "db").iterdir())
    assert after < before / 4
    assert list(db.range(b"", b"\xff")) == [(b"c", b"new")]
    db.close()
