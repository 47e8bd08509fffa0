"""What the demonstration found, what it promised, and the table that shows both."""

import json
from collections.abc import Callable
from pathlib import Path

import msgspec

from carequorum.cli.output import columns


class Report(msgspec.Struct, frozen=True):
    """build/demo.json. Times in seconds unless the name says otherwise."""

    nodes: int
    seed: int | None
    patients: int
    resources: int
    transactions_expected: int
    transactions_committed: int
    acknowledged_lost: int
    heads_equal: bool
    state_roots_equal: bool
    receipts_verified: int
    resources_opened: int
    resources_equal: int
    stores_clean: int
    daemons_stopped: int
    leader_kills: int
    leader_killed_after: int
    seconds_without_commit: float
    in_flight_max: int
    tx_per_s: float
    commit_ms_p50: float
    commit_ms_p99: float
    seconds: float


# What must hold for the demonstration to succeed, and how it is told.
PROMISES: tuple[tuple[str, Callable[[Report], bool]], ...] = (
    ("all was committed", lambda it: it.transactions_committed == it.transactions_expected),
    ("nothing acknowledged is lost", lambda it: it.acknowledged_lost == 0),
    ("all nodes end with one head", lambda it: it.heads_equal),
    ("all nodes end with one state root", lambda it: it.state_roots_equal),
    (
        "every receipt of every node verifies offline",
        lambda it: it.receipts_verified == it.transactions_committed,
    ),
    (
        "every record opens for its patient, equal to its source",
        lambda it: it.resources == it.resources_opened == it.resources_equal,
    ),
    ("every store is clean", lambda it: it.stores_clean == it.nodes),
    ("every daemon stopped with 0", lambda it: it.daemons_stopped == it.nodes),
    ("the leader was killed", lambda it: it.leader_kills >= 1),
)


def broken(report: Report) -> list[str]:
    """The promises that do not hold."""
    return [promise for promise, holds in PROMISES if not holds(report)]


def table(report: Report) -> list[str]:
    """The report as a few aligned lines."""
    of_all = f"of {report.transactions_committed}"
    return columns(
        [
            ("hospitals", report.nodes, f"{report.patients} patients, {report.resources} resources"),
            ("committed", report.transactions_committed, f"{report.tx_per_s:g} a second while writing"),
            ("in flight", report.in_flight_max, "at most at one moment"),
            ("time to commit", f"{report.commit_ms_p50:g} ms", f"median; {report.commit_ms_p99:g} ms for 99 %"),
            ("leader killed", report.leader_kills, f"after {report.leader_killed_after} records"),
            ("longest gap", f"{report.seconds_without_commit:g} s", "between two commits"),
            ("lost", report.acknowledged_lost, f"{of_all} acknowledged"),
            ("receipts verified", report.receipts_verified, f"{of_all}, from every node, offline"),
            ("opened by patients", report.resources_equal, f"of {report.resources} equal to the source"),
            ("heads, state roots", _yes(report.heads_equal), _yes(report.state_roots_equal)),
            ("stores clean", report.stores_clean, f"of {report.nodes}"),
            ("took", f"{report.seconds:g} s", ""),
        ]
    )


def write(report: Report, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(msgspec.to_builtins(report), indent=2) + "\n")


def _yes(equal: bool) -> str:
    return "equal" if equal else "DIFFERENT"
