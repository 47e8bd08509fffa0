"""What follows from the log: state, its tree, the history log, results, certificates. All of it can be
derived again.

A committed block goes through four steps, in this order, each block after the one before it:

    derive   reads, executes, computes roots; changes nothing                  event loop
    apply    moves memory: every read from now on sees the block executed      event loop
    write    to the disk, one batch for it or for several in a row             writer thread
    written  forgets what memory held for the write                            event loop

Between `apply` and `written` the block's changes stand in an overlay in memory that every read looks at
first. So the instant of `apply` is the only one at which answers change, whatever the writer thread is
doing, and no read sees half a block. The answers do not wait for the batch: the block is durable already, and
a node that lost the batch executes the block again. Of what several blocks change (the upper pages of the
tree, above all) one batch for them writes only the last.

Answers with proofs are given at the sealed height, which lags. The tree keeps no old versions; instead each
height above the sealed one has an undo record of the state values before it. The pages before it follow
from those values, as the tree depends on contents alone: they are kept in memory and computed again at
boot. Pages in use stay decoded in memory, at most PAGES_MAX of them; the one not used for longest goes.
"""

from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from ledger import merkle, state_tree
from ledger.block import Block, decode_block
from ledger.contracts import network
from ledger.encoding import encode
from ledger.errors import MissingNode, Rejection
from ledger.execution import TxResult, execute, genesis_state, history_leaf
from ledger.finality import Certificate, Seal, decode_certificate
from ledger.genesis import Genesis
from ledger.membership import Change, Configuration, Step
from ledger.state_tree import Page
from storage import schema
from storage.index import settling
from storage.log import BLOCK_BYTES_MAX
from storage.port import KeyValue, StorageFailure, Write
from storage.schema import ExecutedRecord, Place, Roots, Undo, must, require

# How many blocks may be applied and not yet written. The driver waits for `written` before it derives more.
PENDING_COMMITS_MAX = 64
# Decoded pages, of 4 KiB or less in memory.
PAGES_MAX = 16_384
# Ids known to be in no block; beyond them the oldest is asked for at the disk again.
UNSETTLED_MAX = 20_000


class Divergence(Exception):  # noqa: N818 - it is what happened, and the node must stop
    """A certified header carries roots that are not what its executed height gave here. Never to be passed
    over.
    """


@dataclass(frozen=True, slots=True)
class UndoStep:
    """What `height` changed: the state values and tree pages before it, None where there was none."""

    height: int
    state: dict[str, bytes | None]
    pages: dict[bytes, Page | None]


class Sealed(NamedTuple):
    """The newest seal: everything up to `height` is proved by the certified header at `header_height`, whose
    configuration `steps` changes of voters led to."""

    height: int
    header_height: int
    seal: Seal
    steps: int


@dataclass(frozen=True, slots=True)
class Commit:
    """One executed block: what `derive` found, for `apply`, `write` and `written`.

    `sealed` is the newest seal after this block, None as long as there is none. `configuration` is in effect at it.
    `changes` are those of the database, None to delete, but for what `write` makes of the rest.
    """

    height: int
    block: Block
    configuration: Configuration
    results: tuple[TxResult, ...]
    roots: Roots
    sealed: Sealed | None
    undo: UndoStep
    changes: dict[bytes, bytes | None]
    pages: dict[bytes, Page | None]


@dataclass(slots=True)
class _Reads:
    """The state before a block, as `execute` and the tree ask for it; remembers what it answered."""

    executed: "Executed"
    values: dict[str, bytes | None] = field(default_factory=dict)
    pages: dict[bytes, Page | None] = field(default_factory=dict)

    def get(self, key: str) -> bytes | None:
        if key not in self.values:
            self.values[key] = self.executed.get(key)
        return self.values[key]

    def page(self, path: bytes) -> Page | None:
        self.pages[path] = page = self.executed.page(path)
        return page

    def included_at_ms(self, tx_id: bytes) -> int | None:
        return self.executed.included_at_ms(tx_id)


@dataclass(slots=True)
class _History:
    """The stored nodes of the history log, and those about to be."""

    executed: "Executed"
    gained: dict[merkle.NodeName, bytes] = field(default_factory=dict)

    def get(self, level: int, index: int) -> bytes | None:
        return self.gained.get((level, index)) or self.executed.history_node(level, index)


