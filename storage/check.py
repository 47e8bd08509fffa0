"""Everything read again, and everything that follows from the chain derived again from genesis.

The check walks the chain from height 1. It trusts nothing but genesis: each block must hash to what its
child names, be signed, hold signed transactions and have its bodies. Executed blocks are executed again, by
the same code, into a scratch database; in the end the two databases must hold the same. Which keys must
exist therefore follows from the chain and never from iterating the database that is in doubt; that is
iterated only to find what should not be there.

The scratch database stamps each value with the height that wrote it, so that a difference names its height.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from ledger.block import Block, decode_block, verify_header
from ledger.errors import Rejection
from ledger.finality import Certificate, decode_certificate, make_certificate, verify_certificate
from ledger.genesis import Genesis
from ledger.transaction import body_commitment, check_signature
from storage import schema
from storage.executed import Divergence, Executed, genesis_executed
from storage.leveldb import LevelDb
from storage.log import BLOCK_BYTES_MAX, genesis_link
from storage.port import KeyValue, StorageFailure, Write
from storage.schema import Evidence, ExecutedRecord, Link, LogRecord

# Further problems are only counted: one damaged block can be the cause of very many.
PROBLEMS_MAX = 100

_STAMP_BYTES = 8
# Tables whose values belong to one height for ever: they compare even where the replay stopped too early.
_LASTING = b"rcxth"

T = TypeVar("T")

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with which record, and the height it belongs to, where one is known."""

    height: int | None
    record: str
    fault: str


@dataclass(slots=True)
class CheckReport:
    """What was read, and what is wrong. `unreferenced_bodies` came with blocks that never became final: no
    fault.
    """

    last_height: int = 0
    executed_height: int = 0
    transactions: int = 0
    bodies: int = 0
    unreferenced_bodies: int = 0
    problems: list[Problem] = field(default_factory=list)
    problems_beyond: int = 0

    @property
    def ok(self) -> bool:
        return not self.problems

    def add(self, height: int | None, record: str, fault: str) -> None:
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(Problem(height, record, fault))
        else:
            self.problems_beyond += 1


def check_path(path: Path, genesis: Genesis, progress: Progress) -> CheckReport:
    """Check the LevelDB folder of a stopped node. Uses a scratch database in the system's temporary folder.

    Raises StorageFailure if it cannot be opened: a running node holds it, or a file is damaged, which is
    named.
    """
    kv = LevelDb(path, create=False)
    try:
        with tempfile.TemporaryDirectory(prefix="carequorum-check-") as folder:
            scratch = LevelDb(Path(folder) / "scratch", sync=False)
            try:
                return check_store(kv, genesis, scratch, progress)
            finally:
                scratch.close()
    finally:
        kv.close()


def check_store(kv: KeyValue, genesis: Genesis, scratch: KeyValue, progress: Progress) -> CheckReport:
    """Check an open store that nobody writes to, with an empty scratch database.

    `progress(height, of)` is told after each height.
    """
    check = _Check(kv, genesis, scratch)
    for height in range(1, check.report.last_height + 1):
        check.height(height)
        progress(height, check.report.last_height)
    check.ends()
    check.compare()
    check.find_strangers()
    return check.report


class _Stamped:
    """The scratch database: each value behind the height that wrote it."""

    def __init__(self, kv: KeyValue) -> None:
        self._kv = kv
        self.height = 0

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

    def close(self) -> None:
        self._kv.close()


