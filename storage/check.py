"""Everything read again, and everything that follows from the chain derived again from genesis.

First the files: every byte that LevelDB would read, see `files`. Then the records. The check walks the chain
from height 1 and trusts nothing but genesis: each block must hash to what its child names, be signed, hold
signed transactions and have its bodies. Executed blocks are executed again, by the same code, into a scratch
database; in the end the two databases must hold the same. Which keys must exist therefore follows from the
chain and never from iterating the database that is in doubt; that is iterated only to find what should not be
there.

The scratch database stamps each value with the height that wrote it, so that a difference names its height.
The folder itself is not changed, whatever is found.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ledger.block import Block
from ledger.finality import decode_certificate
from ledger.genesis import Genesis
from ledger.transaction import body_commitment
from storage import schema
from storage.executed import Divergence, Executed, genesis_executed
from storage.files import FileFault, Places, held, opened_copy, scan_files
from storage.heights import FileOf, Heights, no_file
from storage.leveldb import LevelDb
from storage.port import KeyValue, StorageFailure, Write
from storage.report import CheckReport, Problem
from storage.schema import Evidence, ExecutedRecord, Link, LogRecord

_STAMP_BYTES = 8
# Tables whose values belong to one height for ever: they compare even where the replay stopped too early.
_LASTING = b"rcxth"

# Told the stage, how much of it is done, and of how much: bytes of files, heights, records. The last is an estimate.
Progress = Callable[[str, int, int], None]
FILES, BLOCKS, RECORDS = "files", "blocks", "records"
_RECORDS_A_STEP = 1_000


def check_path(path: Path, genesis: Genesis, progress: Progress) -> CheckReport:
    """Check the LevelDB folder of a stopped node. Uses the system's temporary folder for a scratch database.

    Raises StorageFailure if there is none, or a running node holds it.
    """
    with held(path):
        files = scan_files(path, lambda done, of: progress(FILES, done, of))
        if not files.can_open:
            report = CheckReport(opened=False)
        else:
            with opened_copy(path, files) as kv, tempfile.TemporaryDirectory(prefix="carequorum-check-") as folder:
                scratch = LevelDb(Path(folder) / "scratch", sync=False)
                try:
                    report = check_store(kv, genesis, scratch, progress, Places(path, files).file_of)
                finally:
                    scratch.close()
    report.files_read, report.file_bytes = files.files_read, files.bytes_read
    report.files_unread, report.cut_off = files.unread, files.cut_off
    report.problems = [*map(FileFault.problem, files.faults), *report.problems]
    return report


def check_store(
    kv: KeyValue, genesis: Genesis, scratch: KeyValue, progress: Progress, file_of: FileOf = no_file
) -> CheckReport:
    """Check the records of an open store that nobody writes to, with an empty scratch database."""
    check = _Check(kv, genesis, scratch, file_of)
    for height in range(1, check.report.last_height + 1):
        check.height(height)
        progress(BLOCKS, height, check.report.last_height)
    check.ends()
    check.compare(progress)
    check.find_strangers()
    return check.report


class _Stamped:
    """The scratch database: each value behind the height that wrote it. `puts` counts them."""

    def __init__(self, kv: KeyValue) -> None:
        self._kv = kv
        self.height = 0
        self.puts = 0

    def get(self, key: bytes) -> bytes | None:
        data = self._kv.get(key)
        return None if data is None else data[_STAMP_BYTES:]

    def range(self, start: bytes, stop: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        for key, data in self._kv.range(start, stop, reverse=reverse):
            yield key, data[_STAMP_BYTES:]

    def stamps(self) -> Iterator[tuple[bytes, int, bytes]]:
        """Every key, the height that wrote it last, and its value."""
        for key, data in self._kv.range(b"", b"\xff"):
            yield key, int.from_bytes(data[:_STAMP_BYTES], "big"), data[_STAMP_BYTES:]

    def write(self, batch: Sequence[Write], *, sync: bool) -> None:
        stamp = self.height.to_bytes(_STAMP_BYTES, "big")
        self._kv.write([(key, None if value is None else stamp + value) for key, value in batch], sync=sync)
        self.puts += len(batch)

    def close(self) -> None:
        self._kv.close()


class _Check:
    """One pass. `_parent` is the block below as far as it could be read, `_below` its place in the chain;
    `_executed` is as far as execution came.
    """

    def __init__(self, kv: KeyValue, genesis: Genesis, scratch: KeyValue, file_of: FileOf) -> None:
        self.report = CheckReport()
        self._kv = kv
        self._heights = Heights(kv, genesis, self.report, file_of)
        chain = self._heights.chain
        self._scratch = _Stamped(scratch)
        self._scratch.write(genesis_executed(genesis), sync=False)
        self._executed = Executed(self._scratch, chain)
        self._find_ends()
        self._heights.link(0)
        self._below = Link(0, chain, b"")
        self._parent: Block | None = None

    def _find_ends(self) -> None:
        """How high the log and execution came; where a record of that is lost, by what stands there."""
        report = self.report
        self._end, last, fault = self._heights.end(schema.LOG_KEY, LogRecord, schema.block_key)
        report.last_height = self._end.height if self._end else last
        if self._end is None:
            self._heights.add(report.last_height, schema.LOG_KEY, fault)
        head, executed, fault = self._heights.end(schema.EXECUTED_KEY, ExecutedRecord, schema.roots_key)
        executed = head.height if head else executed
        report.executed_height = min(executed, report.last_height)
        if head is None:
            self._heights.add(report.executed_height, schema.EXECUTED_KEY, fault)
        if executed > report.last_height:
            self._heights.add(executed, schema.EXECUTED_KEY, "the log ends below the executed height")

    def height(self, height: int) -> None:
        """The block, its link, its bodies; and what it led to, if it was executed."""
        heights = self._heights
        link = heights.link(height)
        block = heights.block(height)
        if block is None:
            self._parent = None
            self._below = link or Link(self._below.term, b"", b"")
            return
        heights.check_header(height, block, self._parent, self._below)
        heights.check_link(height, link, block)
        self._remember_bodies(block)
        heights.check_signatures(height, block)
        heights.check_bodies(height, block)
        follows = (height - 1, block.header.parent) == (self._executed.executed_height, self._executed.executed_hash)
        if follows and block.header.height == height <= self.report.executed_height:
            self._replay(height, block)
        self._parent, self._below = block, Link(block.header.term, block.hash, block.header.parent)

    def ends(self) -> None:
        """The records of where the log and execution end."""
        report, end, below = self.report, self._end, self._below
        if end is not None:
            if below.hash and end.hash != below.hash:
                self._heights.add(report.last_height, schema.LOG_KEY, "it names another newest block")
            if end.term < below.term:
                fault = f"term {end.term} is below the newest block's"
                self._heights.add(report.last_height, schema.LOG_KEY, fault)
        replayed = self._executed.executed_height
        if replayed < report.executed_height:
            fault = f"state and proofs above height {replayed} could not be derived and are not compared"
            report.add(Problem(replayed + 1, "state", fault))

    def compare(self, progress: Progress) -> None:
        """Each derived value must stand in the store."""
        complete, done = self._is_complete(), 0
        for key, height, value in self._scratch.stamps():
            done += 1
            if done % _RECORDS_A_STEP == 0:
                progress(RECORDS, done, self._scratch.puts)
            if key[:1] == b"d" or not (complete or key[:1] in _LASTING):
                continue
            if key[:1] == b"c" and not decode_certificate(value).signatures:
                # A stand-in: what is wrong with the certificate was said at its height.
                continue
            stored = self._heights.read(key, height)
            if stored is not None and stored != value:
                self._heights.add(height, key, "it is not what the chain gives")
        progress(RECORDS, done, done)

    def find_strangers(self) -> None:
        """Nothing may stand in the store that the chain does not account for."""
        try:
            for key, value in self._kv.range(b"", b"\xff\xff"):
                self._account(key, value)
        except StorageFailure as error:
            self.report.add(Problem(None, "", f"not every record could be read in order: {error}"))

    def _account(self, key: bytes, value: bytes) -> None:
        table, report = key[:1], self.report
        if table in (b"b", b"l"):
            height = int.from_bytes(key[1:], "big")
            known = len(key) == 1 + 8 and height <= report.last_height and (height > 0 or table == b"l")
        elif table == b"d":
            known = self._scratch.get(key) is not None
            if not known and key == schema.body_key(body_commitment(value)):
                report.unreferenced_bodies += 1
                known = True
        elif table == b"e":
            known = self._is_evidence(key, value)
        else:
            known = key == schema.LOG_KEY or not self._is_complete() or self._scratch.get(key) is not None
        if not known:
            self._heights.add(schema.height_of(key), key, "the chain does not account for it")

    def _is_complete(self) -> bool:
        """Whether every executed block could be executed again."""
        return self._executed.executed_height == self.report.executed_height

    def _is_evidence(self, key: bytes, value: bytes) -> bool:
        try:
            schema.unseal(Evidence, value, schema.name_of(key))
        except StorageFailure:
            return False
        return True

    def _remember_bodies(self, block: Block) -> None:
        """Which bodies the chain accounts for."""
        keys = [
            schema.body_key(reference.commitment)
            for transaction in block.transactions
            for reference in transaction.envelope.bodies
        ]
        if keys:
            self._scratch.write([(key, b"") for key in keys], sync=False)

    def _replay(self, height: int, block: Block) -> None:
        certificate = self._heights.certificate(height, block)
        self._scratch.height = height
        try:
            commit = self._executed.derive(block, certificate)
        except (Divergence, StorageFailure) as error:
            self._heights.add(height, schema.block_key(height), f"it does not execute: {error}")
            return
        self._executed.apply(commit)
        self._executed.write(commit)
        self._executed.written(commit)
