"""What the client returns is verified; what does not verify is asked of another node, or refused."""

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from carequorum import client as client_module
from carequorum import transport
from carequorum.client import Client
from carequorum.sealing import Content
from carequorum.submission import TransactionFailed
from carequorum.transport import Refused, Unreachable
from carequorum.wallet import Wallet
from ledger.contracts import identity, records
from ledger.errors import Rejection
from ledger.keys import sha256
from ledger.receipt import verify_receipt
from node.http_types import json_view
from tests.carequorum.ports import (
    IMPATIENT,
    QUICK,
    Hospital,
    Port,
    answers,
    client_of,
    closed_url,
    does_as_asked,
    loses_the_answer,
    make_wallet,
    open_port,
    refuses,
)
from tests.ledger.founding import CHAIN, GENESIS, NOW_MS, account_of

CONTENT = b'{"resourceType":"Observation","valueQuantity":{"value":10.00}}'
TYPE = "application/fhir+json"
pytestmark = pytest.mark.asyncio


@pytest.fixture
def patient(tmp_path: Path) -> Wallet:
    return make_wallet(tmp_path, "patient")


@pytest_asyncio.fixture
async def ports(doctor: Wallet, patient: Wallet) -> AsyncIterator[list[Port]]:
    """Two nodes that share a ledger, on which doctor and patient are registered."""
    hospital = Hospital()
    hospital.register(doctor, "clinician")
    hospital.register(patient, "patient")
    async with open_port(hospital) as first, open_port(hospital.twin("south-1")) as second:
        yield [first, second]


async def add(client: Client, patient: Wallet, content: bytes = CONTENT) -> bytes:
    subject = patient.subject_handle("north")
    added = await client.add_record(content, TYPE, subject=subject, readers=[patient.public_key])
    return added.record


async def test_author_and_patient_open_a_record_at_any_hospital(
    ports: list[Port], doctor: Wallet, patient: Wallet
) -> None:
    async with client_of(ports[:1], doctor) as client:
        record = await add(client, patient)
        by_author = await client.open_record(record)
    async with client_of(ports[1:], patient) as client:
        by_patient = await client.open_record(record)
    assert by_author == by_patient
    assert (by_patient.content.data, by_patient.content.content_type) == (CONTENT, TYPE)
    assert by_patient.record.author == doctor.account
    assert by_patient.record.subject == patient.subject_handle("north")


async def test_no_other_member_opens_it(ports: list[Port], doctor: Wallet, patient: Wallet, tmp_path: Path) -> None:
    curious = make_wallet(tmp_path, "curious")
    assert isinstance(ports[0].backend, Hospital)
    ports[0].backend.register(curious, "clinician")
    async with client_of(ports, doctor) as client:
        record = await add(client, patient)
    async with client_of(ports, curious) as client:
        with pytest.raises(Rejection, match="not_a_reader"):
            await client.open_record(record)


async def test_a_stranger_reads_nothing_of_a_record(
    ports: list[Port], doctor: Wallet, patient: Wallet, tmp_path: Path
) -> None:
    async with client_of(ports, doctor) as client:
        record = await add(client, patient)
    async with client_of(ports, make_wallet(tmp_path, "stranger")) as client:
        with pytest.raises(Refused, match="unregistered"):
            await client.record(record)
    async with client_of(ports) as observer:
        with pytest.raises(Rejection, match="no_wallet"):
            await observer.record(record)


async def test_nothing_of_the_content_leaves_the_client_in_clear(
    ports: list[Port], doctor: Wallet, patient: Wallet
) -> None:
    async with client_of(ports, doctor) as client:
        await add(client, patient)
    sent = b"".join(ports[0].bodies)
    assert sent
    assert not any(word in sent for word in (b"Observation", b"valueQuantity", b"fhir", patient.account))


