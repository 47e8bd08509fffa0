"""Who takes part in the demonstration: clinicians, patients, and whose history is written where."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

from carequorum import fhir
from carequorum.client import Client
from carequorum.demo.plan import Answer, Folder, Item, Notebook, Patient, Person, Plan, slices
from carequorum.devnet import Devnet, DevnetNode, new_wallet
from carequorum.verify import load_genesis
from carequorum.wallet import Wallet, read_passphrase
from ledger.contracts.identity import Role

# Registrations at a time, at each hospital.
IN_FLIGHT = 8


def stage(network: Devnet, folder: Folder, source: Path) -> Plan:
    """Make wallets, register their owners, and write the plan. Raises Rejection for a source that is no FHIR.

    Each file of the source is one patient's: a practitioner's or hospital's file has an account like a patient,
    so that nothing is written about nobody.
    """
    histories = [(file, found) for file in fhir.files(source) if (found := list(slices(file)))]
    patients: list[Patient] = []
    items: list[Item] = []
    arrivals: dict[str, list[tuple[Wallet, Role]]] = {node.id: [] for node in network.nodes}
    clinicians: dict[str, Person] = {}
    for node in network.nodes:
        wallet, clinician = _person(folder, node.id, f"clinician-{node.id}")
        clinicians[node.id] = clinician
        arrivals[node.id].append((wallet, "clinician"))
    homes = _spread([len(found) for _, found in histories], network.nodes)
    for place, ((file, found), home) in enumerate(zip(histories, homes, strict=True)):
        wallet, person = _person(folder, home.id, f"patient-{place:04}")
        patients.append(
            Patient(
                hospital=home.id,
                wallet=person.wallet,
                passphrase_file=person.passphrase_file,
                account=wallet.account.hex(),
                key=wallet.public_key.hex(),
                subject=wallet.subject_handle(home.id).hex(),
            )
        )
        arrivals[home.id].append((wallet, "patient"))
        items += [Item(str(file.resolve()), offset, length, kind, place) for kind, offset, length in found]
    asyncio.run(_register_all(network, folder, arrivals))
    plan = Plan(
        genesis_file=str(network.directory / "genesis.json"),
        urls={node.id: node.url for node in network.nodes},
        clinicians=clinicians,
        patients=patients,
        items=items,
    )
    folder.write_plan(plan)
    return plan


def _spread(sizes: list[int], nodes: list[DevnetNode]) -> list[DevnetNode]:
    """A hospital for each history: the largest first, each to whoever has the least so far."""
    load = {node.id: 0 for node in nodes}
    homes: dict[int, DevnetNode] = {}
    for place in sorted(range(len(sizes)), key=lambda place: -sizes[place]):
        home = min(nodes, key=lambda node: load[node.id])
        load[home.id] += sizes[place]
        homes[place] = home
    return [homes[place] for place in range(len(sizes))]


def _person(folder: Folder, hospital: str, name: str) -> tuple[Wallet, Person]:
    file = folder.wallets / f"{name}.wallet"
    wallet, passphrase_file = new_wallet(file, name)
    return wallet, Person(hospital, str(file), str(passphrase_file))


async def _register_all(network: Devnet, folder: Folder, arrivals: dict[str, list[tuple[Wallet, Role]]]) -> None:
    await asyncio.gather(*(_register(network, folder, node, arrivals[node.id]) for node in network.nodes))


async def _register(network: Devnet, folder: Folder, node: DevnetNode, arrivals: list[tuple[Wallet, Role]]) -> None:
    """Register the people of one hospital as its admin, through its own node."""
    wallet_file, passphrase_file = network.wallet(node)
    admin = Wallet.open(wallet_file, read_passphrase(passphrase_file))
    genesis = load_genesis(network.directory / "genesis.json")
    notebook = folder.notebook(f"admin-{node.id}")
    shared = iter(arrivals)
    try:
        async with Client([node.url], genesis, admin) as client:
            await asyncio.gather(*(_register_in_turn(client, shared, notebook) for _ in range(IN_FLIGHT)))
    finally:
        notebook.close()


async def _register_in_turn(client: Client, arrivals: Iterator[tuple[Wallet, Role]], notebook: Notebook) -> None:
    for wallet, role in arrivals:
        submitted_ns = time.monotonic_ns()
        proof = wallet.possession_proof(client.chain, client.wallet.account)
        committed = await client.register_member(wallet.public_key, proof, role)
        notebook.note(
            Answer(
                id=committed.id.hex(),
                height=committed.height,
                item=None,
                record=None,
                submitted_ns=submitted_ns,
                answered_ns=time.monotonic_ns(),
            )
        )
