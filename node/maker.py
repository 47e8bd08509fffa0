"""What this node signs: blocks that it proposes, acknowledgements, votes. The core's `Signer`."""

from collections.abc import Callable
from dataclasses import dataclass

from ledger.block import FORMAT, Block, Header, seal_block, tx_root
from ledger.finality import sign_acknowledgement, sign_vote
from ledger.genesis import Genesis
from ledger.keys import SigningKey
from ledger.transaction import Transaction
from node.inspector import Parent, Roots


@dataclass(frozen=True, slots=True)
class Head:
    """What this node has executed, and the roots after it."""

    executed_height: int
    roots: Roots


class BlockMaker:
    """`parent_of(height, hash)` is the Parent that a block on top of it must follow; `sealed` sees each new block."""

    def __init__(
        self,
        genesis: Genesis,
        node_id: str,
        key: SigningKey,
        *,
        parent_of: Callable[[int, bytes], Parent],
        head: Callable[[], Head],
        now_ms: Callable[[], int],
        sealed: Callable[[Block], None],
    ) -> None:
        self._chain = genesis.chain_id()
        self._configuration = genesis.configuration().digest()
        self._node_id = node_id
        self._key = key
        self._parent_of = parent_of
        self._head = head
        self._now_ms = now_ms
        self._sealed = sealed

    def seal(self, height: int, term: int, parent: bytes, payload: object) -> tuple[bytes, bytes]:
        """A signed block over `payload` (a list of Transaction; None for the new leader's empty block)."""
        transactions: list[Transaction] = payload if isinstance(payload, list) else []
        before = self._parent_of(height - 1, parent)
        head = self._head()
        if head.executed_height < before.executed_height:
            # After a restart this node may wait for a certificate to execute as far as the parent's maker had. It
            # repeats what the parent states, as executed_height never falls.
            head = Head(before.executed_height, before.roots)
        header = Header(
            chain=self._chain,
            change=None,
            configuration=self._configuration,
            count=len(transactions),
            executed_height=head.executed_height,
            format=FORMAT,
            height=height,
            history_root=head.roots.history,
            parent=parent,
            proposer=self._node_id,
            state_root=head.roots.state,
            term=term,
            # Block time never falls, whatever the clock does.
            time=max(before.time_ms + 1, self._now_ms()),
            tx_root=tx_root(transactions),
        )
        block = seal_block(header, transactions, self._key)
        self._sealed(block)
        return block.data, block.hash

    def acknowledge(self, term: int, height: int, block_hash: bytes) -> bytes:
        return sign_acknowledgement(self._key, self._chain, term, height, block_hash)

    def vote(self, term: int, candidate: str) -> bytes:
        return sign_vote(self._key, self._chain, term, candidate)
