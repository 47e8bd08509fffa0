"""What goes into and comes out of the Raft core: frozen values, no behaviour.

A message carries no sender: the shell knows it from the authenticated link and passes it beside the message.
Every signature in here is opaque to the core; the shell has verified it before `step`.
"""

from dataclasses import dataclass
from enum import Enum

NodeId = str


@dataclass(frozen=True, slots=True)
class Configuration:
    """Who votes and who only follows; ascending, `learners` disjoint from the rest. In effect from its entry on.

    `old_voters` are set while the configuration is joint: then a quorum is one of `voters` and one of `old_voters`.
    """

    voters: tuple[NodeId, ...]
    learners: tuple[NodeId, ...] = ()
    old_voters: tuple[NodeId, ...] = ()

    @property
    def joint(self) -> bool:
        return bool(self.old_voters)

    @property
    def electorate(self) -> tuple[NodeId, ...]:
        """Whoever has a say: the voters, and the old ones while joint; ascending."""
        return tuple(sorted({*self.voters, *self.old_voters}))

    @property
    def members(self) -> tuple[NodeId, ...]:
        """Everyone the leader sends to: the electorate and the learners; ascending."""
        return tuple(sorted({*self.voters, *self.old_voters, *self.learners}))


@dataclass(frozen=True, slots=True)
class Entry:
    """One block: height == index. `parent` and `hash` are 32 bytes, `data` is the sealed block.

    `configuration` is set only where the block changes the membership.
    """

    height: int
    term: int
    parent: bytes
    hash: bytes
    data: bytes
    configuration: Configuration | None = None


@dataclass(frozen=True, slots=True)
class Certificate:
    """A quorum's signed acknowledgements of one block: it, and all its ancestors, are committed."""

    term: int
    height: int
    hash: bytes
    signatures: tuple[tuple[NodeId, bytes], ...]


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a block goes: all of it that the core decides and the block's header must say.

    `configuration` is in effect at this block. `change` says that this block brings it, out of a vote of the members;
    `proof` is set where the block leaves a joint configuration, and certifies the block's parent.
    """

    height: int
    term: int
    parent: bytes
    configuration: Configuration
    change: bool = False
    proof: Certificate | None = None


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """One voter's statement that the block is durable on its disk. The term is the carrying message's.

    Learners make none: the height of their AppendReply says as much.
    """

    height: int
    hash: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class PreVote:
    """Would you vote for me in `term`? Moves nobody's term. (Ongaro, section 9.6)"""

    term: int
    last_height: int
    last_term: int


@dataclass(frozen=True, slots=True)
class PreVoteReply:
    """`term` is the term asked for when granted, the replier's own when not."""

    term: int
    granted: bool


@dataclass(frozen=True, slots=True)
class Vote:
    """A candidate asks for a vote in `term`. `transfer`: its leader told it to; that it is heard is no objection."""

    term: int
    last_height: int
    last_term: int
    transfer: bool = False


@dataclass(frozen=True, slots=True)
class VoteReply:
    """`signature` covers the term and the candidate when granted, and is empty when not."""

    term: int
    granted: bool
    signature: bytes


@dataclass(frozen=True, slots=True)
class Append:
    """Entries after `prev_height`; with none of them it is the heartbeat. Carries the newest certificate.

    `round` counts up within the term; the answers echo it (consensus.reads says what that proves).
    """

    term: int
    prev_height: int
    prev_term: int
    prev_hash: bytes
    entries: tuple[Entry, ...]
    certificate: Certificate | None
    round: int = 0


class Answer(Enum):
    """What became of an Append."""

    ACCEPTED = "accepted"
    CONFLICT = "conflict"
    REFUSED = "refused"


class Reason(Enum):
    """Why a follower refuses a block that the log rules would allow.

    BEHIND is no verdict: the follower has not executed far enough to judge, and wants to be asked again.
    """

    NONE = ""
    BAD_TIME = "bad_time"
    BAD_ROOTS = "bad_roots"
    BAD_SIGNATURE = "bad_signature"
    BAD_STRUCTURE = "bad_structure"
    BEHIND = "behind"


@dataclass(frozen=True, slots=True)
class AppendReply:
    """ACCEPTED: the log holds the leader's entries up to `height`, on the disk; `acknowledgements` sign some of them.

    CONFLICT: the log has no `rejected_height` with the term and hash that the leader named; the common prefix is not
    above `height`, whose term here is `hint_term`.
    REFUSED: the block at `height` breaks a rule of the ledger, which `reason` names.
    `round` is the newest that the follower heard in this term. `stopping`: it is about to stop; hand it nothing.
    `binding`: it may vote (consensus.caution). What another says shows that it lives and what it holds; nothing may
    follow from it that rests on a quorum's word.
    """

    term: int
    answer: Answer
    height: int
    rejected_height: int = 0
    hint_term: int = 0
    acknowledgements: tuple[Acknowledgement, ...] = ()
    reason: Reason = Reason.NONE
    round: int = 0
    stopping: bool = False
    binding: bool = False


@dataclass(frozen=True, slots=True)
class TimeoutNow:
    """The leader of `term` to the voter that shall lead next: campaign at once. (Ongaro, section 3.10)"""

    term: int


@dataclass(frozen=True, slots=True)
class ReadIndex:
    """A follower asks the leader of `term` how high a linearizable read must wait. (Ongaro, section 6.4)"""

    term: int
    request: int


@dataclass(frozen=True, slots=True)
class ReadIndexReply:
    """What was committed when `request` was asked is at or below `height`; None: not known here, ask again."""

    term: int
    request: int
    height: int | None


@dataclass(frozen=True, slots=True)
class ReadState:
    """The answer to `read(token)`: the state after executing `height` shows every write acknowledged before.

    None: there is no answer; ask again.
    """

    token: int
    height: int | None


@dataclass(frozen=True, slots=True)
class CertifiedBlocks:
    """Blocks fetched from any peer, ending at the block of a verified certificate. Not sent by a leader."""

    entries: tuple[Entry, ...]
    certificate: Certificate


Message = PreVote | PreVoteReply | Vote | VoteReply | Append | AppendReply | TimeoutNow | ReadIndex | ReadIndexReply


@dataclass(frozen=True, slots=True)
class HardState:
    """What an election must not forget: the newest term and whom this node voted for in it."""

    term: int = 0
    vote: NodeId | None = None


class Role(Enum):
    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre_candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


@dataclass(frozen=True, slots=True)
class Ready:
    """What the shell must do now, in this order.

    1. Send `messages`: they depend on nothing that is not yet on the disk.
    2. In one synced batch: delete blocks from `truncate_from` up (if not None), put `entries`, put `hard_state`
       (if not None). Then call `persisted(seq)`. Batches are written in order of `seq`; calls are cumulative.
       Where all three are empty `seq` is 0 and there is nothing to persist.
    3. Execute what `committed` now certifies: this node's log up to its height is final, and is on its disk.
    4. Answer `reads`: each once this node has executed up to the height given.
    """

    messages: tuple[tuple[NodeId, Message], ...] = ()
    seq: int = 0
    truncate_from: int | None = None
    entries: tuple[Entry, ...] = ()
    hard_state: HardState | None = None
    committed: Certificate | None = None
    reads: tuple[ReadState, ...] = ()
