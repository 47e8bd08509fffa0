"""`carequorum check`: everything in a stopped node's store, read and derived again from genesis."""

import tomllib
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from carequorum.cli.options import AsJson, At, GenesisFile, access
from carequorum.cli.output import INVALID, USAGE, CommandError, columns, emit, stages
from carequorum.verify import load_genesis
from ledger.genesis import Genesis
from storage.check import check_path
from storage.report import CheckReport

# Where a daemon keeps its database, in its data_dir.
STORE = "ledger"


def run(
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The node's data_dir; with --at, that node's.")
    ] = None,
    at: At = None,
    genesis: GenesisFile = None,
    as_json: AsJson = False,
) -> None:
    """Re-derive a stopped node's whole store from genesis: files, hashes, signatures, roots, state, bodies.

    Genesis is that of --genesis or --at, or else the one that the node.toml beside DIR names. Nothing in the
    store is changed; derived data takes room in the system's temporary folder (TMPDIR) meanwhile. Exit code 3
    if anything is wrong, each problem named by height, record and file.
    """
    if data is None and at is None:
        raise CommandError("whose store? give --data (or --at)", USAGE)
    folder = data or (at or Path()) / "data"
    trusted = access(at, genesis, None).genesis if at or genesis else _configured(folder)
    with stages() as show:
        report = check_path(folder / STORE, trusted, show)
    emit(as_json, {**asdict(report), "chain": trusted.chain_id().hex(), "ok": report.ok}, _lines(report))
    if not report.ok:
        count = len(report.problems) + report.problems_beyond
        raise CommandError(f"{folder}: {count} problem{'s' if count > 1 else ''}", INVALID)


def _configured(folder: Path) -> Genesis:
    """What the configuration says of the node whose data_dir this is."""
    file = folder.resolve().parent / "node.toml"
    try:
        named = tomllib.loads(file.read_text())["node"]["genesis"]
    except (OSError, ValueError, KeyError, TypeError):
        raise CommandError(f"which network? give --genesis (or --at); {file} does not say", USAGE) from None
    return load_genesis(file.parent / str(named))


def _lines(report: CheckReport) -> list[str]:
    facts: list[tuple[str, object]] = [
        ("files", f"{report.files_read}, {report.file_bytes:,} bytes"),
        ("not read by anything", ", ".join(report.files_unread) or "-"),
        *((f"cut off by a crash in {name}", f"{count} bytes") for name, count in report.cut_off.items()),
        ("blocks", report.last_height if report.opened else "not read"),
        ("executed", report.executed_height if report.opened else "not read"),
        ("transactions", report.transactions),
        ("bodies", report.bodies),
        ("problems", len(report.problems) + report.problems_beyond),
    ]
    problems = [["HEIGHT", "RECORD", "FILE", "FAULT"]] + [
        ["-" if each.height is None else str(each.height), each.record or "-", each.file or "-", each.fault]
        for each in report.problems
    ]
    return columns(facts) + (["", *columns(problems)] if report.problems else [])
