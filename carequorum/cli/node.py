"""`carequorum node`: the daemon itself."""

import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from carequorum.cli.output import USAGE, CommandError


def run(
    config: Annotated[
        Path, typer.Option(metavar="FILE", help="The daemon's TOML file; see configs/node.example.toml.")
    ],
) -> NoReturn:
    """Run a node in the foreground until SIGTERM or SIGINT."""
    if not config.is_file():
        raise CommandError(f"{config} is not a file", USAGE)
    # The daemon takes this process's place, so signals and the exit code are its own.
    os.execv(sys.executable, [sys.executable, "-m", "node", "--config", str(config)])
