"""What a command prints: its answer on stdout, progress on stderr, and errors as one line."""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

FAILED = 1  # the network, the disk or a rule said no
USAGE = 2  # the command line or a file named on it makes no sense
INVALID = 3  # what was to be verified does not verify


class CommandError(Exception):
    """Ends a command: one line for people, and the exit code."""

    def __init__(self, message: str, code: int = FAILED) -> None:
        super().__init__(message)
        self.code = code


def emit(as_json: bool, document: object, lines: Iterable[str]) -> None:
    """Print `document` as JSON if asked to, else `lines`."""
    if as_json:
        print(json.dumps(document, indent=2))
    else:
        for line in lines:
            print(line)


def columns(rows: Sequence[Sequence[object]]) -> list[str]:
    """Rows of equal length as aligned lines, however wide the terminal: they are made to be cut and piped."""
    cells = [["-" if cell is None else str(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))] if cells else []
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr while the block runs, if that is a terminal. Yields `show(done, of)`."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    with bar:
        task = bar.add_task(what, total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)


@contextmanager
def stages() -> Iterator[Callable[[str, int, int], None]]:
    """As `progress`, one bar after another, each with an estimate of the time it still takes. Yields
    `show(stage, done, of)`.
    """
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("about"),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    tasks: dict[str, TaskID] = {}

    def show(stage: str, done: int, of: int) -> None:
        if stage not in tasks:
            tasks[stage] = bar.add_task(f"checking {stage}", total=of)
        bar.update(tasks[stage], completed=done, total=of)

    with bar:
        yield show


def write_new(path: Path, data: bytes, mode: int) -> None:
    """A new file with this mode from its first moment on. Raises CommandError if there is one already."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        raise CommandError(f"{path} exists and will not be overwritten", USAGE) from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
