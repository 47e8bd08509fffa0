"""All hospitals write at once; in the middle of it the leader is killed, and later started again."""

import math
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from carequorum.demo.plan import Folder, Plan
from carequorum.devnet import Devnet, DevnetNode

IN_FLIGHT = 64  # of all hospitals together
KILL_AT = 0.35  # of all items
RESTART_AT = 0.65
RESTART_AFTER_S = 10.0  # at the latest: where too few are left for a quorum, nothing else would end the wait
STALL_S = 60.0  # without a single commit: something hangs
_POLL_S = 0.02


class DemoError(Exception):
    """A part of the demonstration broke down; one line for people."""


@dataclass(frozen=True, slots=True)
class Kill:
    """Which leader was killed, and how many items had been answered as committed by then."""

    node: str
    answered: int


def run_load(network: Devnet, folder: Folder, plan: Plan) -> Kill:
    """Let every hospital write its items, and return once all have ended and the killed leader is back.

    Raises DemoError if a writer fails, or if nothing is committed any more.
    """
    writing = [node for node in network.nodes if plan.items_of(node.id)]
    if not writing:
        raise DemoError("the source holds no resource to write")
    each = math.ceil(IN_FLIGHT / len(writing))
    with ExitStack() as ending:
        writers = {
            node.id: ending.enter_context(_Writer(folder, node.id, each, folder.path / f"writer-{node.id}.log"))
            for node in writing
        }
        kill = _disturb(network, folder, len(plan.items), writers)
        for writer in writers.values():
            writer.end()
    return kill


class _Writer:
    """One writer process: killed on leaving if it has not ended."""

    def __init__(self, folder: Folder, hospital: str, in_flight: int, log: Path) -> None:
        self._log = log
        self._hospital = hospital
        module = [sys.executable, "-m", "carequorum.demo.writer"]
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [*module, str(folder.path), hospital, str(in_flight)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def runs(self) -> bool:
        return self._process.poll() is None

    def end(self) -> None:
        if self._process.wait() != 0:
            lines = self._log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
            raise DemoError(f"the writer of {self._hospital} failed: {lines[-1]}")


def _disturb(network: Devnet, folder: Folder, total: int, writers: dict[str, _Writer]) -> Kill:
    kill: Kill | None = None
    victim: DevnetNode | None = None
    killed_at = 0.0
    tally = _Tally([folder.committed / f"{hospital}.jsonl" for hospital in writers])
    writing = True
    while writing or kill is None or victim is not None:
        writing = any(writer.runs() for writer in writers.values())
        answered = tally.count()
        if kill is None and (answered >= KILL_AT * total or not writing):
            victim = network.leader()
            if victim is not None:
                network.kill([victim])
                killed_at = time.monotonic()
                kill = Kill(victim.id, tally.count())
        elif victim is not None and (
            answered >= RESTART_AT * total or time.monotonic() - killed_at > RESTART_AFTER_S or not writing
        ):
            network.start([victim])
            victim = None
        if time.monotonic() - tally.grown_at > STALL_S:
            raise DemoError(f"after {answered} of {total} records nothing was committed for {STALL_S:g} s")
        time.sleep(_POLL_S)
    return kill


class _Tally:
    """How many items the writers have noted; `grown_at` is when that last became more (monotonic, s)."""

    def __init__(self, notes: list[Path]) -> None:
        self._read = dict.fromkeys(notes, 0)  # bytes of each file that were counted
        self._lines = 0
        self.grown_at = time.monotonic()

    def count(self) -> int:
        before = self._lines
        for path, offset in self._read.items():
            if path.exists():
                with path.open("rb") as file:
                    file.seek(offset)
                    new = file.read()
                self._read[path] = offset + len(new)
                self._lines += new.count(b"\n")
        if self._lines > before:
            self.grown_at = time.monotonic()
        return self._lines
