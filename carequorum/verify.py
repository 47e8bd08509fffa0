"""Offline checks of files, for people: the genesis file and nothing else is trusted."""

import datetime
from pathlib import Path

from ledger.errors import Rejection
from ledger.execution import OK
from ledger.genesis import GENESIS_BYTES_MAX, Genesis, read_genesis
from ledger.receipt import (
    RECEIPT_BYTES_MAX,
    STATE_ANSWER_BYTES_MAX,
    VerifiedReceipt,
    VerifiedSeal,
    VerifiedState,
    verify_receipt,
    verify_state_answer,
)

# JSON and base64 take more room than the canonical bytes that the limit counts.
GENESIS_FILE_BYTES_MAX = 2 * GENESIS_BYTES_MAX


def load_genesis(path: str | Path) -> Genesis:
    """A genesis file, canonical or JSON. Raises Rejection: "no_such_file", "too_large", "bad_genesis" and others."""
    return read_genesis(_read(path, GENESIS_FILE_BYTES_MAX))


def read_receipt_file(path: str | Path) -> bytes:
    """A receipt as it was saved. Raises Rejection: "no_such_file", "too_large"."""
    return _read(path, RECEIPT_BYTES_MAX)


def verify_receipt_file(path: str | Path, genesis: Genesis) -> VerifiedReceipt:
    """What a receipt's file proves. Raises Rejection: "no_such_file", "too_large", and as `verify_receipt`."""
    return verify_receipt(_read(path, RECEIPT_BYTES_MAX), genesis)


def verify_state_file(path: str | Path, genesis: Genesis) -> VerifiedState:
    """What a state answer's file proves. Raises Rejection as `verify_receipt_file`, `verify_state_answer`."""
    return verify_state_answer(_read(path, STATE_ANSWER_BYTES_MAX), genesis)


def describe_receipt(receipt: VerifiedReceipt) -> list[str]:
    """What a verified receipt says, as lines for people."""
    happened = "took effect" if receipt.code == OK else f"changed nothing: {receipt.code}"
    return [
        f"transaction {receipt.id.hex()}",
        f"  {happened}",
        f"  number {receipt.index} of block {receipt.height}, {receipt.block.hex()}",
        _describe_seal(receipt.seal),
    ]


def describe_state(state: VerifiedState) -> list[str]:
    """What a verified state answer says, as lines for people. The value itself is not shown."""
    held = "nothing" if state.value is None else f"{len(state.value)} bytes"
    return [f"state {state.key}", f"  {held} after block {state.seal.sealed_height}", _describe_seal(state.seal)]


def _describe_seal(seal: VerifiedSeal) -> str:
    time = datetime.datetime.fromtimestamp(seal.certified_time_ms / 1000, datetime.UTC)
    return (
        f"  final: sealed by block {seal.certified_height} of term {seal.certified_term}, "
        f"dated {time.isoformat(timespec='milliseconds')}, {_describe_voters(seal.steps)}"
    )


def _describe_voters(steps: int) -> str:
    if steps == 0:
        return "by the voters of genesis"
    return f"by voters who are {steps} proven change{'s' * (steps > 1)} away from those of genesis"


def _read(path: str | Path, bytes_max: int) -> bytes:
    try:
        with Path(path).open("rb") as file:
            data = file.read(bytes_max + 1)
    except OSError as error:
        raise Rejection("no_such_file", f"{path}: {error.strerror}") from None
    if len(data) > bytes_max:
        raise Rejection("too_large", f"{path}: at most {bytes_max} bytes")
    return data
