"""The files by themselves: what LevelDB passes over is found and named, and what a crash leaves is no damage."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from storage import schema
from storage.boot import check_files
from storage.files import FilesReport, is_new, scan_files
from storage.leveldb import LevelDb
from storage.port import StorageFailure
from storage.report import DamageError
from tests.storage.folders import Grown, check, contents, flip, grow

RECORDS = 50


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Grown:
    return grow(tmp_path_factory.mktemp("grown") / "db")


@pytest.fixture
def path(grown: Grown, tmp_path: Path) -> Path:
    """A copy to damage."""
    shutil.copytree(grown.path, tmp_path / "db")
    return tmp_path / "db"


def only(path: Path, pattern: str) -> Path:
    (found,) = path.glob(pattern)
    return found


def faults(report: FilesReport) -> list[tuple[str, str]]:
    return [(fault.file, fault.fault) for fault in report.faults]


def numbered(path: Path, records: int = RECORDS) -> Path:
    """A database of one log; its file. The value of key n ends in a byte that is not zero."""
    kv = LevelDb(path)
    for number in range(records):
        kv.write([(b"%03d" % number, bytes(100) + b"\1")], sync=True)
    kv.close()
    return only(path, "*.log")


def keys(path: Path) -> list[bytes]:
    kv = LevelDb(path, create=False)
    found = [key for key, _ in kv.range(b"", b"\xff")]
    kv.close()
    return found


@pytest.mark.parametrize("pattern", ["CURRENT", "MANIFEST-*"])
def test_every_byte_of_the_small_files(path: Path, pattern: str) -> None:
    file = only(path, pattern)
    for offset in range(file.stat().st_size):
        flip(file, offset, 1 << offset % 8)
        assert file.name in [fault.file for fault in scan_files(path).faults], offset
        flip(file, offset, 1 << offset % 8)
    assert scan_files(path).faults == []


@pytest.mark.parametrize("pattern", ["*.ldb", "*.log"])
def test_every_byte_at_the_end_of_the_large_ones(path: Path, pattern: str) -> None:
    """Of a table: index, block of names, footer, which have no records; of a log: what LevelDB drops from."""
    file = only(path, pattern)
    size = file.stat().st_size
    for offset in range(size - 400, size):
        flip(file, offset, 1 << offset % 8)
        assert file.name in [fault.file for fault in scan_files(path).faults], offset
        flip(file, offset, 1 << offset % 8)
    assert scan_files(path).faults == []


def test_a_changed_length_at_the_end_of_a_log_makes_leveldb_forget(tmp_path: Path) -> None:
    """Eleven synced writes are gone without a word; the scan says so before LevelDB is asked."""
    log = numbered(tmp_path / "db")
    record_bytes = log.stat().st_size // RECORDS
    flip(log, 39 * record_bytes + 5, 0x80)
    ((file, fault),) = faults(scan_files(tmp_path / "db"))
    assert (file, fault) == (log.name, f"byte {39 * record_bytes}: a record's length is not what was written")
    assert keys(tmp_path / "db") == [b"%03d" % number for number in range(39)]


def test_a_damaged_filter_is_named_though_leveldb_does_without_it(grown: Grown, path: Path) -> None:
    table = only(path, "*.ldb")
    # The block of names says where the filter is; it stands before that block, index and footer.
    name = table.read_bytes().index(b"filter.leveldb")
    flip(table, name - 20, 1)
    ((file, fault),) = faults(scan_files(path))
    assert file == table.name
    assert "the checksum of the filter block does not fit" in fault
    kv = LevelDb(path, create=False)
    assert contents(kv).keys() == grown.written.keys()
    kv.close()


@pytest.mark.parametrize(("pattern", "height"), [("*.ldb", 1), ("*.log", 14)])
def test_records_and_heights_of_damaged_places_are_named(path: Path, pattern: str, height: int) -> None:
    """A block of a table, whose neighbours share its fate; a batch in the log."""
    kv = LevelDb(shutil.copytree(path, path.with_name("opened")), create=False)
    block = kv.get(schema.block_key(height)) or b""
    kv.close()
    file = only(path, pattern)
    flip(file, file.read_bytes().index(block[100:200]), 4)
    with pytest.raises(DamageError) as refused:
        check_files(path)
    problem = refused.value.problem
    assert (problem.file, problem.height) == (file.name, height)
    assert problem.record.startswith(f"block {height} to ")
    assert str(refused.value).startswith(f"height {height}, block {height} to ")


@pytest.mark.parametrize("offset", [5, 500])
def test_the_records_in_a_damaged_block_are_each_named(path: Path, offset: int) -> None:
    """Also where the damage is in the key of the first one."""
    table = only(path, "*.ldb")
    flip(table, offset, 1)
    report = check(path)
    assert report.opened
    first, *others = report.problems
    assert (first.file, first.height, first.record) == (table.name, 1, "block 1 to block 3")
    assert {(problem.height, problem.record, problem.file) for problem in others} >= {
        (height, f"block {height}", table.name) for height in (1, 2, 3)
    }


@pytest.mark.parametrize("lost", range(1, 130, 8))
def test_a_write_that_a_crash_cut_off_is_no_damage(tmp_path: Path, lost: int) -> None:
    log = numbered(tmp_path / "db")
    record_bytes = log.stat().st_size // RECORDS
    log.write_bytes(log.read_bytes()[:-lost])
    report = scan_files(tmp_path / "db")
    assert report.faults == []
    whole, rest = divmod(log.stat().st_size, record_bytes)
    assert report.cut_off == ({log.name: rest} if rest else {})
    assert keys(tmp_path / "db") == [b"%03d" % number for number in range(whole)]


def test_room_that_was_never_written_is_no_damage(tmp_path: Path) -> None:
    log = numbered(tmp_path / "db")
    log.write_bytes(log.read_bytes() + bytes(100))
    report = scan_files(tmp_path / "db")
    assert (report.faults, report.cut_off) == ([], {log.name: 100})
    assert len(keys(tmp_path / "db")) == RECORDS


def test_a_log_cut_off_before_another_goes_on_is_damage(tmp_path: Path) -> None:
    """A power cut forgets the end, never the middle."""
    log = numbered(tmp_path / "db")
    later = log.with_name("000099.log")
    shutil.copy(log, later)
    log.write_bytes(log.read_bytes()[:-1])
    fault = f"its end is cut off, though {later.name} goes on from there"
    assert faults(scan_files(tmp_path / "db")) == [(log.name, fault)]
    later.write_bytes(b"")
    assert faults(scan_files(tmp_path / "db")) == []


def test_what_is_missing_is_named_and_nothing_is_begun_anew(grown: Grown, path: Path) -> None:
    """LevelDB, where CURRENT is missing, founds a new database and deletes all the rest."""
    for file in [only(path, "*.ldb"), only(path, "*.log"), only(path, "CURRENT")]:
        file.unlink()
        with pytest.raises(DamageError, match=f"file {file.name}: it is missing"):
            check_files(path)
        shutil.copy(grown.path / file.name, file)
    only(path, "MANIFEST-*").unlink()
    with pytest.raises(DamageError, match="file CURRENT: it names no MANIFEST that is there"):
        check_files(path)
    report = check(path)
    assert not report.opened
    assert [problem.file for problem in report.problems] == ["CURRENT"]


def test_a_shortened_table_is_named(path: Path) -> None:
    table = only(path, "*.ldb")
    table.write_bytes(table.read_bytes()[:-1])
    with pytest.raises(DamageError, match=f"file {table.name}: it has .* bytes, not"):
        check_files(path)


def test_tables_are_read_until_time_runs_out(path: Path) -> None:
    flip(only(path, "*.ldb"), 10, 1)
    report = scan_files(path, seconds_max=0)
    assert report.faults == []
    assert report.bytes_all - report.bytes_read == only(path, "*.ldb").stat().st_size
    flip(only(path, "*.log"), 10, 1)
    assert [fault.file for fault in scan_files(path, seconds_max=0).faults] == [only(path, "*.log").name]


def test_progress_is_told_in_bytes(path: Path) -> None:
    told: list[tuple[int, int]] = []
    report = scan_files(path, lambda done, of: told.append((done, of)))
    assert told[-1] == (report.bytes_read, report.bytes_all)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_a_folder_without_a_database(tmp_path: Path) -> None:
    (tmp_path / "LOCK").touch()
    for folder in (tmp_path, tmp_path / "none"):
        assert is_new(folder)
        assert check_files(folder) == FilesReport()
        with pytest.raises(StorageFailure, match="holds no database"):
            scan_files(folder)


@contextmanager
def opened_elsewhere(path: Path) -> Iterator[None]:
    """Another process holds the database."""
    code = "import sys, pathlib, storage.leveldb as l; kv = l.LevelDb(pathlib.Path(sys.argv[1])); input('open')"
    arguments = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.read(4) == b"open"
            yield
        finally:
            process.kill()


def test_a_database_in_use_is_left_alone(path: Path) -> None:
    with opened_elsewhere(path):
        for look in (check, check_files):
            with pytest.raises(StorageFailure, match="is in use by a running node"):
                look(path)
    assert check(path).ok
