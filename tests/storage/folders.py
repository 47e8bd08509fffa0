"""A database folder with something of everything in it, and bytes changed in it."""

import random
from dataclasses import dataclass
from pathlib import Path

from storage.check import check_path
from storage.leveldb import LevelDb
from storage.promises import FORMAT, Forsworn
from storage.report import CheckReport
from tests.ledger.founding import GENESIS, registration, rotation, sign
from tests.storage.chains import Chain, doctor, record

ROUNDS = 16
# What came until then stands in a table; what came later in the log.
TABLE_AFTER = 6


@dataclass(frozen=True, slots=True)
class Grown:
    """`written` is the height that wrote each record last; None for what belongs to none: evidence, promises."""

    path: Path
    written: dict[bytes, int | None]


def grow(path: Path) -> Grown:
    """A table and a log. Every table of the schema has records, the newest blocks are not sealed, and the last one
    is not executed.
    """
    kv = LevelDb(path)
    chain = Chain(kv)
    before = dict(kv.range(b"", b"\xff"))
    written: dict[bytes, int | None] = dict.fromkeys(before, 0)

    def note(height: int | None) -> None:
        nonlocal before
        after = dict(kv.range(b"", b"\xff"))
        written.update((key, height) for key, value in after.items() if before.get(key) != value)
        before = after

    chain.add(doctor())
    note(1)
    for number in range(ROUNDS):
        transactions = [record(f"{number}-{each}", f"subject {each % 3}") for each in range(3)]
        transactions.append(sign([registration(f"nurse {number}", "clinician")], by="north-admin"))
        chain.add(*transactions, certified=number % 3 != 1)
        note(chain.store.last_height())
        if number == TABLE_AFTER:
            kv._db.compact_range()
            kv.close()
            kv = LevelDb(path)
            chain = Chain(kv)
    chain.add(sign([rotation("nurse 0", "nurse 0, later", 1)], by="nurse 0"), certified=False)
    note(chain.store.last_height())
    chain.store.put_evidence("vote", "south-1", b"proof")
    chain.store.promises.keep_vote("south-1", 1, "north-1", bytes(64))
    chain.store.promises.forswear(Forsworn(b"north-1", FORMAT, 0, "vote", "south-1", bytes(64), 1))
    note(None)
    chain.persist(chain.seal(record("not executed")))
    note(chain.store.last_height())
    chain.store.close()
    return Grown(path, {key: height for key, height in written.items() if key in before})


def contents(kv: LevelDb) -> dict[bytes, bytes]:
    """Every record that there is, each read twice: in order, and by its key."""
    found = dict(kv.range(b"", b"\xff"))
    assert all(kv.get(key) == value for key, value in found.items())
    return found


def check(path: Path) -> CheckReport:
    return check_path(path, GENESIS, lambda stage, done, of: None)


def flip(file: Path, offset: int, mask: int) -> None:
    """Change one byte."""
    with file.open("r+b") as stream:
        stream.seek(offset)
        (byte,) = stream.read(1)
        stream.seek(offset)
        stream.write(bytes([byte ^ mask]))


def change_value(path: Path, key: bytes, choose: random.Random, *, compact: bool = False) -> None:
    """Change one byte of a record's value and write it as LevelDB does, so that every checksum fits again."""
    kv = LevelDb(path, create=False)
    value = bytearray(kv.get(key) or b"")
    value[choose.randrange(len(value))] ^= choose.randrange(1, 256)
    kv.write([(key, bytes(value))], sync=True)
    if compact:
        kv._db.compact_range()
    kv.close()


def kinds(path: Path) -> set[str]:
    return {file.suffix or file.name.partition("-")[0] for file in path.iterdir()}
