"""One signed transaction, submitted until its end is known.

The same bytes go to one node after another: a second arrival changes nothing, and any node may be the one that is
down, cut off or behind. The rules:

a node says            then
committed, sealed      that is the end, good or bad
dropped                a committed block's time has passed `until`: it can never happen
pending                the next node: this one may be cut off
refused: its form      the end, unless some node may hold it already: every node would say the same
refused: who, when     ask the same node what it knows of it, for it may be the very transaction that changed who
                       signs; then the next node, for this one may be behind. When all refuse and none may hold
                       it: the end
refused: pruned        the same; when no node knows more of it, the outcome is unknown: it may have been committed
                       long ago, in a block that these nodes keep no longer
refused: full, busy,   the next node, and a pause of at least Retry-After after the round
not ready
nothing                the next node; if the request was sent, the node may hold it

A node is asked to wait for the commit no longer than this client waits for an answer: at each, ANSWER_SHARE of
`answer_timeout_s`, and not beyond the time of the transaction. Otherwise a node that may wait longer would be taken
for one that does not answer.

When `until` is long past by this client's clock and nobody could tell, the outcome is unknown, and said to be. After
a refusal that another node need not give, each of them is asked first.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from carequorum.transport import JSON, MSGPACK, Node, NodeFailed, Pauses, Refused, Settings, Transport, Unreachable
from ledger.encoding import encode
from ledger.errors import Rejection
from ledger.execution import OK
from ledger.transaction import Transaction, check_bodies, decode_transaction

Level = Literal["committed", "sealed"]
GRACE_MS = 5_000
# Of the time that one request may take; the rest is for the way there and back.
ANSWER_SHARE = 0.8
# What a node has for the rest of its work on a transaction whose time is over.
LAST_WAIT_MS = 1_000
# As the port bounds it.
WAIT_MS_MAX = 600_000
# 202 says that a commit was waited for, and has yet to come.
WITH_PENDING = (200, 202)
_PRUNED = "pruned"
# Refusals that depend on what a node has executed and kept, or on its clock.
_DEPENDS = frozenset({"duplicate", "expired", "revoked", "unregistered", "until_too_far", "wrong_signer", _PRUNED})


class TxStatus(msgspec.Struct, frozen=True):
    """How far a transaction came, by one node's word. `height`, `index`, `code` are set from "committed" on.

    `known_since` is set where the node has pruned and the transaction is "unknown" to it: the time, in ms, of the
    newest block whose transactions it has forgotten. The transaction may be in one up to then.
    """

    status: Literal["unknown", "pending", "committed", "sealed", "dropped", "refused"]
    height: int | None = None
    index: int | None = None
    code: str | None = None
    detail: str | None = None
    known_since: int | None = None


@dataclass(frozen=True, slots=True)
class Committed:
    """Transaction `id` (32 bytes) is number `index` of the block at `height`, and every action of it happened."""

    id: bytes
    height: int
    index: int


class TransactionFailed(Rejection):
    """It is committed with this code and changed nothing. `id` 32 bytes."""

    def __init__(self, tx_id: bytes, code: str, height: int) -> None:
        super().__init__(code, f"transaction {tx_id.hex()} is in block {height} and changed nothing")
        self.id = tx_id
        self.height = height


class TransactionExpired(Rejection):
    """It is in no block and can never be."""

    def __init__(self, tx_id: bytes) -> None:
        super().__init__("expired", f"transaction {tx_id.hex()} was in no block before its time was over")
        self.id = tx_id


class OutcomeUnknown(Rejection):
    """Some node may have taken it, or has forgotten whether it did, and none could tell what became of it.

    `Client.status` may know later, or at another node. Until then it may be committed: do not sign it anew unseen.
    """

    def __init__(self, tx_id: bytes, why: str) -> None:
        super().__init__("outcome_unknown", f"transaction {tx_id.hex()}: {why}")
        self.id = tx_id


class _Answer(msgspec.Struct, frozen=True):
    results: list[TxStatus]


@dataclass(slots=True)
class _Progress:
    """`held`: a node may hold it. `refusals`: of nodes in a row, the last of them `last`. `pruned`: of a node that
    has forgotten whether it is committed. `asked`: how often a node was.
    """

    held: bool = False
    refusals: int = 0
    last: Rejection | None = None
    pruned: Refused | None = None
    asked: int = 0

    def may_others_tell(self, nodes: int) -> bool:
        """Whether nodes that were not asked yet may know what the refusing ones do not."""
        return self.asked < nodes and (self.pruned is not None or self.refusals > 0)


async def submit(
    transport: Transport, data: bytes, bodies: Sequence[bytes], level: Level, now_ms: Callable[[], int]
) -> Committed:
    """Submit until the transaction is at `level`.

    Raises TransactionFailed, TransactionExpired, OutcomeUnknown; Refused when it is in no block and no pool;
    Unreachable when no node was ever reached; Rejection for bytes that are no transaction or bodies not its own.
    """
    transaction = decode_transaction(data)
    check_bodies(transaction, list(bodies))
    body = encode({"bodies": list(bodies), "envelope": data})
    deadline_ms = transaction.envelope.until + GRACE_MS
    progress = _Progress()
    pauses = Pauses(transport.settings)
    async for node in transport.rounds(pauses):
        progress.asked += 1
        try:
            wait_ms = _wait_ms(transport.settings, deadline_ms - now_ms())
            status = await _ask(transport, node, transaction, body, f"wait={level}&wait_ms={wait_ms}")
        except NodeFailed as error:
            progress.held = progress.held or error.sent
            progress.refusals = 0
            progress.last = Unreachable("unreachable", str(error))
        except Refused as error:
            pauses.heed(error)
            if _is_end(error, progress, len(transport.nodes)):
                break
        else:
            if _ended(status, level):
                return _outcome(transaction, status)
            progress.held, progress.refusals, progress.last = True, 0, None
        if now_ms() > deadline_ms and not progress.may_others_tell(len(transport.nodes)):
            break
    if progress.pruned is not None:
        raise OutcomeUnknown(transaction.id, str(progress.pruned))
    if not progress.held and progress.last is not None:
        raise progress.last
    raise OutcomeUnknown(transaction.id, str(progress.last or "still pending when its time was over"))


async def ask_status(transport: Transport, node: Node, tx_id: bytes) -> TxStatus:
    """What one node knows. Raises Refused or NodeFailed."""
    answer = await transport.request(node, "GET", f"/v1/transactions/{tx_id.hex()}", {"Accept": JSON})
    try:
        return msgspec.json.decode(answer, type=TxStatus)
    except (msgspec.DecodeError, UnicodeError):
        raise NodeFailed(node.url, "a status that is none", sent=True) from None


def _wait_ms(settings: Settings, left_ms: int) -> int:
    """How long a node may wait for the commit, of whose transaction's time `left_ms` are left."""
    answer_ms = int(settings.answer_timeout_s * 1_000 * ANSWER_SHARE)
    return max(1, min(answer_ms, max(left_ms, LAST_WAIT_MS), WAIT_MS_MAX))