class _Check:
    """One pass. `_parent` is the block below as far as it could be read; `_replayed` how far execution
    came.
    """

    def __init__(self, kv: KeyValue, genesis: Genesis, scratch: KeyValue) -> None:
        self.report = CheckReport()
        self._kv = kv
        self._genesis = genesis
        self._chain = genesis.chain_id()
        self._keys = genesis.node_keys()
        self._voters = {node: self._keys[node] for node in genesis.configuration().voters}
        self._configuration = genesis.configuration().digest()
        self._scratch = _Stamped(scratch)
        self._scratch.write(genesis_executed(genesis), sync=False)
        self._executed = Executed(self._scratch, self._chain)
        self._end = self._record(schema.LOG_KEY, LogRecord)
        head = self._record(schema.EXECUTED_KEY, ExecutedRecord)
        self.report.last_height = self._end.height if self._end else self._probe(schema.block_key)
        executed = head.height if head else self._probe(schema.roots_key)
        self.report.executed_height = min(executed, self.report.last_height)
        if executed > self.report.last_height:
            self.report.add(executed, "record executed", "the log ends below the executed height")
        link = self._link(0)
        if link is not None and link != genesis_link(self._chain):
            self.report.add(0, "link 0", "it is not what genesis gives")
        self._parent_hash = self._chain
        self._parent_term = 0
        self._parent: Block | None = None

    def height(self, height: int) -> None:
        """The block, its link, its bodies; and what it led to, if it was executed."""
        link = self._link(height)
        block = self._block(height)
        if block is None:
            self._parent = None
            self._parent_hash = link.hash if link else b""
            return
        self._check_header(height, block)
        if link is not None and link != Link(block.header.term, block.hash, block.header.parent):
            self.report.add(height, f"link {height}", "it is not what the block says")
        self._check_transactions(height, block)
        follows = (height - 1, block.header.parent) == (self._executed.executed_height, self._executed.executed_hash)
        if follows and block.header.height == height <= self.report.executed_height:
            self._replay(height, block)
        self._parent, self._parent_hash, self._parent_term = block, block.hash, block.header.term

    def ends(self) -> None:
        """The records of where the log and execution end."""
        report = self.report
        if self._end is not None:
            if self._parent_hash and self._end.hash != self._parent_hash:
                report.add(report.last_height, "record log", "it names another newest block")
            if self._end.term < self._parent_term:
                report.add(report.last_height, "record log", f"term {self._end.term} is below the newest block's")
        replayed = self._executed.executed_height
        if replayed < report.executed_height:
            fault = f"state and proofs above height {replayed} could not be derived and are not compared"
            report.add(replayed + 1, "state", fault)

    def compare(self) -> None:
        """Each derived value must stand in the store."""
        complete = self._is_complete()
        for key, height, value in self._scratch.stamps():
            if key[:1] == b"d" or not (complete or key[:1] in _LASTING):
                continue
            if key[:1] == b"c" and not decode_certificate(value).signatures:
                # A stand-in: what is wrong with the certificate was said at its height.
                continue
            stored = self._read(key, height)
            if stored is not None and stored != value:
                self.report.add(height, schema.name_of(key), "it is not what the chain gives")

    def find_strangers(self) -> None:
        """Nothing may stand in the store that the chain does not account for."""
        try:
            for key, value in self._kv.range(b"", b"\xff\xff"):
                self._account(key, value)
        except StorageFailure as error:
            self.report.add(None, "database", str(error))

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
            report.add(None, schema.name_of(key), "the chain does not account for it")

    def _is_complete(self) -> bool:
        """Whether every executed block could be executed again."""
        return self._executed.executed_height == self.report.executed_height

    def _is_evidence(self, key: bytes, value: bytes) -> bool:
        try:
            schema.unseal(Evidence, value, schema.name_of(key))
        except StorageFailure:
            return False
        return True

    def _check_header(self, height: int, block: Block) -> None:
        header, parent = block.header, self._parent
        name = f"block {height}"
        rules = [
            (header.height == height, "it is of another height"),
            (header.chain == self._chain, "it is of another chain"),
            (header.parent == self._parent_hash or not self._parent_hash, "it names another parent"),
            (header.configuration == self._configuration, "it names another configuration"),
            (header.term >= self._parent_term, "its term falls"),
            (header.proposer in self._voters, "its proposer is no voter"),
        ]
        if parent is not None:
            rules.append((header.time > parent.header.time, "its time is not after its parent's"))
            rules.append((header.executed_height >= parent.header.executed_height, "its executed height falls"))
        elif height == 1:
            rules.append((header.time > self._genesis.time, "its time is not after genesis"))
        for holds, fault in rules:
            if not holds:
                self.report.add(height, name, fault)
        key = self._keys.get(header.proposer)
        if key is not None and not verify_header(block.hash, block.signature, key):
            self.report.add(height, name, "the header's signature does not verify")

    def _check_transactions(self, height: int, block: Block) -> None:
        for index, transaction in enumerate(block.transactions):
            self.report.transactions += 1
            try:
                check_signature(transaction, self._chain)
            except Rejection as error:
                self.report.add(height, f"block {height}", f"transaction {index}: {error}")
            for reference in transaction.envelope.bodies:
                key = schema.body_key(reference.commitment)
                self._scratch.write([(key, b"")], sync=False)
                body = self._read(key, height)
                if body is None:
                    continue
                self.report.bodies += 1
                if len(body) != reference.size or body_commitment(body) != reference.commitment:
                    self.report.add(height, schema.name_of(key), "it does not match its commitment")

    def _replay(self, height: int, block: Block) -> None:
        certificate = self._certificate(height, block)
        self._scratch.height = height
        try:
            commit = self._executed.derive(block, certificate)
        except (Divergence, StorageFailure) as error:
            self.report.add(height, f"block {height}", f"it does not execute: {error}")
            return
        self._executed.apply(commit)
        self._executed.write(commit)
        self._executed.written(commit)

    def _certificate(self, height: int, block: Block) -> Certificate | None:
        """This height's certificate. Where one must be but is not, or is damaged: one without signatures."""
        key, name = schema.certificate_key(height), f"certificate {height}"
        stand_in = make_certificate(block.header.term, height, block.hash, [])
        data = self._read(key, height, required=self._claims_certificate(height))
        if data is None:
            return stand_in if self._claims_certificate(height) else None
        try:
            certificate = decode_certificate(data)
            verify_certificate(certificate, self._chain, self._voters)
            found = (certificate.height, certificate.hash, certificate.term)
            if found != (height, block.hash, block.header.term):
                raise Rejection("bad_certificate", "it certifies another block")
        except Rejection as error:
            self.report.add(height, name, str(error))
            return stand_in
        return certificate

    def _claims_certificate(self, height: int) -> bool:
        """Whether the stored roots say that this very height has a certificate. `compare` checks the roots."""
        try:
            data = self._kv.get(schema.roots_key(height))
            return data is not None and schema.decode_roots(data, height).certified == height
        except StorageFailure:
            return False

    def _link(self, height: int) -> Link | None:
        data = self._read(schema.link_key(height), height)
        if data is None:
            return None
        try:
            return schema.decode_link(data, height)
        except StorageFailure as error:
            self.report.add(height, f"link {height}", str(error))
            return None

    def _block(self, height: int) -> Block | None:
        data = self._read(schema.block_key(height), height)
        if data is None:
            return None
        try:
            return decode_block(data, BLOCK_BYTES_MAX)
        except Rejection as error:
            self.report.add(height, f"block {height}", str(error))
            return None

    def _read(self, key: bytes, height: int | None, *, required: bool = True) -> bytes | None:
        """A stored value; None, and a problem, where it cannot be read or is missing though `required`."""
        try:
            value = self._kv.get(key)
        except StorageFailure as error:
            self.report.add(height, schema.name_of(key), str(error))
            return None
        if value is None and required:
            self.report.add(height, schema.name_of(key), "it is missing")
        return value

    def _record(self, key: bytes, shape: type[T]) -> T | None:
        data = self._read(key, None)
        if data is None:
            return None
        try:
            return schema.unseal(shape, data, schema.name_of(key))
        except StorageFailure as error:
            self.report.add(None, schema.name_of(key), str(error))
            return None

    def _probe(self, key_of: Callable[[int], bytes]) -> int:
        """Where the record of an end is lost: the height below the first that has nothing."""
        height = 0
        while self._read(key_of(height + 1), height + 1, required=False) is not None:
            height += 1
        return height
