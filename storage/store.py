"""The store of one node: the log, what was executed, and answers that anyone can check.

    store = Store(LevelDb(path), genesis)
    store.persist(truncate_from, entries, bodies, hard_state)      # writer thread, one synced batch
    commit = store.derive(block, certificate)                      # event loop
    store.apply(commit)                                            # event loop: answers change now
    store.write(commit, ...)                                       # writer thread, one batch
    store.written(commit, ...)                                     # event loop

What is said in `executed` holds here: `persist` and `write` belong to one writer thread, in the order in
which they were asked for; everything else to the event loop's. While a truncation is being written, the
heights that it deletes read like heights above the end.

A read that finds missing what the chain says must exist raises StorageFailure naming it.
"""

from collections.abc import Mapping, Sequence

from consensus.messages import Entry, HardState
from ledger import merkle
from ledger.block import Block, decode_header, header_of
from ledger.encoding import encode
from ledger.errors import Rejection
from ledger.execution import TxResult, decode_result, history_leaf
from ledger.finality import Certificate
from ledger.genesis import Genesis
from ledger.membership import Configuration
from ledger.receipt import decode_receipt, make_receipt, make_state_answer, verify_seal
from ledger.state_tree import prove
from storage import schema
from storage.base import BaseRecord
from storage.configurations import Configurations
from storage.executed import Commit, Executed, Sealed, UndoStep, damage, genesis_executed
from storage.log import BlockLog, genesis_log
from storage.port import KeyValue, StorageFailure
from storage.promises import Promises
from storage.schema import Evidence, Place, Roots

# Result trees kept for receipts, each of one block's results; beyond it the lowest height goes.
RESULT_TREES_MAX = 16
EVIDENCE_MAX = 1_000
EVIDENCE_BYTES_MAX = 16 * 1024

_FIRST_KEY, _LAST_KEY = b"", b"\xff"


