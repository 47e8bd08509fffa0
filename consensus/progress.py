"""What a leader knows of one follower's log.

| state     | the follower's log                       | the leader sends                                          |
|-----------|------------------------------------------|-----------------------------------------------------------|
| PROBE     | agrees up to an unknown height           | one Append, then a heartbeat at a time, at `next` - 1     |
| REPLICATE | agrees up to `match`, probably to `next` | blocks as fast as the window allows; heartbeat at `match` |
"""

from collections import deque
from dataclasses import dataclass, field
from enum import Enum

from consensus.errors import require
from consensus.messages import NodeId


class State(Enum):
    PROBE = "probe"
    REPLICATE = "replicate"


@dataclass(frozen=True, slots=True)
class FollowerView:
    """What may be shown of a follower: `match` is durable there, `silent_ticks` since its last answer."""

    node_id: NodeId
    match: int
    state: State
    silent_ticks: int


@dataclass(slots=True)
class Progress:
    """Flow control for one follower; nothing here commits anything.

    Invariants: 0 <= match < next; `match` never falls; `inflight` ascends and lies in (match, next).
    `probing` says that blocks were sent on a guess and not answered. `moved_tick` is when the window last moved.
    """

    next: int
    heard_tick: int
    moved_tick: int
    match: int = 0
    state: State = State.PROBE
    probing: bool = False
    inflight: deque[int] = field(default_factory=deque)

    def check(self) -> None:
        require(0 <= self.match < self.next, "0 <= match < next")

    def may_send(self, inflight_max: int) -> bool:
        return not self.probing if self.state is State.PROBE else len(self.inflight) < inflight_max

    def sent(self, last: int, now: int) -> None:
        """Blocks up to `last` left for the follower."""
        if self.state is State.PROBE:
            self.probing = True
            return
        if not self.inflight:
            self.moved_tick = now
        self.inflight.append(last)
        self.next = last + 1
        self.check()

    def accepted(self, height: int, now: int) -> None:
        """The follower holds the leader's log up to `height`. Late and doubled answers change nothing."""
        if height > self.match:
            self.match = height
            self.moved_tick = now
        while self.inflight and self.inflight[0] <= self.match:
            self.inflight.popleft()
        if self.state is State.PROBE:
            self.state, self.probing, self.next = State.REPLICATE, False, self.match + 1
            self.moved_tick = now
        self.next = max(self.next, self.match + 1)
        self.check()

    def is_stale_conflict(self, rejected: int) -> bool:
        """Whether a conflict at `rejected` answers something that is no longer asked.

        What the follower once accepted it holds: below `match` no conflict is believed.
        """
        if rejected <= self.match:
            return True
        return self.state is State.PROBE and rejected != self.next - 1

    def probe(self, next_height: int) -> None:
        """Begin or go on guessing where the logs agree; `next_height` is above `match`."""
        self.state, self.probing = State.PROBE, False
        self.inflight.clear()
        self.next = next_height
        self.check()

    def heartbeat_height(self, now: int, patience_ticks: int) -> int:
        """Where an empty Append looks: at a height that cannot conflict, unless the window has stood still.

        Then it looks behind everything sent: a follower that lost some of it answers with a conflict, one that is
        merely slow does not.
        """
        if self.state is State.PROBE:
            return self.next - 1
        stalled = bool(self.inflight) and now - self.moved_tick >= patience_ticks
        return self.next - 1 if stalled else self.match
