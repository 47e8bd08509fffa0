"""`carequorum network`: how the network is, as one node sees it."""

import asyncio

import msgspec
import typer

from carequorum.cli import membership
from carequorum.cli.options import AsJson, Linearizable, NodeOptions, shared_options
from carequorum.cli.output import columns, emit
from carequorum.views import NetworkStatus, PendingChange

app = typer.Typer(help="How the network is, as one node sees it; and the votes that change it.")
membership.add_commands(app)


@app.callback()
def group() -> None:
    """How the network is, as one node sees it; and the votes that change it."""


@app.command(epilog="Example: carequorum network status --at build/devnet/hospital-a")
@shared_options
def status(
    *,
    options: NodeOptions,
    linearizable: Linearizable = False,
    as_json: AsJson = False,
) -> None:
    """Members, leader, heights, and evidence against nodes that contradicted themselves."""
    found = options.access()

    async def run() -> NetworkStatus:
        async with found.client(linearizable=linearizable) as client:
            return await client.network()

    view = asyncio.run(run())
    emit(as_json, msgspec.to_builtins(view), _lines(view))


def _ailments(view: NetworkStatus) -> list[str]:
    return [name for name, has in (("barred", view.barred), ("amnesia", view.amnesia)) if has]


def _pending(change: PendingChange) -> str:
    begun = "voted" if change.appended is None else f"begun by block {change.appended}, voted"
    waits = f", waits for {change.waits_for}" if change.waits_for else ""
    return f"{change.kind} {change.node}, {begun} at {change.height} by proposal {change.proposal}{waits}"


def _lines(view: NetworkStatus) -> list[str]:
    heights = view.heights
    facts = [
        ("network", view.network),
        ("chain", view.chain),
        ("asked", f"{view.node} ({', '.join([view.role, *_ailments(view)])})"),
        ("leader", f"{view.leader or 'none'} in term {view.term}"),
        ("heights", f"{heights.committed} committed, {heights.executed} executed, {heights.sealed} sealed"),
        ("head", view.head.hash),
        ("state root", view.head.state_root),
        ("voters", f"{sum(each.role == 'voter' for each in view.members)}, after {view.steps} changes of them"),
        *(("pending", _pending(each)) for each in (view.pending,) if each is not None),
    ]
    members = [["NODE", "ORGANISATION", "ROLE", "ADDRESS", "CONNECTED", "BLOCKS BEHIND"]] + [
        [
            each.id,
            each.organisation,
            each.role,
            each.address,
            "-" if each.id == view.node else "yes" if each.connected else "no",
            "-" if each.lag_blocks is None else str(each.lag_blocks),
        ]
        for each in view.members
    ]
    evidence = [f"evidence: {each.node} signed two of one {each.kind}" for each in view.evidence]
    return [*columns(facts), "", *columns(members), *evidence]
