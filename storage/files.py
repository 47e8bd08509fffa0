"""The files of a stopped database: every byte that LevelDB would read verified, without opening it.

LevelDB is not left alone with a folder in doubt, for it

- changes it by opening: logs become tables, what the MANIFEST does not name is deleted, and where CURRENT is
  missing a new database is begun;
- passes over damage: it drops the end of a log or MANIFEST from a changed length on, and does without a filter;
- names no file in its errors.

What it never reads cannot be verified and is listed: LOG and LOG.old (its own notes), LOCK, and leftovers of
an interrupted compaction, which it deletes.
"""

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from storage import formats, schema
from storage.formats import DamagedBytes, Table, Version
from storage.leveldb import LevelDb
from storage.port import StorageFailure
from storage.report import Problem

_CURRENT = "CURRENT"
_CURRENT_FORM = re.compile(rb"MANIFEST-[0-9]{6,20}\n")
_NAMES_A_MANIFEST = re.compile(r"MANIFEST-[0-9]{6,20}")
_NAMES_A_LOG = re.compile(r"([0-9]{6,20})\.log")
_NAMES_A_TABLE = re.compile(r"[0-9]{6,20}\.ldb")

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class FileFault:
    """What is wrong with a file. `keys` stand where it is, as far as can be told; `low` < key <= `high` are the
    keys that cannot be read because of it, if they are known.
    """

    file: str
    fault: str
    keys: Sequence[bytes] = ()
    low: bytes | None = None
    high: bytes | None = None

    def hides(self, key: bytes) -> bool:
        return self.high is not None and key <= self.high and (self.low is None or key >= self.low)

    def problem(self) -> Problem:
        heights = [height for key in self.keys if (height := schema.height_of(key)) is not None]
        return Problem(heights[0] if heights else None, _names(self.keys), self.fault, self.file)


@dataclass(slots=True)
class FilesReport:
    """What was read, what nothing reads, what is wrong. `bytes_all` is more than `bytes_read` if time ran out.

    `version` is None where the MANIFEST could not be read; `logs` are the names of the live logs.
    """

    files_read: int = 0
    bytes_read: int = 0
    bytes_all: int = 0
    unread: list[str] = field(default_factory=list)
    cut_off: dict[str, int] = field(default_factory=dict)
    faults: list[FileFault] = field(default_factory=list)
    version: Version | None = None
    logs: list[str] = field(default_factory=list)

    @property
    def tables(self) -> dict[str, Table]:
        """The live tables by name, newest first."""
        found = self.version.tables if self.version else {}
        return {f"{number:06d}.ldb": found[number] for number in sorted(found, reverse=True)}

    @property
    def can_open(self) -> bool:
        """Whether nothing is wrong but inside tables, so that LevelDB can be asked for all other records."""
        return self.version is not None and all(fault.file in self.tables for fault in self.faults)


def is_new(folder: Path) -> bool:
    """Whether no database has ever stood here."""
    if not folder.is_dir():
        return True
    return not any(
        name == _CURRENT or any(form.fullmatch(name) for form in (_NAMES_A_MANIFEST, _NAMES_A_LOG, _NAMES_A_TABLE))
        for name in os.listdir(folder)
    )


def scan_files(
    folder: Path, progress: Progress = lambda done, of: None, *, seconds_max: float | None = None
) -> FilesReport:
    """Read every live file of a database that nobody writes to. `progress` is told bytes.

    After `seconds_max` no further table is begun; CURRENT, MANIFEST and the logs are always read. Raises
    StorageFailure where there is no database.
    """
    _require_database(folder)
    return _Scan(folder, progress, seconds_max).run()


def _require_database(folder: Path) -> None:
    if is_new(folder):
        raise StorageFailure(f"{folder} cannot be opened: it holds no database")


