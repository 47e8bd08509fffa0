"""What was written about whom, never what was written: each record's commitment, author and place in a chain.

A subject is a salted 32-byte handle that only its holder can tie to a person. The records of a subject form a
list, newest first: the subject names its head, each record the one before it.

A record is amended, never overwritten: every version stays in the state, where its commitment can be proved.

state key                                   value
records/record/<record id, hex>             Record, the newest version
records/version/<record id, hex>/<number>   Record, a version that an amendment replaced
records/subject/<handle, hex>               Subject

action         signed by                                 refused, in the order of the checks
record.add     an active clinician                       not_clinician record_exists body_missing
record.amend   an active clinician of the organisation   not_clinician no_such_record not_allowed stale_version
               that the record is of                     body_missing

Rules behind the table: a record belongs to the chart that its organisation keeps and answers for. So a colleague may
correct it when its author is away or has left, and nobody of another organisation may, who would add a record of
their own instead. Version n says who wrote it and when; record, subject, organisation and the place in the
subject's list are the same in all. An amendment names the version it replaces, so that none is replaced unseen.
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
    """One version of a record. `author`, `body`, `height`, `time` (ms) and `transaction` are this version's own;
    `previous` is the subject's record before it. `version` is 1 at first and grows by 1 at every amendment."""

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


class Amend(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="do", tag="record.amend"):
    """Replace version `version` of a record of `subject` by the body number `body`.

    The subject is said again, so that a block alone tells about whom its amendments are.
    """

    body: Annotated[int, Meta(ge=0, le=63)]
    record: Bytes32
    subject: Bytes32
    version: Annotated[int, Meta(ge=1, le=2**53)]


def record_path(record: bytes) -> str:
    return f"records/record/{record.hex()}"


def version_path(record: bytes, version: int) -> str:
    """Where `version` is once a newer one has replaced it."""
    return f"records/version/{record.hex()}/{version}"


def subject_path(subject: bytes) -> str:
    return f"records/subject/{subject.hex()}"


def add(context: Context, action: Add) -> None:
    author = _clinician(context)
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


def amend(context: Context, action: Amend) -> None:
    author = _clinician(context)
    replaced = context.get_as(Record, record_path(action.record))
    if replaced is None or replaced.subject != action.subject:
        raise Rejection("no_such_record", "no such record of this subject")
    if replaced.organisation != author.organisation:
        raise Rejection("not_allowed", "only clinicians of the record's organisation amend it")
    if replaced.version != action.version:
        raise Rejection("stale_version", f"the record is at version {replaced.version}, not {action.version}")
    body = context.body(action.body)
    context.put(version_path(action.record, replaced.version), replaced)
    context.put(
        record_path(action.record),
        msgspec.structs.replace(
            replaced,
            author=context.by,
            body=BodyReference(body.commitment, body.size),
            height=context.height,
            time=context.time_ms,
            transaction=context.transaction,
            version=replaced.version + 1,
        ),
    )


def _clinician(context: Context) -> identity.Account:
    author = identity.signer(context)
    if author.role != "clinician":
        raise Rejection("not_clinician", "only a clinician writes records")
    return author
