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
    """What may be shown of a follower: `match` is durable there, `silent_ticks` since its last answer.

    `heard`: it answered this leader at all. Its last answer said that it is about to stop (`stopping`), that it may
    vote (`binding`).
    """

    node_id: NodeId
    match: int
    state: State
    silent_ticks: int
    heard: bool = True
    stopping: bool = False
    binding: bool = False

    def counts(self, silent_ticks_max: int) -> bool:
        """Whether its vote can be reckoned with now: it answered lately, may vote, and is not about to stop."""
        return self.heard and self.binding and not self.stopping and self.silent_ticks <= silent_ticks_max


@dataclass(slots=True)
class Progress:
    """Flow control for one follower; nothing here commits anything.

    Invariants: 0 <= match < next; `match` falls only where the follower `lost` its log; `inflight` ascends and lies
    in (match, next): (height, data bytes) of each Append with blocks not yet answered, `inflight_bytes` their sum.
    `round` is the newest that it echoed while it could vote (`binding` is of its last answer), `match_round` the
    leader's when `match` last rose. `heard` is false until the first answer, whatever time `heard_tick` grants.
    `probing` says that blocks were sent on a guess and not answered. `moved_tick` is when the window last moved.
    """

    next: int
    heard_tick: int
    moved_tick: int
    match: int = 0
    state: State = State.PROBE
    probing: bool = False
    inflight: deque[tuple[int, int]] = field(default_factory=deque)
    inflight_bytes: int = 0
    heard: bool = False
    stopping: bool = False
    binding: bool = False
    round: int = 0
    match_round: int = 0

    def check(self) -> None:
        require(0 <= self.match < self.next, "0 <= match < next")

    def may_send(self, messages_max: int, bytes_max: int) -> bool:
        if self.state is State.PROBE:
            return not self.probing
        return len(self.inflight) < messages_max and self.inflight_bytes < bytes_max

    def sent(self, last: int, size_bytes: int, now: int) -> None:
        """Blocks up to `last` left for the follower, so much data in all."""
        if self.state is State.PROBE:
            self.probing = True
            return
        if not self.inflight:
            self.moved_tick = now
        self.inflight.append((last, size_bytes))
        self.inflight_bytes += size_bytes
        self.next = last + 1
        self.check()

    def accepted(self, height: int, now: int, leader_round: int) -> None:
        """The follower holds the leader's log up to `height`. Late and doubled answers change nothing."""
        if height > self.match:
            self.match, self.match_round = height, leader_round
            self.moved_tick = now
        while self.inflight and self.inflight[0][0] <= self.match:
            self.inflight_bytes -= self.inflight.popleft()[1]
        if self.state is State.PROBE:
            self.state, self.probing, self.next = State.REPLICATE, False, self.match + 1
            self.moved_tick = now
        self.next = max(self.next, self.match + 1)
        self.check()

    def is_stale_conflict(self, rejected: int) -> bool:
        """Whether a conflict at `rejected` answers something that is no longer asked.

        What the follower once accepted it holds: below `match` no conflict is believed, unless it `is_loss`.
        """
        if rejected <= self.match:
            return True
        return self.state is State.PROBE and rejected != self.next - 1

    def lost(self) -> None:
        """The follower's disk no longer holds what it accepted: nothing is known of it."""
        self.match = 0
        self.probe(self.next)

    def is_loss(self, rejected: int, round_heard: int) -> bool:
        """Whether a conflict at or below `match` proves that the follower lost what it had accepted.

        It does where it echoes a round that began after the acceptance arrived. No round yet: it may be an old one.
        Whether it may vote is no matter here: that it heard the round is enough.
        """
        return 0 < rejected <= self.match and round_heard > self.match_round

    def probe(self, next_height: int) -> None:
        """Begin or go on guessing where the logs agree; `next_height` is above `match`."""
        self.state, self.probing = State.PROBE, False
        self.inflight.clear()
        self.inflight_bytes = 0
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
