"""`carequorum network`: how the network is, as one node sees it."""

import asyncio

import msgspec
import typer

from carequorum.cli.options import AsJson, At, GenesisFile, Url, access
from carequorum.cli.output import columns, emit
from carequorum.views import NetworkStatus

app = typer.Typer(help="How the network is, as one node sees it.")


@app.callback()
def group() -> None:
    """How the network is, as one node sees it."""


@app.command(epilog="Example: carequorum network status --at build/devnet/hospital-a")
def status(
    at: At = None,
    genesis: GenesisFile = None,
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Members, leader, heights, and evidence against nodes that contradicted themselves."""
    found = access(at, genesis, url)

    async def run() -> NetworkStatus:
        async with found.client() as client:
            return await client.network()

    view = asyncio.run(run())
    emit(as_json, msgspec.to_builtins(view), _lines(view))


def _lines(view: NetworkStatus) -> list[str]:
    heights = view.heights
    facts = [
        ("network", view.network),
        ("chain", view.chain),
        ("asked", f"{view.node} ({view.role}{', barred' if view.barred else ''})"),
        ("leader", f"{view.leader or 'none'} in term {view.term}"),
        ("heights", f"{heights.committed} committed, {heights.executed} executed, {heights.sealed} sealed"),
        ("head", view.head.hash),
        ("state root", view.head.state_root),
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
