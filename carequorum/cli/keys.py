"""`carequorum keys`: wallets for members, keys and certificates for nodes."""

import secrets
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from carequorum.cli.options import AsJson, GenesisFile, PassphraseFile, access, parse_hex, passphrase
from carequorum.cli.output import USAGE, CommandError, columns, emit, write_new
from carequorum.wallet import FILE_BYTES_MAX, Wallet, read_passphrase, read_private
from ledger.finality import NodeId
from ledger.keys import SigningKey
from ledger.node_cert import certificate_pem, key_pem, make_certificate, seed_from_pem

app = typer.Typer(help="Wallets for members, keys and certificates for nodes.")

File = Annotated[Path, typer.Argument(metavar="FILE", help="The wallet, or the node's private key (PEM); mode 0600.")]


@app.command(epilog="Example: carequorum keys new lee.wallet; carequorum keys new node.key --node hospital-a")
def new(
    file: File,
    node: Annotated[
        str | None, typer.Option(metavar="ID", help="Make this node's key, and its certificate FILE.crt.")
    ] = None,
    label: Annotated[str, typer.Option(metavar="TEXT", help="What you call the wallet; stays inside it.")] = "",
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Make a member's wallet, or with --node a node's private key and certificate. Never overwrites a file.

    A wallet is always encrypted. A node's key is with --passphrase-file only; its daemon then needs that too.
    """
    if node is None:
        chosen = passphrase(passphrase_file, f"passphrase for {file}", confirm=True)
        _show(_wallet_facts(Wallet.create(file, chosen, label=label), None), as_json)
        return
    try:
        node_id = msgspec.convert(node, NodeId)
    except msgspec.ValidationError as error:
        raise CommandError(f"--node {node}: {error}", USAGE) from None
    seed = secrets.token_bytes(32)
    certificate = Path(f"{file}.crt")
    write_new(file, key_pem(seed, read_passphrase(passphrase_file) if passphrase_file else None), 0o600)
    write_new(certificate, certificate_pem(make_certificate(seed, node_id)).encode(), 0o644)
    _show({"node": node_id, "key": SigningKey(seed).public.hex(), "certificate": str(certificate)}, as_json)


@app.command(epilog="Example: carequorum keys show patient.wallet --organisation hospital-a --json")
def show(
    file: File,
    organisation: Annotated[
        str | None, typer.Option(metavar="ID", help="Also the handle of this patient's records there.")
    ] = None,
    prove_to: Annotated[
        str | None, typer.Option(metavar="HEX", help="Also the proof that this account needs to register the key.")
    ] = None,
    genesis: GenesisFile = None,
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Show what others may know: a node's key; a wallet's account, key and subject handle. No secrets.

    --prove-to takes the account of the admin who registers the wallet, or, for a change of keys, the account
    that changes; and --genesis, as the proof holds for one network.
    """
    data = read_private(file, FILE_BYTES_MAX)
    if data.startswith(b"-----BEGIN"):
        seed = seed_from_pem(data, read_passphrase(passphrase_file) if passphrase_file else None)
        _show({"key": SigningKey(seed).public.hex()}, as_json)
        return
    wallet = Wallet.open(file, passphrase(passphrase_file, f"passphrase of {file}"))
    facts = _wallet_facts(wallet, organisation)
    if prove_to is not None:
        chain = access(None, genesis, None).genesis.chain_id()
        facts["proof"] = wallet.possession_proof(chain, parse_hex(prove_to, 32, "--prove-to")).hex()
    _show(facts, as_json)


def _wallet_facts(wallet: Wallet, organisation: str | None) -> dict[str, str]:
    facts = {"account": wallet.account.hex(), "key": wallet.public_key.hex()}
    if organisation is not None:
        facts["subject"] = wallet.subject_handle(organisation).hex()
    return facts


def _show(facts: dict[str, str], as_json: bool) -> None:
    emit(as_json, facts, columns(list(facts.items())))
