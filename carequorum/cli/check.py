"""`carequorum check`: everything in a stopped node's store, read and derived again from genesis."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from carequorum.cli.options import AsJson, At, GenesisFile, access
from carequorum.cli.output import INVALID, USAGE, CommandError, columns, emit, progress
from storage.check import CheckReport, check_path

# Where a daemon keeps its database, in its data_dir.
STORE = "ledger"


def run(
    data_dir: Annotated[
        Path | None, typer.Argument(metavar="[DATA_DIR]", help="The node's data_dir; with --at, that node's.")
    ] = None,
    at: At = None,
    genesis: GenesisFile = None,
    as_json: AsJson = False,
) -> None:
    """Re-derive a stopped node's whole store from genesis: hashes, signatures, roots, state, bodies.

    Exit code 3 if anything is wrong, each problem named by height and record.
    """
    if data_dir is None and at is None:
        raise CommandError("whose store? give the node's data_dir (or --at)", USAGE)
    found = access(at, genesis, None)
    folder = data_dir or (at or Path()) / "data"
    with progress("checking blocks") as show:
        report = check_path(folder / STORE, found.genesis, show)
    emit(as_json, {**asdict(report), "ok": report.ok}, _lines(report))
    if not report.ok:
        count = len(report.problems) + report.problems_beyond
        raise CommandError(f"{folder}: {count} problem{'s' if count > 1 else ''}", INVALID)


def _lines(report: CheckReport) -> list[str]:
    facts = [
        ("blocks", report.last_height),
        ("executed", report.executed_height),
        ("transactions", report.transactions),
        ("bodies", report.bodies),
        ("problems", len(report.problems) + report.problems_beyond),
    ]
    problems = [["HEIGHT", "RECORD", "FAULT"]] + [
        ["-" if each.height is None else str(each.height), each.record, each.fault] for each in report.problems
    ]
    return columns(facts) + (["", *columns(problems)] if report.problems else [])