async def test_every_version_of_an_amended_record_opens(
    ports: list[Port], doctor: Wallet, patient: Wallet, tmp_path: Path
) -> None:
    colleague = make_wallet(tmp_path, "colleague")
    assert isinstance(ports[0].backend, Hospital)
    ports[0].backend.register(colleague, "clinician")
    readers = [patient.public_key]
    async with client_of(ports, doctor) as client:
        record = await add(client, patient)
    async with client_of(ports, colleague) as client:
        await client.amend_record(record, b"second", "text/plain", version=1, readers=readers)
        committed = await client.amend_record(record, b"third", "text/plain", version=2, readers=readers)
        assert (await client.open_record(record)).content == Content(b"third", "text/plain")
        # The first was never sealed to the colleague.
        with pytest.raises(Rejection, match="not_a_reader"):
            await client.open_record(record, version=1)
    async with client_of(ports[1:], patient) as client:
        newest = await client.open_record(record)
        opened = [await client.open_record(record, version=version) for version in (1, 2, 3)]
        assert await client.records(patient.subject_handle("north")) == {record: newest.record}
        for version in (0, 4, -1, 2**60):
            with pytest.raises(Rejection, match="no_such_version"):
                await client.record(record, version=version)
    assert [each.content.data for each in opened] == [CONTENT, b"second", b"third"]
    assert [each.record.version for each in opened] == [1, 2, 3]
    assert [each.record.author for each in opened] == [doctor.account, colleague.account, colleague.account]
    assert newest == opened[2]
    assert newest.record.transaction == committed.id


async def test_an_amendment_of_what_somebody_amended_since_is_not_sent(
    ports: list[Port], doctor: Wallet, patient: Wallet
) -> None:
    async with client_of(ports, doctor) as client:
        record = await add(client, patient)
        await client.amend_record(record, b"second", "text/plain", version=1, readers=[])
        sent = len([each for each in ports[0].requests if each.startswith("POST")])
        with pytest.raises(Rejection, match="stale_version"):
            await client.amend_record(record, b"other", "text/plain", version=1, readers=[])
        assert len([each for each in ports[0].requests if each.startswith("POST")]) == sent
        # The ledger's own word, where the proof the client has seen is not of the newest version.
        with pytest.raises(TransactionFailed, match="stale_version"):
            await client.amend_record(record, b"other", "text/plain", version=7, readers=[])
        with pytest.raises(Rejection, match="no_such_record"):
            await client.amend_record(b"x" * 32, b"other", "text/plain", version=1, readers=[])


async def test_another_hospital_does_not_amend(
    ports: list[Port], doctor: Wallet, patient: Wallet, tmp_path: Path
) -> None:
    surgeon = make_wallet(tmp_path, "surgeon")
    assert isinstance(ports[0].backend, Hospital)
    ports[0].backend.register(surgeon, "clinician", "south")
    async with client_of(ports, doctor) as client:
        record = await add(client, patient)
    async with client_of(ports, surgeon) as client:
        with pytest.raises(TransactionFailed, match="not_allowed"):
            await client.amend_record(record, b"other", "text/plain", version=1, readers=[])
    async with client_of(ports, patient) as client:
        with pytest.raises(TransactionFailed, match="not_clinician"):
            await client.amend_record(record, b"other", "text/plain", version=1, readers=[])
        assert (await client.open_record(record)).content.data == CONTENT


async def test_a_version_is_not_said_to_be_missing_by_a_node_that_is_behind(
    ports: list[Port], doctor: Wallet, patient: Wallet
) -> None:
    """There, the version asked for is the newest still, and its absence among the replaced ones is proven."""
    async with client_of(ports, doctor) as client:
        record = await add(client, patient)
        behind = ports[1].backend.state_answer(records.version_path(record, 1))
        await client.amend_record(record, b"second", "text/plain", version=1, readers=[])

    async with client_of(ports[:1], patient, settings=IMPATIENT) as client:
        await client.record(record)
        ports[0].faults.extend([does_as_asked, answers(behind)])
        with pytest.raises(Rejection, match="stale_answer"):
            await client.record(record, version=1)


async def test_a_missing_record_is_proven_missing(ports: list[Port], doctor: Wallet) -> None:
    async with client_of(ports, doctor) as client:
        with pytest.raises(Rejection, match="no_such_record"):
            await client.record(b"x" * 32)
        with pytest.raises(Rejection, match="no_such_account"):
            await client.account(b"x" * 32)


async def test_a_receipt_is_verified_and_proves_offline(ports: list[Port], doctor: Wallet, patient: Wallet) -> None:
    async with client_of(ports, doctor) as client:
        added = await client.add_record(CONTENT, TYPE, subject=b"s" * 32, readers=[patient.public_key], wait="sealed")
        receipt = await client.receipt(added.committed.id)
        other = (await client.add_record(CONTENT, TYPE, subject=b"s" * 32, readers=[], wait="sealed")).committed
        ports[0].faults.append(answers(receipt[:-1] + bytes([receipt[-1] ^ 1])))
        ports[1].faults.append(answers(receipt))
        with pytest.raises(Rejection):
            await client.receipt(other.id)
        assert verify_receipt(await client.receipt(other.id), GENESIS).id == other.id
    verified = verify_receipt(receipt, GENESIS)
    assert (verified.id, verified.code, verified.height) == (added.committed.id, "ok", added.committed.height)


