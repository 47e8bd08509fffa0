"""Whether a block that came from another node may enter the log: everything the core cannot see.

The core judges terms, links and quorums; this judges what a block says as a ledger's block. What it refuses is
answered with a reason and never appended.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from consensus.messages import Entry, Reason
from ledger.block import HEADER_BYTES_MAX, Block, Header, decode_block, stored_transactions, verify_header
from ledger.errors import Rejection
from ledger.genesis import Genesis
from ledger.membership import Change, Configuration
from ledger.transaction import Transaction, check_signature, transaction_hash
from node.evidence import Witness
from node.membership import Place
from storage.configurations import check_proof, configuration_of, members_of

# What a block may weigh beyond its transactions: header, signature and the lengths between them.
BLOCK_OVERHEAD_BYTES = HEADER_BYTES_MAX + 1024


@dataclass(frozen=True, slots=True)
class Roots:
    history: bytes
    state: bytes


@dataclass(frozen=True, slots=True)
class Parent:
    """What a block must follow on: its parent's time in ms, executed height, and the roots stated for that height;
    its term, and the configuration in effect at it with its digest."""

    time_ms: int
    executed_height: int
    roots: Roots
    place: Place
    digest: bytes

    @classmethod
    def of(cls, header: Header, configuration: Configuration) -> "Parent":
        roots = Roots(header.history_root, header.state_root)
        place = Place(header.term, configuration)
        return cls(header.time, header.executed_height, roots, place, header.configuration)

    def child(self, header: Header) -> "Parent":
        """The block above, as the parent of the next. Raises Rejection("bad_change")."""
        return Parent.of(header, configuration_of(self.place.configuration, header))


class BlockRefusedError(Exception):
    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class Inspector:
    """`roots_at(height)` answers only for heights executed here; `known` with transactions checked before; `voted`
    is the change that the state after this height asks for, given the configuration there.

    `voted` raises BlockRefusedError with Reason.BEHIND where this height was not executed here yet.
    """

    def __init__(
        self,
        genesis: Genesis,
        witness: Witness,
        *,
        voted: Callable[[int, Configuration], Change | None],
        known: Callable[[bytes], Transaction | None],
        roots_at: Callable[[int], Roots | None],
        now_ms: Callable[[], int],
        clock_skew_ms: int,
    ) -> None:
        self._chain = genesis.chain_id()
        self._parameters = genesis.parameters
        self._witness = witness
        self._voted = voted
        self._known = known
        self._roots_at = roots_at
        self._now_ms = now_ms
        self._clock_skew_ms = clock_skew_ms

    def inspect(self, entry: Entry, parent: Parent, *, certified: bool) -> Block:
        """The decoded block, or BlockRefusedError. `certified` blocks are judged neither by this node's clock nor by
        what was voted: their voters did that."""
        bytes_max = self._parameters.block_bytes_max + BLOCK_OVERHEAD_BYTES
        try:
            block = decode_block(entry.data, bytes_max, self._known)
        except Rejection as error:
            raise BlockRefusedError(Reason.BAD_STRUCTURE, str(error)) from None
        self._check_header(entry, block, parent)
        self._check_membership(entry, block.header, parent)
        self._check_signatures(block, parent)
        header = block.header
        roots = self._roots_at(header.executed_height)
        if roots is not None and (roots.history, roots.state) != (header.history_root, header.state_root):
            raise BlockRefusedError(Reason.BAD_ROOTS, f"roots at {header.executed_height} differ from ours")
        if not certified and header.time > max(parent.time_ms + 1, self._now_ms() + self._clock_skew_ms):
            raise BlockRefusedError(Reason.BAD_TIME, f"block time {header.time} is too far ahead of our clock")
        if not certified and header.change is not None:
            self._check_vote(header, parent)
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
            (header.count <= self._parameters.block_transactions_max, "it has too many transactions"),
            (header.time > parent.time_ms, "its time is not after its parent's"),
            (header.executed_height >= parent.executed_height, "executed_height falls"),
            # So every follower judges the change by the same vote: the one that stood when its parent was executed.
            (
                header.change is None or header.executed_height == header.height - 1,
                "its change does not stand on the newest state",
            ),
        )
        for holds, sentence in rules:
            if not holds:
                raise BlockRefusedError(Reason.BAD_STRUCTURE, f"block {entry.height}: {sentence}")

    def _check_membership(self, entry: Entry, header: Header, parent: Parent) -> None:
        """The configuration that header and entry name is the one that follows from the blocks before."""
        before = parent.place.configuration
        try:
            check_proof(header, parent.place.term, before)
            after = configuration_of(before, header)
        except Rejection as error:
            raise BlockRefusedError(Reason.BAD_STRUCTURE, f"block {entry.height}: {error.detail}") from None
        changed = after is not before
        if header.configuration != (after.digest() if changed else parent.digest):
            raise BlockRefusedError(Reason.BAD_STRUCTURE, f"block {entry.height}: it names another configuration")
        if entry.configuration != (members_of(after) if changed else None):
            raise BlockRefusedError(Reason.BAD_STRUCTURE, f"block {entry.height}: its entry brings other members")

    def _check_vote(self, header: Header, parent: Parent) -> None:
        if self._voted(header.height - 1, parent.place.configuration) != header.change:
            raise BlockRefusedError(Reason.BAD_STRUCTURE, f"nobody voted for the change of block {header.height}")

    def _check_signatures(self, block: Block, parent: Parent) -> None:
        header = block.header
        # Also one that is voted out, until the block that completes it is certified.
        key = parent.place.configuration.proposers.get(header.proposer)
        if key is None:
            raise BlockRefusedError(Reason.BAD_STRUCTURE, f"block {header.height}: its proposer is no voter")
        if not verify_header(block.hash, block.signature, key):
            raise BlockRefusedError(Reason.BAD_SIGNATURE, "the header's signature does not verify")
        self._witness.block(block)
        for transaction in block.transactions:
            if self._known(transaction.hash) is not None:
                continue
            try:
                check_signature(transaction, self._chain)
            except Rejection as error:
                raise BlockRefusedError(Reason.BAD_SIGNATURE, str(error)) from None