async def _ask(transport: Transport, node: Node, transaction: Transaction, body: bytes, query: str) -> TxStatus:
    """Where it stands at one node after handing it over. Raises Refused or NodeFailed."""
    target, headers = f"/v1/transactions?{query}", {"Accept": JSON, "Content-Type": MSGPACK}
    try:
        answer = await transport.request(node, "POST", target, headers, body, statuses=WITH_PENDING)
    except Refused as refusal:
        if refusal.code not in _DEPENDS:
            raise
        known = await ask_status(transport, node, transaction.id)
        if known.status == "unknown":
            raise
        return known
    try:
        (status,) = msgspec.json.decode(answer, type=_Answer).results
    except (msgspec.DecodeError, UnicodeError, ValueError):
        raise NodeFailed(node.url, "an answer that is none", sent=True) from None
    if status.status == "refused" and status.code is not None:
        raise Refused(status.code, status.detail or "", 400)
    return status


def _is_end(refusal: Refused, progress: _Progress, nodes: int) -> bool:
    """Note a refusal; whether nobody has to be asked any more. Raises the refusal if the bytes are at fault."""
    progress.last = refusal
    if refusal.temporary:
        progress.refusals = 0
        return False
    progress.refusals += 1
    if refusal.code == _PRUNED:
        progress.pruned = refusal
    if progress.held:
        return False
    if refusal.code not in _DEPENDS:
        raise refusal
    return progress.refusals >= nodes


def _ended(status: TxStatus, level: Level) -> bool:
    failed = status.status == "committed" and status.code != OK
    return failed or status.status in (level, "sealed", "dropped")


def _outcome(transaction: Transaction, status: TxStatus) -> Committed:
    if status.status == "dropped":
        raise TransactionExpired(transaction.id)
    height, index, code = status.height, status.index, status.code
    if height is None or index is None or code is None:
        raise OutcomeUnknown(transaction.id, "a node called it committed, and not where")
    if code != OK:
        raise TransactionFailed(transaction.id, code, height)
    return Committed(transaction.id, height, index)