async def test_a_saved_receipt_is_extended_and_compared(ports: list[Port], doctor: Wallet, patient: Wallet) -> None:
    async with client_of(ports, doctor) as client:
        first = await client.add_record(CONTENT, TYPE, subject=b"s" * 32, readers=[], wait="sealed")
        saved = await client.receipt(first.committed.id)
        other = (await client.add_record(CONTENT, TYPE, subject=b"s" * 32, readers=[], wait="sealed")).committed
        # Another's receipt is no answer, nor an older one.
        ports[0].faults.append(answers(await client.receipt(other.id)))
        extended = await client.extend_receipt(saved)
        ports[0].faults.append(answers(saved))
        ports[1].faults.append(answers(saved))
        with pytest.raises(Rejection, match="bad_receipt"):
            await client.extend_receipt(extended)
    before, after = verify_receipt(saved, GENESIS), verify_receipt(extended, GENESIS)
    assert replace(after, seal=before.seal) == before
    assert after.seal.sealed_height > before.seal.sealed_height


async def test_an_admin_registers_and_revokes_members(ports: list[Port], tmp_path: Path) -> None:
    admin, nurse = make_wallet(tmp_path, "admin"), make_wallet(tmp_path, "nurse")
    assert isinstance(ports[0].backend, Hospital)
    ports[0].backend.register(admin, "admin")
    async with client_of(ports, admin) as client:
        await client.register_member(nurse.public_key, nurse.possession_proof(CHAIN, admin.account), "clinician")
        account = await client.account(nurse.account)
        assert (account.key, account.role, account.organisation) == (nurse.public_key, "clinician", "north")
        await client.revoke(nurse.account)
        assert (await client.account(nurse.account)).status == "revoked"
    async with client_of(ports, nurse) as client:
        with pytest.raises(Refused, match="revoked"):
            await add(client, nurse)


async def test_a_proof_made_out_to_another_admin_registers_nobody(ports: list[Port], tmp_path: Path) -> None:
    admin, nurse = make_wallet(tmp_path, "admin"), make_wallet(tmp_path, "nurse")
    assert isinstance(ports[0].backend, Hospital)
    ports[0].backend.register(admin, "admin")
    proof = nurse.possession_proof(CHAIN, account_of("north-admin"))
    async with client_of(ports, admin) as client:
        with pytest.raises(TransactionFailed, match="bad_proof"):
            await client.register_member(nurse.public_key, proof, "clinician")


async def test_after_rotation_the_new_key_signs_and_the_old_one_still_opens(
    ports: list[Port], doctor: Wallet, patient: Wallet
) -> None:
    async with client_of(ports, doctor) as client:
        record = await add(client, patient)
        before = doctor.public_key
        await client.rotate()
        assert doctor.public_key != before
        assert (await client.account(doctor.account)).key == doctor.public_key
        assert (await client.open_record(record)).content.data == CONTENT
        await add(client, patient)


async def test_a_rotation_that_a_crash_cut_short_is_finished_by_the_next(
    ports: list[Port], doctor: Wallet, patient: Wallet
) -> None:
    first = doctor.public_key
    async with client_of(ports, doctor) as client:
        key = doctor.prepare_rotation()
        proof = identity.possession_proof(key, CHAIN, doctor.account)
        await client.transact([identity.Rotate(doctor.account, key.public, proof, 1)])
    # The process ends before it can adopt the key.
    after_crash = Wallet.open(doctor.path, b"passphrase")
    assert after_crash.public_key == first
    async with client_of(ports, after_crash) as client:
        await client.rotate()
        account = await client.account(after_crash.account)
    assert (account.key, account.version) == (after_crash.public_key, 3)
    assert len(after_crash.seeds) == 3


async def test_a_rotation_whose_answer_is_lost_ends_with_the_new_key(ports: list[Port], doctor: Wallet) -> None:
    ports[0].faults += [loses_the_answer, loses_the_answer]
    async with client_of(ports, doctor) as client:
        await client.rotate()
        assert (await client.account(doctor.account)).key == doctor.public_key


async def test_state_that_does_not_verify_is_asked_of_the_next_node(ports: list[Port], doctor: Wallet) -> None:
    key = identity.account_path(doctor.account)
    other = ports[0].backend.state_answer(identity.account_path(b"x" * 32))
    async with client_of(ports, doctor) as client:
        good = await client.state(key)
        assert good.value == ports[0].backend.state(key)
        for lie in (other, other[:-1], b"", ports[0].backend.state_answer(key)[:-1] + b"\0"):
            ports[0].faults.append(answers(lie))
            assert await client.state(key) == good


