"""`carequorum member`: who belongs to an organisation, and with which key."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from carequorum.cli.options import WAIT, AsJson, MemberOptions, parse_hex, passphrase, shared_options
from carequorum.cli.output import USAGE, CommandError, columns, emit
from carequorum.submission import Committed
from carequorum.wallet import Wallet
from ledger.contracts import identity
from ledger.keys import account_id

app = typer.Typer(help="Who belongs to an organisation, and with which key.")

Key = Annotated[str | None, typer.Option("--key", metavar="HEX", help="The new public key.")]
Proof = Annotated[
    str | None,
    typer.Option("--proof", metavar="HEX", help="Its holder's proof, from `carequorum keys show --prove-to`."),
]


@app.command(
    epilog="Example: carequorum member register --role clinician --member-wallet lee.wallet "
    "--at build/devnet/hospital-a"
)
@shared_options
def register(
    role: Annotated[identity.Role, typer.Option(metavar="ROLE", help="admin, auditor, clinician, patient or payer.")],
    member_wallet: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The new member's wallet, if it is at hand.")
    ] = None,
    member_passphrase_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A 0600 file with its passphrase.")
    ] = None,
    key: Key = None,
    proof: Proof = None,
    *,
    options: MemberOptions,
    as_json: AsJson = False,
) -> None:
    """As an admin, make someone a member of your organisation: by their wallet, or by --key and --proof."""
    found = options.access()
    admin = found.open_wallet()
    if member_wallet is not None and key is None and proof is None:
        member = Wallet.open(member_wallet, passphrase(member_passphrase_file, f"passphrase of {member_wallet}"))
        new_key = member.public_key
        new_proof = member.possession_proof(found.genesis.chain_id(), admin.account)
    elif member_wallet is None and key is not None and proof is not None:
        new_key, new_proof = parse_hex(key, 32, "--key"), parse_hex(proof, 64, "--proof")
    else:
        raise CommandError("give either --member-wallet or --key with --proof", USAGE)

    async def run() -> Committed:
        async with found.client(admin) as client:
            return await client.register_member(new_key, new_proof, role, wait=WAIT)

    _show(asyncio.run(run()), account_id(new_key), as_json)


@app.command(epilog="Example: carequorum member rotate --at build/devnet/hospital-a --wallet lee.wallet")
@shared_options
def rotate(
    account: Annotated[
        str | None, typer.Option(metavar="HEX", help="Another member's account, as its admin.")
    ] = None,
    key: Key = None,
    proof: Proof = None,
    *,
    options: MemberOptions,
    as_json: AsJson = False,
) -> None:
    """Replace your own key by a new one; or, as an admin, another's by --account, --key and --proof.

    The new key is in the wallet before anything is sent. After a crash, run it again.
    """
    given = [option is not None for option in (account, key, proof)]
    if any(given) and not all(given):
        raise CommandError("another's key takes all of --account, --key and --proof", USAGE)
    found = options.access()
    signer = found.open_wallet()

    async def run() -> tuple[Committed, bytes]:
        async with found.client(signer) as client:
            if account is None or key is None or proof is None:
                return await client.rotate(wait=WAIT), signer.account
            other = parse_hex(account, 32, "--account")
            action = identity.Rotate(
                account=other,
                new_key=parse_hex(key, 32, "--key"),
                proof=parse_hex(proof, 64, "--proof"),
                version=(await client.account(other)).version,
            )
            return await client.transact([action], wait=WAIT), other

    committed, whose = asyncio.run(run())
    _show(committed, whose, as_json)


@app.command(epilog="Example: carequorum member revoke ACCOUNT --at build/devnet/hospital-a")
@shared_options
def revoke(
    account: Annotated[str, typer.Argument(metavar="ACCOUNT", help="The member's account, 64 hex digits.")],
    *,
    options: MemberOptions,
    as_json: AsJson = False,
) -> None:
    """As an admin, end a membership of your organisation, for ever."""
    whose = parse_hex(account, 32, "ACCOUNT")
    found = options.access()
    signer = found.open_wallet()

    async def run() -> Committed:
        async with found.client(signer) as client:
            return await client.revoke(whose, wait=WAIT)

    _show(asyncio.run(run()), whose, as_json)


def _show(committed: Committed, account: bytes, as_json: bool) -> None:
    facts = {"account": account.hex(), "transaction": committed.id.hex(), "height": committed.height}
    emit(as_json, facts, columns(list(facts.items())))
