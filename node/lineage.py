"""What a block must follow on, by its parent's hash: from memory for recent blocks, else from the store."""

from collections import OrderedDict

from ledger.block import Block, header_of
from ledger.genesis import Genesis
from node.inspector import Parent, Roots
from storage.store import Store

REMEMBERED_MAX = 1024


class Lineage:
    def __init__(self, genesis: Genesis, store: Store) -> None:
        roots = store.roots(0)
        self._genesis_parent = Parent(genesis.time, 0, Roots(roots.history, roots.state))
        self._store = store
        self._recent: OrderedDict[bytes, Parent] = OrderedDict()

    def learn(self, block: Block) -> None:
        self._recent[block.hash] = Parent.of(block.header)
        if len(self._recent) > REMEMBERED_MAX:
            self._recent.popitem(last=False)

    def parent_of(self, height: int, block_hash: bytes) -> Parent:
        """The Parent that the block with this hash, at this height of the log, is to the next one."""
        if height == 0:
            return self._genesis_parent
        recent = self._recent.get(block_hash)
        if recent is not None:
            return recent
        return Parent.of(header_of(self._store.block_data(height))[0])
