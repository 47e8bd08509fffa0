"""Whether a block that came from another node may enter the log: everything the core cannot see.

The core judges terms, links and quorums; this judges what a block says as a ledger's block. What it refuses is
answered with a reason and never appended.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from consensus.messages import Entry, Reason
from ledger.block import Block, Header, decode_block, stored_transactions, verify_header
from ledger.errors import Rejection
from ledger.genesis import Genesis
from ledger.transaction import Transaction, check_signature, transaction_hash
from node.evidence import Witness

# What a block may weigh beyond its transactions: header, signature and the lengths between them.
BLOCK_OVERHEAD_BYTES = 8 * 1024


@dataclass(frozen=True, slots=True)
class Roots:
    history: bytes
    state: bytes


@dataclass(frozen=True, slots=True)
class Parent:
    """What a block must follow on: its parent's time in ms, executed height, and the roots stated for that height."""

    time_ms: int
    executed_height: int
    roots: Roots

    @classmethod
    def of(cls, header: Header) -> "Parent":
        return cls(header.time, header.executed_height, Roots(header.history_root, header.state_root))


class BlockRefusedError(Exception):
    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class Inspector:
    """`roots_at(height)` answers only for heights executed here; `known` with transactions checked before."""

    def __init__(
        self,
        genesis: Genesis,
        witness: Witness,
        *,
        known: Callable[[bytes], Transaction | None],
        roots_at: Callable[[int], Roots | None],
        now_ms: Callable[[], int],
        clock_skew_ms: int,
    ) -> None:
        self._chain = genesis.chain_id()
        self._keys: Mapping[str, bytes] = genesis.node_keys()
        self._configuration = genesis.configuration()
        self._configuration_digest = self._configuration.digest()
        self._parameters = genesis.parameters
        self._witness = witness
        self._known = known
        self._roots_at = roots_at
        self._now_ms = now_ms
        self._clock_skew_ms = clock_skew_ms

    def inspect(self, entry: Entry, parent: Parent, *, certified: bool) -> Block:
        """The decoded block, or BlockRefusedError. `certified` blocks are not judged by this node's clock."""
        bytes_max = self._parameters.block_bytes_max + BLOCK_OVERHEAD_BYTES
        try:
            block = decode_block(entry.data, bytes_max, self._known)
        except Rejection as error:
            raise BlockRefusedError(Reason.BAD_STRUCTURE, str(error)) from None
        self._check_header(entry, block, parent)
        self._check_signatures(block)
        header = block.header
        roots = self._roots_at(header.executed_height)
        if roots is not None and (roots.history, roots.state) != (header.history_root, header.state_root):
            raise BlockRefusedError(Reason.BAD_ROOTS, f"roots at {header.executed_height} differ from ours")
        if not certified and header.time > max(parent.time_ms + 1, self._now_ms() + self._clock_skew_ms):
            raise BlockRefusedError(Reason.BAD_TIME, f"block time {header.time} is too far ahead of our clock")
        return block

    def unknown(self, entry: Entry) -> list[bytes]:
        """The hashes of those transactions of the block that were not checked before; of what is no block, none."""
        try:
            hashes = map(transaction_hash, stored_transactions(entry.data))
        except ValueError:
            # msgspec's own errors, and text that is not UTF-8: inspection says so.
            return []
        return self.still_unknown(hashes)

    def still_unknown(self, hashes: Iterable[bytes]) -> list[bytes]:
        return [transaction for transaction in hashes if self._known(transaction) is None]

    def clock_agrees(self, block_time_ms: int) -> bool:
        """Whether another node's certified block time and this clock are within the allowed skew."""
        return abs(block_time_ms - self._now_ms()) <= self._clock_skew_ms

    def _check_header(self, entry: Entry, block: Block, parent: Parent) -> None:
        header = block.header
        rules = (
            (header.chain == self._chain, "it is of another chain"),
            (block.hash == entry.hash, "its hash is not the entry's"),
            (header.height == entry.height, "its height is not the entry's"),
            (header.term == entry.term, "its term is not the entry's"),
            (header.parent == entry.parent, "its parent is not the entry's"),
            (entry.configuration is None, "membership does not change in this format"),
            (header.configuration == self._configuration_digest, "it names another configuration"),
            (header.proposer in self._configuration.voters, "its proposer is no voter"),
            (header.count <= self._parameters.block_transactions_max, "it has too many transactions"),
            (header.time > parent.time_ms, "its time is not after its parent's"),
            (header.executed_height >= parent.executed_height, "executed_height falls"),
        )
        for holds, sentence in rules:
            if not holds:
                raise BlockRefusedError(Reason.BAD_STRUCTURE, f"block {entry.height}: {sentence}")

    def _check_signatures(self, block: Block) -> None:
        header = block.header
        if not verify_header(block.hash, block.signature, self._keys[header.proposer]):
            raise BlockRefusedError(Reason.BAD_SIGNATURE, "the header's signature does not verify")
        self._witness.header(header.proposer, header.term, header.height, block.hash, block.signature)
        for transaction in block.transactions:
            if self._known(transaction.hash) is not None:
                continue
            try:
                check_signature(transaction, self._chain)
            except Rejection as error:
                raise BlockRefusedError(Reason.BAD_SIGNATURE, str(error)) from None
