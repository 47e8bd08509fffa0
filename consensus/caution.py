"""May this node vote and acknowledge? Not before it knows that its disk forgot nothing that others remember.

| state     | begins with                              | votes, acknowledges | ends with                       |
|-----------|------------------------------------------|---------------------|---------------------------------|
| comparing | `must_compare` at start                  | no                  | a quorum compared, itself in it |
| trusted   | that, or a start without `must_compare`  | yes                 | `forswear`                      |
| forsworn  | `forswear`, or `forsworn` at start       | never again         | never                           |
"""

from consensus.configuration import ConfigurationHistory, has_quorum
from consensus.messages import NodeId


class Caution:
    """Once a quorum compared, later configurations ask for no more: what was forgotten was said before the start.

    The set of peers compared with is bounded by the electorate: others are not remembered.
    """

    def __init__(
        self, node_id: NodeId, configurations: ConfigurationHistory, *, must_compare: bool, forsworn: bool
    ) -> None:
        self._node_id = node_id
        self._configurations = configurations
        self._comparing = must_compare
        self._compared = {node_id}
        self.forsworn = forsworn

    @property
    def may_vote(self) -> bool:
        if self._comparing and has_quorum(self._configurations.current, self._compared):
            self._comparing = False
        return not self.forsworn and not self._comparing

    def compared(self, peer: NodeId) -> None:
        if peer in self._configurations.current.electorate:
            self._compared.add(peer)

    def forswear(self) -> None:
        self.forsworn = True
