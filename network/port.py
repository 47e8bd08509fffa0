"""The border between the links and the node: what each side may expect of the other."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from consensus.messages import Message, NodeId

Direction = Literal["in", "out"]

# Sees each frame in clear: ("in" | "out", peer, frame). For tests that look for what must not be there.
Tap = Callable[[Direction, NodeId, bytes], None]


class SharedTransaction(NamedTuple):
    """A signed transaction as it travels, with the sealed bodies that its envelope commits to, in order.

    Nothing in it has been checked but its size.
    """

    envelope: bytes
    bodies: Sequence[bytes]


class BlockRange(NamedTuple):
    """Consecutive blocks as stored, ending at the block that `certificate` (canonical bytes) certifies.

    No blocks and no certificate: nothing certified is held at the height that was asked for. Blocks up to `base` are
    pruned.
    """

    blocks: Sequence[bytes]
    certificate: bytes | None
    base: int = 0


class SnapshotOffer(NamedTuple):
    """The manifest of a snapshot and what proves it, both as bytes and unchecked."""

    manifest: bytes
    proof: bytes


@dataclass(frozen=True, slots=True)
class Identity:
    """This node: its id, the 32-byte seed of its key, its certificate (DER)."""

    node_id: NodeId
    seed: bytes
    certificate: bytes

    def __repr__(self) -> str:
        return f"Identity({self.node_id})"


@dataclass(frozen=True, slots=True)
class Peer:
    """Another node as the ledger names it. With no address it is never dialled, but may dial us.

    A removed peer is not dialled; when it dials it gets a signed goodbye and nothing else.
    """

    certificate: bytes
    address: tuple[str, int] | None
    standing: Literal["member", "removed"] = "member"


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """`sending`: both lanes to the peer are up. `receiving`: both lanes from it are."""

    sending: bool
    receiving: bool


@dataclass(frozen=True, slots=True)
class NetworkSettings:
    """Times in ms, sizes in bytes. Port 0 takes any free port; `PeerNetwork.address` then tells which.

    `gossip_interval_ms` is the least time between two batches of pushed transactions: the first of a burst leaves
    at once, the others share a frame. `liveness_ms` is after how much silence a link is probed; half as long again
    without an answer closes it. A redial waits between `redial_min_ms` and `redial_max_ms`, doubling.
    """

    listen_host: str
    listen_port: int
    reannounce_ms: int = 5_000
    gossip_interval_ms: int = 20
    fetch_timeout_ms: int = 2_000
    dial_timeout_ms: int = 3_000
    redial_min_ms: int = 50
    redial_max_ms: int = 1_000
    liveness_ms: int = 4_000
    gossip_queue_bytes_max: int = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class VoteShown:
    """The node that it is shown to voted for `candidate` in `term`, under its signature."""

    term: int
    candidate: NodeId
    signature: bytes


@dataclass(frozen=True, slots=True)
class AcknowledgementShown:
    """The node that it is shown to said that this block was on its disk, under its signature."""

    term: int
    height: int
    hash: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class HeaderShown:
    """The canonical header of a block that the node it is shown to proposed, and its signature."""

    header: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class Statements:
    """The newest of each kind that one node holds from another, shown to that other whenever they connect.

    `certified_height`: up to where the one who shows it has certified blocks.
    """

    vote: VoteShown | None = None
    acknowledgement: AcknowledgementShown | None = None
    header: HeaderShown | None = None
    certified_height: int = 0


class Handler(Protocol):
    """What the node does with what peers send. Called on the event loop; none of these may block or wait.

    A peer's mistake is a Rejection: the link to it is closed and counted. Any other exception is ours, and ends
    the network with it. Messages of one peer may overtake each other where their streams differ.
    """

    def on_consensus(self, sender: NodeId, message: Message) -> None:
        """A message for the core. Only its form was checked: signatures, hashes and terms are the node's to check."""
        ...

    def on_transactions(self, sender: NodeId, transactions: Sequence[SharedTransaction]) -> None:
        """Pushed or fetched transactions, unchecked, some of them perhaps known."""
        ...

    def wanted(self, sender: NodeId, transaction_ids: Sequence[bytes]) -> Sequence[bytes]:
        """Those of the announced ids that this node has never seen and would take."""
        ...

    def announceable(self, ids_max: int) -> Sequence[bytes]:
        """Ids of pooled transactions that peers may have missed, oldest first, at most `ids_max`."""
        ...

    def serve_transactions(self, transaction_ids: Sequence[bytes]) -> Sequence[SharedTransaction]:
        """The pooled ones among these ids."""
        ...

    def serve_blocks(self, from_height: int, bytes_max: int) -> BlockRange:
        """Certified blocks from `from_height` up: as many as `bytes_max` holds, or as few as reach a certificate."""
        ...

    def serve_bodies(self, commitments: Sequence[bytes], bytes_max: int) -> Sequence[bytes]:
        """The bodies held among these, in any order, stopping before `bytes_max` is passed."""
        ...

    def statements_of(self, peer: NodeId) -> Statements:
        """What this node holds from the peer, to show it in the greeting."""
        ...

    def on_statements(self, peer: NodeId, statements: Statements) -> None:
        """The peer shows what it holds from this node: before anything else that it says on the connection."""
        ...

    def serve_snapshot(self) -> SnapshotOffer | None:
        """The newest snapshot held, if there is one that can be proved."""
        ...

    def serve_chunk(self, snapshot: bytes, index: int) -> bytes | None:
        """A chunk of the snapshot with this id, if it is held."""
        ...

    def on_connected(self, peer: NodeId) -> None:
        """Both lanes to the peer are up: what is sent from now on can reach it."""
        ...

    def on_goodbye(self, peer: NodeId, reason: str) -> None:
        """The peer ended our link to it and signed why: "removed", or the code of what it did not accept."""
        ...


class Counters(Protocol):
    """What is counted. Reasons and kinds are fixed small sets; docs/network.md lists them."""

    def connection_refused(self, reason: str) -> None: ...

    def frame_refused(self, reason: str) -> None: ...

    def message_dropped(self, kind: str, reason: str) -> None: ...

    def frame_moved(self, direction: Direction, kind: str, size_bytes: int) -> None: ...

    def gossip_decoded(self, seconds: float) -> None:
        """A message of that lane came; its last frame and the decoding took so much of a processor."""
        ...


class FetchFailed(Exception):  # noqa: N818 - an outcome that callers expect, not a fault
    """No answer to a question put to a peer. `reason`: not_connected, busy, timed_out, disconnected, malformed."""

    def __init__(self, peer: NodeId, reason: str) -> None:
        super().__init__(f"{peer}: {reason}")
        self.peer = peer
        self.reason = reason
