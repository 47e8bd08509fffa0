"""The words of the provider port: what requests and answers are made of, and the port's view of the node.

In JSON, byte strings of up to 64 bytes (ids, hashes, keys, signatures, nonces) are lowercase hex, longer ones
base64; the field types below say which. MessagePack carries bytes as they are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, Protocol

import msgspec
from msgspec import Meta

from ledger.block import Block
from ledger.contracts.records import Record
from ledger.errors import Rejection
from ledger.finality import NodeId
from ledger.genesis import Genesis
from ledger.request import ReadRequest
from ledger.transaction import BODIES_MAX
from node.metrics import Metrics

ITEMS_MAX = 1_000
BLOCKS_MAX = 100
RECORDS_MAX = 100
HEX_BYTES_MAX = 64

# Where /openapi.json keeps the schemas, by name.
SCHEMAS = "#/components/schemas/"

# The lengths also refuse a trailing newline, which "$" lets through.
Hex32 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$", max_length=64, description="32 bytes in hex")]
Hex64 = Annotated[str, Meta(pattern="^[0-9a-f]{128}$", max_length=128, description="64 bytes in hex")]
Height = Annotated[int, Meta(ge=0, le=2**53)]
Base64 = Annotated[bytes, Meta(description="Base64 in JSON; bytes in MessagePack.")]
# `json_view` of what the ledger holds; `json_types.json_type` gives the schema that each of these names.
EnvelopeView = Annotated[dict[str, Any], Meta(extra_json_schema={"$ref": SCHEMAS + "transaction.Envelope"})]
ActionView = Annotated[dict[str, Any], Meta(extra_json_schema={"$ref": SCHEMAS + "Action"})]
ChangeView = Annotated[dict[str, Any], Meta(extra_json_schema={"$ref": SCHEMAS + "membership.Change"})]
CertificateView = Annotated[dict[str, Any], Meta(extra_json_schema={"$ref": SCHEMAS + "finality.Certificate"})]
ReceiptContent = Annotated[dict[str, Any], Meta(extra_json_schema={"$ref": SCHEMAS + "receipt.Receipt"})]
StateAnswerContent = Annotated[dict[str, Any], Meta(extra_json_schema={"$ref": SCHEMAS + "receipt.StateAnswer"})]
BodyReferenceView = Annotated[dict[str, Any], Meta(extra_json_schema={"$ref": SCHEMAS + "context.BodyReference"})]
StateValue = Annotated[Any, Meta(extra_json_schema={"$ref": SCHEMAS + "StateValue"})]

Status = Literal["unknown", "pending", "committed", "sealed", "dropped"]
Wait = Literal["accepted", "committed", "sealed"]
Flag = Literal["0", "1", "false", "true"]
PROVEN = frozenset({"1", "true"})
Consistency = Literal["local", "linearizable"]
Contract = Literal["identity", "network", "records"]
CutReason = Literal["internal", "not_allowed", "pruned", "stopping", "too_many", "too_slow"]
EventIdText = Annotated[
    str,
    Meta(
        pattern=r"^(0|[1-9][0-9]{0,15})(\.(0|[1-9][0-9]{0,3})\.(0|[1-9][0-9]?))?\Z",
        description="height.index.action; the height alone is the end of the block",
    ),
]
Role = Literal["follower", "pre_candidate", "candidate", "leader"]


class TxStatus(msgspec.Struct, frozen=True):
    """How far a transaction came. `height`, `index` and `code` are set from "committed" on.

    "committed" is certified and executed here; "sealed" has a receipt; "dropped" is said only once a
    committed block's time has passed the transaction's `until`. `code` is "ok" or why it changed nothing.
    `known_since` is set where it is "unknown" to a node that has pruned: the time, in ms, of the newest block whose
    transactions are forgotten. It may be in one up to then, and is in none after.
    """

    status: Status
    height: int | None = None
    index: int | None = None
    code: str | None = None
    known_since: int | None = None


class Submission(NamedTuple):
    """What became of one submitted transaction: accepted, or known already, when `rejection` is None.

    `id` is None only where the bytes could not be decoded far enough to have one.
    """

    id: bytes | None
    rejection: Rejection | None


@dataclass(frozen=True, slots=True)
class StoredBlock:
    """A committed block; `certificate` is the canonical bytes of its own, if this node has one."""

    block: Block
    certificate: bytes | None


class ExecutedBlock(NamedTuple):
    """An executed block as it is stored: its time, its signed transactions and their results, in block order."""

    time_ms: int
    transactions: list[bytes]
    results: list[bytes]


class Heights(msgspec.Struct, frozen=True):
    """`last` in the log, `committed`: certified, `executed` here; proofs are at `sealed` (None: not yet). Blocks up
    to `base` are pruned here.
    """

    last: Height
    committed: Height
    executed: Height
    sealed: Height | None
    base: Height


class Head(msgspec.Struct, frozen=True):
    """The newest executed block and the roots after it."""

    height: Height
    hash: Hex32
    history_root: Hex32
    state_root: Hex32


class Member(msgspec.Struct, frozen=True):
    """A node of the network as this one sees it, by the state it executed. "pending": voted for, not yet a learner.
    `lag_blocks` is known to the leader only."""

    id: NodeId
    organisation: NodeId
    role: Literal["voter", "learner", "pending"]
    address: str
    connected: bool
    lag_blocks: int | None


class PendingChange(msgspec.Struct, frozen=True):
    """A change of `node` that was voted at `height` and is not complete; `appended` is the height of the block that
    began it. `waits_for` says in words what is in its way; empty: nothing is."""

    kind: Literal["add_node", "promote", "remove"]
    node: NodeId
    proposal: Hex32
    height: Height
    appended: Height | None
    waits_for: str


class Evidence(msgspec.Struct, frozen=True):
    """A node contradicted itself; `proof` holds both signed statements, canonical bytes as base64."""

    kind: str
    node: NodeId
    proof: Base64


class NetworkView(msgspec.Struct, frozen=True):
    """GET /v1/network. `time` is this node's clock in ms; `barred`: a quorum refused its blocks; `amnesia`: its disk
    forgot what it had signed, and it votes no more."""

    network: str
    chain: Hex32
    node: NodeId
    organisation: NodeId | None
    role: Role
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


class Backend(Protocol):
    """What the provider port needs of the node. What is not async answers at once, from memory or disk."""

    node_id: str
    chain_id: bytes
    genesis: Genesis
    metrics: Metrics

    def now_ms(self) -> int:
        """This node's clock."""
        ...

    def fault(self, error: Exception) -> None:
        """Answering met this fault: the node stops if it is one that it must not go on after."""
        ...

    def ready(self) -> str | None:
        """None when it can serve, else why not."""
        ...

    def ailment(self) -> str | None:
        """What is not well with it, though it can serve."""
        ...

    def submit(self, items: Sequence[tuple[bytes, Sequence[bytes]]]) -> list[Submission]:
        """Check, pool and gossip (signed transaction, its bodies) pairs: one result each, in order.

        While the node is not `ready`, what only its state would refuse is refused as "not_ready".
        """
        ...

    async def wait(self, tx_id: bytes, level: Literal["committed", "sealed"], timeout_s: float) -> TxStatus:
        """The status once it is at `level` or dropped, or where it stands when the time is over."""
        ...

    def status(self, tx_id: bytes) -> TxStatus: ...

    def receipt(self, tx_id: bytes) -> bytes:
        """Canonical bytes. Raises Rejection: "unknown_transaction", "not_sealed", "pruned"."""
        ...

    def extend_receipt(self, data: bytes) -> bytes:
        """A saved receipt under the newest seal. Raises Rejection: "not_sealed", "bad_receipt", as `decode_as`."""
        ...

    def heights(self) -> Heights: ...

    def block(self, height: int) -> StoredBlock | None:
        """The committed block at `height` >= 1, or None above the executed height. Raises Rejection("pruned")."""
        ...

    def executed_block(self, height: int) -> ExecutedBlock:
        """The block at `height`, from 1 to the executed one. Raises Rejection("pruned")."""
        ...

    async def executed(self, height: int) -> None:
        """Return once `height` is executed here."""
        ...

    async def confirm(self, timeout_s: float, *, sealed: bool) -> None:
        """Return once this node has executed (`sealed`: can prove) all that any had acknowledged before the call.

        Raises Rejection: "not_confirmed" where that cannot be said in time, "busy".
        """
        ...

    def state(self, key: str) -> bytes | None:
        """The canonical value at the executed height."""
        ...

    def state_answer(self, key: str) -> bytes:
        """Value or absence with its proof at the sealed height. Raises Rejection("not_sealed") before any."""
        ...

    def body(self, commitment: bytes) -> bytes | None: ...

    def subject_records(self, subject: bytes, before: bytes | None, limit: int) -> list[tuple[bytes, Record]]:
        """(record id, record), newest first, from the one before record `before`.

        Raises Rejection("not_found") where `before` is no record of that subject.
        """
        ...

    def check_reader(self, request: ReadRequest) -> None:
        """Rejection: "unregistered", "revoked", "wrong_signer" unless the signer is an active member now.

        "not_ready" in the place of each of them while the node is not `ready`.
        """
        ...

    def network(self) -> NetworkView: ...


