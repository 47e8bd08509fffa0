"""`carequorum network propose-…, vote, proposal`: how organisations and nodes come and go, by votes."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import typer
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from carequorum.cli.options import WAIT, AsJson, MemberOptions, NodeOptions, parse_hex, shared_options
from carequorum.cli.output import USAGE, CommandError, columns, emit
from carequorum.submission import Committed
from ledger.contracts.network import (
    AddNode,
    AddOrganisation,
    NewAdmin,
    Promote,
    Proposal,
    Proposed,
    Remove,
    Withdraw,
)
from ledger.node_cert import standard_key

NoVote = Annotated[bool, typer.Option("--no-vote", help="Only propose; do not approve it for your organisation.")]
NodeArgument = Annotated[str, typer.Argument(metavar="NODE", help="The node's id.")]
ProposalArgument = Annotated[str, typer.Argument(metavar="PROPOSAL", help="The proposal's id, 64 hex digits.")]
Kind = Literal["hospital", "insurer", "board", "other"]


def add_commands(app: typer.Typer) -> None:
    """Put the commands of this module under `app`."""
    example = "Example: carequorum network"
    app.command("propose-organisation", epilog=f"{example} propose-organisation st-anna ...")(propose_organisation)
    app.command("propose-node", epilog=f"{example} propose-node anna-1 ...")(propose_node)
    app.command("propose-promotion", epilog=f"{example} propose-promotion anna-1 --at DIR")(propose_promotion)
    app.command("propose-removal", epilog=f"{example} propose-removal anna-1 --at DIR")(propose_removal)
    app.command("propose-withdrawal", epilog=f"{example} propose-withdrawal PROPOSAL --at DIR")(propose_withdrawal)
    app.command("vote", epilog=f"{example} vote PROPOSAL --approve --at DIR")(vote)
    app.command("proposal", epilog=f"{example} proposal PROPOSAL --at DIR")(show)


@shared_options
def propose_organisation(
    organisation: Annotated[str, typer.Argument(metavar="ORGANISATION", help="Its id.")],
    name: Annotated[str, typer.Option(metavar="TEXT", help="Its name.")],
    kind: Annotated[Kind, typer.Option(metavar="KIND", help="hospital, insurer, board or other.")],
    admin: Annotated[
        list[str],
        typer.Option(
            metavar="KEY:PROOF",
            help="An admin's key and proof, from `carequorum keys show --prove-to` your account; repeat for more.",
        ),
    ],
    no_vote: NoVote = False,
    *,
    options: MemberOptions,
    as_json: AsJson = False,
) -> None:
    """As an admin, put a new organisation to the vote. It is there as soon as the vote passes."""
    admins = []
    for given in admin:
        key, _, proof = given.partition(":")
        admins.append(NewAdmin(parse_hex(key, 32, "the key in --admin"), parse_hex(proof, 64, "its proof")))
    change = _checked(lambda: AddOrganisation(admins=admins, id=organisation, kind=kind, name=name))
    _propose(change, options, no_vote=no_vote, as_json=as_json)


@shared_options
def propose_node(
    node: NodeArgument,
    organisation: Annotated[str, typer.Option(metavar="ID", help="The organisation that runs it.")],
    address: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where its peers reach it.")],
    certificate: Annotated[
        Path, typer.Option(metavar="FILE", help="Its FILE.crt, from `carequorum keys new --node`.")
    ],
    no_vote: NoVote = False,
    *,
    options: MemberOptions,
    as_json: AsJson = False,
) -> None:
    """As an admin, put a new node to the vote. It becomes a learner, and may be promoted when it has caught up."""
    try:
        der = x509.load_pem_x509_certificate(certificate.read_bytes()).public_bytes(Encoding.DER)
    except ValueError:
        raise CommandError(f"{certificate} is no PEM certificate", USAGE) from None
    standard_key(der, node)
    change = _checked(lambda: AddNode(address=address, certificate=der, id=node, organisation=organisation))
    _propose(change, options, no_vote=no_vote, as_json=as_json)


@shared_options
def propose_promotion(
    node: NodeArgument,
    no_vote: NoVote = False,
    *,
    options: MemberOptions,
    as_json: AsJson = False,
) -> None:
    """As an admin, propose that a learner becomes a voter. The leader waits until it is close to the newest block."""
    change = _checked(lambda: Promote(node=node))
    _propose(change, options, no_vote=no_vote, as_json=as_json)


@shared_options
def propose_removal(
    node: NodeArgument,
    no_vote: NoVote = False,
    *,
    options: MemberOptions,
    as_json: AsJson = False,
) -> None:
    """As an admin, propose that a node leaves, for ever: neither its id nor its key comes back."""
    change = _checked(lambda: Remove(node=node))
    _propose(change, options, no_vote=no_vote, as_json=as_json)


@shared_options
def propose_withdrawal(
    proposal: ProposalArgument,
    no_vote: NoVote = False,
    *,
    options: MemberOptions,
    as_json: AsJson = False,
) -> None:
    """As an admin, propose to drop what PROPOSAL left pending, as long as no block has begun it."""
    change = Withdraw(proposal=parse_hex(proposal, 32, "PROPOSAL"))
    _propose(change, options, no_vote=no_vote, as_json=as_json)


@shared_options
def vote(
    proposal: ProposalArgument,
    approve: Annotated[bool, typer.Option("--approve/--reject", help="Which it is; there is no default.")],
    *,
    options: MemberOptions,
    as_json: AsJson = False,
) -> None:
    """As an admin, give your organisation's vote. It counts once and is not taken back."""
    which = parse_hex(proposal, 32, "PROPOSAL")
    found = options.access()
    admin = found.open_wallet()

    async def run() -> tuple[Committed, Proposal]:
        async with found.client(admin) as client:
            committed = await client.vote(which, approve=approve, wait=WAIT)
            return committed, await client.proposal(which)

    _show(which, *asyncio.run(run()), as_json=as_json)


