"""A hundred changed values and a hundred changed bytes of files, at random: none goes unnoticed.

Of a changed value the record, its height and its file are named; of a changed byte its file. A byte that
nothing reads may go unnoticed: then everything that can be read is the same as before.
"""

import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from storage import schema
from storage.boot import check_files
from storage.files import Places, scan_files
from storage.leveldb import LevelDb
from storage.report import DamageError
from tests.storage.folders import ROUNDS, Grown, change_value, check, contents, flip, grow, kinds

SEED = 20_260_118
FLIPS = 100
# Where LevelDB cuts its logs' records in two.
LOG_BLOCK_BYTES = 32 * 1024
# LevelDB's notes for people: it writes them and never reads them.
NOTES = {"LOG", "LOG.old"}
# Of the schema.
TABLES = [table.to_bytes(1, "big") for table in b"bldrcxtsphumegw"]


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Grown:
    return grow(tmp_path_factory.mktemp("grown") / "db")


@pytest.fixture
def copy(grown: Grown, tmp_path: Path) -> Callable[[], Path]:
    """A fresh copy of the folder, in the place of the one before."""

    def make() -> Path:
        shutil.rmtree(tmp_path / "db", ignore_errors=True)
        shutil.copytree(grown.path, tmp_path / "db")
        return tmp_path / "db"

    return make


def test_the_folder_has_something_of_everything(grown: Grown) -> None:
    assert {key[:1] for key in grown.written} == set(TABLES)
    assert kinds(grown.path) == {".ldb", ".log", "MANIFEST", "CURRENT", "LOCK", "LOG", ".old"}
    report = check(grown.path)
    assert report.ok
    assert (report.last_height, report.executed_height) == (ROUNDS + 3, ROUNDS + 2)
    assert set(report.files_unread) == {"LOCK", *NOTES}
    (_,), (log,) = grown.path.glob("*.ldb"), grown.path.glob("*.log")
    assert log.stat().st_size > LOG_BLOCK_BYTES


def test_the_check_changes_nothing(grown: Grown) -> None:
    def everything() -> dict[str, tuple[bytes, int]]:
        return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in grown.path.iterdir()}

    before = everything()
    check(grown.path)
    check_files(grown.path)
    assert everything() == before


def test_changed_values(
    grown: Grown, copy: Callable[[], Path], record_property: Callable[[str, object], None]
) -> None:
    """Every table of the schema in turn, a random record, a random byte; in a log and in a table by turns."""
    choose = random.Random(SEED)
    noticed: Counter[str] = Counter()
    for number in range(FLIPS):
        table = TABLES[number % len(TABLES)]
        key = choose.choice(sorted(each for each in grown.written if each[:1] == table))
        path = copy()
        change_value(path, key, choose, compact=number % 2 == 1)
        holder = Places(path, scan_files(path)).file_of(key)
        assert holder is not None
        assert holder.endswith(".ldb" if number % 2 else ".log")
        found = {(problem.height, problem.record, problem.file) for problem in check(path).problems}
        assert (grown.written[key], schema.name_of(key), holder) in found, (SEED, number)
        noticed[schema.name_of(key[:1]).strip()] += 1
    record_property("changed values", f"{noticed.total()} of {FLIPS} noticed: {dict(noticed)}")


def test_changed_bytes_of_files(
    grown: Grown, copy: Callable[[], Path], record_property: Callable[[str, object], None]
) -> None:
    """A random file, a random byte of it; every tenth time in LevelDB's notes."""
    choose = random.Random(SEED)
    kv = LevelDb(copy(), create=False)
    everything = contents(kv)
    kv.close()
    sizes = {file.name: file.stat().st_size for file in grown.path.iterdir()}
    names = sorted(name for name, size in sizes.items() if size and name not in NOTES)
    noticed: Counter[str] = Counter()
    unread: Counter[str] = Counter()
    for number in range(FLIPS):
        name = choose.choice(names if number % 10 else sorted(NOTES))
        path = copy()
        flip(path / name, choose.randrange(sizes[name]), choose.randrange(1, 256))
        report = check(path)
        if not report.ok:
            assert name in {problem.file for problem in report.problems}, (SEED, number)
            with pytest.raises(DamageError) as refused:
                check_files(path)
            assert refused.value.problem.file == name
            noticed[name] += 1
            continue
        assert name in NOTES, (SEED, number, name)
        assert name in report.files_unread
        kv = LevelDb(path, create=False)
        assert contents(kv) == everything
        kv.close()
        unread[name] += 1
    assert noticed.total() + unread.total() == FLIPS
    record_property("changed bytes", f"noticed {dict(noticed)}, in what nothing reads {dict(unread)}")
    assert set(names) == set(noticed), "every file was hit"
