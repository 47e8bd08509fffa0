"""The figures of a run, and the table that shows them."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path

import msgspec

from bench.workload import Sized
from carequorum.cli.output import columns

# More than this many verifications, and something on a transaction's path costs what a batch could share.
FOLLOWER_VERIFICATIONS_MAX = 5.0


class Follower(msgspec.Struct, frozen=True):
    """A node that only followed during a window: processor time for each transaction, in µs; whole, and by stage."""

    node: str
    cpu_us: float
    cpu_verifications: float
    stages_us: dict[str, float]


class Window(msgspec.Struct, frozen=True):
    """`verification_us` is the median of the measurements before and after."""

    transactions: int
    seconds: float
    tx_per_s: float
    commit_ms_p50: float
    commit_ms_p99: float
    blocks: int
    verification_us: float
    leader_cpu_us: float
    followers: list[Follower]


class Series(msgspec.Struct, frozen=True):
    """Windows of one load at one network. Sizes in bytes; `sized` says which of them was asked for."""

    nodes: int
    sized: Sized
    transaction_bytes: int
    body_bytes: int
    in_flight: int
    processes: int
    windows: list[Window]

    @property
    def verifications(self) -> float | None:
        """Of the follower that spent most, in the median window."""
        spent = [max(each.cpu_verifications for each in one.followers) for one in self.windows if one.followers]
        return round(statistics.median(spent), 2) if spent else None


class Report(msgspec.Struct, frozen=True):
    """build/bench.json. `follower_cpu_per_tx_in_verifications`: three nodes, transactions of 512 bytes, signed and
    with their body. The other figure is that of transactions with a body of 512 bytes, nearly twice as large. NaN
    where such a load was not asked for.
    """

    processors: int
    python: str
    seconds: float
    follower_cpu_per_tx_in_verifications: float
    follower_cpu_per_tx_in_verifications_body: float
    networks: list[Series]


def lines(report: Report) -> list[str]:
    rows: list[Sequence[object]] = [
        ("NODES", "BYTES", "TX/S", "COMMIT P50", "P99", "TX A BLOCK", "LEADER", "FOLLOWER", "IN VERIFICATIONS")
    ]
    for series in report.networks:
        middle = _middle(series.windows)
        busiest = max(middle.followers, key=lambda each: each.cpu_us, default=None)
        rows.append(
            (
                series.nodes,
                f"{series.transaction_bytes} + {series.body_bytes}",
                f"{middle.tx_per_s:.0f}",
                f"{middle.commit_ms_p50:.0f} ms",
                f"{middle.commit_ms_p99:.0f} ms",
                f"{middle.transactions / max(1, middle.blocks):.0f}",
                f"{middle.leader_cpu_us:.0f} us",
                None if busiest is None else f"{busiest.cpu_us:.0f} us",
                series.verifications,
            )
        )
    return [*columns(rows), "", *_stages(report)]


def write(report: Report, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(msgspec.to_builtins(report), indent=2) + "\n")


def _stages(report: Report) -> list[str]:
    """Where a follower's time went, in the first series that has one with others to follow beside it."""
    series = next((each for each in report.networks if each.nodes == 3), None)
    if series is None:
        return []
    middle = _middle(series.windows)
    busiest = max(middle.followers, key=lambda each: each.cpu_us)
    rows = [(stage, f"{spent:.0f} us") for stage, spent in busiest.stages_us.items()]
    return ["Of a follower's time for one transaction, three nodes:", *columns(rows)]


def _middle(windows: list[Window]) -> Window:
    """The window whose follower cost is the median; of an even number, the dearer one."""
    ordered = sorted(windows, key=lambda one: max((each.cpu_us for each in one.followers), default=one.leader_cpu_us))
    return ordered[len(ordered) // 2]
