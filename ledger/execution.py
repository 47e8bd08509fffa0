"""A committed block and a state in; a result for each transaction and the changes of state out.

Deterministic: nothing but the block, its time and the state decides. A transaction that breaks a rule stays
in its block and is recorded with the code of the rule; it changes nothing. The checks, in order:

code                                  the rule that failed
expired, until_too_far                block time <= until <= block time + UNTIL_AHEAD_MAX_MS
duplicate                             first inclusion of this id
unregistered, wrong_signer, revoked   `key` is the current key of the active account `by`
a contract's code                     every action succeeds; else none of them happened

That a transaction is well formed, of this chain and signed was checked before its block was accepted. What the block
does to the membership comes before its transactions, as it is in effect from the block itself.

Why the window of ids is enough: a transaction that executed at time t had until <= t + UNTIL_AHEAD_MAX_MS, so
at any later time it is either within the window or expired. That holds only if the inclusion remembered is
the one that executed, hence `TxResult.settles`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from ledger.contracts import HANDLERS, identity, network
from ledger.contracts.context import Context, Read
from ledger.encoding import decode_as, encode
from ledger.errors import Rejection
from ledger.finality import Seal
from ledger.genesis import Genesis
from ledger.keys import Hash
from ledger.membership import Change
from ledger.merkle import root_of
from ledger.transaction import UNTIL_AHEAD_MAX_MS, Envelope, Transaction, check_time

OK = "ok"
DUPLICATE = "duplicate"
UNTIL_TOO_FAR = "until_too_far"
RESULT_BYTES_MAX = 1024


class TxResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What became of one transaction: `code` is "ok" or why it changed nothing; `envelope` is the hash of the
    signed transaction; `id` is its id."""

    code: str
    envelope: Hash
    id: Hash

    @property
    def settles(self) -> bool:
        """Whether the id is remembered by this inclusion: for status, receipt and the window of ids.

        Not so for a duplicate, which has an earlier one; nor for one that came too early, whose time may
        still come. Of several that settle (`ok`, then `expired` outside the window) the first counts.
        """
        return self.code not in (DUPLICATE, UNTIL_TOO_FAR)

    def encode(self) -> bytes:
        return encode(self)


_stored_result = msgspec.msgpack.Decoder(TxResult)


def decode_result(data: bytes) -> TxResult:
    """Parse a result's canonical bytes. Raises Rejection."""
    return decode_as(TxResult, data, RESULT_BYTES_MAX)


def stored_result(data: bytes) -> TxResult:
    """A result as execution stored it: parsed, and not checked again. Raises msgspec.MsgspecError."""
    return _stored_result.decode(data)


class StateView(Protocol):
    """The state and the ids as the blocks before left them."""

    def get(self, key: str) -> bytes | None:
        """The canonical bytes of a state value, or None."""
        ...

    def included_at_ms(self, tx_id: bytes) -> int | None:
        """The time of the block that first included this id with a result that `settles`, or None.

        Nodes that forget inclusions older than UNTIL_AHEAD_MAX_MS answer None there; it makes no difference.
        """
        ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """Results in block order; the new value of each state key the block changed, None where it is deleted."""

    results: tuple[TxResult, ...]
    writes: dict[str, bytes | None]


@dataclass(slots=True)
class _BlockState:
    """The state while one block executes. Each key is read from the view once a block."""

    view: StateView
    writes: dict[str, bytes | None] = field(default_factory=dict)
    seen: dict[str, bytes | None] = field(default_factory=dict)

    def read(self, key: str) -> bytes | None:
        if key in self.writes:
            return self.writes[key]
        if key not in self.seen:
            self.seen[key] = self.view.get(key)
        return self.seen[key]


def execute(
    header_time_ms: int,
    height: int,
    transactions: Sequence[Transaction],
    view: StateView,
    reconfiguration: Change | Seal | None = None,
) -> Outcome:
    """Execute the block of this height and time over the state that `view` shows.

    `reconfiguration` is the header's change; or where the header has a proof the parent's seal: the proof, and the
    parent's header and signature. Raises Rejection("bad_change") for what no block may do to the membership.
    """
    state = _BlockState(view)
    if reconfiguration is not None:
        state.writes.update(network.reconfigured(state.read, reconfiguration, height))
    included: set[bytes] = set()
    results = []
    for transaction in transactions:
        try:
            check_time(transaction.envelope, header_time_ms)
            _require_first(transaction.id, header_time_ms, included, view)
            writes = _run(transaction, header_time_ms, height, state.read)
        except Rejection as rejection:
            result = TxResult(rejection.code, transaction.hash, transaction.id)
        else:
            state.writes.update(writes)
            result = TxResult(OK, transaction.hash, transaction.id)
        included.add(transaction.id)
        results.append(result)
    return Outcome(tuple(results), state.writes)


def check_member(read: Read, envelope: Envelope) -> identity.Account:
    """The signing account. Rejection: unregistered, wrong_signer or revoked, unless the envelope's key signs
    for `by` now."""
    return identity.check_key(read, envelope.by, envelope.key)


def admit(transaction: Transaction, read: Read, time_ms: int) -> identity.Account:
    """What a pool asks before it takes a transaction, at its own time and the newest state: the rules that
    execution will apply, so far as they can be known now. The signing account, or raises Rejection."""
    check_time(transaction.envelope, time_ms)
    account = check_member(read, transaction.envelope)
    identity.check_new_keys(transaction.envelope.actions)
    network.check_new_keys(transaction.envelope.actions)
    return account


def genesis_state(genesis: Genesis) -> dict[str, bytes]:
    """The state at height 0."""
    return identity.genesis_state(genesis) | network.genesis_state(genesis)


def results_root(results: Sequence[TxResult]) -> bytes:
    """The RFC 9162 root over the encoded results, in block order."""
    return root_of([result.encode() for result in results])


def history_leaf(block_hash: bytes, height: int, count: int, results_root: bytes) -> bytes:
    """The leaf, number `height`, of the history log. At height 0: the chain id, no results and their root."""
    return encode({"block": block_hash, "count": count, "height": height, "results": results_root})


def _require_first(tx_id: bytes, time_ms: int, included: set[bytes], view: StateView) -> None:
    """Only inclusions inside the window count, so that nodes which forgot older ones decide the same."""
    earlier_ms = view.included_at_ms(tx_id)
    in_window = earlier_ms is not None and earlier_ms >= time_ms - UNTIL_AHEAD_MAX_MS
    if in_window or tx_id in included:
        raise Rejection(DUPLICATE, "included before")


def _run(transaction: Transaction, time_ms: int, height: int, read: Read) -> dict[str, bytes | None]:
    """All actions, or Rejection and none: the writes count only when this returns."""
    envelope = transaction.envelope
    check_member(read, envelope)
    context = Context(
        below=read,
        chain=envelope.chain,
        height=height,
        time_ms=time_ms,
        by=envelope.by,
        transaction=transaction.id,
        bodies=envelope.bodies,
    )
    for action in envelope.actions:
        HANDLERS[type(action)](context, action)
    return context.writes
