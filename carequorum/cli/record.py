"""`carequorum record`: sealed records, by their authors and for their patients."""

import asyncio
import base64
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from carequorum import fhir
from carequorum.cli.options import WAIT, Access, AsJson, Linearizable, MemberOptions, parse_hex, shared_options
from carequorum.cli.output import CommandError, columns, emit, progress, write_new
from carequorum.client import OpenedRecord
from carequorum.importing import Imported, NewRecord, add_records
from carequorum.sealing import CONTENT_BYTES_MAX
from carequorum.submission import Committed
from ledger.contracts.records import Record
from ledger.errors import Rejection

app = typer.Typer(help="Sealed records, by their authors and for their patients.")

PatientAccount = Annotated[
    str, typer.Option("--patient", metavar="HEX", help="The patient's account; its proven key gets to read.")
]
Subject = Annotated[
    str,
    typer.Option(
        metavar="HEX", help="The handle of the patient's records here (`keys show --organisation`, by the patient)."
    ),
]
ContentType = Annotated[str, typer.Option(metavar="TYPE", help="Its media type; sealed too.")]
RecordArgument = Annotated[str, typer.Argument(metavar="RECORD", help="The record's id, 64 hex digits.")]


@app.command(
    epilog="Example: carequorum record add note.json --patient HEX --subject HEX --at build/devnet/hospital-a "
    "--wallet lee.wallet"
)
@shared_options
def add(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What to seal, byte for byte.")],
    patient: PatientAccount,
    subject: Subject,
    content_type: ContentType = fhir.CONTENT_TYPE,
    *,
    options: MemberOptions,
    as_json: AsJson = False,
) -> None:
    """As a clinician, seal one file to its patient and yourself, and add it as a record."""
    found = options.access()
    content = _content(file)
    (imported,) = asyncio.run(_add(found, [(str(file), content)], 1, content_type, patient, subject, 1))
    facts = _facts(imported)
    emit(as_json, facts, columns(list(facts.items())))


@app.command(
    "import",
    epilog="Example: carequorum record import history.json --patient HEX --subject HEX --at build/devnet/hospital-a "
    "--wallet lee.wallet",
)
@shared_options
def import_(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="A FHIR R4 resource, Bundle or NDJSON file, or a folder of them.")
    ],
    patient: PatientAccount,
    subject: Subject,
    in_flight: Annotated[int, typer.Option(min=1, max=256, metavar="N", help="How many at once.")] = 16,
    *,
    options: MemberOptions,
    as_json: AsJson = False,
) -> None:
    """As a clinician, add every resource of a patient's history as a sealed record of its own."""
    found = options.access()
    # Read to the end before anything is written: a source with a fault in it is refused whole.
    total = sum(1 for _ in fhir.read_path(path))
    sources = ((f"{each.source}:{each.offset}", each.data) for each in fhir.read_path(path))
    imported = asyncio.run(_add(found, sources, total, fhir.CONTENT_TYPE, patient, subject, in_flight))
    emit(as_json, {"records": [_facts(each) for each in imported]}, [f"{len(imported)} records added"])


@app.command(
    epilog="Example: carequorum record amend RECORD corrected.json --version 1 --patient HEX "
    "--at build/devnet/hospital-a --wallet lee.wallet"
)
@shared_options
def amend(
    record: RecordArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What to seal in its place, byte for byte.")],
    version: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="The version that you saw and replace; refused once there is a newer one."
        ),
    ],
    patient: PatientAccount,
    content_type: ContentType = fhir.CONTENT_TYPE,
    *,
    options: MemberOptions,
    as_json: AsJson = False,
) -> None:
    """As a clinician of the record's organisation, replace its content. The version before stays, and opens."""
    record_id, account = parse_hex(record, 32, "RECORD"), parse_hex(patient, 32, "--patient")
    found = options.access()
    content = _content(file)
    author = found.open_wallet()

    async def run() -> Committed:
        async with found.client(author) as client:
            readers = [(await client.account(account)).key]
            return await client.amend_record(
                record_id, content, content_type, version=version, readers=readers, wait=WAIT
            )

    committed = asyncio.run(run())
    facts = {
        "source": str(file),
        "record": record,
        "version": version + 1,
        "transaction": committed.id.hex(),
        "height": committed.height,
    }
    emit(as_json, facts, columns(list(facts.items())))


