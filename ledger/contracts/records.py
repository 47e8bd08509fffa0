"""What was written about whom, never what was written: each record's commitment, author and place in a chain.

A subject is a salted 32-byte handle that only its holder can tie to a person. The records of a subject form a
list, newest first: the subject names its head, each record the one before it.

state key                           value
records/record/<record id, hex>     Record
records/subject/<handle, hex>       Subject

action       signed by            refused, in the order of the checks
record.add   an active clinician  not_clinician record_exists body_missing
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from ledger.contracts import identity
from ledger.contracts.context import BodyReference, Context
from ledger.errors import Rejection
from ledger.keys import AccountId, Bytes32, Hash

FORMAT = 1


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`height` and `time` (ms) are those of its block; `previous` is the subject's record before it."""

    author: AccountId
    body: BodyReference
    format: int
    height: int
    organisation: str
    previous: Bytes32 | None
    subject: Bytes32
    time: int
    transaction: Hash
    version: int


class Subject(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many records there are, and the newest of them."""

    count: int
    format: int
    head: Bytes32


class Add(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="do", tag="record.add"):
    """Add a sealed record: `record` is its id, 32 random bytes; `body` the index of its body."""

    body: Annotated[int, Meta(ge=0, le=63)]
    record: Bytes32
    subject: Bytes32


def record_path(record: bytes) -> str:
    return f"records/record/{record.hex()}"


def subject_path(subject: bytes) -> str:
    return f"records/subject/{subject.hex()}"


def add(context: Context, action: Add) -> None:
    author = identity.signer(context)
    if author.role != "clinician":
        raise Rejection("not_clinician", "only a clinician adds records")
    if context.read(record_path(action.record)) is not None:
        raise Rejection("record_exists", "the record id is taken")
    body = context.body(action.body)
    subject = context.get_as(Subject, subject_path(action.subject))
    context.put(
        record_path(action.record),
        Record(
            author=context.by,
            body=BodyReference(body.commitment, body.size),
            format=FORMAT,
            height=context.height,
            organisation=author.organisation,
            previous=subject.head if subject else None,
            subject=action.subject,
            time=context.time_ms,
            transaction=context.transaction,
            version=1,
        ),
    )
    count = subject.count + 1 if subject else 1
    context.put(subject_path(action.subject), Subject(count=count, format=FORMAT, head=action.record))
