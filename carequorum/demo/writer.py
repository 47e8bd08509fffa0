"""One hospital's importer: seals its patients' histories and notes what was answered as committed.

`python -m carequorum.demo.writer FOLDER HOSPITAL IN_FLIGHT`
"""

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

from carequorum import fhir
from carequorum.client import Client
from carequorum.demo.plan import Answer, Folder, Notebook, Plan
from carequorum.importing import Imported, NewRecord, add_records


def main() -> None:
    folder, hospital, in_flight = Folder(Path(sys.argv[1])), sys.argv[2], int(sys.argv[3])
    notebook = folder.notebook(hospital)
    try:
        asyncio.run(write(folder.read_plan(), hospital, in_flight, notebook))
    finally:
        notebook.close()


async def write(plan: Plan, hospital: str, in_flight: int, notebook: Notebook) -> None:
    """Write every item of this hospital, through its own node as long as that answers, else through others."""

    def note(imported: Imported[int]) -> None:
        added = imported.added
        notebook.note(
            Answer(
                id=added.committed.id.hex(),
                height=added.committed.height,
                item=imported.name,
                record=added.record.hex(),
                submitted_ns=imported.submitted_ns,
                answered_ns=imported.answered_ns,
            )
        )

    def new() -> Iterator[NewRecord[int]]:
        for place in plan.items_of(hospital):
            item = plan.items[place]
            patient = plan.patients[item.patient]
            subject, readers = bytes.fromhex(patient.subject), [bytes.fromhex(patient.key)]
            yield NewRecord(place, item.read(), fhir.CONTENT_TYPE, subject, readers)

    clinician = plan.clinicians[hospital].open()
    async with Client(plan.urls_from(hospital), plan.genesis(), clinician) as client:
        await add_records(client, new(), in_flight, note)


if __name__ == "__main__":
    main()
