"""What this node signs: blocks that it proposes, acknowledgements, votes. The core's `Signer`."""

from collections.abc import Callable
from dataclasses import dataclass

from consensus.messages import Slot
from ledger.block import FORMAT, Block, Header, seal_block, tx_root
from ledger.finality import sign_acknowledgement, sign_vote
from ledger.genesis import Genesis
from ledger.keys import SigningKey
from ledger.membership import Change, Configuration, configuration_after
from ledger.transaction import Transaction
from node.certificates import signed
from node.inspector import Parent, Roots
from storage.configurations import members_of


@dataclass(frozen=True, slots=True)
class Head:
    """What this node has executed, and the roots after it."""

    executed_height: int
    roots: Roots


class BlockMaker:
    """`parent_of(height, hash)` is the Parent that a block on top of it must follow; `next_change` is what was voted,
    given the configuration that it changes; `sealed` sees each new block."""

    def __init__(
        self,
        genesis: Genesis,
        node_id: str,
        key: SigningKey,
        *,
        parent_of: Callable[[int, bytes], Parent],
        next_change: Callable[[Configuration], Change],
        head: Callable[[], Head],
        now_ms: Callable[[], int],
        sealed: Callable[[Block], None],
    ) -> None:
        self._chain = genesis.chain_id()
        self._node_id = node_id
        self._key = key
        self._parent_of = parent_of
        self._next_change = next_change
        self._head = head
        self._now_ms = now_ms
        self._sealed = sealed

    def seal(self, slot: Slot, payload: object) -> tuple[bytes, bytes]:
        """A signed block over `payload`: a list of Transaction, or None for an empty block."""
        transactions: list[Transaction] = payload if isinstance(payload, list) else []
        before = self._parent_of(slot.height - 1, slot.parent)
        change = self._next_change(before.place.configuration) if slot.change else None
        proof = None if slot.proof is None else signed(slot.proof).encode()
        configuration = configuration_after(before.place.configuration, change, leaves=proof is not None)
        assert members_of(configuration) == slot.configuration, "the core asks for what was voted"
        unchanged = configuration is before.place.configuration
        head = self._head()
        if head.executed_height < before.executed_height:
            # After a restart this node may wait for a certificate to execute as far as the parent's maker had. It
            # repeats what the parent states, as executed_height never falls.
            head = Head(before.executed_height, before.roots)
        header = Header(
            chain=self._chain,
            change=change,
            configuration=before.digest if unchanged else configuration.digest(),
            count=len(transactions),
            executed_height=head.executed_height,
            format=FORMAT,
            height=slot.height,
            history_root=head.roots.history,
            parent=slot.parent,
            proof=proof,
            proposer=self._node_id,
            state_root=head.roots.state,
            term=slot.term,
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
