"""Verify every saved receipt with nothing but the genesis file. Run while no node does.

`python -m carequorum.demo.verifier GENESIS RECEIPTS...` prints {"verified": {FILE: count}, "refused": [...]}.
"""

import json
import sys
from pathlib import Path

import msgspec

from ledger.errors import Rejection
from ledger.execution import OK
from ledger.genesis import Genesis, genesis_from_json
from ledger.receipt import verify_receipt


class SavedReceipt(msgspec.Struct, frozen=True):
    """A receipt as its node gave it; `id` is the transaction that was asked about, hex."""

    id: str
    receipt: bytes


def refusal(saved: SavedReceipt, genesis: Genesis) -> str | None:
    """None if the receipt proves that this very transaction happened, else why not."""
    try:
        verified = verify_receipt(saved.receipt, genesis)
    except Rejection as error:
        return str(error)
    if verified.id.hex() != saved.id:
        return f"it is the receipt of {verified.id.hex()}"
    return None if verified.code == OK else f"it proves {verified.code}"


def main() -> int:
    genesis_file, *files = sys.argv[1:]
    genesis = genesis_from_json(Path(genesis_file).read_text())
    verified: dict[str, int] = {}
    refused: list[str] = []
    for file in files:
        with open(file, "rb") as lines:
            receipts = [msgspec.json.decode(line, type=SavedReceipt) for line in lines]
        reasons = [(saved.id, refusal(saved, genesis)) for saved in receipts]
        refused += [f"{file}: {tx_id}: {why}" for tx_id, why in reasons if why]
        verified[Path(file).stem] = sum(why is None for _, why in reasons)
    print(json.dumps({"verified": verified, "refused": refused}))
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