@app.command("list", epilog="Example: carequorum record list --at build/devnet/hospital-b --wallet rosa.wallet")
@shared_options
def list_(
    subject: Annotated[
        str | None, typer.Option(metavar="HEX", help="A handle; by default your own at your organisation.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, metavar="N", help="The newest so many.")] = 100,
    *,
    options: MemberOptions,
    linearizable: Linearizable = False,
    as_json: AsJson = False,
) -> None:
    """The records under one handle, newest first, each in its newest version."""
    found = options.access()
    member = found.open_wallet()

    async def run() -> dict[bytes, Record]:
        async with found.client(member, linearizable=linearizable) as client:
            if subject is not None:
                handle = parse_hex(subject, 32, "--subject")
            else:
                handle = member.subject_handle((await client.account(member.account)).organisation)
            return await client.records(handle, limit=limit)

    records = asyncio.run(run())
    documents = [
        {
            "record": record.hex(),
            "version": entry.version,
            "time": _time(entry),
            "organisation": entry.organisation,
            "author": entry.author.hex(),
            "size_bytes": entry.body.size,
            "height": entry.height,
            "transaction": entry.transaction.hex(),
        }
        for record, entry in records.items()
    ]
    rows = [
        [each["record"], each["version"], each["time"], each["organisation"], each["size_bytes"]]
        for each in documents
    ]
    heads = ["RECORD", "VERSION", "TIME", "ORGANISATION", "SEALED BYTES"]
    emit(as_json, {"records": documents}, columns([heads, *rows]))


@app.command(
    "open", epilog="Example: carequorum record open RECORD --at build/devnet/hospital-b --wallet rosa.wallet"
)
@shared_options
def open_(
    record: RecordArgument,
    version: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="This version of it; by default the newest.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A new 0600 file for the content, instead of stdout.")
    ] = None,
    *,
    options: MemberOptions,
    linearizable: Linearizable = False,
    as_json: AsJson = False,
) -> None:
    """Prove a record, fetch its sealed body, and open it with your keys. The content comes byte for byte."""
    record_id = parse_hex(record, 32, "RECORD")
    found = options.access()
    member = found.open_wallet()

    async def run() -> OpenedRecord:
        async with found.client(member, linearizable=linearizable) as client:
            return await client.open_record(record_id, version=version)

    opened = asyncio.run(run())
    content = opened.content
    facts = {
        "record": record,
        "version": opened.record.version,
        "content_type": content.content_type,
        "bytes": len(content.data),
        "time": _time(opened.record),
        "organisation": opened.record.organisation,
        "author": opened.record.author.hex(),
    }
    if out is not None:
        write_new(out, content.data, 0o600)
        emit(as_json, {**facts, "file": str(out)}, columns([*facts.items(), ("file", out)]))
    elif as_json:
        emit(True, {**facts, "content": base64.b64encode(content.data).decode("ascii")}, [])
    else:
        sys.stdout.buffer.write(content.data)
        sys.stdout.buffer.flush()


async def _add(
    found: Access,
    sources: Iterable[tuple[str, bytes]],
    total: int,
    content_type: str,
    patient: str,
    subject: str,
    in_flight: int,
) -> list[Imported[str]]:
    """Add (name, content) pairs as records of one patient."""
    account, handle = parse_hex(patient, 32, "--patient"), parse_hex(subject, 32, "--subject")
    author = found.open_wallet()
    imported: list[Imported[str]] = []
    with progress("adding records") as show:

        def note(each: Imported[str]) -> None:
            imported.append(each)
            show(len(imported), total)

        async with found.client(author) as client:
            readers = [(await client.account(account)).key]
            new = (NewRecord(name, content, content_type, handle, readers) for name, content in sources)
            try:
                await add_records(client, new, in_flight, note, wait=WAIT)
            except Rejection as error:
                if total > 1:
                    raise CommandError(f"{error} (after {len(imported)} of {total} records)") from None
                raise
    return imported


def _content(file: Path) -> bytes:
    """Of a file that is too large, as much as shows it."""
    with file.open("rb") as source:
        return source.read(CONTENT_BYTES_MAX + 1)


def _facts(imported: Imported[str]) -> dict[str, object]:
    return {
        "source": imported.name,
        "record": imported.added.record.hex(),
        "transaction": imported.added.committed.id.hex(),
        "height": imported.added.committed.height,
    }


def _time(entry: Record) -> str:
    return datetime.fromtimestamp(entry.time / 1000, UTC).isoformat(timespec="milliseconds")
