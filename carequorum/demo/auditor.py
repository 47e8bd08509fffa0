"""Ask every node about every transaction that was answered as committed, and save the receipts that they give.

`python -m carequorum.demo.auditor FOLDER` prints {"asked": count, "lost": [...]}: lost, as node, id and reason,
is what any node does not know as sealed, at the height that was answered, with a receipt.
"""

import asyncio
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from carequorum.client import Client
from carequorum.demo.plan import Answer, Folder
from carequorum.demo.verifier import SavedReceipt
from ledger.errors import Rejection
from ledger.execution import OK
from ledger.genesis import Genesis

# Asked at a time, of each node.
IN_FLIGHT = 8

Lost = tuple[str, str, str]


def main() -> int:
    folder = Folder(Path(sys.argv[1]))
    lost = asyncio.run(audit(folder))
    print(json.dumps({"asked": len(folder.answers()), "lost": lost}))
    return 1 if lost else 0


async def audit(folder: Folder) -> list[Lost]:
    plan, answers = folder.read_plan(), folder.answers()
    genesis = plan.genesis()
    lost = await asyncio.gather(
        *(_audit_node(folder, genesis, node, url, answers) for node, url in plan.urls.items())
    )
    return list(itertools.chain.from_iterable(lost))


async def _audit_node(folder: Folder, genesis: Genesis, node: str, url: str, answers: list[Answer]) -> list[Lost]:
    lost: list[Lost] = []
    pending = iter(answers)
    with (folder.receipts / f"{node}.jsonl").open("wb") as file:
        async with Client([url], genesis) as client:

            async def ask(each: Iterator[Answer]) -> None:
                for answer in each:
                    try:
                        receipt = await _receipt(client, answer)
                    except Rejection as error:
                        lost.append((node, answer.id, str(error)))
                    else:
                        file.write(msgspec.json.encode(SavedReceipt(answer.id, receipt)) + b"\n")

            await asyncio.gather(*(ask(pending) for _ in range(IN_FLIGHT)))
    return lost


async def _receipt(client: Client, answer: Answer) -> bytes:
    """The node's receipt, once it has said that it knows the transaction as the writer was told."""
    tx_id = bytes.fromhex(answer.id)
    status = await client.status(tx_id)
    if (status.status, status.height, status.code) != ("sealed", answer.height, OK):
        raise Rejection("lost", f"{status.status} {status.code} at {status.height}, answered at {answer.height}")
    return await client.receipt(tx_id)


if __name__ == "__main__":
    sys.exit(main())
