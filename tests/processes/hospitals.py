"""What the tests of real daemons share: a network of them, their members, and what must be equal in the end."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from carequorum.client import Client
from carequorum.devnet import Devnet, DevnetNode, new_wallet
from carequorum.submission import Committed
from carequorum.views import NetworkStatus
from carequorum.wallet import Wallet, read_passphrase
from ledger.contracts.identity import Role
from ledger.errors import Rejection
from ledger.execution import OK
from ledger.genesis import Genesis
from ledger.receipt import verify_receipt
from storage.leveldb import LevelDb
from storage.store import Store

SETTLE_TIMEOUT_S = 30.0
# Transactions asked about at a time, of each node.
ASKED_AT_ONCE = 8


@asynccontextmanager
async def started(network: Devnet) -> AsyncIterator[Devnet]:
    """Every daemon of `network`, ready; killed at the end, if not stopped before."""
    try:
        await asyncio.to_thread(network.start, network.nodes)
        yield network
    finally:
        await asyncio.to_thread(network.kill, network.nodes)


def urls_from(network: Devnet, node: DevnetNode) -> list[str]:
    """Every provider port, that of `node` first."""
    return [node.url, *(each.url for each in network.nodes if each != node)]


async def enrol(network: Devnet, node: DevnetNode, folder: Path, name: str, role: Role) -> Wallet:
    """A new member of the organisation of `node`, registered by its admin; the wallet is made in `folder`."""
    wallet, _ = new_wallet(folder / f"{name}.wallet", name)
    async with Client(urls_from(network, node), network.genesis, admin_of(network, node)) as client:
        proof = wallet.possession_proof(client.chain, client.wallet.account)
        await client.register_member(wallet.public_key, proof, role, wait="sealed")
    return wallet


def admin_of(network: Devnet, node: DevnetNode) -> Wallet:
    wallet_file, passphrase_file = network.wallet(node)
    return Wallet.open(wallet_file, read_passphrase(passphrase_file))


def log_of(network: Devnet, node: DevnetNode) -> list[dict[str, Any]]:
    """Every whole line that the daemon of `node` wrote so far, of all its starts."""
    lines = network.log(node).read_bytes().split(b"\n")[:-1]
    return [json.loads(line) for line in lines]


async def view_of(network: Devnet, node: DevnetNode) -> NetworkStatus:
    """The network as `node` sees it."""
    async with Client([node.url], network.genesis) as client:
        return await client.network()


async def settled(network: Devnet) -> list[NetworkStatus]:
    """What every node says, once all of them have executed the same blocks and no other is in any log."""
    async with asyncio.timeout(SETTLE_TIMEOUT_S):
        while True:
            views = [await view_of(network, node) for node in network.nodes]
            heads = {view.head for view in views}
            if len(heads) == 1 and all(view.heights.last == view.heights.executed for view in views):
                return views


def check_receipt(receipt: bytes, answered: Committed, genesis: Genesis) -> None:
    """Rejection unless the receipt proves that the transaction happened where it was answered."""
    proven = verify_receipt(receipt, genesis)
    if (proven.id, proven.height, proven.index, proven.code) != (answered.id, answered.height, answered.index, OK):
        raise Rejection("other_receipt", f"answered at {answered.height}, proven {proven}")


async def missing(network: Devnet, committed: Iterable[Committed]) -> list[str]:
    """What any running node does not prove by a receipt as it was answered: the node, the transaction and why."""
    known = list(committed)
    found = await asyncio.gather(*(_missing_at(network, node, known) for node in network.nodes))
    return [line for lines in found for line in lines]


def missing_in_stores(network: Devnet, committed: Iterable[Committed]) -> list[str]:
    """As `missing`, of a network that has stopped, from the store of each node."""
    known = list(committed)
    lines: list[str] = []
    for node in network.nodes:
        store = Store(LevelDb(network.folder(node) / "data" / "ledger", create=False), network.genesis)
        try:
            for each in known:
                try:
                    check_receipt(store.receipt(each.id), each, network.genesis)
                except Rejection as error:
                    lines.append(f"{node.id}: {each.id.hex()}: {error}")
        finally:
            store.close()
    return lines


async def _missing_at(network: Devnet, node: DevnetNode, committed: list[Committed]) -> list[str]:
    lines: list[str] = []
    pending = iter(committed)
    async with Client([node.url], network.genesis) as client:

        async def ask() -> None:
            for each in pending:
                try:
                    check_receipt(await client.receipt(each.id), each, network.genesis)
                except Rejection as error:
                    lines.append(f"{node.id}: {each.id.hex()}: {error}")

        await asyncio.gather(*(ask() for _ in range(ASKED_AT_ONCE)))
    return lines