@shared_options
def show(
    proposal: ProposalArgument,
    *,
    options: NodeOptions,
    as_json: AsJson = False,
) -> None:
    """A proposal and the votes on it, proven."""
    which = parse_hex(proposal, 32, "PROPOSAL")
    found = options.access()

    async def run() -> Proposal:
        async with found.client() as client:
            return await client.proposal(which)

    _show(which, None, asyncio.run(run()), as_json=as_json)


def _propose(change: Proposed, options: MemberOptions, *, no_vote: bool, as_json: bool) -> None:
    found = options.access()
    admin = found.open_wallet()

    async def run() -> tuple[bytes, Committed, Proposal]:
        async with found.client(admin) as client:
            proposal, committed = await client.propose(change, vote=not no_vote, wait=WAIT)
            return proposal, committed, await client.proposal(proposal)

    proposal, committed, entry = asyncio.run(run())
    _show(proposal, committed, entry, as_json=as_json)


def _show(which: bytes, committed: Committed | None, proposal: Proposal, *, as_json: bool) -> None:
    facts: dict[str, object] = {
        "proposal": which.hex(),
        "change": proposal.change.__struct_config__.tag,
        "of": getattr(proposal.change, "node", getattr(proposal.change, "id", None)),
        "organisation": proposal.organisation,
        "status": proposal.status,
        "approvals": proposal.approvals,
        "rejections": proposal.rejections,
        "expires": proposal.expires,
    }
    if committed is not None:
        facts |= {"transaction": committed.id.hex(), "height": committed.height}
    shown = [(name, ", ".join(value) or "-" if isinstance(value, list) else value) for name, value in facts.items()]
    emit(as_json, facts, columns([(name, value) for name, value in shown if value is not None]))


def _checked(make: Callable[[], Proposed]) -> Proposed:
    """Struct arguments as the wire would check them, so that a wrong one is told before it is signed."""
    try:
        change = make()
        msgspec.convert(msgspec.to_builtins(change, builtin_types=(bytes,)), type(change), builtin_types=(bytes,))
    except msgspec.ValidationError as error:
        raise CommandError(str(error), USAGE) from None
    return change
