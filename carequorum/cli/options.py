"""The options that commands share, and what they lead to: a genesis, a node to talk to, a member's wallet.

`--at` names a devnet node's folder and stands for all of them. No option takes a secret: passphrases come
from a private file or a prompt.
"""

import functools
import getpass
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import typer

from carequorum.cli.output import USAGE, CommandError
from carequorum.client import Client
from carequorum.devnet import Devnet
from carequorum.submission import Level
from carequorum.verify import load_genesis
from carequorum.wallet import Wallet, read_passphrase
from ledger.genesis import Genesis

# Proven reads are at the sealed height. A command that returned only then is seen by the next one.
WAIT: Level = "sealed"

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
At = Annotated[
    Path | None,
    typer.Option(
        envvar="CAREQUORUM_AT",
        metavar="DIR",
        help="A devnet node's folder: gives genesis, url and, unless --wallet is given, its admin's wallet.",
    ),
]
GenesisFile = Annotated[
    Path | None,
    typer.Option("--genesis", metavar="FILE", envvar="CAREQUORUM_GENESIS", help="The network's genesis file."),
]
Url = Annotated[
    list[str] | None,
    typer.Option(
        envvar="CAREQUORUM_URL",
        metavar="URL",
        help="A node's provider port, http://host:port; repeat for more nodes.",
    ),
]
TransactionArgument = Annotated[str, typer.Argument(metavar="TRANSACTION", help="Its id, 64 hex digits.")]
Linearizable = Annotated[
    bool,
    typer.Option("--linearizable", help="Answer only knowing of all that any node has acknowledged until now."),
]
WalletFile = Annotated[
    Path | None,
    typer.Option("--wallet", metavar="FILE", envvar="CAREQUORUM_WALLET", help="The member's wallet file."),
]
PassphraseFile = Annotated[
    Path | None,
    typer.Option(
        envvar="CAREQUORUM_PASSPHRASE_FILE",
        metavar="FILE",
        help="A 0600 file with the wallet's passphrase; asked for otherwise.",
    ),
]


@dataclass(frozen=True, slots=True)
class Access:
    """Where a command works: the network, its nodes in the order to try them, whose wallet."""

    genesis: Genesis
    urls: list[str]
    wallet_file: Path | None
    passphrase_file: Path | None

    def open_wallet(self) -> Wallet:
        """Raises CommandError without a wallet, Rejection if it does not open."""
        if self.wallet_file is None:
            raise CommandError("whose wallet? give --wallet (or --at)", USAGE)
        return Wallet.open(self.wallet_file, passphrase(self.passphrase_file, f"passphrase of {self.wallet_file}"))

    def client(self, wallet: Wallet | None = None, *, linearizable: bool = False) -> Client:
        """A client for the nodes. Raises CommandError without an address."""
        if not self.urls:
            raise CommandError("which node? give --url (or --at)", USAGE)
        return Client(self.urls, self.genesis, wallet, linearizable=linearizable)


def access(
    at: Path | None,
    genesis: Path | None,
    url: list[str] | None,
    wallet: Path | None = None,
    passphrase_file: Path | None = None,
) -> Access:
    """The options together; what is given singly wins over what `--at` implies."""
    if at is None:
        if genesis is None:
            raise CommandError("which network? give --genesis (or --at)", USAGE)
        return Access(load_genesis(genesis), url or [], wallet, passphrase_file)
    folder = at.resolve()
    network = Devnet(folder.parent)
    node = network.node(folder.name)
    if wallet is None:
        wallet, passphrase_file = network.wallet(node)
    found = network.genesis if genesis is None else load_genesis(genesis)
    return Access(found, url or [node.url], wallet, passphrase_file)


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """The options of a command that talks to a node."""

    at: At
    genesis: GenesisFile
    url: Url

    def access(self) -> Access:
        return access(self.at, self.genesis, self.url)


@dataclass(frozen=True, slots=True)
class MemberOptions(NodeOptions):
    """The options of a command that does so as a member."""

    wallet: WalletFile
    passphrase_file: PassphraseFile

    def access(self) -> Access:
        return access(self.at, self.genesis, self.url, self.wallet, self.passphrase_file)


def shared_options(command: Callable[..., None]) -> Callable[..., None]:
    """`command` as typer must see it: with the fields of its keyword parameter `options` in that one's place."""
    signature = inspect.signature(command)
    kind = signature.parameters["options"].annotation
    assert issubclass(kind, NodeOptions)
    shared = [
        inspect.Parameter(each.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=each.type)
        for each in fields(kind)
    ]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        options = kind(**{each.name: given.pop(each.name) for each in shared})
        command(options=options, **given)

    seen: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        seen += shared if parameter.name == "options" else [parameter]
    run.__annotations__ = {each.name: each.annotation for each in seen}
    run.__signature__ = signature.replace(parameters=seen)  # type: ignore[attr-defined]
    return run


def passphrase(file: Path | None, prompt: str, *, confirm: bool = False) -> bytes:
    """The passphrase in `file`, or typed by the person at the terminal (twice where it is a new one)."""
    if file is not None:
        return read_passphrase(file)
    if not sys.stdin.isatty():
        raise CommandError("no terminal to ask for the passphrase; give --passphrase-file", USAGE)
    typed = getpass.getpass(f"{prompt}: ")
    if confirm and getpass.getpass("once more: ") != typed:
        raise CommandError("the two differ", USAGE)
    return typed.encode("utf-8")


def parse_hex(text: str, length: int, what: str) -> bytes:
    """Exactly `length` bytes from hex, or CommandError naming what they were to be."""
    try:
        value = bytes.fromhex(text)
    except ValueError:
        value = b""
    if len(value) != length:
        raise CommandError(f"{what} is {2 * length} hex digits, not {text[:80]!r}", USAGE)
    return value
