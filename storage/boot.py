"""What a node checks of its store before it uses it: the check, bounded.

The rule, in this order:

1. files     every byte of every file that LevelDB would read, before LevelDB touches any. CURRENT, MANIFEST
             and the logs in any case; tables from the newest on, until FILES_SECONDS_MAX have passed.
2. heights   the newest HEIGHTS_MAX blocks from the top down, until HEIGHTS_SECONDS_MAX have passed: hash,
             parent, the proposer's signature, bodies, certificate; of executed ones also results, history leaf,
             roots and the index of transactions. Members' signatures are covered by the block's hash, and were
             verified before the block came into the log.
3. ends      what `Store` itself requires on opening: links, the tree's root and the history's at the executed
             height, the seal's signatures, and each undo record by the root it leads to.

So a changed byte of a file is always found where the files can be read in that time, some GiB from an SSD. A value
that was changed and written with a sound checksum is found in the newest blocks; in older ones, and in the
values of state, by `carequorum check` alone, which executes everything again.
"""

import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ledger import merkle
from ledger.block import Block
from ledger.errors import MissingNode, Rejection
from ledger.execution import TxResult, decode_result, history_leaf
from ledger.genesis import Genesis
from ledger.state_tree import EMPTY
from storage import schema
from storage.files import FilesReport, Places, held, is_new, scan_files
from storage.heights import FileOf, Heights, no_file
from storage.index import settling
from storage.port import KeyValue, StorageFailure
from storage.report import CheckReport, DamageError
from storage.schema import ExecutedRecord, Link, LogRecord, Place, Roots

FILES_SECONDS_MAX = 30.0
HEIGHTS_MAX = 256
HEIGHTS_SECONDS_MAX = 1.0


def check_files(folder: Path, seconds_max: float = FILES_SECONDS_MAX) -> FilesReport:
    """Step 1, before the folder is opened. A folder without a database passes: one will be founded in it.

    Raises DamageError, or StorageFailure if another process holds it.
    """
    if is_new(folder):
        return FilesReport()
    with held(folder):
        report = scan_files(folder, seconds_max=seconds_max)
    if report.faults:
        raise DamageError(report.faults[0].problem(), len(report.faults))
    return report


def check_newest(
    kv: KeyValue,
    genesis: Genesis,
    folder: Path | None = None,
    *,
    heights_max: int = HEIGHTS_MAX,
    seconds_max: float = HEIGHTS_SECONDS_MAX,
) -> int:
    """Step 2. Returns how many heights were read. `folder` is where the files are, to name the damaged one.

    Raises DamageError.
    """
    if kv.get(schema.EXECUTED_KEY) is None and next(kv.range(b"", b"\xff"), None) is None:
        return 0
    if _is_of_another_network(kv, genesis):
        # No damage: `Store` says so.
        return 0
    report = CheckReport()
    newest = _Newest(kv, Heights(kv, genesis, report, no_file if folder is None else _file_in(folder)))
    count = newest.run(heights_max, time.monotonic() + seconds_max)
    if not report.ok:
        raise DamageError(report.problems[0], len(report.problems) + report.problems_beyond)
    return count


def _is_of_another_network(kv: KeyValue, genesis: Genesis) -> bool:
    try:
        data = kv.get(schema.EXECUTED_KEY)
        head = schema.unseal(ExecutedRecord, data or b"", schema.name_of(schema.EXECUTED_KEY))
    except StorageFailure:
        return False
    return head.chain != genesis.chain_id()