class _Nothing:
    """A history log without nodes."""

    def get(self, level: int, index: int) -> bytes | None:
        return None


def genesis_executed(genesis: Genesis) -> list[Write]:
    """What founds the derived tables: the state, roots and history of height 0."""
    chain = genesis.chain_id()
    state = genesis_state(genesis)
    state_root, pages = state_tree.update(lambda path: None, state)
    leaf = merkle.leaf_hash(history_leaf(chain, 0, 0, merkle.EMPTY_ROOT))
    gained = merkle.append(0, leaf, _Nothing())
    record = ExecutedRecord(chain=chain, format=schema.FORMAT, hash=chain, height=0, seal=None, sealed=None, steps=0)
    return [
        *[(schema.state_key(key), value) for key, value in state.items()],
        *[(schema.page_key(path), page.encode()) for path, page in pages.items() if page is not None],
        *[(schema.history_key(*name), node) for name, node in gained],
        (schema.roots_key(0), Roots(leaf, state_root, genesis.time, 0).encode()),
        (schema.EXECUTED_KEY, schema.seal(record)),
    ]


class Executed:
    """The executed chain over an open database that `genesis_executed` has founded."""

    def __init__(self, kv: KeyValue, chain: bytes) -> None:
        """Check what the newest height claims against what is stored.

        Raises StorageFailure: another chain or format, something missing, or roots that do not come out.
        """
        self._kv = kv
        self._chain = chain
        # What is applied and not yet `written`: of the database, of the tree, and which heights.
        # Each with the height that left it: what is written of a lower one leaves it in place.
        self._overlay: dict[bytes, tuple[int, bytes | None]] = {}
        self._overlay_pages: dict[bytes, tuple[int, Page | None]] = {}
        self._pending: deque[int] = deque()
        self._pages: OrderedDict[bytes, Page] = OrderedDict()
        # Ids that no block has settled: asked about on admission and on execution. One leaves as it is settled.
        self._unsettled: OrderedDict[bytes, None] = OrderedDict()
        data = kv.get(schema.EXECUTED_KEY)
        if data is None:
            raise StorageFailure("the record of the executed height is missing")
        self._head = schema.unseal(ExecutedRecord, data, "record of the executed height")
        require(self._head.format == schema.FORMAT, f"store format {self._head.format} is unknown")
        require(self._head.chain == chain, f"the store is of another network, {self._head.chain.hex()}")
        # Inclusions up to here are pruned.
        self.forgotten_height = 0
        # What the disk holds, for the writer thread.
        self._written_height = self._head.height
        self._written_sealed = self._head.sealed or 0
        with damage():
            roots = self.roots(self._head.height)
            require(state_tree.root(self.page) == roots.state, "the state tree does not give its root")
            history = merkle.root(self._head.height + 1, _History(self))
            require(history == roots.history, "the history log does not give its root")
            self._configuration = network.current_configuration(self.get)
        self._digest = self._configuration.digest()
        self._steps: list[Step] = []
        self._sealed = self._load_seal()
        self._undo = self._load_undo()

    @property
    def executed_height(self) -> int:
        return self._head.height

    @property
    def executed_hash(self) -> bytes:
        """The hash of the block at the executed height."""
        return self._head.hash

    @property
    def sealed_height(self) -> int | None:
        return self._sealed.height if self._sealed else None

    @property
    def sealed(self) -> Sealed | None:
        return self._sealed

    @property
    def pending_commits(self) -> int:
        """How many blocks are applied and not yet `written`. At most PENDING_COMMITS_MAX."""
        return len(self._pending)

    @property
    def configuration(self) -> Configuration:
        """In effect at the executed height."""
        return self._configuration

    @property
    def written_sealed(self) -> int:
        """The sealed height that the disk knows of; 0 before the first. For the writer thread, or while it rests."""
        return self._written_sealed

    def undo_above(self, height: int) -> tuple[UndoStep, ...]:
        """What each block above `height`, which is not below the sealed one, changed; ascending."""
        assert height >= (self._head.sealed or 0), "undo is kept above the sealed height"
        return tuple(step for step in self._undo if step.height > height)

    def steps(self, count: int) -> list[Step]:
        """The first `count` changes of voters, each proved by the voters before. They never change."""
        if len(self._steps) < count:
            self._steps = network.steps(self.get, count)
        return self._steps[:count]

    def derive(self, block: Block, certificate: Certificate | None, parent: Block | None = None) -> Commit:
        """Execute the next block. `certificate` is this very block's, verified, if this node holds it. `parent` is
        the block below, needed where the header's proof certifies it.

        Raises Divergence if the block's header contradicts what was executed here, StorageFailure for damage.
        """
        header, height = block.header, block.header.height
        head = self._head
        assert (height, header.parent) == (head.height + 1, head.hash), "blocks execute in order"
        if certificate is not None:
            assert (certificate.height, certificate.hash) == (height, block.hash), "it is the block's own"
        self._require_agreement(block)
        reads = _Reads(self)
        with damage():
            outcome = execute(header.time, height, block.transactions, reads, _reconfiguration(block, parent))
            state_root, pages = state_tree.update(reads.page, outcome.writes)
            encoded = [result.encode() for result in outcome.results]
            leaf = history_leaf(block.hash, height, len(encoded), merkle.root_of(encoded))
            history = _History(self)
            history.gained = dict(merkle.append(height, merkle.leaf_hash(leaf), history))
            history_root = merkle.root(height + 1, history)
        configuration = self._configuration_after(block, outcome.writes)
        certified = height if certificate is not None else self.roots(head.height).certified
        roots = Roots(history_root, state_root, header.time, certified)
        sealed = self._sealed_after(block, certificate, configuration)
        assert sealed is None or sealed.height < height, "a block seals only what was executed before it"
        before = {key: reads.get(key) for key in outcome.writes}
        undo = UndoStep(height, before, {path: reads.pages.get(path) for path in pages})
        changes = {schema.state_key(key): value for key, value in outcome.writes.items()}
        changes.update((schema.history_key(*name), node) for name, node in history.gained.items())
        changes.update(self._index(block, outcome.results))
        changes[schema.results_key(height)] = encode(encoded)
        changes[schema.roots_key(height)] = roots.encode()
        if certificate is not None:
            changes[schema.certificate_key(height)] = certificate.encode()
        return Commit(height, block, configuration, outcome.results, roots, sealed, undo, changes, pages)

    def apply(self, commit: Commit) -> None:
        """From here on every read answers as of `commit.height`."""
        head, height = self._head, commit.height
        parent = commit.block.header.parent
        assert (height, parent) == (head.height + 1, head.hash), "commits are applied in order"
        assert len(self._pending) < PENDING_COMMITS_MAX, "the driver waits for the writer"
        self._pending.append(height)
        self._overlay.update((key, (height, value)) for key, value in commit.changes.items())
        self._overlay_pages.update((path, (height, page)) for path, page in commit.pages.items())
        for path, page in commit.pages.items():
            if page is None:
                self._pages.pop(path, None)
            else:
                self._pages[path] = page
        self._forget_pages()
        for result in commit.results:
            self._unsettled.pop(result.id, None)
        self._head = self._record(commit.block, commit.sealed)
        self._undo.append(commit.undo)
        self._sealed = commit.sealed
        if commit.configuration is not self._configuration:
            self._configuration = commit.configuration
            self._digest = commit.configuration.digest()
        while commit.sealed and self._undo and self._undo[0].height <= commit.sealed.height:
            self._undo.popleft()

    def write(self, *commits: Commit) -> None:
        """Put them on the disk, all or nothing. For the writer thread. Raises StorageFailure."""
        changes: dict[bytes, bytes | None] = {}
        pages: dict[bytes, Page | None] = {}
        last = commits[-1]
        sealed = last.sealed.height if last.sealed else 0
        # Undo exists exactly for the heights above the sealed one.
        for height in range(self._written_sealed + 1, min(sealed, self._written_height) + 1):
            changes[schema.undo_key(height)] = None
        for height, commit in enumerate(commits, self._written_height + 1):
            assert commit.height == height, "commits are written in order"
            changes.update(commit.changes)
            pages.update(commit.pages)
            if height > sealed:
                changes[schema.undo_key(height)] = encode(Undo(schema.FORMAT, commit.undo.state))
        changes.update(
            (schema.page_key(path), None if page is None else page.encode()) for path, page in pages.items()
        )
        changes[schema.EXECUTED_KEY] = schema.seal(self._record(last.block, last.sealed))
        # Synced, though it could be derived again: LevelDB does not sync a full log when it begins the next, so what
        # is not synced could be missing below something that is.
        self._kv.write(list(changes.items()), sync=True)
        self._written_height, self._written_sealed = last.height, sealed

    def written(self, *commits: Commit) -> None:
        """The disk answers for them from here on."""
        for commit in commits:
            assert commit.height <= self._written_height, "only a written commit leaves memory"
            height = self._pending.popleft()
            assert height == commit.height, "commits leave memory in order"
            for key in commit.changes:
                if key in self._overlay and self._overlay[key][0] == height:
                    del self._overlay[key]
            for path in commit.pages:
                if path in self._overlay_pages and self._overlay_pages[path][0] == height:
                    del self._overlay_pages[path]

    def get(self, key: str) -> bytes | None:
        """The canonical value at `key` after the executed height, or None."""
        return self._get(schema.state_key(key))

    def page(self, path: bytes) -> Page | None:
        """The page of the state tree after the executed height. Raises Rejection("bad_page")."""
        page = self._pages.get(path)
        if page is not None:
            self._pages.move_to_end(path)
            return page
        if path in self._overlay_pages:
            return self._overlay_pages[path][1]
        data = self._kv.get(schema.page_key(path))
        if data is None:
            return None
        page = self._pages[path] = state_tree.decode_page(data)
        self._forget_pages()
        return page

    def state_at_sealed(self, key: str) -> bytes | None:
        """The same after the sealed height; there must be one."""
        assert self._sealed is not None, "something is sealed"
        for step in self._undo:
            if key in step.state:
                return step.state[key]
        return self.get(key)

    def page_at_sealed(self, path: bytes) -> Page | None:
        assert self._sealed is not None, "something is sealed"
        for step in self._undo:
            if path in step.pages:
                return step.pages[path]
        return self.page(path)

    def history_node(self, level: int, index: int) -> bytes | None:
        return self._get(schema.history_key(level, index))

    def history_path(self, height: int, size: int) -> list[bytes]:
        """The path of the leaf of `height` in the history log of `size` leaves."""
        with damage():
            return merkle.path(height, size, _History(self))

    def roots(self, height: int) -> Roots:
        """What was true after `height`, which must have executed here."""
        assert 0 <= height <= self._head.height, "roots are asked for at executed heights"
        return schema.decode_roots(self._must(schema.roots_key(height)), height)

    def results(self, height: int) -> list[bytes]:
        """The encoded results of an executed block, in block order. Height 0 has none."""
        assert 1 <= height <= self._head.height, "results are asked for at executed heights"
        return schema.parse(list[bytes], self._must(schema.results_key(height)), f"results {height}")

    def place(self, tx_id: bytes) -> Place | None:
        """The inclusion that settled this id, or None."""
        if tx_id in self._unsettled:
            return None
        data = self._get(schema.transaction_key(tx_id))
        if data is not None:
            place = schema.decode_place(data)
            # What is being pruned is as good as gone.
            return place if place.height > self.forgotten_height else None
        self._unsettled[tx_id] = None
        if len(self._unsettled) > UNSETTLED_MAX:
            self._unsettled.popitem(last=False)
        return None

    def included_at_ms(self, tx_id: bytes) -> int | None:
        place = self.place(tx_id)
        return None if place is None else self.roots(place.height).time_ms

    def certificate(self, height: int) -> Certificate | None:
        """The stored certificate of the block at `height`, if this node has it and executed the block."""
        data = self._get(schema.certificate_key(height))
        if data is None:
            return None
        with damage():
            return decode_certificate(data)

    def certificate_at_or_below(self, height: int) -> Certificate | None:
        """The newest stored certificate at or below this executed height; None before the first."""
        certified = self.roots(height).certified
        if certified == 0:
            return None
        with damage():
            return decode_certificate(self._must(schema.certificate_key(certified)))

    def _get(self, key: bytes) -> bytes | None:
        return self._overlay[key][1] if key in self._overlay else self._kv.get(key)

    def _must(self, key: bytes) -> bytes:
        return must(self._get(key), key)

    def _require_agreement(self, block: Block) -> None:
        """A committed header and this node's own execution agree, or this node stops (same inputs, same
        state).
        """
        header = block.header
        roots = self.roots(header.executed_height)
        # Below a snapshot it is known only where a header in it carried it.
        state = header.state_root if roots.state == state_tree.EMPTY else roots.state
        if (header.history_root, header.state_root) != (roots.history, state):
            at = header.executed_height
            raise Divergence(f"block {header.height} says other roots of height {at} than this node found")

    def _configuration_after(self, block: Block, writes: dict[str, bytes | None]) -> Configuration:
        """What is in effect at the block, which must be what its header names."""
        if network.CONFIGURATION_PATH in writes:
            configuration = network.current_configuration(writes.get)
            digest = configuration.digest()
        else:
            configuration, digest = self._configuration, self._digest
        if block.header.configuration != digest:
            raise Divergence(f"block {block.header.height} names another configuration than this node found")
        return configuration

    def _sealed_after(
        self, block: Block, certificate: Certificate | None, configuration: Configuration
    ) -> Sealed | None:
        """The seal never goes back: undo below it is gone. A joint header seals nothing: genesis and the steps lead
        to no joint configuration.
        """
        header = block.header
        if certificate is None or configuration.is_joint:
            return self._sealed
        if self._sealed and header.executed_height < self._sealed.height:
            return self._sealed
        seal = Seal(certificate.encode(), block.header_data, block.signature)
        return Sealed(header.executed_height, header.height, seal, configuration.steps)

    def _index(self, block: Block, results: tuple[TxResult, ...]) -> dict[bytes, bytes]:
        """Where to find the ids that this block settles; see `index`."""

        def until_ms(index: int) -> int:
            return block.transactions[index].envelope.until

        return {
            schema.transaction_key(result.id): Place(block.header.height, index, result.code).encode()
            for index, result in settling(block.header.time, results, until_ms)
            if self.place(result.id) is None
        }

    def _forget_pages(self) -> None:
        while len(self._pages) > PAGES_MAX:
            self._pages.popitem(last=False)

    def _record(self, block: Block, sealed: Sealed | None) -> ExecutedRecord:
        return ExecutedRecord(
            chain=self._chain,
            format=schema.FORMAT,
            hash=block.hash,
            height=block.header.height,
            seal=sealed.header_height if sealed else None,
            sealed=sealed.height if sealed else None,
            steps=sealed.steps if sealed else 0,
        )

    def _load_seal(self) -> Sealed | None:
        height = self._head.seal
        if height is None:
            return None
        with damage():
            block = decode_block(self._must(schema.block_key(height)), BLOCK_BYTES_MAX)
        certificate = self._must(schema.certificate_key(height))
        require(block.header.height == height, f"block {height} is of another height")
        require(block.header.executed_height == self._head.sealed, "the sealing header seals another height")
        seal = Seal(certificate, block.header_data, block.signature)
        return Sealed(block.header.executed_height, height, seal, self._head.steps)

    def _load_undo(self) -> deque[UndoStep]:
        """From the newest height down to the sealed one, take each block's changes back, and check every
        root.
        """
        steps: deque[UndoStep] = deque()
        older: dict[bytes, Page | None] = {}

        def page(path: bytes) -> Page | None:
            return older[path] if path in older else self.page(path)

        sealed = self._head.sealed or 0
        for height in range(self._head.height, sealed, -1):
            undo = schema.parse(Undo, self._must(schema.undo_key(height)), f"undo {height}")
            with damage():
                root, pages = state_tree.update(page, undo.state)
            before = self.roots(height - 1).state
            require(root == before, f"undo {height} does not give the state root before it")
            older |= pages
            steps.appendleft(UndoStep(height, undo.state, pages))
        return steps


def _reconfiguration(block: Block, parent: Block | None) -> Change | Seal | None:
    """What the block's header says of the membership, as execution takes it."""
    header = block.header
    if header.proof is None:
        return header.change
    assert parent is not None, "who leaves a joint configuration has its parent"
    assert parent.hash == header.parent, "the proof certifies the parent"
    return Seal(header.proof, parent.header_data, parent.signature)


@contextmanager
def damage() -> Iterator[None]:
    """What the ledger says of stored bytes that do not fit together is a fault of the store."""
    try:
        yield
    except (MissingNode, Rejection) as error:
        raise StorageFailure(f"the store is damaged: {error}") from None