class Store:
    """Opens, or founds in an empty database, the store of the network that `genesis` names.

    Raises StorageFailure: another network or format, damage, or a database that is neither empty nor a store.
    """

    def __init__(self, kv: KeyValue, genesis: Genesis) -> None:
        self._kv = kv
        self._chain = genesis.chain_id()
        if kv.get(schema.EXECUTED_KEY) is None and next(kv.range(_FIRST_KEY, _LAST_KEY), None) is None:
            kv.write(genesis_log(self._chain, genesis.configuration()) + genesis_executed(genesis), sync=True)
        self._executed = Executed(kv, self._chain)
        self._log = BlockLog(kv, self._executed.executed_height)
        self._executed.forgotten_height = self._log.base.height
        found = self._log.term_hash(self.executed_height)
        if found is None or found[1] != self._executed.executed_hash:
            raise StorageFailure(f"the log and the executed chain differ at height {self.executed_height}")
        if self.sealed is not None:
            with damage():
                header = decode_header(self.sealed.seal.header)
                verify_seal(self.sealed.seal, header, self._executed.steps(self.sealed.steps), genesis)
        self._evidence = self._load_evidence()
        self.promises = Promises(kv)
        self._result_trees: dict[int, _ResultTree] = {}

    def close(self) -> None:
        """Only once nothing is being written."""
        self._kv.close()

    # The log.

    def persist(
        self,
        truncate_from: int | None,
        entries: Sequence[Entry],
        bodies: Mapping[bytes, bytes],
        hard_state: HardState | None,
    ) -> None:
        """Delete blocks from `truncate_from` up, append `entries`, keep `bodies` by commitment, move the
        hard state.

        One synced batch. For the writer thread. Raises StorageFailure, after which nothing is written any
        more.
        """
        if truncate_from is not None:
            assert truncate_from > self.executed_height, "no executed block leaves the log"
        self._log.persist(truncate_from, entries, bodies, hard_state)

    def hard_state(self) -> HardState:
        return self._log.hard_state

    def last_height(self) -> int:
        """The height of the newest durable block; 0 when there is only genesis."""
        return self._log.last_height

    def term_hash(self, height: int) -> tuple[int, bytes] | None:
        """The term and hash of the durable block at `height`, (0, chain id) at 0, None above the end."""
        return self._log.term_hash(height)

    def configurations(self) -> Configurations:
        """(height, configuration in effect from it) along the durable log, ascending; the first is at or below its
        base.
        """
        return self._log.configurations

    def entry(self, height: int) -> Entry | None:
        """The durable entry at `height` (from 1), None above the end."""
        return self._log.entry(height)

    def entries(self, first: int, last: int, bytes_max: int) -> tuple[Entry, ...]:
        """Entries `first` (from 1) to at most `last`: what fits in `bytes_max`, at least one; () above the
        end.
        """
        return self._log.entries(first, last, bytes_max)

    def block_data(self, height: int) -> bytes:
        """The bytes of the durable block at `height`, from 1 to `last_height()`."""
        return self._log.block_data(height)

    def body(self, commitment: bytes) -> bytes | None:
        """The sealed body, or None if it was never stored."""
        return self._log.body(commitment)

    # Pruning.

    @property
    def base(self) -> BaseRecord:
        """The block below the first one kept; genesis as long as nothing was pruned."""
        return self._log.base.record

    @property
    def known_since_ms(self) -> int | None:
        """The block time up to which inclusions are forgotten here: every later one is known. None where all are."""
        height = self.base.height
        return self.roots(height).time_ms if height else None

    def prunable(self, height: int) -> int:
        """The highest base at or below `height` that `prune` may move to; the present one where there is none.

        A base is certified, so that every certificate that some height names is kept.
        """
        sealed = self.sealed_height
        if not self._log.base.is_swept or sealed is None:
            return self.base.height
        bound = min(height, sealed, self._executed.written_sealed)
        return max(self.roots(bound).certified if bound > self.base.height else 0, self.base.height)

    def prune(self, height: int) -> None:
        """From here on no read reaches `height` or below. The disk follows by `write_base`, then `sweep`."""
        assert height == self.prunable(height), "it is sealed, certified and on the disk, as is what came before"
        header, block = header_of(self.block_data(height))
        self._log.base.move(height, header.term, block, header.encode())
        self._executed.forgotten_height = height
        for below in [below for below in self._result_trees if below <= height]:
            del self._result_trees[below]

    def have_all_bodies(self) -> None:
        """What a snapshot left out has come. The disk follows by `write_base`."""
        self._log.base.have_all_bodies()

    def put_bodies(self, bodies: Mapping[bytes, bytes]) -> None:
        """Keep bodies, by commitment, of blocks that came without: one batch. For the writer thread."""
        self._kv.write([(schema.body_key(commitment), body) for commitment, body in bodies.items()], sync=True)

    def write_base(self) -> None:
        """Put the new base on the disk, synced. For the writer thread. Raises StorageFailure."""
        self._log.base.write()

    def sweep(self) -> bool:
        """Delete some of what lies below the base, in one batch; whether there is more. For the writer thread."""
        return not self._log.base.is_swept and self._log.base.sweep()

    # Snapshots.

    def undo_above(self, height: int) -> tuple[UndoStep, ...]:
        """What each executed block above `height`, which is not below the sealed one, changed; ascending."""
        return self._executed.undo_above(height)

    # Execution.

    def derive(self, block: Block, certificate: Certificate | None) -> Commit:
        """Execute the block after `executed_height`; it must be in the log. Changes nothing until `apply`.

        `certificate` is this block's own, verified, if there is one; the newest one seals.
        Raises Divergence: the node must stop. Raises StorageFailure.
        """
        found = self._log.term_hash(block.header.height)
        assert found == (block.header.term, block.hash), "a block executes only once it is durable here"
        parent = None if block.header.proof is None else self._log.block(block.header.height - 1)
        return self._executed.derive(block, certificate, parent)

    def apply(self, commit: Commit) -> None:
        """Every read from now on answers as of `commit.height`. At most PENDING_COMMITS_MAX ahead of
        `written`.
        """
        self._executed.apply(commit)

    def write(self, *commits: Commit) -> None:
        """Put applied commits, in order, on the disk in one batch. For the writer thread. Raises StorageFailure."""
        self._executed.write(*commits)

    def written(self, *commits: Commit) -> None:
        """Forget what memory held for the write."""
        self._executed.written(*commits)

    def commit(self, block: Block, certificate: Certificate | None) -> Commit:
        """All four steps at once, for callers with one thread."""
        commit = self.derive(block, certificate)
        self.apply(commit)
        self.write(commit)
        self.written(commit)
        return commit

    @property
    def executed_height(self) -> int:
        return self._executed.executed_height

    @property
    def sealed_height(self) -> int | None:
        """Where receipts and proofs answer: executed_height of the newest certified header, None before the
        first.
        """
        return self._executed.sealed_height

    @property
    def sealed(self) -> Sealed | None:
        """The seal itself: the certified header and its certificate."""
        return self._executed.sealed

    @property
    def configuration(self) -> Configuration:
        """Who votes and who follows, as of the executed height."""
        return self._executed.configuration

    @property
    def pending_commits(self) -> int:
        return self._executed.pending_commits

    # Reads.

    def get(self, key: str) -> bytes | None:
        """The canonical value at the state key `key` after the executed height, or None."""
        return self._executed.get(key)

    def state_at_sealed(self, key: str) -> bytes | None:
        """The same after the sealed height. Rejection("not_sealed") before the first seal."""
        self._require_sealed()
        return self._executed.state_at_sealed(key)

    def state_answer(self, key: str) -> bytes:
        """The value, or its absence, with its proof at the sealed height. Rejection("not_sealed") before
        the first.
        """
        sealed = self._require_sealed()
        with damage():
            proof = prove(self._executed.page_at_sealed, key)
        steps = self._executed.steps(sealed.steps)
        return make_state_answer(sealed.seal, steps, key, self._executed.state_at_sealed(key), proof)

    def receipt(self, tx_id: bytes) -> bytes:
        """The receipt of a sealed transaction. Rejection: unknown_transaction, not_sealed."""
        place = self._executed.place(tx_id)
        if place is None and self.base.height:
            # What is not known may have been known once.
            raise Rejection("pruned", f"this node keeps no receipts of blocks up to height {self.base.height}")
        if place is None:
            raise Rejection("unknown_transaction", "no executed block settled this id")
        sealed = self._require_sealed()
        if place.height > sealed.height:
            raise Rejection("not_sealed", f"height {place.height} is not sealed yet")
        tree = self._result_tree(place.height)
        history_path = self._executed.history_path(place.height, sealed.height + 1)
        with damage():
            result = decode_result(tree.encoded[place.index])
        result_path = merkle.path(place.index, len(tree.encoded), tree)
        steps = self._executed.steps(sealed.steps)
        return make_receipt(sealed.seal, steps, tree.leaf, history_path, result, result_path, place.index)

    def extend_receipt(self, data: bytes) -> bytes:
        """The same receipt under the newest seal: its block may be pruned, its place in the history stays.

        Rejection: not_sealed; bad_receipt where it is none of this chain; as `decode_as`.
        """
        sealed = self._require_sealed()
        receipt = decode_receipt(data)
        height, leaf = receipt.leaf.height, encode(receipt.leaf)
        if height > sealed.height:
            raise Rejection("not_sealed", f"height {height} is not sealed yet")
        if self._executed.history_node(0, height) != merkle.leaf_hash(leaf):
            raise Rejection("bad_receipt", "the block is not in this chain's history")
        history_path = self._executed.history_path(height, sealed.height + 1)
        steps = self._executed.steps(sealed.steps)
        result_path, index = receipt.result_path, receipt.index
        return make_receipt(sealed.seal, steps, leaf, history_path, receipt.result, result_path, index)

    def tx_status(self, tx_id: bytes) -> Place | None:
        """(height, index, code) of the inclusion that settled this id, or None."""
        return self._executed.place(tx_id)

    def included_at_ms(self, tx_id: bytes) -> int | None:
        """The block time of that inclusion."""
        return self._executed.included_at_ms(tx_id)

    def results(self, height: int) -> tuple[TxResult, ...]:
        """The results of an executed block, in block order."""
        with damage():
            return tuple(decode_result(item) for item in self._executed.results(height))

    def encoded_results(self, height: int) -> list[bytes]:
        """The same, for who decodes a few of them at a time."""
        return self._executed.results(height)

    def roots(self, height: int) -> Roots:
        """What was true after this executed height: (history, state, time_ms, certified)."""
        return self._executed.roots(height)

    def certificate(self, height: int) -> Certificate | None:
        """The certificate of the block at this very height, if this node stored one."""
        return self._executed.certificate(height)

    def certificate_at_or_below(self, height: int) -> Certificate | None:
        """The newest stored certificate at or below this executed height; None before the first."""
        return self._executed.certificate_at_or_below(height)

    def newest_certificate(self) -> Certificate | None:
        return self._executed.certificate_at_or_below(self.executed_height)

    # Evidence.

    def put_evidence(self, kind: str, node: str, proof: bytes) -> bool:
        """Keep canonical proof that `node` contradicted itself: one synced batch of its own, from any one
        thread.

        False if it is kept already, longer than EVIDENCE_BYTES_MAX, or EVIDENCE_MAX are kept: the first
        ones tell who was at fault, so the newest are the ones not kept. Raises StorageFailure.
        """
        kept, found = self._evidence, Evidence(kind=kind, node=node, proof=proof)
        if found in kept or len(proof) > EVIDENCE_BYTES_MAX or len(kept) >= EVIDENCE_MAX:
            return False
        self._kv.write([(schema.evidence_key(len(kept)), schema.seal(found))], sync=True)
        self._evidence = (*kept, found)
        return True

    def evidence(self) -> tuple[Evidence, ...]:
        """What `put_evidence` kept, oldest first."""
        return self._evidence

    def _require_sealed(self) -> Sealed:
        sealed = self._executed.sealed
        if sealed is None:
            raise Rejection("not_sealed", "nothing is sealed yet")
        return sealed

    def _result_tree(self, height: int) -> "_ResultTree":
        """Receipts of one block are asked for together; its tree is built once."""
        tree = self._result_trees.get(height)
        if tree is None:
            found = self._log.term_hash(height)
            assert found is not None, "the log reaches the executed height"
            tree = _ResultTree(found[1], height, self._executed.results(height))
            if len(self._result_trees) >= RESULT_TREES_MAX:
                del self._result_trees[min(self._result_trees)]
            self._result_trees[height] = tree
        return tree

    def _load_evidence(self) -> tuple[Evidence, ...]:
        kept: list[Evidence] = []
        while len(kept) < EVIDENCE_MAX:
            data = self._kv.get(schema.evidence_key(len(kept)))
            if data is None:
                break
            kept.append(schema.unseal(Evidence, data, f"evidence {len(kept)}"))
        return tuple(kept)


class _ResultTree:
    """The Merkle tree over one block's encoded results, and the history leaf that carries its root."""

    def __init__(self, block_hash: bytes, height: int, encoded: list[bytes]) -> None:
        self.encoded = encoded
        self._nodes: dict[merkle.NodeName, bytes] = {}
        for index, item in enumerate(encoded):
            self._nodes.update(merkle.append(index, merkle.leaf_hash(item), self))
        self.leaf = history_leaf(block_hash, height, len(encoded), merkle.root(len(encoded), self))

    def get(self, level: int, index: int) -> bytes | None:
        return self._nodes.get((level, index))
