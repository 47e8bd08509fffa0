"""The command `carequorum`: one module for each group of commands; here every error becomes one line.

Exit codes: 0 done; 1 it failed (a node or a rule refused, a process ended, a file is unreadable); 2 the
command line makes no sense; 3 what was to be verified does not verify; 130 interrupted.
"""

import sys
from collections.abc import Sequence

import typer
from typer.exceptions import TyperException

from carequorum.cli import check, devnet, events, genesis, keys, member, network, node, receipt, record, transaction
from carequorum.cli.output import FAILED, CommandError
from carequorum.devnet import DevnetError
from ledger.errors import Rejection
from storage.port import StorageFailure

app = typer.Typer(
    name="carequorum",
    help="A permissioned ledger for telehealth networks.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(devnet.app, name="devnet")
app.add_typer(genesis.app, name="genesis")
app.add_typer(keys.app, name="keys")
app.add_typer(member.app, name="member")
app.add_typer(record.app, name="record")
app.add_typer(transaction.app, name="tx")
app.add_typer(receipt.app, name="receipt")
app.add_typer(network.app, name="network")
app.command("node", epilog="Example: carequorum node --config configs/four-hospitals/hospital-a.toml")(node.run)
app.command("events", epilog="Example: carequorum events --contract records --at build/devnet/hospital-a")(events.run)
app.command("check", epilog="Example: carequorum check --data build/devnet/hospital-a/data")(check.run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line, the process's own if none is given. Returns the exit code."""
    command = typer.main.get_command(app)
    try:
        code = command.main(args=arguments, prog_name="carequorum", standalone_mode=False)
    except TyperException as error:
        return _fail(error.format_message(), error.exit_code)
    except typer.Abort:
        return _fail("interrupted", 130)
    except CommandError as error:
        return _fail(str(error), error.code)
    except (DevnetError, Rejection, StorageFailure, OSError) as error:
        return _fail(str(error), FAILED)
    return code if isinstance(code, int) else 0


def _fail(message: str, code: int) -> int:
    print("carequorum:", " ".join(message.split()), file=sys.stderr)
    return code