async def test_when_every_node_lies_the_last_word_is_a_refusal(ports: list[Port], doctor: Wallet) -> None:
    other = ports[0].backend.state_answer("identity/organisation/north")
    for port in ports:
        port.faults.append(answers(other))
    async with client_of(ports, doctor) as client:
        with pytest.raises(Rejection, match="bad_state_answer"):
            await client.state(identity.account_path(doctor.account))


async def test_a_client_sees_its_own_writes_although_its_nodes_are_behind(
    ports: list[Port], doctor: Wallet, patient: Wallet
) -> None:
    key = records.subject_path(patient.subject_handle("north"))
    before = ports[0].backend.state_answer(key)
    async with client_of(ports, doctor) as client:
        await client.record(await add(client, patient))
        for port in ports:
            port.faults += [answers(before)] * 2
        assert (await client.state(key)).value is not None
        # It took two rounds of old answers. Who does not ask for the write is content with an old proof.
        assert not ports[0].faults
        ports[0].faults.append(answers(before))
        assert (await client.state(key, min_height=0)).value is None


async def test_a_seal_that_never_comes_is_not_waited_for_without_end(ports: list[Port]) -> None:
    async with client_of(ports, settings=IMPATIENT) as client:
        with pytest.raises(Rejection, match="stale_answer"):
            await client.state("network/parameters", min_height=10_000)


async def test_a_body_that_is_not_the_commitments_is_asked_of_the_next_node(
    ports: list[Port], doctor: Wallet, patient: Wallet
) -> None:
    async with client_of(ports, doctor) as client:
        entry = await client.record(await add(client, patient))
        for fault in (answers(b"another body"), refuses("not_found", 404)):
            ports[0].faults.append(fault)
            assert len(await client.body(entry.body.commitment)) == entry.body.size
        with pytest.raises(Refused, match="not_found"):
            await client.body(sha256(b"no body"))


async def test_a_signed_read_is_made_out_to_the_node_that_gets_it(
    ports: list[Port], doctor: Wallet, patient: Wallet
) -> None:
    async with client_of(ports, doctor) as client:
        record = await add(client, patient)
    async with client_of([await closed_url(), *ports], patient) as client:
        await client.open_record(record)
        ports[0].faults.append(refuses("busy", 503))
        await client.open_record(record)
    # Each was asked for its name once, and took no signature for another's.
    assert [port.requests.count("GET /v1/network") for port in ports] == [1, 1]
    assert [port.refusals for port in ports] == [["busy"], []]


async def test_a_node_of_another_network_gets_no_signature(ports: list[Port], patient: Wallet) -> None:
    view = json.loads(msgspec.json.encode(ports[0].backend.network()))
    ports[0].faults.append(answers(json.dumps(view | {"chain": "00" * 32}).encode()))
    async with client_of(ports[:1], patient) as client:
        with pytest.raises(Rejection, match="wrong_chain"):
            await client.records(patient.subject_handle("north"))
    assert ports[0].requests == ["GET /v1/network"]


async def test_a_subjects_records_come_newest_first_over_all_pages(
    ports: list[Port], doctor: Wallet, patient: Wallet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "RECORDS_PAGE", 2)
    subject = patient.subject_handle("north")
    async with client_of(ports, doctor) as client:
        assert await client.records(subject) == {}
        added = [await add(client, patient, b"%d" % number) for number in range(5)]
        found = await client.records(subject)
        assert list(found) == added[::-1]
        assert found == {record: await client.record(record) for record in added}
        assert list(await client.records(subject, limit=3)) == added[:1:-1]


