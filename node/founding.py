"""May this node found a network? Only the one voter of a genesis can, and only when told so.

A node compares notes before it votes (node.comparison), but for the only voter of a genesis there is nobody to
compare with. If its disk was emptied after others had joined, it would begin the chain a second time, from block 1:
two certified chains. An empty disk does not tell that from a first start; its operator can.
"""

from ledger.genesis import Genesis
from node.config import ConfigError
from storage.store import Store


def check_founding(genesis: Genesis, node_id: str, store: Store, *, found: bool) -> None:
    """Raises ConfigError where an empty store would begin a network alone, unless the operator said `found`."""
    voters = [node.id for node in genesis.nodes if node.role == "voter"]
    empty = store.last_height() == 0 and store.hard_state().term == 0
    if voters == [node_id] and empty and not found:
        raise ConfigError(
            "node.found",
            False,
            "true if this is the very first start of a new network. Its genesis names no other voter, so this node "
            "would begin the chain anew, and with an emptied disk a second one. An emptied founder must not start: "
            "let the others vote it out and take in a new node instead (docs/operations.md, a disk that went back)",
        )
