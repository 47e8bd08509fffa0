"""What the core is given at construction: its settings, what the disk remembered, and two ports."""

from dataclasses import dataclass
from typing import Protocol

from consensus.messages import Certificate, Configuration, Entry, HardState, NodeId, Slot


class Signer(Protocol):
    """Pure functions that know this node's key and the chain; the core never sees either."""

    def seal(self, slot: Slot, payload: object) -> tuple[bytes, bytes]:
        """The block's (data, hash). `payload` is what `propose` or `propose_change` was given.

        None: an empty block, such as a new leader's first, or the one that leaves a joint configuration. The parent
        is the newest block of this node's log, which may not be on the disk yet (`RaftCore.entry`).
        """
        ...

    def acknowledge(self, term: int, height: int, block: bytes) -> bytes:
        """The signature saying that `block` is on this node's disk."""
        ...

    def vote(self, term: int, candidate: NodeId) -> bytes:
        """The signature of a vote."""
        ...


class LogReader(Protocol):
    """The log as the disk holds it. Asked only for heights that `persisted` covered and no later batch deletes."""

    def term_hash(self, height: int) -> tuple[int, bytes] | None:
        """Term and hash of the block at `height`, or None if the disk does not hold it."""
        ...

    def entries(self, first: int, last: int, bytes_max: int) -> tuple[Entry, ...]:
        """Blocks from `first` up, at most to `last`, at least one, ending before `bytes_max` of data is passed."""
        ...


@dataclass(frozen=True, slots=True)
class CoreSettings:
    """Times in ticks. `seed` may be the same on every node: the node id is mixed in.

    election_ticks_min/max   the election timeout is drawn anew from this range, both ends included
    heartbeat_ticks          a leader is heard at least this often; at most half of election_ticks_min
    inflight_messages_max    Appends with blocks sent to one follower and not yet answered
    inflight_bytes_max       block data in them; the one that passes it still goes
    append_bytes_max         block data in one Append; one larger block still travels alone
    uncommitted_bytes_max    `propose` refuses beyond this much uncommitted data; also bounds blocks not yet on disk
    replicate_gap_blocks     a follower further behind the certificate gets heartbeats only, and fetches for itself
    promote_gap_blocks       a learner further behind the leader's log is not made a voter
    """

    node_id: NodeId
    election_ticks_min: int = 10
    election_ticks_max: int = 20
    heartbeat_ticks: int = 2
    seed: int = 0
    inflight_messages_max: int = 16
    inflight_bytes_max: int = 8 * 1024 * 1024
    append_bytes_max: int = 1024 * 1024
    uncommitted_bytes_max: int = 32 * 1024 * 1024
    replicate_gap_blocks: int = 128
    promote_gap_blocks: int = 64

    def __post_init__(self) -> None:
        if not 1 <= self.heartbeat_ticks * 2 <= self.election_ticks_min < self.election_ticks_max:
            raise ValueError("2 <= 2 * heartbeat_ticks <= election_ticks_min < election_ticks_max does not hold")
        bounds = (
            self.inflight_messages_max,
            self.inflight_bytes_max,
            self.append_bytes_max,
            self.replicate_gap_blocks,
            self.promote_gap_blocks,
        )
        if min(bounds) < 1 or self.uncommitted_bytes_max < self.append_bytes_max:
            raise ValueError("a bound is below 1, or uncommitted_bytes_max is below append_bytes_max")


@dataclass(frozen=True, slots=True)
class Restored:
    """What the disk holds at start. A new node: term 0, last_height 0, no certificate.

    `base_*` names the block below the first one kept: genesis (height 0, term 0, the chain id) until compaction.
    `certificate` is the newest one stored; its block is in the log and was executed.
    `configurations` are (height, configuration) pairs, ascending, the first at or below the base.
    `must_compare`: this node neither votes nor acknowledges until it compared notes with a quorum (`compared`).
    `forsworn`: it was shown to have forgotten a vote or an acknowledgement, and never votes again (`forswear`).
    """

    hard_state: HardState
    base_height: int
    base_term: int
    base_hash: bytes
    last_height: int
    certificate: Certificate | None
    configurations: tuple[tuple[int, Configuration], ...]
    must_compare: bool = False
    forsworn: bool = False
