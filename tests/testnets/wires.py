"""What the wires between nodes let through, measured from inside the nodes' namespaces, whatever broke them.

Datagrams of our own go from every node to every other: which way a wire is cut, what share of packets is lost, and
how much later they come is seen by them, and not by the word of what made the fault.
"""

import asyncio
import json
import statistics
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from carequorum.devnet.commands import inside

SCRIPT = Path(__file__).with_name("datagrams.py")
COUNT = 50
# For those still under way when the last one was sent.
LINGER_S = 0.6
TIMEOUT_S = 20.0

Pair = tuple[str, str]


class WiresError(Exception):
    """They could not be measured; one line for people."""


@dataclass(frozen=True, slots=True)
class End:
    """A node's end of its wires: its address, and a process in its network namespace."""

    node: str
    host: str
    pid: int


@dataclass(frozen=True, slots=True)
class Through:
    """Of `sent` datagrams so many `came`; half of those were under way for `transit_ms` or less, None: none came."""

    sent: int
    came: int
    transit_ms: float | None


async def measure(ends: Sequence[End], count: int = COUNT) -> dict[Pair, Through]:
    """By (source, target). Raises WiresError."""
    probes: list[Process] = []
    try:
        async with asyncio.timeout(TIMEOUT_S):
            for end in ends:
                command = [sys.executable, "-I", "-S", str(SCRIPT), end.host, str(count)]
                namespace = Path(f"/proc/{end.pid}/ns/net")
                probes.append(
                    await asyncio.create_subprocess_exec(*inside(namespace, command), stdin=PIPE, stdout=PIPE)
                )
            everybody = [(end.host, int(await _line(probe))) for end, probe in zip(ends, probes, strict=True)]
            for own, probe in enumerate(probes):
                assert probe.stdin is not None
                probe.stdin.write(json.dumps({"own": own, "everybody": everybody}).encode() + b"\n")
            for probe in probes:
                await _line(probe)
            await asyncio.sleep(LINGER_S)
            for probe in probes:
                assert probe.stdin is not None
                probe.stdin.close()
            came = [msgspec.json.decode(await _line(probe), type=dict[int, list[float]]) for probe in probes]
            for probe in probes:
                await probe.wait()
    except (TimeoutError, OSError, ValueError, msgspec.DecodeError) as error:
        raise WiresError(f"the wires could not be measured: {type(error).__name__} {error}".strip()) from None
    finally:
        for probe in probes:
            if probe.returncode is None:
                probe.kill()
            await probe.wait()
    return {
        (source.node, target.node): _through(count, came[heard].get(number, []))
        for number, source in enumerate(ends)
        for heard, target in enumerate(ends)
        if number != heard
    }


def cut(measured: Mapping[Pair, Through]) -> set[Pair]:
    """The pairs between which nothing came through."""
    return {pair for pair, through in measured.items() if through.came == 0}


def lost_share(measured: Mapping[Pair, Through]) -> float:
    """Of all datagrams, those that did not come. Raises ZeroDivisionError where none was sent."""
    sent = sum(through.sent for through in measured.values())
    return 1 - sum(through.came for through in measured.values()) / sent


def round_trip_ms(measured: Mapping[Pair, Through], pairs: Iterable[Pair]) -> float:
    """The median, over `pairs`, of there and back again. Raises WiresError where nothing came back over one."""
    trips = []
    for source, target in pairs:
        there, back = measured[source, target].transit_ms, measured[target, source].transit_ms
        if there is None or back is None:
            raise WiresError(f"nothing comes from {source} to {target} and back")
        trips.append(there + back)
    return statistics.median(trips)


def segments(ends: Iterable[End]) -> tuple[int, int]:
    """TCP segments sent in the nodes' namespaces since they were made, and how many of them again. OSError."""
    sent = again = 0
    for end in ends:
        names, values = (
            line.split()[1:]
            for line in Path(f"/proc/{end.pid}/net/snmp").read_text().splitlines()
            if line.startswith("Tcp:")
        )
        counted = dict(zip(names, map(int, values), strict=True))
        sent, again = sent + counted["OutSegs"], again + counted["RetransSegs"]
    return sent, again


def _through(sent: int, transits_ms: Sequence[float]) -> Through:
    return Through(sent, len(transits_ms), statistics.median(transits_ms) if transits_ms else None)


async def _line(probe: Process) -> bytes:
    assert probe.stdout is not None
    line = await probe.stdout.readline()
    if not line:
        raise ValueError("a probe ended")
    return line
