"""A ledger worth asking about: members of every standing, records, versions of one, a transaction that failed."""

from pathlib import Path

from carequorum.client import AddedRecord, Client
from carequorum.devnet import Devnet, DevnetNode
from carequorum.submission import TransactionFailed
from carequorum.wallet import Wallet
from ledger.contracts import identity, network, records
from tests.api.facts import Facts, Member
from tests.processes.hospitals import admin_of, enrol

SUBJECT = b"s" * 32
TYPE = "text/plain"
RECORDS = 5
VERSIONS = 3


async def seed(devnet: Devnet, node: DevnetNode, folder: Path) -> Facts:
    """Everything through `node`, and sealed when this returns."""
    admin = admin_of(devnet, node)
    doctor, patient, gone, rotated = [await enrol(devnet, node, folder, name, role) for name, role in _ROLES.items()]
    before = rotated.seeds[0]
    async with Client([node.url], devnet.genesis, admin) as client:
        await client.revoke(gone.account)
    async with Client([node.url], devnet.genesis, rotated) as client:
        await client.rotate()
    async with Client([node.url], devnet.genesis, doctor) as client:
        added, ids = await _write(client, [patient.public_key])
        entries = await client.records(SUBJECT)
        receipt = await client.receipt(ids[0])
        commitments = [entry.body.commitment for entry in entries.values()]
    amended = added[-1].record
    return Facts(
        url=node.url,
        node=node.id,
        genesis=devnet.genesis,
        members={
            "admin": _member(admin),
            "doctor": _member(doctor),
            "patient": _member(patient),
            "gone": _member(gone),
            "rotated": Member(rotated.account, before),
            "stranger": Member(b"x" * 32, b"y" * 32),
        },
        transactions=[each.hex() for each in ids],
        records=[each.record.hex() for each in added],
        amended=amended.hex(),
        version=VERSIONS,
        receipt=receipt,
        subject=SUBJECT.hex(),
        commitments=[each.hex() for each in commitments],
        heights=sorted({each.committed.height for each in added}),
        state=_state(devnet, [admin, doctor, gone], amended),
        seen=str(folder / "seen.json"),
    )


_ROLES: dict[str, identity.Role] = {
    "doctor": "clinician",
    "patient": "patient",
    "gone": "auditor",
    "rotated": "payer",
}


async def _write(client: Client, readers: list[bytes]) -> tuple[list[AddedRecord], list[bytes]]:
    """The records, and the ids of all transactions."""
    added = [
        await client.add_record(b"note %d" % number, TYPE, subject=SUBJECT, readers=readers)
        for number in range(RECORDS)
    ]
    record = added[-1].record
    ids = [each.committed.id for each in added]
    for version in range(1, VERSIONS):
        committed = await client.amend_record(
            record, b"note, corrected", TYPE, version=version, readers=readers, wait="sealed"
        )
        ids.append(committed.id)
    try:
        stale = records.Amend(body=0, record=record, subject=SUBJECT, version=1)
        await client.transact([stale], [b"sealed"], wait="sealed")
    except TransactionFailed as failed:
        ids.append(failed.id)
    return added, ids


def _member(wallet: Wallet) -> Member:
    return Member(wallet.account, wallet.seeds[0])


def _state(devnet: Devnet, wallets: list[Wallet], amended: bytes) -> dict[str, list[str]]:
    """Keys of the state, by contract: one at least of every kind, and one where nothing is."""
    paths = [
        network.PARAMETERS_PATH,
        network.CONFIGURATION_PATH,
        network.NODES_PATH,
        network.ORGANISATIONS_PATH,
        network.PENDING_PATH,
        *(network.node_path(node.id) for node in devnet.genesis.nodes),
        *(network.node_key_path(key) for key in devnet.genesis.node_keys().values()),
        *(identity.organisation_path(organisation.id) for organisation in devnet.genesis.organisations),
        *(identity.account_path(wallet.account) for wallet in wallets),
        *(identity.key_path(wallet.public_key) for wallet in wallets),
        identity.account_path(bytes(32)),
        records.record_path(amended),
        *(records.version_path(amended, version) for version in range(1, VERSIONS)),
        records.subject_path(SUBJECT),
        records.record_path(bytes(32)),
    ]
    by_contract: dict[str, list[str]] = {}
    for path in paths:
        contract, _, key = path.partition("/")
        by_contract.setdefault(contract, []).append(key)
    return by_contract
