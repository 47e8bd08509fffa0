"""Who is connected with whom: what both sides pin, and what they show each other before anything else.

Whenever two nodes connect, each shows the other the newest that it holds of it (node/comparison.py). What is shown is
never lost alone: if it does not arrive, the connection is gone, and the next one begins with it again.
"""

import random
from collections import Counter
from typing import TYPE_CHECKING

from tests.sim.network import SimNetwork

if TYPE_CHECKING:
    from tests.sim.node import SimNode

# A message that finds no connection makes one, and is lost itself more often than not.
LOST_SHARE = 0.5


class Links:
    """`nodes` are the running ones; a pair is in `_connected` in the order of its names."""

    def __init__(
        self, nodes: "dict[str, SimNode]", network: SimNetwork, chance: random.Random, counts: Counter[str]
    ) -> None:
        self._nodes = nodes
        self._network = network
        self._chance = chance
        self._counts = counts
        self._connected: dict[tuple[str, str], None] = {}

    def forget(self, name: str) -> None:
        """The node is down, and every connection of it."""
        for pair in [pair for pair in self._connected if name in pair]:
            del self._connected[pair]

    def disconnect(self, one: str, other: str) -> None:
        self._connected.pop(_pair(one, other), None)

    def pinned(self, one: str, other: str) -> bool:
        """Whether both know each other, and neither knows that the other is out."""
        first, second = self._nodes.get(one), self._nodes.get(other)
        if first is None or second is None:
            return False
        return _knows(first, other) and _knows(second, one)

    def reach(self, sender: str, receiver: str) -> bool:
        """Whether a message of `sender` can set out now; connects them if that is all that is missing."""
        pair = _pair(sender, receiver)
        if pair in self._connected:
            return True
        if not self.connect(sender, receiver):
            return False
        return self._chance.random() >= LOST_SHARE

    def connect(self, one: str, other: str) -> bool:
        pair = _pair(one, other)
        first, second = self._nodes.get(one), self._nodes.get(other)
        if pair in self._connected or first is None or second is None:
            return pair in self._connected
        cut = (one, other) in self._network.cut or (other, one) in self._network.cut
        if cut or first.failed is not None or second.failed is not None or not self.pinned(one, other):
            return False
        self._connected[pair] = None
        self._counts["connection"] += 1
        self._network.show(one, other, first.holdings.shown_to(other, first.core.commit_height))
        self._network.show(other, one, second.holdings.shown_to(one, second.core.commit_height))
        return True


def _pair(one: str, other: str) -> tuple[str, str]:
    return (one, other) if one < other else (other, one)


def _knows(node: "SimNode", other: str) -> bool:
    peer = node.roster.peers().get(other)
    return peer is not None and peer.standing == "member"
