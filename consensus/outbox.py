"""Messages on their way out. Nothing leaves in a term, or with a vote, that this node's disk could still forget."""

from collections import deque

from consensus.errors import require
from consensus.messages import Message, NodeId
from consensus.writes import Writes

HELD_MAX = 256


class Outbox:
    """Messages that may go now, and those held until the term and vote they were written under are durable.

    At HELD_MAX the oldest held one is dropped: to the receiver a lost message, which Raft survives.
    """

    def __init__(self, node_id: NodeId, writes: Writes) -> None:
        self._node_id = node_id
        self._writes = writes
        self._now: list[tuple[NodeId, Message]] = []
        self._held: deque[tuple[NodeId, Message]] = deque(maxlen=HELD_MAX)

    @property
    def has_messages(self) -> bool:
        return bool(self._now)

    def send(self, receiver: NodeId, message: Message) -> None:
        require(receiver != self._node_id, "a node sends nothing to itself")
        if self._writes.hard_state_durable:
            self._now.append((receiver, message))
        else:
            self._held.append((receiver, message))

    def release(self) -> None:
        """After the disk answered: let go what waited for it."""
        if self._writes.hard_state_durable:
            self._now.extend(self._held)
            self._held.clear()

    def drop_held(self) -> None:
        """A newer term makes what was held under the older one pointless."""
        self._held.clear()

    def take(self) -> tuple[tuple[NodeId, Message], ...]:
        messages = tuple(self._now)
        self._now.clear()
        return messages
