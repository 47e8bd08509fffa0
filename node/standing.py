"""How this node stands in the network: pins follow the ledger at once, and it ends when it is out.

| what it learns                                    | what it does                                                  |
|---------------------------------------------------|---------------------------------------------------------------|
| a block that it executes changes the nodes        | pins are replaced; links of who left are cut                  |
| such a block removes this node                    | ends (RemovedError) after one election timeout                |
| a quorum of the other voters signs that it is out | ends at once (RemovedError)                                   |
| the ledger gives its id to another key            | ends (WrongKeyError)                                          |
"""

import asyncio
from collections.abc import Callable, Collection, Mapping
from typing import Protocol

from ledger.finality import quorum
from network.port import Peer
from node.metrics import Metrics
from node.roster import Roster
from storage.executed import Commit
from storage.store import Store


class RemovedError(Exception):
    """This node is out, by its own executed state or by the signed word of a quorum of the voters."""


class WrongKeyError(Exception):
    """The ledger names another key for this node's id."""


class Pinning(Protocol):
    def set_peers(self, peers: Mapping[str, Peer]) -> None: ...


class Standing:
    """`electorate` are those who vote now; `end` stops the node; `changed` is told of each change of the nodes.

    `grace_s`: an election timeout. A leader that removed itself hands over in it, and clients hear how it ended.
    Construction raises RemovedError or WrongKeyError, where the store says so already.
    """

    def __init__(
        self,
        node_id: str,
        public_key: bytes,
        store: Store,
        roster: Roster,
        metrics: Metrics,
        *,
        electorate: Callable[[], Collection[str]],
        end: Callable[[Exception], None],
        changed: Callable[[], None],
        grace_s: float,
    ) -> None:
        self._node_id = node_id
        self._public_key = public_key
        self._store = store
        self._roster = roster
        self._metrics = metrics
        self._electorate = electorate
        self._end = end
        self._changed = changed
        self._grace_s = grace_s
        self._network: Pinning | None = None
        # Who says that this node is out.
        self._dismissed_by: set[str] = set()
        self._check_own_record()
        if roster.is_removed(node_id):
            raise RemovedError(f"block {store.executed_height} or one below it removed this node")

    def attach(self, network: Pinning) -> None:
        """Pin whom the ledger names, from now on."""
        self._network = network
        self._follow()

    def executed(self, commit: Commit) -> None:
        """A block was executed here."""
        if not self._roster.executed(commit):
            return
        self._check_own_record()
        self._follow()
        self._changed()
        if self._roster.is_removed(self._node_id):
            error = RemovedError(f"block {commit.height} removed this node")
            asyncio.get_running_loop().call_later(self._grace_s, self._end, error)

    def dismissed(self, peer: str) -> None:
        """A peer signed that this node is out. One may lie; a quorum of the other voters known here does not."""
        self._dismissed_by.add(peer)
        others = set(self._electorate()) - {self._node_id}
        if len(self._dismissed_by & others) >= quorum(len(others)):
            self._end(RemovedError(f"removed, say {', '.join(sorted(self._dismissed_by))}"))

    def _follow(self) -> None:
        assert self._network is not None, "it was attached"
        self._network.set_peers(self._roster.peers())
        configuration, metrics = self._store.configuration, self._metrics
        metrics.voters.set(len(configuration.signers))
        metrics.learners.set(len(configuration.learners))
        metrics.configuration_steps.set(configuration.steps)
        metrics.change_pending.set(self._roster.pending is not None)

    def _check_own_record(self) -> None:
        known = self._roster.key_of(self._node_id)
        if known is not None and known != self._public_key:
            raise WrongKeyError(f"the ledger names another key for {self._node_id} than the key file holds")