# What comes in.


class Item(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One signed transaction and the bodies it names, in order. The ledger checks sizes and contents."""

    envelope: Base64
    bodies: Annotated[list[Base64], Meta(max_length=BODIES_MAX)] = []


class SavedReceipt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A receipt that was given for a transaction, at any time."""

    receipt: Base64


Submitted = Item | Annotated[list[Item], Meta(min_length=1, max_length=ITEMS_MAX)]

# The parameters of each path, those in its template and those in its query alike.


class SubmitQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    wait: Annotated[Wait, Meta(description="What the answer waits for, at most `provider.wait_ms_max`.")] = "accepted"
    wait_ms: (
        Annotated[
            int,
            Meta(ge=1, le=600_000, description="How long at most, where that is less. Nothing waits for `accepted`."),
        ]
        | None
    ) = None


class ReadQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What every read from state or status takes."""

    consistency: Annotated[
        Consistency,
        Meta(
            description="`linearizable`: the answer knows of every write that any node acknowledged before the "
            "request; 503 `not_confirmed` where no quorum confirms it in time. `local`: what this node has executed."
        ),
    ] = "local"

    @property
    def proves(self) -> bool:
        """Whether the answer stands at the sealed height."""
        return False


class TransactionQuery(ReadQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    id: Annotated[Hex32, Meta(description="The transaction's id.")]


class ReceiptQuery(TransactionQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    @property
    def proves(self) -> bool:
        return True


class ExtendQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """No parameters."""


class BlockQuery(ReadQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    height: Annotated[Height, Meta(description="From 1; genesis, at 0, has a path of its own.")]


class BlocksQuery(ReadQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    from_: Annotated[int, Meta(ge=1, le=2**53, description="The first height.")] = msgspec.field(
        name="from", default=1
    )
    limit: Annotated[int, Meta(ge=1, le=BLOCKS_MAX, description="At most so many blocks.")] = 20


class StateQuery(ReadQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    contract: Annotated[str, Meta(pattern=r"^[a-z]{1,32}\Z", description="`records` needs a signed request.")]
    key: Annotated[
        str,
        Meta(
            pattern=r"^[a-z0-9][a-z0-9/-]{0,199}\Z",
            description="The contract's own path. Its slashes may stand as they are, or percent-encoded.",
        ),
    ]
    proof: Annotated[Flag, Meta(description="Whether to prove the value, or its absence, at the sealed height.")] = (
        "0"
    )

    @property
    def proves(self) -> bool:
        return self.proof in PROVEN


class BodyQuery(ReadQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    commitment: Annotated[Hex32, Meta(description="The commitment of a body, from a transaction or record.")]


class RecordsQuery(ReadQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    subject: Annotated[Hex32, Meta(description="The subject's handle.")]
    before: Annotated[Hex32, Meta(description="A record of the subject: go on with the one before it.")] | None = None
    limit: Annotated[int, Meta(ge=1, le=RECORDS_MAX, description="At most so many records.")] = 20


class EventsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    from_: Annotated[int, Meta(ge=1, le=2**53, description="The first height; by default, the next one.")] | None = (
        msgspec.field(name="from", default=None)
    )
    contract: Annotated[Contract, Meta(description="Only actions of this contract.")] | None = None
    subject: Annotated[Hex32, Meta(description="Only about this subject; needs a signed request.")] | None = None
    member: Annotated[Hex32, Meta(description="Only signed by this account, or making or changing it.")] | None = None


class NetworkQuery(ReadQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """No other parameters."""


class NoQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """No parameters."""


# What goes out.


class TransactionResult(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One result of a submission, or one transaction's status; what does not apply is left out.

    "refused" has a `code`, no `id`, and changed nothing. "unknown" has `known_since` where the node has pruned: the
    time in ms of the newest block whose transactions it has forgotten, this one perhaps among them.
    """

    id: Hex32 | None = None
    status: Status | Literal["refused"]
    code: str | None = None
    detail: str | None = None
    height: int | None = None
    index: int | None = None
    known_since: int | None = None


class SubmitAnswer(msgspec.Struct, frozen=True):
    results: list[TransactionResult]


class ReceiptView(msgspec.Struct, frozen=True):
    """`receipt` is what verifies offline, canonical bytes as base64; `content` is the same for people."""

    id: Hex32
    receipt: Base64
    content: ReceiptContent


class HeaderView(msgspec.Struct, frozen=True):
    """ledger.block.Header."""

    chain: Hex32
    change: ChangeView | None
    configuration: Hex32
    count: int
    executed_height: Height
    format: int
    height: Height
    history_root: Hex32
    parent: Hex32
    proof: CertificateView | None
    proposer: NodeId
    state_root: Hex32
    term: int
    time: int
    tx_root: Hex32


class TransactionView(msgspec.Struct, frozen=True):
    """One transaction in a block; `hash` is that of the signed bytes, `envelope` what was signed."""

    id: Hex32
    hash: Hex32
    signature: Hex64
    envelope: EnvelopeView


class BlockView(msgspec.Struct, frozen=True):
    """A committed block. `certificate` is its own, null where only a later block's certificate covers it."""

    height: Height
    hash: Hex32
    header: HeaderView
    signature: Hex64
    transactions: list[TransactionView]
    certificate: CertificateView | None


class BlocksAnswer(msgspec.Struct, frozen=True):
    """Ascending by height. `next` is where to go on, null when this was the newest."""

    blocks: list[BlockView]
    next: int | None


class StateView(msgspec.Struct, frozen=True):
    """A state value at `height`, the executed one. Not proven: ask with proof=1 for what verifies."""

    contract: str
    key: str
    height: Height
    value: StateValue


class StateProofView(msgspec.Struct, frozen=True):
    """`answer` verifies offline, canonical bytes as base64: value or absence at the sealed height.

    `content` is the same for people.
    """

    contract: str
    key: str
    answer: Base64
    content: StateAnswerContent


class RecordView(msgspec.Struct, frozen=True):
    """ledger.contracts.records.Record under its id."""

    record: Hex32
    author: Hex32
    body: BodyReferenceView
    format: int
    height: Height
    organisation: NodeId
    previous: Hex32 | None
    subject: Hex32
    time: int
    transaction: Hex32
    version: int


class RecordsAnswer(msgspec.Struct, frozen=True):
    """Newest first. `next` is the `before` to go on with, null at the subject's first record."""

    records: list[RecordView]
    next: Hex32 | None


class BodyView(msgspec.Struct, frozen=True):
    """A sealed body that an action names."""

    commitment: Hex32
    size: int


class EventView(msgspec.Struct, frozen=True):
    """ledger.events.Event. `time` is the block's, in ms; `accounts` are those that the actions make or change."""

    id: EventIdText
    height: Height
    time: int
    transaction: Hex32
    by: Hex32
    code: str
    accounts: list[Hex32]
    actions: list[ActionView]
    bodies: list[BodyView]


class CutView(msgspec.Struct, frozen=True):
    """Why a stream of events ends here, and the id to go on after."""

    reason: CutReason
    resume: EventIdText


class Health(msgspec.Struct, frozen=True, omit_defaults=True):
    """`detail` is for people: what is not well, though clients can be served."""

    status: Literal["ok", "ready"]
    detail: str | None = None


class Problem(msgspec.Struct, frozen=True):
    """RFC 9457. `code` is stable and listed in docs/errors.md; `detail` is for people."""

    type: Literal["about:blank"]
    title: str
    status: int
    code: str
    detail: str


def json_view(value: object) -> Any:
    """A canonical value, or a Struct of the ledger, as JSON can carry it."""
    if isinstance(value, bytes):
        return value.hex() if len(value) <= HEX_BYTES_MAX else msgspec.to_builtins(value)
    if isinstance(value, msgspec.Struct):
        return json_view(msgspec.to_builtins(value, builtin_types=(bytes,)))
    if isinstance(value, Mapping):
        return {key: json_view(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_view(item) for item in value]
    return value
