"""`carequorum receipt`: proof of what was committed."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from carequorum.cli.options import (
    AsJson,
    GenesisFile,
    Linearizable,
    NodeOptions,
    TransactionArgument,
    parse_hex,
    shared_options,
)
from carequorum.cli.output import INVALID, USAGE, CommandError, emit, write_new
from carequorum.verify import describe_receipt, load_genesis, read_receipt_file, verify_receipt_file
from ledger.errors import Rejection
from ledger.receipt import VerifiedReceipt, verify_receipt

app = typer.Typer(help="Proof of what was committed.")


@app.command(epilog="Example: carequorum receipt get TRANSACTION --out tx.receipt --at build/devnet/hospital-a")
@shared_options
def get(
    transaction: TransactionArgument,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where to write it; never overwritten.")],
    *,
    options: NodeOptions,
    linearizable: Linearizable = False,
    as_json: AsJson = False,
) -> None:
    """Fetch a transaction's receipt, verify it, and keep it in a file."""
    tx_id = parse_hex(transaction, 32, "TRANSACTION")
    found = options.access()

    async def run() -> bytes:
        async with found.client(linearizable=linearizable) as client:
            return await client.receipt(tx_id)

    receipt = asyncio.run(run())
    write_new(out, receipt, 0o644)
    _show(verify_receipt(receipt, found.genesis), as_json)


@app.command(epilog="Example: carequorum receipt extend tx.receipt --out newer.receipt --at build/devnet/hospital-a")
@shared_options
def extend(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The saved receipt.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where to write the newer one; never overwritten.")],
    *,
    options: NodeOptions,
    as_json: AsJson = False,
) -> None:
    """Put a saved receipt under the network's newest seal. Works where the transaction itself is pruned."""
    found = options.access()
    saved = read_receipt_file(file)

    async def run() -> bytes:
        async with found.client() as client:
            return await client.extend_receipt(saved)

    receipt = asyncio.run(run())
    write_new(out, receipt, 0o644)
    _show(verify_receipt(receipt, found.genesis), as_json)


@app.command(epilog="Example: carequorum receipt verify tx.receipt --genesis genesis.json")
def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The receipt.")],
    genesis: GenesisFile = None,
    as_json: AsJson = False,
) -> None:
    """Verify a receipt offline, by the genesis file alone. Exit code 3 if it proves nothing."""
    if genesis is None:
        raise CommandError("which network? give --genesis", USAGE)
    network = load_genesis(genesis)
    try:
        receipt = verify_receipt_file(file, network)
    except Rejection as error:
        if error.code == "no_such_file":
            raise
        raise CommandError(f"{file} does not verify: {error}", INVALID) from None
    _show(receipt, as_json)


def _show(receipt: VerifiedReceipt, as_json: bool) -> None:
    document = {
        "transaction": receipt.id.hex(),
        "code": receipt.code,
        "height": receipt.height,
        "index": receipt.index,
        "sealed_height": receipt.seal.sealed_height,
        "certified_height": receipt.seal.certified_height,
        "certified_term": receipt.seal.certified_term,
        "certified_time": receipt.seal.certified_time_ms,
        "steps": receipt.seal.steps,
    }
    emit(as_json, document, describe_receipt(receipt))