class _Newest:
    """From the top of the log down."""

    def __init__(self, kv: KeyValue, heights: Heights) -> None:
        self._kv = kv
        self._heights = heights

    def run(self, heights_max: int, deadline: float) -> int:
        heights = self._heights
        end, last, log_fault = heights.end(schema.LOG_KEY, LogRecord, schema.block_key)
        head, executed, head_fault = heights.end(schema.EXECUTED_KEY, ExecutedRecord, schema.roots_key)
        last = end.height if end else last
        executed = head.height if head else executed
        for key, height, fault in ((schema.LOG_KEY, last, log_fault), (schema.EXECUTED_KEY, executed, head_fault)):
            if fault:
                heights.add(height, key, fault)
        count = 0
        block = heights.block(last) if last > heights.base.height else None
        base = heights.base.height
        for height in range(last, max(last - heights_max, base), -1):
            parent = heights.block(height - 1) if height > base + 1 else None
            self._check(height, block, parent, is_executed=height <= executed)
            block = parent
            count += 1
            if time.monotonic() > deadline:
                break
        return count

    def _check(self, height: int, block: Block | None, parent: Block | None, *, is_executed: bool) -> None:
        heights = self._heights
        link = heights.link(height)
        if block is None:
            return
        if parent is not None:
            below = Link(parent.header.term, parent.hash, parent.header.parent)
        else:
            below = heights.below if height == heights.base.height + 1 else Link(0, b"", b"")
        heights.check_header(height, block, parent, below)
        heights.check_link(height, link, block)
        heights.check_bodies(height, block)
        if is_executed:
            heights.certificate(height, block)
            self._check_roots(height, block)
            self._check_results(height, block)

    def _check_roots(self, height: int, block: Block) -> None:
        """The roots of this height, and those that the header carries."""
        header = block.header
        roots = self._roots(height)
        if roots is not None:
            with self._sound(height, schema.roots_key(height)):
                if roots.time_ms != header.time or roots.history != merkle.root(height + 1, self):
                    raise StorageFailure("they do not fit the block's time or the nodes of the history")
                if roots.state == EMPTY and not self._heights.base.may_lack_state(height):
                    raise StorageFailure("they have no root of the state")
        proven = self._roots(header.executed_height) if self._has_roots(header.executed_height, height) else None
        if proven is None:
            return
        # Below an installed snapshot the state's root is known only where some header in it carries it.
        is_lacking = proven.state == EMPTY and self._heights.base.may_lack_state(header.executed_height)
        state = header.state_root if is_lacking else proven.state
        if (header.history_root, header.state_root) != (proven.history, state):
            key = schema.roots_key(header.executed_height)
            self._heights.add(header.executed_height, key, f"block {height} carries other roots")

    def _has_roots(self, height: int, above: int) -> bool:
        return self._heights.base.height <= height < above or height == 0

    def _roots(self, height: int) -> Roots | None:
        data = self._heights.read(schema.roots_key(height), height)
        if data is None:
            return None
        try:
            return schema.decode_roots(data, height)
        except StorageFailure as error:
            self._heights.add(height, schema.roots_key(height), str(error))
            return None

    def _check_results(self, height: int, block: Block) -> None:
        """Results by the history's leaf, and the index of transactions by the results."""
        key = schema.results_key(height)
        data = self._heights.read(key, height)
        if data is None:
            return
        with self._sound(height, key):
            encoded = schema.parse(list[bytes], data, f"results {height}")
            results = [decode_result(item) for item in encoded]
            leaf = history_leaf(block.hash, height, len(encoded), merkle.root_of(encoded))
            if [result.id for result in results] != [transaction.id for transaction in block.transactions]:
                raise StorageFailure("they are not of the block's transactions")
            if self.get(0, height) != merkle.leaf_hash(leaf):
                raise StorageFailure(f"they do not fit history node 0/{height}")
            self._check_index(block, results)

    def _check_index(self, block: Block, results: list[TxResult]) -> None:
        height = block.header.height

        def until_ms(index: int) -> int:
            return block.transactions[index].envelope.until

        for index, result in settling(block.header.time, results, until_ms):
            key = schema.transaction_key(result.id)
            data = self._heights.read(key, height)
            if data is None or data == Place(height, index, result.code).encode():
                continue
            with self._sound(height, key):
                # An earlier block may have settled it.
                place = schema.decode_place(data)
                if place.height <= self._heights.base.height:
                    continue
                earlier = self._heights.read(schema.results_key(place.height), place.height)
                found = schema.parse(list[bytes], earlier or b"", f"results {place.height}")[place.index :]
                if not found or place.height >= height or decode_result(found[0]).id != result.id:
                    raise StorageFailure("it is not where the results say")

    def get(self, level: int, index: int) -> bytes | None:
        """The stored nodes of the history log."""
        return self._kv.get(schema.history_key(level, index))

    @contextmanager
    def _sound(self, height: int, key: bytes) -> Iterator[None]:
        """What does not fit inside is a problem with the record at `key`."""
        try:
            yield
        except (MissingNode, Rejection, StorageFailure, ValueError, struct.error) as error:
            self._heights.add(height, key, str(error))


def _file_in(folder: Path) -> FileOf:
    """Which file of an open database holds a key; the files are looked at when first asked."""
    places: list[Places] = []

    def file_of(key: bytes) -> str | None:
        if not places:
            places.append(Places(folder, scan_files(folder, seconds_max=0)))
        return places[0].file_of(key)

    return file_of