class _Scan:
    def __init__(self, folder: Path, progress: Progress, seconds_max: float | None) -> None:
        self._folder = folder
        self._progress = progress
        self._deadline = None if seconds_max is None else time.monotonic() + seconds_max
        self.report = FilesReport()

    def run(self) -> FilesReport:
        report = self.report
        names = sorted(entry.name for entry in os.scandir(self._folder) if entry.is_file())
        manifest = self._current(names)
        records = self._log(manifest) if manifest else None
        if manifest and records is not None:
            try:
                report.version = formats.read_version(records)
            except DamagedBytes as error:
                report.faults.append(FileFault(manifest, error.fault))
        live = [name for name in (_CURRENT, manifest) if name]
        if report.version is not None:
            report.logs = self._live_logs(names, report.version)
            live += [*report.logs, *report.tables]
            report.bytes_all = report.bytes_read + sum(self._size(name) for name in live[2:])
            self._logs()
            self._tables()
        report.unread = [name for name in names if name not in live]
        return report

    def _current(self, names: Sequence[str]) -> str | None:
        """The MANIFEST that CURRENT names."""
        if _CURRENT not in names:
            self.report.faults.append(FileFault(_CURRENT, "it is missing"))
            return None
        data = self._read(_CURRENT)
        if data is None:
            return None
        name = data.decode("ascii", "replace").removesuffix("\n")
        if _CURRENT_FORM.fullmatch(data) is None or name not in names:
            self.report.faults.append(FileFault(_CURRENT, "it names no MANIFEST that is there"))
            return None
        return name

    def _live_logs(self, names: Sequence[str], version: Version) -> list[str]:
        """In the order in which they were written."""
        numbers = {int(found[1]): name for name in names if (found := _NAMES_A_LOG.fullmatch(name))}
        if version.log and version.log not in numbers:
            self.report.faults.append(FileFault(f"{version.log:06d}.log", "it is missing"))
        return [numbers[each] for each in sorted(numbers) if each >= version.log or each == version.previous_log]

    def _logs(self) -> None:
        """A log that a crash cut off is the last one with anything in it: what came later is not there either."""
        cut: str | None = None
        for name in self.report.logs:
            records = self._log(name)
            if records and cut is not None:
                fault = f"its end is cut off, though {name} goes on from there"
                self.report.faults.append(FileFault(cut, fault))
            if name in self.report.cut_off:
                cut = name

    def _log(self, name: str) -> list[bytes] | None:
        """The records of a log or MANIFEST, None if it is damaged."""
        data = self._read(name)
        if data is None:
            return None
        try:
            content = formats.read_log(data)
        except DamagedBytes as error:
            keys = _keys_in(error.remains) if _NAMES_A_LOG.fullmatch(name) else []
            self.report.faults.append(FileFault(name, str(error), keys))
            return None
        if content.cut_off:
            self.report.cut_off[name] = content.cut_off
        return content.records

    def _tables(self) -> None:
        for name, table in self.report.tables.items():
            if self._deadline is not None and time.monotonic() > self._deadline:
                break
            data = self._read(name, table)
            if data is not None:
                self.report.faults += _table_faults(name, table, data)

    def _read(self, name: str, table: Table | None = None) -> bytes | None:
        """A file's bytes; of a table, as many as the MANIFEST says. None and a fault where there are none."""
        low, high = (table.smallest, table.largest) if table else (None, None)
        try:
            data = (self._folder / name).read_bytes()
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)
            fault = "it is missing" if missing else f"it cannot be read: {error.strerror}"
            self.report.faults.append(FileFault(name, fault, (), low, high))
            return None
        self.report.files_read += 1
        self.report.bytes_read += len(data)
        self._progress(self.report.bytes_read, max(self.report.bytes_all, self.report.bytes_read))
        if table and len(data) != table.size:
            self.report.faults.append(FileFault(name, f"it has {len(data)} bytes, not {table.size}", (), low, high))
            return None
        return data

    def _size(self, name: str) -> int:
        try:
            return (self._folder / name).stat().st_size
        except OSError:
            return 0


def _table_faults(name: str, table: Table, data: bytes) -> list[FileFault]:
    try:
        blocks = formats.table_blocks(data)
    except DamagedBytes as error:
        return [FileFault(name, str(error), (), table.smallest, table.largest)]
    faults = []
    for block in blocks:
        try:
            formats.verify_block(data, block)
        except DamagedBytes as error:
            # Where the damage is in a key, what stands around the block still says which they were.
            keys = formats.block_keys(data, block) or [block.low or table.smallest, block.high or table.largest]
            faults.append(FileFault(name, str(error), keys, block.low, block.high))
    return faults


def _keys_in(remains: bytes) -> list[bytes]:
    keys: list[bytes] = []
    with contextlib.suppress(DamagedBytes):
        keys.extend(formats.batch_keys(remains))
    return keys


def _names(keys: Sequence[bytes]) -> str:
    """The first and the last of the records that share the damage."""
    names = [schema.name_of(key) for key in keys]
    return " to ".join(dict.fromkeys([*names[:1], *names[-1:]]))


class Places:
    """Which file holds the newest value of a key, as far as can be told: for naming, never for reading."""

    def __init__(self, folder: Path, report: FilesReport) -> None:
        self._folder = folder
        self._report = report
        self._in_logs: dict[bytes, str] | None = None

    def file_of(self, key: bytes) -> str | None:
        for fault in self._report.faults:
            if fault.hides(key):
                return fault.file
        if self._in_logs is None:
            self._in_logs = self._read_logs()
        return self._in_logs.get(key) or self._in_tables(key)

    def _read_logs(self) -> dict[bytes, str]:
        found: dict[bytes, str] = {}
        for name in self._report.logs:
            with contextlib.suppress(OSError, DamagedBytes):
                for record in formats.read_log((self._folder / name).read_bytes()).records:
                    found.update((key, name) for key in formats.batch_keys(record))
        return found

    def _in_tables(self, key: bytes) -> str | None:
        newest, holder = -1, None
        for name, table in self._report.tables.items():
            if table.smallest <= key <= table.largest:
                with contextlib.suppress(OSError, DamagedBytes):
                    sequence = formats.newest_in_table((self._folder / name).read_bytes(), key)
                    if sequence is not None and sequence > newest:
                        newest, holder = sequence, name
        return holder


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """LevelDB's own lock, so that no other process writes meanwhile. Raises StorageFailure if one holds it.

    Not to be used in a process that has this database open: the lock is a process's, and would end with this.
    """
    _require_database(folder)
    try:
        descriptor = os.open(folder / "LOCK", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageFailure(f"{folder} cannot be locked: {error.strerror}") from None
    try:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StorageFailure(f"{folder} is in use by a running node or another command") from None
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def opened_copy(folder: Path, report: FilesReport) -> Iterator[LevelDb]:
    """The database, opened in the system's temporary folder: what LevelDB changes by opening changes there.

    Tables are never written again and so only linked to; the rest is small and copied.
    """
    assert report.version is not None, "the MANIFEST was read"
    with tempfile.TemporaryDirectory(prefix="carequorum-check-") as temporary:
        copy = Path(temporary) / "copy"
        copy.mkdir()
        for name in report.tables:
            (copy / name).symlink_to((folder / name).absolute())
        manifest = (folder / _CURRENT).read_text().strip()
        for name in (_CURRENT, manifest, *report.logs):
            shutil.copyfile(folder / name, copy / name)
        kv = LevelDb(copy, create=False, sync=False)
        try:
            yield kv
        finally:
            kv.close()
