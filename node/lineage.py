"""What a block must follow on, by its parent's hash: from memory for recent blocks, else from the store."""

from collections import OrderedDict

from ledger.block import Block, header_of
from ledger.genesis import Genesis
from node.inspector import Parent, Roots
from node.membership import Place
from storage.base import base_header
from storage.configurations import in_effect
from storage.store import Store

REMEMBERED_MAX = 1024


class Lineage:
    def __init__(self, genesis: Genesis, store: Store) -> None:
        roots, configuration = store.roots(0), genesis.configuration()
        self._genesis_parent = Parent(
            genesis.time,
            0,
            Roots(roots.history, roots.state),
            Place(0, configuration),
            configuration.digest(),
        )
        self._store = store
        self._recent: OrderedDict[bytes, Parent] = OrderedDict()

    def learn(self, block: Block) -> None:
        """A block that the log holds or is about to: it comes after its parent."""
        header = block.header
        if block.hash in self._recent:
            self._recent.move_to_end(block.hash)
            return
        self._recent[block.hash] = self.parent_of(header.height - 1, header.parent).child(header)
        if len(self._recent) > REMEMBERED_MAX:
            self._recent.popitem(last=False)

    def parent_of(self, height: int, block_hash: bytes) -> Parent:
        """The Parent that the block with this hash, at this height of the log, is to the next one."""
        if height == 0:
            return self._genesis_parent
        recent = self._recent.get(block_hash)
        if recent is not None:
            return recent
        base = self._store.base
        header = base_header(base) if height == base.height else header_of(self._store.block_data(height))[0]
        assert header is not None, "genesis was answered"
        return Parent.of(header, in_effect(self._store.configurations(), height))