async def test_records_that_are_left_out_or_made_up_are_noticed(
    ports: list[Port], doctor: Wallet, patient: Wallet
) -> None:
    subject = patient.subject_handle("north")
    async with client_of(ports[:1], doctor) as client:
        for number in range(3):
            await add(client, patient, b"%d" % number)
        page = [
            json_view(msgspec.structs.asdict(entry)) | {"record": record.hex(), "body": json_view(entry.body)}
            for record, entry in (await client.records(subject)).items()
        ]
        newest, middle, oldest = page
        lies = [
            [],
            [middle, oldest],
            [newest, oldest],
            [newest, middle],
            [newest | {"previous": oldest["record"]}, oldest],
            [newest, middle | {"previous": None}],
            [newest, middle, oldest | {"previous": "00" * 32}],
            [newest, middle, oldest, oldest],
            [newest | {"author": "?"}],
        ]
        for lie in lies:
            proven = ports[0].backend.state_answer(records.subject_path(subject))
            ports[0].faults += [answers(proven), *[answers(json.dumps({"records": lie}).encode())] * 2]
            with pytest.raises(Rejection, match="bad_answer"):
                await client.records(subject)
            ports[0].faults.clear()
        # The same way, told the truth.
        ports[0].faults += [answers(proven), answers(json.dumps({"records": page}).encode())]
        assert list(await client.records(subject)) == [bytes.fromhex(entry["record"]) for entry in page]


async def test_a_record_added_since_the_proof_is_the_next_calls(
    ports: list[Port], doctor: Wallet, patient: Wallet
) -> None:
    subject = patient.subject_handle("north")
    async with client_of(ports, doctor) as client, client_of(ports, patient) as reader:
        first = await add(client, patient)
        proven = ports[0].backend.state_answer(records.subject_path(subject))
        assert list(await reader.records(subject)) == [first]
        second = await add(client, patient)
        ports[0].faults.append(answers(proven))
        assert list(await reader.records(subject)) == [first]
        assert list(await reader.records(subject)) == [second, first]


async def test_a_block_is_checked(ports: list[Port]) -> None:
    async with client_of(ports) as client:
        block = await client.block(1)
        assert (block.header.height, block.header.chain, len(block.transactions)) == (1, CHAIN, 1)
        ports[0].faults.append(answers((await client.block(2)).data))
        assert (await client.block(1)).hash == block.hash
        altered = bytearray(block.data)
        altered[altered.index(block.signature)] ^= 1
        for port in ports:
            port.faults.append(answers(bytes(altered)))
        with pytest.raises(Rejection, match="bad_block"):
            await client.block(1)
        with pytest.raises(Refused, match="not_found"):
            await client.block(1_000)


async def test_network_and_status_are_typed(ports: list[Port], doctor: Wallet) -> None:
    async with client_of(ports, doctor) as client:
        network = await client.network()
        committed = await client.transact([records.Add(0, b"r" * 32, b"s" * 32)], [b"body"])
        status = await client.status(committed.id)
        assert (await client.status(b"x" * 32)).status == "unknown"
    assert (network.node, network.leader, network.chain) == ("north-1", "north-1", CHAIN.hex())
    assert [member.id for member in network.members] == [node.id for node in GENESIS.nodes]
    assert network.evidence[0].node == "west-1"
    assert (status.status, status.height, status.code) == ("sealed", committed.height, "ok")


async def test_an_answer_without_end_is_cut_off(ports: list[Port], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "ANSWER_BYTES_MAX", 100)
    async with client_of(ports, settings=IMPATIENT) as client:
        with pytest.raises(Unreachable, match="more than 100 bytes"):
            await client.network()


async def test_a_client_is_used_inside_its_context(ports: list[Port]) -> None:
    client = client_of(ports)
    with pytest.raises(RuntimeError, match="async with"):
        await client.network()
    with pytest.raises(ValueError, match="at least one node"):
        client_of([])


async def test_a_linearizable_client_says_so_at_every_read(
    ports: list[Port], doctor: Wallet, patient: Wallet
) -> None:
    async with client_of(ports[:1], doctor) as client:
        record = await add(client, patient)
    ports[0].requests.clear()
    urls = [port.url for port in ports]
    async with Client(urls, GENESIS, doctor, settings=QUICK, linearizable=True, now_ms=lambda: NOW_MS) as client:
        await client.open_record(record)
        await client.records(patient.subject_handle("north"))
        await client.account(doctor.account)
        await client.receipt((await client.block(1)).transactions[0].id)
        await client.status(bytes(32))
        await client.network()
        # The node's id, which never changes, is asked without it.
        reads = [request for request in ports[0].requests if request != "GET /v1/network"]
        assert len(reads) >= 8
        assert all(request.endswith("consistency=linearizable") for request in reads)
        assert {sealed for _, sealed in ports[0].backend.confirmed} == {True, False}

        ports[0].backend.unconfirmed = Rejection("not_confirmed", "cut off")
        assert (await client.network()).node == "south-1"
    async with Client(urls[:1], GENESIS, settings=IMPATIENT, linearizable=True) as client:
        with pytest.raises(Refused, match="not_confirmed"):
            await client.network()
