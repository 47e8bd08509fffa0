"""A snapshot into an empty database, verified as it comes: nothing in it is believed.

The leaves give the history's root and thereby every block's hash and results; the values give the state's root; both
roots are those of the manifest, which a certificate proves. What could not be proved is not kept: of the heights
below the snapshot's the state's root is known only where a header carries it, and is EMPTY elsewhere.

The database is of use once `finish` has returned and the blocks above it have come, the certified one that seals the
snapshot's height among them (`extend`). Until then, and if a part does not fit, it is to be thrown away.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec

from consensus.messages import Entry, HardState
from ledger import merkle, state_tree
from ledger.block import Header, block_hash, decode_block, decode_header, header_of, stored_transactions
from ledger.contracts import network
from ledger.encoding import decode_as
from ledger.errors import MissingNode, Rejection
from ledger.execution import TxResult, history_leaf, stored_result
from ledger.finality import Certificate
from ledger.genesis import Genesis
from ledger.keys import HASH_BYTES
from ledger.membership import Configuration
from ledger.state_tree import Page
from ledger.transaction import stored_envelope, transaction_hash
from storage import configurations, schema
from storage.base import BASE_KEY, BaseRecord, base_write, genesis_base
from storage.configurations import Configurations, configuration_of
from storage.executed import genesis_executed
from storage.index import settling
from storage.log import BLOCK_BYTES_MAX, genesis_link
from storage.port import KeyValue
from storage.schema import ExecutedRecord, Link, LogRecord, Place, Roots
from storage.snapshot import FRAME, Manifest, SnapshotBase
from storage.store import Store

# What waits in memory before it is written.
BATCH_BYTES = 1024 * 1024
# How many values go into the tree at once, and what they may weigh: the more, the fewer pages are made twice.
TREE_KEYS = 65_536
TREE_BYTES = 32 * 1024 * 1024
PAGES_MAX = 16_384
BASE_BYTES_MAX = 1024 * 1024


class BadSnapshot(Exception):  # noqa: N818 - it is the sender's, not a caller's
    """The snapshot is not what its manifest says, or not of this chain."""


def install(kv: KeyValue, genesis: Genesis, manifest: Manifest, chunks: Iterator[bytes]) -> None:
    """Everything but the blocks above the snapshot. `manifest` is verified. Raises BadSnapshot, StorageFailure."""
    installing = _Install(kv, genesis, manifest)
    try:
        for key, value in _unframed(chunks):
            installing.record(key, value)
        installing.finish()
    except (MissingNode, Rejection, msgspec.MsgspecError, ValueError, KeyError, TypeError) as error:
        raise BadSnapshot(f"it does not fit together: {error}") from None


def extend(
    kv: KeyValue,
    genesis: Genesis,
    entries: Sequence[Entry],
    bodies: Mapping[bytes, bytes],
    certificates: Sequence[Certificate],
    hard_state: HardState,
) -> Store:
    """The store, with the blocks above the snapshot executed. `certificates` are verified, the last one is of the
    last block; one of them seals the snapshot's height or a later one.

    Raises BadSnapshot where it does not; Divergence where a block contradicts the snapshot; StorageFailure.
    """
    store = Store(kv, genesis)
    found = store.term_hash(store.executed_height)
    if found is None or not entries or entries[0].parent != found[1]:
        raise BadSnapshot("the blocks above it do not follow on it")
    term = max(hard_state.term, entries[-1].term)
    store.persist(None, entries, bodies, HardState(term, hard_state.vote if term == hard_state.term else None))
    certified = {certificate.height: certificate for certificate in certificates}
    for entry in entries:
        try:
            block = decode_block(entry.data, BLOCK_BYTES_MAX)
        except Rejection as error:
            raise BadSnapshot(f"block {entry.height} above it: {error}") from None
        store.commit(block, certified.get(entry.height))
    if store.sealed_height is None or store.executed_height != certificates[-1].height:
        raise BadSnapshot("the blocks above it do not seal it")
    return store


class _Install:
    """Records come in the order of the stream; `_part` is the table that the last one was of."""

    def __init__(self, kv: KeyValue, genesis: Genesis, manifest: Manifest) -> None:
        self._kv = kv
        self._genesis = genesis
        self._chain = genesis.chain_id()
        self._manifest = manifest
        self._batch: dict[bytes, bytes | None] = {}
        self._batch_bytes = 0
        self._parts = iter((b"h", b"m", b"b", b"s"))
        self._part = b""
        self._leaves = 0
        self._base = genesis_base(self._chain)
        self._configurations: Configurations = ()
        # The newest block so far: height, hash, term; and the one whose results are awaited.
        self._tail = Link(0, self._chain, bytes(HASH_BYTES))
        self._height = manifest.base
        self._time_ms = genesis.time
        self._pending: tuple[Header, bytes, list[bytes]] | None = None
        self._carried: dict[int, bytes] = {}
        self._times: list[int] = []
        self._state = _Tree(self._read, self._put)
        self._newest_key = b""
        genesis_writes = dict(genesis_executed(genesis))
        self._genesis_roots = genesis_writes[schema.roots_key(0)] or b""
        self._genesis_leaf = genesis_writes[schema.history_key(0, 0)]

    def record(self, key: bytes, value: bytes) -> None:
        table = key[:1]
        part = b"b" if table == b"x" else table
        while part != self._part:
            self._begin(next(self._parts, b""))
            _require(self._part != b"", "its records are not in order")
        if table == b"h":
            self._take_leaves(key, value)
        elif table == b"m":
            _require(key == BASE_KEY and not self._configurations, "its base is not one record")
            self._take_base(value)
        elif table == b"b":
            self._take_block(key, value)
        elif table == b"x":
            self._take_results(key, value)
        else:
            _require(self._newest_key < key, "its values are not in order")
            self._newest_key = key
            self._state.put(key, value)
        if self._batch_bytes > BATCH_BYTES:
            self._flush()

    def finish(self) -> None:
        while self._part != b"s":
            self._begin(next(self._parts))
        manifest = self._manifest
        _require(self._state.finish() == manifest.state_root, "its values do not give the certified root")
        height = manifest.height
        self._put_roots()
        self._flush()
        if manifest.base:
            self._put(schema.link_key(0), genesis_link(self._chain).encode())
            self._put(schema.roots_key(0), self._genesis_roots)
        tail, newest = self._tail, self._configurations[-1]
        end = LogRecord(
            configured=newest[0], format=schema.FORMAT, hash=tail.hash, height=height, term=tail.term, vote=None
        )
        head = ExecutedRecord(
            chain=self._chain, format=schema.FORMAT, hash=tail.hash, height=height, seal=None, sealed=height, steps=0
        )
        self._batch.update(configurations.writes_of(self._configurations))
        self._batch.update([base_write(self._base), (schema.LOG_KEY, schema.seal(end))])
        self._put(schema.EXECUTED_KEY, schema.seal(head))
        self._flush()

    def _begin(self, part: bytes) -> None:
        """What must be complete before the next part."""
        if self._part == b"h":
            self._end_leaves()
        if self._part == b"m":
            _require(bool(self._configurations), "its base is missing")
        if self._part == b"b":
            self._end_blocks()
        self._part = part

    # The history.

    def _take_leaves(self, key: bytes, value: bytes) -> None:
        in_order = key == schema.history_key(0, self._leaves)
        _require(in_order and len(value) % HASH_BYTES == 0, "its leaves are damaged")
        _require(self._leaves + len(value) // HASH_BYTES <= self._manifest.height + 1, "it has too many leaves")
        for at in range(0, len(value), HASH_BYTES):
            for (level, index), node in merkle.append(self._leaves, value[at : at + HASH_BYTES], self):
                self._put(schema.history_key(level, index), node)
            self._leaves += 1

    def get(self, level: int, index: int) -> bytes | None:
        """The nodes of the history log."""
        return self._read(schema.history_key(level, index))

    def _end_leaves(self) -> None:
        manifest = self._manifest
        _require(self._leaves == manifest.height + 1, "leaves are missing")
        _require(self.get(0, 0) == self._genesis_leaf, "its history does not begin at genesis")
        root = merkle.root(self._leaves, self)
        _require(root == manifest.history_root, "its leaves do not give the certified root")

    # The base, and the blocks above it.

    def _take_base(self, value: bytes) -> None:
        base, height = decode_as(SnapshotBase, value, BASE_BYTES_MAX), self._manifest.base
        if base.header is None:
            _require(height == 0, "the header of its base is missing")
        else:
            header = decode_header(base.header)
            _require((header.height, header.chain) == (height, self._chain), "its base is of another block")
            self._follow_configuration(header, base.configuration)
            digest = block_hash(base.header)
            self._tail = Link(header.term, digest, header.parent)
            self._time_ms = header.time
            self._base = BaseRecord(
                bodiless=0,
                format=schema.FORMAT,
                hash=digest,
                header=base.header,
                height=height,
                swept=height,
                term=header.term,
            )
        if height == 0:
            _require(base.configuration == self._genesis.configuration(), "it begins with another configuration")
        newest = self._manifest.height
        self._base = msgspec.structs.replace(self._base, bodiless=newest, installed=newest)
        self._configurations = ((height, base.configuration),)
        self._put(schema.link_key(height), self._tail.encode())
        self._times.append(self._time_ms)

    def _take_block(self, key: bytes, value: bytes) -> None:
        _require(self._pending is None, "results are missing")
        header, digest = header_of(value)
        height = self._height + 1
        _require(key == schema.block_key(height) and header.height == height, "its blocks are not in order")
        _require(header.parent == self._tail.hash, "its blocks are not linked")
        _require(header.term >= self._tail.term and header.time > self._time_ms, "term or time of a block falls")
        transactions = stored_transactions(value)
        root = merkle.root_of([transaction_hash(data) for data in transactions])
        _require((header.tx_root, header.count) == (root, len(transactions)), "a block has other transactions")
        parent = self._configurations[-1][1]
        after = configuration_of(parent, header)
        self._follow_configuration(header, after)
        if after is not parent:
            self._configurations = (*self._configurations, (height, after))
        self._height, self._time_ms = height, header.time
        self._tail = Link(header.term, digest, header.parent)
        self._pending = (header, digest, transactions)
        self._carried[header.executed_height] = header.state_root
        self._times.append(header.time)
        self._put(key, value)
        self._put(schema.link_key(height), self._tail.encode())

    def _follow_configuration(self, header: Header, configuration: Configuration) -> None:
        _require(header.configuration == configuration.digest(), "a block names another configuration")

    def _take_results(self, key: bytes, value: bytes) -> None:
        pending, self._pending = self._pending, None
        _require(pending is not None and key == schema.results_key(self._height), "its results are not in order")
        assert pending is not None
        header, digest, transactions = pending
        encoded = decode_as(list[bytes], value, schema.RECORD_BYTES_MAX)
        leaf = history_leaf(digest, self._height, len(encoded), merkle.root_of(encoded))
        _require(merkle.leaf_hash(leaf) == self.get(0, self._height), "results are not those of the history")
        _require(len(encoded) == len(transactions), "results are missing")
        results = [stored_result(item) for item in encoded]
        self._put(key, value)
        self._index(header, results, transactions)

    def _index(self, header: Header, results: list[TxResult], transactions: list[bytes]) -> None:
        for index, result in settling(header.time, results, lambda index: stored_envelope(transactions[index]).until):
            key = schema.transaction_key(result.id)
            if self._read(key) is None:
                self._put(key, Place(header.height, index, result.code).encode())

    def _end_blocks(self) -> None:
        _require(self._pending is None and self._height == self._manifest.height, "blocks are missing")

    def _put_roots(self) -> None:
        """Of every height from the base on, as far as it is known."""
        manifest = self._manifest
        self._carried[manifest.height] = manifest.state_root
        for height, time_ms in enumerate(self._times, manifest.base):
            if height == 0:
                self._put(schema.roots_key(0), self._genesis_roots)
                continue
            state = self._carried.get(height, state_tree.EMPTY)
            roots = Roots(merkle.root(height + 1, self), state, time_ms, 0)
            self._put(schema.roots_key(height), roots.encode())
        configuration = network.current_configuration(self._read_state)
        _require(configuration == self._configurations[-1][1], "its state names another configuration")

    def _read_state(self, key: str) -> bytes | None:
        return self._read(schema.state_key(key))

    # The database.

    def _put(self, key: bytes, value: bytes) -> None:
        self._batch[key] = value
        self._batch_bytes += len(key) + len(value)

    def _read(self, key: bytes) -> bytes | None:
        """What was put."""
        return self._batch[key] if key in self._batch else self._kv.get(key)

    def _flush(self) -> None:
        if self._batch:
            self._kv.write(list(self._batch.items()), sync=False)
            self._batch, self._batch_bytes = {}, 0


class _Tree:
    """The state's tree, built from many values at once."""

    def __init__(self, read: Callable[[bytes], bytes | None], put: Callable[[bytes, bytes], None]) -> None:
        self._read = read
        self._put = put
        self._values: dict[str, bytes | None] = {}
        self._weight = 0
        self._pages: OrderedDict[bytes, Page] = OrderedDict()
        self._root = state_tree.EMPTY

    def put(self, key: bytes, value: bytes) -> None:
        self._values[key[1:].decode("utf-8")] = value
        self._weight += len(value)
        self._put(key, value)
        if len(self._values) >= TREE_KEYS or self._weight > TREE_BYTES:
            self._grow()

    def finish(self) -> bytes:
        self._grow()
        return self._root

    def _grow(self) -> None:
        self._root, pages = state_tree.update(self._page, self._values)
        self._values, self._weight = {}, 0
        for path, page in pages.items():
            assert page is not None, "nothing is deleted"
            self._pages[path] = page
            self._put(schema.page_key(path), page.encode())
        while len(self._pages) > PAGES_MAX:
            self._pages.popitem(last=False)

    def _page(self, path: bytes) -> Page | None:
        page = self._pages.get(path)
        if page is not None:
            self._pages.move_to_end(path)
            return page
        data = self._read(schema.page_key(path))
        return None if data is None else state_tree.decode_page(data)


def _unframed(chunks: Iterator[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """The records again."""
    buffer = b""
    for chunk in chunks:
        buffer += chunk
        at = 0
        while len(buffer) - at >= FRAME.size:
            key_size, value_size = FRAME.unpack_from(buffer, at)
            _require(key_size > 0 and value_size <= schema.RECORD_BYTES_MAX, "a record has no key or is too long")
            start, end = at + FRAME.size, at + FRAME.size + key_size + value_size
            if end > len(buffer):
                break
            yield buffer[start : start + key_size], buffer[start + key_size : end]
            at = end
        buffer = buffer[at:]
    _require(not buffer, "its last record is cut off")


def _require(condition: bool, fault: str) -> None:
    if not condition:
        raise BadSnapshot(fault)
