"""May this node vote and acknowledge? Not before it knows that its disk forgot nothing that others remember.

| state     | begins with                              | votes, acknowledges | ends with                       |
|-----------|------------------------------------------|---------------------|---------------------------------|
| comparing | `must_compare` at start                  | no                  | a quorum compared, itself in it |
|           |                                          |                     | and at the heights they named   |
| trusted   | that, or a start without `must_compare`  | yes                 | `forswear`                      |
| forsworn  | `forswear`, or `forsworn` at start       | never again         | never                           |
"""

from collections.abc import Callable

from consensus.configuration import ConfigurationHistory, has_quorum
from consensus.messages import NodeId

# More nodes than any network has; beyond it the peer that compared longest ago is forgotten.
COMPARED_MAX = 1_024


class Caution:
    """Once a quorum compared, later configurations ask for no more: what was forgotten was said before the start.

    A peer counts once this node's commit height has reached what that peer had certified (`_compared`: peer to that
    height): who votes now, a disk that forgot it could otherwise not say. Peers are remembered before they vote.
    """

    def __init__(
        self,
        node_id: NodeId,
        configurations: ConfigurationHistory,
        commit_height: Callable[[], int],
        *,
        must_compare: bool,
        forsworn: bool,
    ) -> None:
        self._node_id = node_id
        self._configurations = configurations
        self._commit_height = commit_height
        self._comparing = must_compare
        self._compared: dict[NodeId, int] = {}
        self.forsworn = forsworn

    @property
    def may_vote(self) -> bool:
        if self._comparing:
            commit_height = self._commit_height()
            reached = {peer for peer, height in self._compared.items() if height <= commit_height}
            self._comparing = not has_quorum(self._configurations.current, {self._node_id, *reached})
        return not self.forsworn and not self._comparing

    def compared(self, peer: NodeId, height: int) -> None:
        """`peer` compared, with a certificate at `height` as its newest; a later word replaces an earlier one."""
        if self._comparing:
            self._compared.pop(peer, None)
            self._compared[peer] = height
            if len(self._compared) > COMPARED_MAX:
                del self._compared[next(iter(self._compared))]

    def forswear(self) -> None:
        self.forsworn = True
