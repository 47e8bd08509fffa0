"""Daemons as processes of this machine, on ports of 127.0.0.1. Linux only, see `carequorum.processes`."""

import json
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import msgspec

from carequorum.devnet.backend import Order
from carequorum.devnet.errors import DevnetError
from carequorum.devnet.files import change_config, free_ports, write_network, write_private
from carequorum.devnet.members import DevnetNode, Seat, Settings, seats
from carequorum.processes import Ended, Process, find, is_running, is_stopped, send, spawn, wait

DAEMON = (sys.executable, "-m", "node")
NODES = 4
CHECK_TIMEOUT_S = 600.0
SIGNAL_TIMEOUT_S = 5.0
_POLL_S = 0.002


class ProcessBackend:
    """One process for each node of the folder. What runs is noted in its process.json."""

    NAME = "process"
    has_wires = False
    keeps_wires = False
    has_volumes = False

    def __init__(self, directory: Path, nodes: list[DevnetNode]) -> None:
        self.directory = directory
        self.nodes = nodes

    @classmethod
    def found(cls, directory: Path, order: Order) -> None:
        members = cls.place(seats(NODES if order.nodes is None else order.nodes, order.learners or 0))
        write_network(
            directory,
            members,
            backend=cls.NAME,
            settings=order.settings,
            clock_offsets_ms=order.clock_offsets_ms,
        )

    @classmethod
    def open(cls, directory: Path, nodes: list[DevnetNode]) -> Self:
        return cls(directory, nodes)

    @classmethod
    def place(cls, seats: Sequence[Seat]) -> list[DevnetNode]:
        """Where each member listens."""
        ports = free_ports(2 * len(seats))
        return [
            DevnetNode(seat.id, seat.name, seat.kind, seat.role, peer_port=ports.pop(), provider_port=ports.pop())
            for seat in seats
        ]

    def command(self, node: DevnetNode) -> list[str]:
        """What is run, whose process is the daemon."""
        return [*DAEMON, *self._marks(node)]

    def raise_up(self) -> None:
        """There is nothing beneath a process."""

    def tear_down(self, *, volumes: bool) -> None:
        """Nor is anything kept elsewhere."""

    def launch(self, node: DevnetNode) -> None:
        if not self._folder(node).is_dir():
            raise DevnetError(f"{self._folder(node)} is missing")
        process = spawn(self.command(node), self._folder(node) / "node.log")
        try:
            write_private(self._folder(node) / "process.json", msgspec.json.encode(process))
        except BaseException:
            send(process, signal.SIGKILL)
            wait(process, SIGNAL_TIMEOUT_S)
            raise

    def process(self, node: DevnetNode) -> Process | None:
        """The daemon of `node` that runs now."""
        noted = self._noted(node)
        # Whoever started it may have been cut off before the note.
        return noted if noted is not None and is_running(noted) else find(*self._marks(node))

    def pid(self, node: DevnetNode) -> int | None:
        process = self.process(node)
        return process.pid if process is not None else None

    def ended(self, node: DevnetNode) -> Ended | None:
        noted = self._noted(node)
        ended = wait(noted, 0) if noted is not None else Ended(None)
        return None if ended is not None and self.process(node) is not None else ended

    def end(self, nodes: Iterable[DevnetNode], number: signal.Signals, timeout_s: float) -> dict[str, Ended | None]:
        running = [(node, process) for node in nodes if (process := self.process(node))]
        for _, process in running:
            send(process, number)
            # A signal that it is to handle waits for as long as it is stopped.
            send(process, signal.SIGCONT)
        deadline = time.monotonic() + timeout_s
        ended = {node.id: wait(process, max(0.0, deadline - time.monotonic())) for node, process in running}
        for node, _ in running:
            if ended[node.id] is not None:
                (self._folder(node) / "process.json").unlink(missing_ok=True)
        return ended

    def freeze(self, node: DevnetNode) -> None:
        self._signal(node, signal.SIGSTOP, stops=True)

    def thaw(self, node: DevnetNode) -> None:
        self._signal(node, signal.SIGCONT, stops=False)

    def frozen(self, node: DevnetNode) -> bool:
        process = self.process(node)
        return process is not None and is_stopped(process)

    def log(self, node: DevnetNode, lines: int) -> list[str]:
        path = self._folder(node) / "node.log"
        if not path.exists():
            return []
        with path.open(errors="replace") as file:
            return [line.rstrip("\n") for line in deque(file, maxlen=lines)]

    def configure(self, node: DevnetNode, changes: Settings) -> None:
        path = self._folder(node) / "node.toml"
        write_private(path, change_config(path.read_bytes(), changes).encode())

    def namespace(self, node: DevnetNode) -> Path | None:
        return None

    def check(self, node: DevnetNode) -> dict[str, Any]:
        command = [sys.executable, "-m", "carequorum", "check", "--at", str(self._folder(node)), "--json"]
        return checked(node, command, CHECK_TIMEOUT_S)

    def _marks(self, node: DevnetNode) -> list[str]:
        """How the command line of its daemon ends, and of no other process."""
        return ["--config", str(self._folder(node) / "node.toml")]

    def _folder(self, node: DevnetNode) -> Path:
        return self.directory / node.id

    def _noted(self, node: DevnetNode) -> Process | None:
        try:
            return msgspec.json.decode((self._folder(node) / "process.json").read_bytes(), type=Process)
        except (FileNotFoundError, msgspec.DecodeError):
            # A damaged note is none: `process` finds a daemon without it.
            return None

    def _signal(self, node: DevnetNode, number: signal.Signals, *, stops: bool) -> None:
        """Send it and wait until it has taken effect. DevnetError if the daemon does not run."""
        process = self.process(node)
        if process is None or not send(process, number):
            raise DevnetError(f"{node.id} does not run")
        deadline = time.monotonic() + SIGNAL_TIMEOUT_S
        while is_stopped(process) != stops and is_running(process):
            if time.monotonic() > deadline:
                raise DevnetError(f"{node.id} did not take {number.name} within {SIGNAL_TIMEOUT_S:g} s")
            time.sleep(_POLL_S)


def checked(node: DevnetNode, command: list[str], timeout_s: float) -> dict[str, Any]:
    """The JSON document of a `carequorum check`, clean or not. Raises DevnetError."""
    try:
        ended = subprocess.run(command, capture_output=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        raise DevnetError(f"the check of {node.id} did not end within {timeout_s:g} s") from None
    if ended.returncode not in (0, 3):
        last = ended.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"]
        raise DevnetError(f"the check of {node.id} ended with {ended.returncode}: {last[-1][:300]}")
    report: dict[str, Any] = json.loads(ended.stdout)
    return report
