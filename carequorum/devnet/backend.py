"""What a network needs of whatever runs its nodes. The table of those that exist is in `backends`."""

import signal
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, Self

import msgspec

from carequorum.devnet.members import DevnetNode, Settings
from carequorum.processes import Ended


class Order(msgspec.Struct, frozen=True):
    """What a new network shall be like; None where the backend decides.

    `settings` adds to every node.toml; `clock_offsets_ms` shifts the clocks of single nodes, by id.
    """

    nodes: int | None = None
    learners: int | None = None
    settings: Settings = {}
    clock_offsets_ms: Mapping[str, int] = {}


class Backend(Protocol):
    """Runs the nodes of the network in one folder. Everything here raises DevnetError.

    `has_wires` says whether each node has a network namespace of its own, whose wire can be broken; `keeps_wires`
    whether it has the same one when it is started again; `has_volumes` whether keys and stores are elsewhere than in
    the folder.
    """

    has_wires: bool
    keeps_wires: bool
    has_volumes: bool

    @classmethod
    def found(cls, directory: Path, order: Order) -> None:
        """Make a network in an empty folder: at least genesis.json, devnet.json and every admin's wallet."""

    @classmethod
    def open(cls, directory: Path, nodes: list[DevnetNode]) -> Self:
        """The backend of a network that `found` made."""

    def raise_up(self) -> None:
        """Make what the nodes stand on, where it is not there already."""

    def tear_down(self, *, volumes: bool) -> None:
        """Remove what `raise_up` made, all of it or half of it, once no node runs. The folder stays; with `volumes`
        what is kept elsewhere goes too.
        """

    def launch(self, node: DevnetNode) -> None:
        """Start its daemon, which does not run, and do not wait for it."""

    def pid(self, node: DevnetNode) -> int | None:
        """The daemon's process on this machine, while there is one."""

    def ended(self, node: DevnetNode) -> Ended | None:
        """How the daemon that `launch` started ended, None while it runs. Its exit code is said once."""

    def end(self, nodes: Iterable[DevnetNode], number: signal.Signals, timeout_s: float) -> dict[str, Ended | None]:
        """SIGTERM or SIGKILL to all that run, paused or not, then wait. For each: how it ended, None if it runs."""

    def freeze(self, node: DevnetNode) -> None:
        """Stop it in the middle of whatever it does: it answers nobody and notices nothing."""

    def thaw(self, node: DevnetNode) -> None:
        """Let it go on."""

    def frozen(self, node: DevnetNode) -> bool:
        """Whether it is stopped by `freeze`."""

    def log(self, node: DevnetNode, lines: int) -> list[str]:
        """The last lines that it wrote, of all its starts."""

    def configure(self, node: DevnetNode, changes: Settings) -> None:
        """Change its configuration, by table and key. It counts from the next start."""

    def namespace(self, node: DevnetNode) -> Path | None:
        """Its own network namespace, as long as it has one."""

    def check(self, node: DevnetNode) -> dict[str, Any]:
        """What `carequorum check --json` says of its store, while it does not run."""
