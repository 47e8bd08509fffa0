"""What a load process is told, and the transactions that it makes: one action each, a sealed body beside it."""

import secrets
import time
from typing import Literal, NamedTuple

import msgpack
import msgspec

from ledger.contracts import records
from ledger.keys import SigningKey, account_id
from ledger.transaction import FORMAT, NONCE_BYTES, Envelope, Transaction, body_reference, sign_transaction

# What has the size in question: the body, or signed transaction and body together.
Sized = Literal["body", "transaction"]

SIZE_BYTES = 512
# Shorter than what a transaction may be valid for: the first ones are sent before the last are signed.
VALID_MS = 540_000


class Task(msgspec.Struct, frozen=True):
    """One process's part of the load: `count` transactions of one clinician, `in_flight` at a time, all at `port`."""

    chain: bytes
    seed: bytes
    port: int
    sized: Sized
    count: int
    in_flight: int


class Sample(NamedTuple):
    """A transaction to submit, as the body of a request."""

    request: bytes
    transaction_bytes: int
    body_bytes: int


def samples(task: Task) -> list[Sample]:
    key = SigningKey(task.seed)
    until = time.time_ns() // 1_000_000 + VALID_MS
    body_bytes = _body_bytes(task, key, until)
    return [_sample(task, key, until, body_bytes) for _ in range(task.count)]


def _sample(task: Task, key: SigningKey, until: int, body_bytes: int) -> Sample:
    body = secrets.token_bytes(body_bytes)
    transaction = _transaction(task, key, until, body)
    request: bytes = msgpack.packb({"bodies": [body], "envelope": transaction.data})
    return Sample(request, len(transaction.data), body_bytes)


def _transaction(task: Task, key: SigningKey, until: int, body: bytes) -> Transaction:
    action = records.Add(body=0, record=secrets.token_bytes(32), subject=secrets.token_bytes(32))
    envelope = Envelope(
        actions=[action],
        bodies=[body_reference(body)],
        by=account_id(key.public),
        chain=task.chain,
        format=FORMAT,
        key=key.public,
        nonce=secrets.token_bytes(NONCE_BYTES),
        until=until,
    )
    return sign_transaction(envelope, key)


def _body_bytes(task: Task, key: SigningKey, until: int) -> int:
    if task.sized == "body":
        return SIZE_BYTES
    # The envelope says how long the body is, and that number is one byte or two.
    fitting = (size for size in range(SIZE_BYTES, 0, -1) if _whole(task, key, until, size) <= SIZE_BYTES)
    return next(fitting)


def _whole(task: Task, key: SigningKey, until: int, body_bytes: int) -> int:
    return len(_transaction(task, key, until, bytes(body_bytes)).data) + body_bytes
