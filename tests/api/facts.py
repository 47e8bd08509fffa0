"""What the two processes of a trial tell each other: the network that was made for it, and what was seen."""

from pathlib import Path

import msgspec

from ledger.genesis import Genesis
from ledger.keys import SigningKey

# Where the process that runs schemathesis finds the facts.
FACTS_VARIABLE = "CAREQUORUM_API_TRIAL"


class Member(msgspec.Struct, frozen=True):
    """An account and the seed of a key: the one that signs for it now, unless said otherwise."""

    account: bytes
    seed: bytes

    @property
    def key(self) -> SigningKey:
        return SigningKey(self.seed)


class Facts(msgspec.Struct, frozen=True):
    """A node, and what its ledger holds.

    `members`: admin, doctor, patient, and those who may not sign: gone (revoked), rotated (by a key of before),
    stranger (never registered). Ids are in hex, newest last; `receipt` is of the first transaction;
    `amended` is a record of `subject` at `version`.
    """

    url: str
    node: str
    genesis: Genesis
    members: dict[str, Member]
    transactions: list[str]
    records: list[str]
    amended: str
    version: int
    receipt: bytes
    subject: str
    commitments: list[str]
    heights: list[int]
    state: dict[str, list[str]]
    seen: str


class Seen(msgspec.Struct, frozen=True, order=True):
    """One kind of answer: `code` is that of a problem, else ""."""

    operation: str
    status: int
    media: str
    code: str


class Count(msgspec.Struct, frozen=True):
    seen: Seen
    times: int


def write(path: Path, value: Facts | list[Count]) -> None:
    path.touch(0o600)
    path.write_bytes(msgspec.json.encode(value))


def read_facts(path: Path) -> Facts:
    return msgspec.json.decode(path.read_bytes(), type=Facts)


def read_seen(path: Path) -> dict[Seen, int]:
    """Nothing, where schemathesis ended before it wrote what it saw."""
    if not path.exists():
        return {}
    return {each.seen: each.times for each in msgspec.json.decode(path.read_bytes(), type=list[Count])}
