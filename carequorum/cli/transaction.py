"""`carequorum tx`: what became of a transaction."""

import asyncio
from datetime import UTC, datetime

import msgspec
import typer

from carequorum.cli.options import AsJson, Linearizable, NodeOptions, TransactionArgument, parse_hex, shared_options
from carequorum.cli.output import columns, emit
from carequorum.submission import TxStatus

app = typer.Typer(help="What became of a transaction.")


@app.callback()
def group() -> None:
    """What became of a transaction."""


@app.command(epilog="Example: carequorum tx status TRANSACTION --at build/devnet/hospital-a")
@shared_options
def status(
    transaction: TransactionArgument,
    *,
    options: NodeOptions,
    linearizable: Linearizable = False,
    as_json: AsJson = False,
) -> None:
    """How far it came, by a node's word: unknown, pending, committed, sealed or dropped. Proof is a receipt."""
    tx_id = parse_hex(transaction, 32, "TRANSACTION")
    found = options.access()

    async def run() -> TxStatus:
        async with found.client(linearizable=linearizable) as client:
            return await client.status(tx_id)

    known = asyncio.run(run())
    facts = msgspec.to_builtins(known)
    lines = columns([(key, value) for key, value in facts.items() if value is not None and key != "known_since"])
    if known.known_since is not None:
        lines.append(_forgotten(known.known_since))
    emit(as_json, facts, lines)


def _forgotten(since_ms: int) -> str:
    since = datetime.fromtimestamp(since_ms / 1000, UTC).isoformat(timespec="seconds")
    return (
        f"The node has pruned its blocks up to {since}: the transaction may have been committed by then, "
        "and this node cannot tell. Another may."
    )
