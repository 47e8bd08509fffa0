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

import struct
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from ledger.block import Block
from ledger.finality import decode_certificate
from ledger.genesis import Genesis
from ledger.transaction import body_commitment
from storage import schema
from storage.base import BASE_KEY
from storage.executed import Divergence, Executed, genesis_executed
from storage.files import FileFault, Places, held, opened_copy, scan_files
from storage.heights import FileOf, Heights, no_file
from storage.leveldb import LevelDb
from storage.port import KeyValue, StorageFailure, Write
from storage.promises import decode_forsworn, decode_vote
from storage.pruned import refound, same_roots
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
    for height in range(check.base + 1, check.report.last_height + 1):
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
        self._find_ends()
        self._heights.link(0)
        # Heights up to here are not executed again.
        self._given = 0
        if self.base:
            self._heights.check_base()
            self._refound(kv, genesis)
        else:
            self._scratch.write(genesis_executed(genesis), sync=False)
        self._executed = None if self._given < self.base else Executed(self._scratch, chain)
        self._below = self._heights.below
        self._parent: Block | None = None

    @property
    def base(self) -> int:
        return self._heights.base.height

    def _refound(self, kv: KeyValue, genesis: Genesis) -> None:
        try:
            self._given = refound(kv, genesis, self._heights, self._scratch)
        except StorageFailure as error:
            self.report.add(Problem(self.base, "state", str(error)))

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
        if height <= min(max(self._given, self.base), self.report.executed_height):
            heights.certificate(height, block)
        elif self._follows(block) and block.header.height == height <= self.report.executed_height:
            self._replay(height, block)
        self._parent, self._below = block, Link(block.header.term, block.hash, block.header.parent)

    def _follows(self, block: Block) -> bool:
        executed, header = self._executed, block.header
        return executed is not None and (header.height - 1, header.parent) == (
            executed.executed_height,
            executed.executed_hash,
        )

    def ends(self) -> None:
        """The records of where the log and execution end."""
        report, end, below = self.report, self._end, self._below
        if end is not None:
            if below.hash and end.hash != below.hash:
                self._heights.add(report.last_height, schema.LOG_KEY, "it names another newest block")
            if end.term < below.term:
                fault = f"term {end.term} is below the newest block's"
                self._heights.add(report.last_height, schema.LOG_KEY, fault)
        replayed = self._executed.executed_height if self._executed else self.base
        if self._executed and replayed < report.executed_height:
            fault = f"state and proofs above height {replayed} could not be derived and are not compared"
            report.add(Problem(replayed + 1, "state", fault))

    def compare(self, progress: Progress) -> None:
        """Each derived value must stand in the store."""
        complete, done = self._is_complete(), 0
        for key, height, value in self._scratch.stamps():
            done += 1
            if done % _RECORDS_A_STEP == 0:
                progress(RECORDS, done, self._scratch.puts)
            if key[:1] == b"d" or not (complete or key[:1] in _LASTING) or self._is_set_up(key):
                continue
            if key[:1] == b"c" and not decode_certificate(value).signatures:
                # A stand-in: what is wrong with the certificate was said at its height.
                continue
            # What was set up, not executed, is stamped with 0.
            height = max(height, schema.height_of(key) or 0)
            stored = self._heights.read(key, height)
            if stored is not None and not self._says_as_much(key, stored, value):
                self._heights.add(height, key, "it is not what the chain gives")
        progress(RECORDS, done, done)

    def _is_set_up(self, key: bytes) -> bool:
        """Whether it is in the scratch database only because a snapshot's installation puts it there."""
        return key[:1] in b"blg" or key in (schema.LOG_KEY, BASE_KEY)

    def _says_as_much(self, key: bytes, stored: bytes, value: bytes) -> bool:
        height = schema.height_of(key)
        if key[:1] != b"r" or height is None:
            return stored == value
        try:
            return same_roots(height, stored, value, self._heights.base, self._given)
        except StorageFailure:
            return False

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
            known = known and (height > self.base or (table == b"l" and height in (0, self.base)))
        elif table == b"d":
            known = self._scratch.get(key) is not None
            if not known and key == schema.body_key(body_commitment(value)):
                report.unreferenced_bodies += 1
                known = True
        elif table in (b"e", b"w") or key == schema.FORSWORN_KEY:
            known = self._is_kept(key, value)
        elif table == b"g":
            known = self._heights.is_configuration(key)
        else:
            known = key in (schema.LOG_KEY, BASE_KEY) or not self._is_complete() or self._scratch.get(key) is not None
        if not known and not self._is_being_pruned(key, value):
            self._heights.add(schema.height_of(key), key, "the chain does not account for it")

    def _is_being_pruned(self, key: bytes, value: bytes) -> bool:
        """Whether it lies where pruning has begun, or is one of the certificates that came before `_given`."""
        height, base = schema.height_of(key), self._heights.base
        if key[:1] == b"t" and base.swept < base.height:
            with suppress(struct.error):
                height = schema.decode_place(value).height
            return height is not None and base.swept <= height <= base.height
        if height is None or key[:1] not in b"blrcx":
            return False
        if key[:1] == b"c" and base.height <= height <= self._given:
            return True
        return base.swept < base.height and base.swept <= height <= base.height

    def _is_complete(self) -> bool:
        """Whether every executed block could be executed again."""
        return self._executed is not None and self._executed.executed_height == self.report.executed_height

    def _is_kept(self, key: bytes, value: bytes) -> bool:
        """Whether it is a record that follows from no chain: evidence, a vote held, votes forsworn."""
        try:
            if key == schema.FORSWORN_KEY:
                decode_forsworn(value)
            elif key[:1] == b"w":
                decode_vote(key, value)
            else:
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
        assert self._executed is not None, "it was set up"
        try:
            commit = self._executed.derive(block, certificate, self._parent)
        except (Divergence, StorageFailure) as error:
            self._heights.add(height, schema.block_key(height), f"it does not execute: {error}")
            return
        self._executed.apply(commit)
        self._executed.write(commit)
        self._executed.written(commit)
