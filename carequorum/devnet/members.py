"""Who takes part in a development network, and where each is heard."""

import string
from collections.abc import Mapping
from typing import Literal

import msgspec

from carequorum.devnet.errors import DevnetError
from ledger.genesis import Kind

NODES_MAX = 16
LOOPBACK = "127.0.0.1"

# Of a node.toml: table, key, value.
Settings = Mapping[str, Mapping[str, str | int | float]]
Role = Literal["voter", "learner"]


class Seat(msgspec.Struct, frozen=True):
    """One member before it is known where it listens. Its id names its organisation too."""

    id: str
    name: str
    kind: Kind = "hospital"
    role: Role = "voter"


class DevnetNode(Seat, frozen=True, forbid_unknown_fields=True):
    """One member of the network.

    `peer_host` and `peer_port` are where the other nodes reach it, `provider_host` and `provider_port` where
    programs on this machine do.
    """

    peer_host: str = LOOPBACK
    peer_port: int = 0
    provider_host: str = LOOPBACK
    provider_port: int = 0

    @property
    def url(self) -> str:
        return f"http://{self.provider_host}:{self.provider_port}"


def seats(hospitals: int, learners: int) -> list[Seat]:
    """`hospitals` that vote and `learners` clinics that do not. Raises DevnetError."""
    if not (hospitals >= 1 and learners >= 0 and hospitals + learners <= NODES_MAX):
        raise DevnetError(f"{hospitals} nodes and {learners} learners; possible are 1 to {NODES_MAX} in all")
    letters = string.ascii_lowercase
    voting = [Seat(f"hospital-{letter}", f"Hospital {letter.upper()}") for letter in letters[:hospitals]]
    learning = [
        Seat(f"clinic-{letter}", f"Clinic {letter.upper()}", "other", "learner") for letter in letters[:learners]
    ]
    return voting + learning
