"""No patient data in clear: not in stores, messages, logs, metrics or errors; and what is planted there is found."""

import asyncio
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pytest
import structlog

from carequorum import fhir
from carequorum.client import Client
from carequorum.demo.histories import write_histories
from carequorum.devnet import DevnetNode
from carequorum.importing import Imported, NewRecord, add_records
from ledger.contracts.records import Add
from ledger.errors import Rejection
from storage.leveldb import LevelDb
from tests.processes.hospitals import admin_of, enrol, settled, urls_from
from tests.processes.leaks import Finder, not_public, strings
from tests.processes.planting import WRITINGS
from tests.processes.provoking import mentions, submissions
from tests.processes.watched import Watched, answer, http, watched

pytestmark = pytest.mark.processes

REAL = Path(os.environ.get("CAREQUORUM_FHIR_DATA", Path(__file__).parents[3] / "shared" / "data" / "fhir"))
SEED = 20
IN_FLIGHT = 8
# So many resources, and strings of them, are put into requests that are refused.
PROVOKING_RESOURCES = 3
PROVOKING_STRINGS = 6

# What was gathered, by where: pieces joined by a separator that is in no form of any string.
Places = dict[str, bytes]


def joined(pieces: Iterable[bytes]) -> bytes:
    return b"\0\n\0".join(pieces)


def add_action() -> Add:
    return Add(body=0, record=secrets.token_bytes(32), subject=secrets.token_bytes(32))


async def import_at(watch: Watched, folder: Path, node: DevnetNode, resources: Sequence[fhir.Resource]) -> None:
    """Seal all to one patient of this hospital and add them as its clinician; the patient opens one of them."""
    network = watch.network
    clinician = await enrol(network, node, folder, f"clinician-{node.id}", "clinician")
    patient = await enrol(network, node, folder, f"patient-{node.id}", "patient")
    subject, readers = patient.subject_handle(node.id), [patient.public_key]
    new = (NewRecord(at, each.data, fhir.CONTENT_TYPE, subject, readers) for at, each in enumerate(resources))
    imported: list[Imported[int]] = []
    async with Client(urls_from(network, node), network.genesis, clinician) as client:
        await add_records(client, new, IN_FLIGHT, imported.append)
    assert sorted(each.name for each in imported) == list(range(len(resources)))
    last = imported[-1]
    async with Client([node.url], network.genesis, patient) as client:
        # With its receipt the record is within the sealed height, where it can be read.
        await client.receipt(last.added.committed.id)
        opened = await client.open_record(last.added.record)
    assert opened.content.data == resources[last.name].data


async def import_all(watch: Watched, folder: Path, resources: Sequence[fhir.Resource]) -> None:
    """Half of them at two hospitals; then the last node joins, has to catch up, and takes part in the other half."""
    nodes, half = watch.network.nodes, len(resources) // 2
    for pair, part in ((nodes[0::2], resources[:half]), (nodes[1::2], resources[half:])):
        if nodes[3] in pair:
            await watch.join(nodes[3])
        await asyncio.gather(*(import_at(watch, folder, node, part[at::2]) for at, node in enumerate(pair)))
    await settled(watch.network)


