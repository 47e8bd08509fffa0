"""What the daemon's last line says of a damaged store."""

from pathlib import Path

import pytest

from node.daemon import damage_fields
from storage.boot import check_files
from storage.leveldb import LevelDb
from storage.port import StorageFailure
from storage.report import DamageError
from tests.storage.chains import Chain, doctor
from tests.storage.folders import flip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A store of one block; all of it stands in the log."""
    chain = Chain(LevelDb(tmp_path / "ledger"))
    chain.add(doctor())
    chain.store.close()
    return tmp_path / "ledger"


def test_height_record_and_file_of_what_boot_finds(folder: Path) -> None:
    (log,) = folder.glob("*.log")
    flip(log, log.stat().st_size // 2, 1)
    with pytest.raises(DamageError) as found:
        check_files(folder)
    fields = damage_fields(found.value, folder)
    assert (fields["file"], fields["problems"]) == (log.name, 1)
    assert fields["height"] == found.value.problem.height
    assert fields["record"] == found.value.problem.record != ""


def test_the_file_of_what_leveldb_finds_while_the_node_runs(folder: Path) -> None:
    """LevelDB says which key it could not read, and no file."""
    (log,) = folder.glob("*.log")
    flip(log, log.stat().st_size // 2, 1)
    assert damage_fields(StorageFailure("reading key 62: checksum mismatch"), folder)["file"] == log.name


def test_a_disk_that_is_full_has_damaged_nothing(folder: Path, tmp_path: Path) -> None:
    assert damage_fields(StorageFailure("writing: no space left"), folder) == {}
    assert damage_fields(StorageFailure("writing: no space left"), tmp_path / "none") == {}
    assert damage_fields(ValueError("a fault of ours"), folder) == {}
