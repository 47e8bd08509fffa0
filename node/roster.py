"""The nodes as the executed state names them: whose keys are known, who may connect, what the next change is to be.

Read from the store once, and again after each block that changed it.
"""

from collections.abc import Mapping

from ledger.contracts import network
from network.port import Peer
from storage import schema
from storage.executed import Commit
from storage.store import Store

# A block that changed none of these changed no node.
_WATCHED = tuple(
    schema.state_key(path) for path in (network.CONFIGURATION_PATH, network.NODES_PATH, network.PENDING_PATH)
)


class Roster:
    """`addresses` are those that this node was told to dial instead of the ledger's, node id to host:port;
    `introduced` are nodes that count as members until the ledger, as far as it is executed here, names them: id to
    certificate.
    """

    def __init__(self, store: Store, addresses: Mapping[str, str], introduced: Mapping[str, bytes]) -> None:
        self._store = store
        self._addresses = addresses
        self._introduced = introduced
        self._read()

    def executed(self, commit: Commit) -> bool:
        """A block was executed: whether it changed what stands here."""
        if not any(key in commit.changes for key in _WATCHED):
            return False
        self._read()
        return True

    def key_of(self, node_id: str) -> bytes | None:
        """The key of a node, also of one that was removed."""
        record = self.records.get(node_id)
        return None if record is None else record.key

    def is_removed(self, node_id: str) -> bool:
        record = self.records.get(node_id)
        return record is not None and record.role == "removed"

    def peers(self) -> dict[str, Peer]:
        """Whom to pin: every node that ever was, the removed ones to tell them so."""
        peers = {
            node_id: Peer(certificate, _parsed(self._addresses[node_id]))
            for node_id, certificate in self._introduced.items()
        }
        for node_id, record in self.records.items():
            if record.role == "removed":
                peers[node_id] = Peer(record.certificate, None, "removed")
            else:
                peers[node_id] = Peer(record.certificate, _parsed(self._addresses.get(node_id, record.address)))
        return peers

    def _read(self) -> None:
        read = self._store.get
        self.records = network.node_records(read)
        self.pending = network.pending_change(read)


def _parsed(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)