def refused_requests(watch: Watched, resources: Sequence[bytes]) -> Iterator[bytes]:
    """Of some of `resources` and of some of the strings in them."""
    network = watch.network
    chosen = sorted(resources, key=len)[:PROVOKING_RESOURCES]
    texts = sorted({text for each in chosen for text in strings(each) if len(text) < 100})
    admin = Client([network.nodes[0].url], network.genesis, admin_of(network, network.nodes[0]))
    for each in chosen:
        yield from submissions(each, admin.sign([add_action()], [b"another body"]))
    for text in texts[:: max(1, len(texts) // PROVOKING_STRINGS)]:
        yield from mentions(text)


async def errors(watch: Watched, resources: Sequence[bytes]) -> bytes:
    """Every answer, of a node of either kind, to requests with patient data in them."""
    nodes = watch.network.nodes[0], watch.network.nodes[2]
    requests = list(refused_requests(watch, resources))
    answers = [await answer(node.url, request) for node in nodes for request in requests]
    refusals = [each for each in answers if each.split(b" ", 2)[1:2] and each.split(b" ", 2)[1].startswith(b"4")]
    # Some strings are numbers, which some requests may well name; and a port may hang up before it is read.
    assert len(refusals) > 0.9 * len(answers)
    return joined(answers)


async def metrics(watch: Watched) -> bytes:
    nodes = watch.network.nodes if len(watch.inside) == 2 else watch.network.nodes[:3]
    found = [await answer(node.url, http("GET", "/metrics")) for node in nodes]
    assert all(b"carequorum_transactions_executed" in each for each in found)
    return joined(found)


async def written_without_patients(watch: Watched, folder: Path) -> Places:
    """What the nodes write of themselves: all that they do for patients, done once with what is of no patient."""
    nobody = fhir.Resource("Basic", None, b'{"resourceType": "Basic", "id": "of-nobody"}', "nowhere", 0)
    await import_at(watch, folder, watch.network.nodes[0], [nobody])
    places = {"errors": await errors(watch, [nobody.data]), "metrics": await metrics(watch)}
    return {**places, "messages": joined(watch.recorder.whole()), "logs": joined(watch.logged())}


def left_behind(watch: Watched) -> Places:
    """By a network that has stopped."""
    stores = {f"store of {node.id}": joined(watch.stored(node)) for node in watch.network.nodes}
    return {"messages": joined(watch.recorder.whole()), "logs": joined(watch.logged()), **stores}


async def assert_nothing_in_clear(directory: Path, source: Path) -> None:
    """Import all of `source`, then look for every string of it that is not public.

    A string that the nodes had written before they were given any of it, in the same place and form, is a word of
    theirs ("provider" in "provider_port") and does not count there. For stores that place is the messages, of whose
    blocks they are made.
    """
    resources = list(fhir.read_path(source))
    (directory / "control").mkdir()
    async with watched(directory / "net") as watch:
        control = await written_without_patients(watch, directory / "control")
        await import_all(watch, directory, resources)
        places = {"errors": await errors(watch, [each.data for each in resources]), "metrics": await metrics(watch)}
        await watch.stop()
    places |= left_behind(watch)

    assert {"transactions", "append", "bodies"} <= watch.recorder.kinds()
    values = {value for each in resources for value in strings(each.data)}
    private = not_public(values, watch.network.genesis.to_json())
    finder = Finder(value.encode() for value in private)
    own = {(place, leak.form, leak.text) for place, data in control.items() for leak in finder.find(data)}
    print(f"{len(private)} strings; of them words of the nodes' own: {sorted(own)}")
    assert len(private) > 500
    assert len(own) < len(private) / 100
    found = [
        (place, leak)
        for place, data in places.items()
        for leak in finder.find(data)
        if (place if place in control else "messages", leak.form, leak.text) not in own
    ]
    assert found == []


@pytest.mark.asyncio
async def test_generated_histories_leave_nothing_in_clear(tmp_path: Path) -> None:
    write_histories(tmp_path / "fhir", SEED)
    await assert_nothing_in_clear(tmp_path, tmp_path / "fhir")


@pytest.mark.asyncio
@pytest.mark.skipif(not REAL.is_dir(), reason=f"no FHIR data at {REAL}; CAREQUORUM_FHIR_DATA names another folder")
async def test_histories_written_by_others_leave_nothing_in_clear(tmp_path: Path) -> None:
    await assert_nothing_in_clear(tmp_path, REAL)


@pytest.mark.asyncio
async def test_what_is_planted_in_clear_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once in each place, in each way of writing, each time another text."""
    texts = {
        (place, writing): f'"Þórdís" {place} {number}'
        for place in ("bodies", "errors", "keys", "logs", "metrics")
        for number, writing in enumerate(WRITINGS)
    }

    def plants(place: str) -> list[str]:
        return [WRITINGS[writing](texts[place, writing]) for writing in WRITINGS]

    async with watched(tmp_path / "net") as watch:
        network = watch.network
        here = watch.inside[network.nodes[2].id]
        await watch.join(network.nodes[3])
        clinician = await enrol(network, network.nodes[0], tmp_path, "clinician", "clinician")
        async with Client([network.nodes[0].url], network.genesis, clinician) as client:
            for text in plants("bodies"):
                await client.transact([add_action()], [text.encode()])
        for text in plants("logs"):
            structlog.get_logger("tests").debug("planted", text=text)
        for text in plants("metrics"):
            here.metrics.transactions_refused.labels(text).inc()
        details = iter(plants("errors"))

        def refuse(tx_id: bytes) -> bytes:
            raise Rejection("not_sealed", next(details))

        monkeypatch.setattr(here.backend, "receipt", refuse)
        request = http("GET", f"/v1/transactions/{'0' * 64}/receipt")
        answers = [await answer(network.nodes[2].url, request) for _ in WRITINGS]
        await settled(network)
        places = {"errors": joined(answers), "metrics": await metrics(watch)}
        await watch.stop()
    database = LevelDb(watch.store(network.nodes[0]))
    database.write([(b"z" + text.encode(), b"") for text in plants("keys")], sync=True)
    database.close()
    places |= left_behind(watch)

    finder = Finder(text.encode() for text in texts.values())
    found = {(place, leak.text.decode()) for place, data in places.items() for leak in finder.find(data)}
    stores = [f"store of {node.id}" for node in network.nodes]
    planted = {place: [place] for place in ("errors", "logs", "metrics")}
    planted |= {"bodies": ["messages", *stores], "keys": stores[:1]}
    expected = {(place, text) for (kind, _), text in texts.items() for place in planted[kind]}
    assert found == expected
