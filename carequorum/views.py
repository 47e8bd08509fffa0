"""What nodes tell in JSON and cannot prove, as typed values. Fields that a newer node adds are passed over."""

from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta

from ledger.contracts.context import BodyReference
from ledger.contracts.records import Record
from ledger.errors import Rejection
from ledger.finality import NodeId

Hex32 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$", max_length=64)]

T = TypeVar("T")


class Heights(msgspec.Struct, frozen=True):
    """`last` in the node's log, `committed`: certified, `executed` there; proofs are at `sealed` (None: not yet).
    Blocks up to `base` are pruned there.
    """

    last: int
    committed: int
    executed: int
    sealed: int | None
    base: int = 0


class Head(msgspec.Struct, frozen=True):
    """The newest executed block and the roots after it, in hex."""

    height: int
    hash: Hex32
    history_root: Hex32
    state_root: Hex32


class Member(msgspec.Struct, frozen=True):
    """A node as the answering one sees it. `lag_blocks` is known to the leader only."""

    id: NodeId
    organisation: NodeId
    role: Literal["voter", "learner", "pending"]
    address: str
    connected: bool
    lag_blocks: int | None


class PendingChange(msgspec.Struct, frozen=True):
    """A change of `node` that was voted at `height` and is not complete; the block at `appended` began it.
    `waits_for` says in words what is in its way, as far as the asked node knows."""

    kind: Literal["add_node", "promote", "remove"]
    node: NodeId
    proposal: Hex32
    height: int
    appended: int | None
    waits_for: str


class Evidence(msgspec.Struct, frozen=True):
    """`node` contradicted itself; `proof` holds both signed statements in base64."""

    kind: str
    node: NodeId
    proof: str


class NetworkStatus(msgspec.Struct, frozen=True):
    """The network as `node` sees it. `time` is that node's clock in ms; `barred`: a quorum refused its blocks;
    `amnesia`: its disk forgot what it had signed, and it votes no more.
    """

    network: str
    chain: Hex32
    node: NodeId
    organisation: NodeId | None
    role: str
    leader: NodeId | None
    term: int
    barred: bool
    amnesia: bool
    time: int
    heights: Heights
    head: Head
    steps: int
    joint: bool
    pending: PendingChange | None
    members: list[Member]
    evidence: list[Evidence]


class _Body(msgspec.Struct, frozen=True):
    commitment: Hex32
    size: int


class _Record(msgspec.Struct, frozen=True):
    record: Hex32
    author: Hex32
    body: _Body
    format: int
    height: int
    organisation: NodeId
    previous: Hex32 | None
    subject: Hex32
    time: int
    transaction: Hex32
    version: int


class _Records(msgspec.Struct, frozen=True):
    records: list[_Record]


def decode_view(shape: type[T], data: bytes) -> T:
    """A node's JSON answer as `shape`, or Rejection("bad_answer")."""
    try:
        return msgspec.json.decode(data, type=shape)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise Rejection("bad_answer", str(error)) from None


def decode_records(data: bytes) -> list[tuple[bytes, Record]]:
    """A page of a subject's records as (record id, record), or Rejection("bad_answer")."""
    return [(bytes.fromhex(view.record), _record(view)) for view in decode_view(_Records, data).records]


def _record(view: _Record) -> Record:
    return Record(
        author=bytes.fromhex(view.author),
        body=BodyReference(bytes.fromhex(view.body.commitment), view.body.size),
        format=view.format,
        height=view.height,
        organisation=view.organisation,
        previous=None if view.previous is None else bytes.fromhex(view.previous),
        subject=bytes.fromhex(view.subject),
        time=view.time,
        transaction=bytes.fromhex(view.transaction),
        version=view.version,
    )
