"""What the parts of the demonstration share: who takes part, what is written, and what was committed."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import msgspec

from carequorum.fhir import read_path
from carequorum.sealing import CONTENT_BYTES_MAX
from carequorum.wallet import Wallet, read_passphrase
from ledger.genesis import Genesis, genesis_from_json


class Person(msgspec.Struct, frozen=True):
    """A member and where its wallet lies. `hospital` is the node id, and the organisation's too."""

    hospital: str
    wallet: str
    passphrase_file: str

    def open(self) -> Wallet:
        return Wallet.open(self.wallet, read_passphrase(self.passphrase_file))


class Patient(Person, frozen=True):
    """Whom one source is about. Accounts, keys and handles are hex."""

    account: str
    key: str
    subject: str


class Item(msgspec.Struct, frozen=True):
    """One resource to write: the exact slice of its source. `patient` is a place in the plan's patients."""

    source: str
    offset: int
    length: int
    type: str
    patient: int

    def read(self) -> bytes:
        with open(self.source, "rb") as file:
            file.seek(self.offset)
            return file.read(self.length)


class Plan(msgspec.Struct, frozen=True):
    """`urls` are the provider ports by hospital, in the network's order; so are the clinicians."""

    genesis_file: str
    urls: dict[str, str]
    clinicians: dict[str, Person]
    patients: list[Patient]
    items: list[Item]

    def genesis(self) -> Genesis:
        return genesis_from_json(Path(self.genesis_file).read_text())

    def items_of(self, hospital: str) -> list[int]:
        """The places of the items that this hospital writes, in order."""
        return [place for place, item in enumerate(self.items) if self.patients[item.patient].hospital == hospital]

    def urls_from(self, hospital: str) -> list[str]:
        """Every provider port, this hospital's first, then the others in turn."""
        names = list(self.urls)
        first = names.index(hospital)
        return [self.urls[name] for name in names[first:] + names[:first]]

    def elsewhere(self, hospital: str) -> str:
        """The provider port of another hospital; of this one where there is no other."""
        return self.urls_from(hospital)[1 % len(self.urls)]


class Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One transaction that a node answered as committed, as its writer noted it the moment the answer came.

    `item` and `record` (hex) are None for a registration. Times are CLOCK_MONOTONIC in ns, which on Linux is
    one clock for all processes of a machine.
    """

    id: str
    height: int
    item: int | None
    record: str | None
    submitted_ns: int
    answered_ns: int


class Folder:
    """Where the parts meet. Everything in it is as private as the wallets that it holds."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.plan = path / "plan.json"
        self.committed = path / "committed"
        self.receipts = path / "receipts"
        self.wallets = path / "wallets"

    def make(self) -> None:
        for folder in (self.path, self.committed, self.receipts, self.wallets):
            folder.mkdir(mode=0o700)

    def read_plan(self) -> Plan:
        return msgspec.json.decode(self.plan.read_bytes(), type=Plan)

    def write_plan(self, plan: Plan) -> None:
        self.plan.write_bytes(msgspec.json.encode(plan))

    def answers(self) -> list[Answer]:
        """All that any writer noted so far."""
        return [answer for path in sorted(self.committed.iterdir()) for answer in _read_notes(path)]

    def notebook(self, writer: str) -> "Notebook":
        return Notebook((self.committed / f"{writer}.jsonl").open("a", encoding="ascii"))


class Notebook:
    """Where a writer notes what was answered, a line each, on its way to the disk before the next is awaited."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def note(self, answer: Answer) -> None:
        self._file.write(msgspec.json.encode(answer).decode("ascii") + "\n")
        self._file.flush()

    def close(self) -> None:
        os.fsync(self._file.fileno())
        self._file.close()


def slices(source: Path) -> Iterator[tuple[str, int, int]]:
    """Type, offset and length of every resource in a source.

    Raises Rejection("bad_fhir", "too_large") and ValueError if one is too long to be sealed whole.
    """
    for resource in read_path(source):
        if len(resource.data) > CONTENT_BYTES_MAX:
            raise ValueError(f"{resource!r}: a sealed record holds at most {CONTENT_BYTES_MAX} bytes")
        yield resource.type, resource.offset, len(resource.data)


def _read_notes(path: Path) -> Iterator[Answer]:
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):  # the last line may still be on its way
                yield msgspec.json.decode(line, type=Answer)
