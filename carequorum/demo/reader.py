"""Open every record as its patient, at another hospital than the one that wrote it, and compare with the source.

`python -m carequorum.demo.reader FOLDER` prints {"opened": count, "equal": count, "wrong": [...]}.
"""

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from carequorum.client import Client
from carequorum.demo.plan import Folder, Item, Patient, Plan
from ledger.errors import Rejection

IN_FLIGHT = 8


class Reading:
    """What was read so far: `equal` of `opened` records have the bytes of their source; `wrong`, a line each."""

    def __init__(self) -> None:
        self.opened = 0
        self.equal = 0
        self.wrong: list[str] = []


def main() -> int:
    folder = Folder(Path(sys.argv[1]))
    written = {answer.record: answer.item for answer in folder.answers() if answer.record is not None}
    reading = asyncio.run(read(folder.read_plan(), written))
    print(json.dumps(vars(reading)))
    return 1 if reading.wrong else 0


async def read(plan: Plan, written: dict[str, int | None]) -> Reading:
    """Read what every patient has. `written` maps record ids (hex) to places in the plan's items."""
    reading = Reading()
    sources: list[dict[str, Item]] = [{} for _ in plan.patients]
    for record, place in written.items():
        if place is not None:
            sources[plan.items[place].patient][record] = plan.items[place]
    for patient, records in zip(plan.patients, sources, strict=True):
        await _read_patient(plan, patient, records, reading)
    return reading


async def _read_patient(plan: Plan, patient: Patient, sources: dict[str, Item], reading: Reading) -> None:
    """The patient lists the records under its own handle, which must be those written, and opens each."""
    wallet = patient.open()
    async with Client([plan.elsewhere(patient.hospital)], plan.genesis(), wallet) as client:
        listed = await client.records(wallet.subject_handle(patient.hospital), limit=len(sources) + 1)
        found = {record.hex() for record in listed}
        reading.wrong += [f"{record}: not listed" for record in sources.keys() - found]
        reading.wrong += [f"{record}: listed, and answered to nobody" for record in found - sources.keys()]

        async def take(records: Iterator[str]) -> None:
            for record in records:
                await _compare(client, record, sources[record], reading)

        shared = iter(sorted(found & sources.keys()))
        await asyncio.gather(*(take(shared) for _ in range(IN_FLIGHT)))


async def _compare(client: Client, record: str, item: Item, reading: Reading) -> None:
    try:
        opened = await client.open_record(bytes.fromhex(record))
    except Rejection as error:
        reading.wrong.append(f"{record}: {error}")
        return
    reading.opened += 1
    if opened.content.data == item.read():
        reading.equal += 1
    else:
        reading.wrong.append(f"{record}: differs from {item.source}, byte {item.offset}")


if __name__ == "__main__":
    sys.exit(main())
