"""The check at boot: bounded, and naming height, record and file of what it finds."""

import random
import re
import shutil
from pathlib import Path

import msgspec
import pytest

from ledger.genesis import Genesis
from ledger.transaction import body_commitment
from storage import schema
from storage.boot import HEIGHTS_MAX, check_files, check_newest
from storage.leveldb import LevelDb
from storage.port import StorageFailure
from storage.report import DamageError
from storage.store import Store
from tests.fakes.disk import PowerLossDisk
from tests.ledger.founding import GENESIS, make_genesis
from tests.storage.chains import Chain, body_of, doctor, record
from tests.storage.folders import Grown, change_value, grow

NEWEST = 12


@pytest.fixture
def disk() -> PowerLossDisk:
    """Height 1 registers the doctor; each of the others holds two records."""
    disk = PowerLossDisk()
    chain = Chain(disk)
    chain.add(doctor())
    for number in range(2, NEWEST + 1):
        chain.add(record(f"{number}"), record(f"{number}, too"))
    return disk


def newest(disk: PowerLossDisk, heights_max: int = HEIGHTS_MAX, seconds_max: float = 60.0) -> int:
    return check_newest(disk, GENESIS, heights_max=heights_max, seconds_max=seconds_max)


def damaged(disk: PowerLossDisk, key: bytes, heights_max: int = HEIGHTS_MAX) -> DamageError:
    value = bytearray(disk.get(key) or b"")
    value[-1] ^= 1
    disk.damage(key, bytes(value))
    with pytest.raises(DamageError) as found:
        newest(disk, heights_max)
    return found.value


def a_transaction_of(disk: PowerLossDisk, height: int) -> bytes:
    """The index entry of one."""
    found = [key for key, value in disk.range(b"t", b"u") if schema.decode_place(value).height == height]
    return found[0]


def a_body_of(height: int) -> bytes:
    return schema.body_key(body_commitment(body_of(str(height))))


def test_a_sound_store(disk: PowerLossDisk) -> None:
    assert newest(disk) == NEWEST


def test_an_empty_database_will_be_founded() -> None:
    assert newest(PowerLossDisk()) == 0


def test_another_network_s_store_is_not_called_damaged(disk: PowerLossDisk) -> None:
    other: Genesis = make_genesis("other")
    others_nodes = msgspec.structs.replace(GENESIS, nodes=GENESIS.nodes[1:])
    for genesis in (other, others_nodes):
        assert check_newest(disk, genesis) == 0
        with pytest.raises(StorageFailure, match="of another network"):
            Store(disk, genesis)


@pytest.mark.parametrize("height", [3, NEWEST])
@pytest.mark.parametrize("table", ["block", "link", "roots", "certificate", "results", "transaction", "body"])
def test_one_changed_value_is_named(disk: PowerLossDisk, table: str, height: int) -> None:
    key = {
        "block": schema.block_key(height),
        "link": schema.link_key(height),
        "roots": schema.roots_key(height),
        "certificate": schema.certificate_key(height),
        "results": schema.results_key(height),
        "transaction": a_transaction_of(disk, height),
        "body": a_body_of(height),
    }[table]
    error = damaged(disk, key)
    assert (error.problem.height, error.problem.record) == (height, schema.name_of(key))


@pytest.mark.parametrize("key", [schema.LOG_KEY, schema.EXECUTED_KEY])
def test_the_records_of_the_ends(disk: PowerLossDisk, key: bytes) -> None:
    error = damaged(disk, key)
    assert (error.problem.height, error.problem.record) == (NEWEST, schema.name_of(key))


def test_a_changed_leaf_of_the_history_shows_at_its_height(disk: PowerLossDisk) -> None:
    """Leaf and results contradict each other; which of them changed only the whole check tells."""
    error = damaged(disk, schema.history_key(0, 5))
    assert (error.problem.height, error.count) == (5, 1)
    assert "history node 0/5" in str(error)


def test_a_place_of_no_transaction_of_that_name(disk: PowerLossDisk) -> None:
    key = a_transaction_of(disk, 5)
    for place in (schema.Place(4, 0, "ok"), schema.Place(4, 9, "ok"), schema.Place(6, 0, "ok")):
        disk.damage(key, place.encode())
        with pytest.raises(DamageError) as found:
            newest(disk)
        assert (found.value.problem.height, found.value.problem.record) == (5, schema.name_of(key))
    disk.damage(key, b"no place")
    with pytest.raises(DamageError):
        newest(disk)


def test_heights_are_read_from_the_top_down_to_the_bound(disk: PowerLossDisk) -> None:
    value = disk.get(schema.certificate_key(8)) or b""
    disk.damage(schema.certificate_key(8), b"\xc0")
    assert newest(disk, NEWEST - 8) == NEWEST - 8
    assert newest(disk, seconds_max=0) == 1
    with pytest.raises(DamageError, match="height 8, certificate 8"):
        newest(disk, NEWEST - 7)
    disk.damage(schema.certificate_key(8), value)
    assert newest(disk, NEWEST + 5) == NEWEST


def test_only_the_first_problem_is_said_and_how_many_there_are(disk: PowerLossDisk) -> None:
    disk.damage(schema.certificate_key(9), b"\xc0")
    disk.damage(schema.certificate_key(8), b"\xc0")
    with pytest.raises(
        DamageError, match=r"height 9, certificate 9: .* \(and 1 more: `carequorum check` lists them\)"
    ):
        newest(disk)


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Grown:
    return grow(tmp_path_factory.mktemp("grown") / "db")


def test_the_file_is_named_while_the_database_is_open(grown: Grown, tmp_path: Path) -> None:
    path = shutil.copytree(grown.path, tmp_path / "db")
    key = schema.results_key(18)
    change_value(path, key, random.Random(1), compact=True)
    check_files(path)
    kv = LevelDb(path, create=False)
    with pytest.raises(DamageError) as found:
        check_newest(kv, GENESIS, path)
    kv.close()
    assert (found.value.problem.height, found.value.problem.record) == (18, "results 18")
    # LevelDB may have begun to merge it into another one since.
    assert re.fullmatch(r"[0-9]{6}\.ldb", found.value.problem.file or "")
