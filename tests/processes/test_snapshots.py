"""Real daemons: one that comes late and empty starts on the snapshot of the others, in the same process."""

import asyncio
import shutil
from pathlib import Path

import pytest

from carequorum.client import Client
from carequorum.devnet import create
from storage.check import check_path
from tests.processes.hospitals import SETTLE_TIMEOUT_S, enrol, log_of, settled, started, urls_from

pytestmark = pytest.mark.processes

RECORDS = 120
SETTINGS = {"storage": {"snapshot_interval_blocks": 20}}


@pytest.mark.asyncio
async def test_an_empty_node_starts_on_a_snapshot_and_holds_everything(tmp_path: Path) -> None:
    network = create(tmp_path / "net", settings=SETTINGS)
    late = network.nodes[3]
    async with started(network):
        await asyncio.to_thread(network.stop, [late])
        shutil.rmtree(network.folder(late) / "data")
        node = network.nodes[0]
        wallet = await enrol(network, node, tmp_path, "clinician", "clinician")
        urls = urls_from(network, node)[:3]
        async with Client(urls, network.genesis, wallet) as client:
            # One after the other: a block each.
            added = [
                await client.add_record(b"{}", "application/fhir+json", subject=bytes(32), readers=[])
                for _ in range(RECORDS)
            ]
        await asyncio.to_thread(network.start, [late])
        async with asyncio.timeout(SETTLE_TIMEOUT_S):
            # The leader sends it blocks meanwhile, so that it may have them all before it starts again.
            while "starting again on a snapshot" not in {line["event"] for line in log_of(network, late)}:  # noqa: ASYNC110 - a file
                await asyncio.sleep(0.1)
        await settled(network)
        events = [line["event"] for line in log_of(network, late)]
        begun = events.index("fetching a snapshot")
        assert events.index("snapshot installed") < events.index("starting again on a snapshot")
        assert events.count("starting") == events[:begun].count("starting"), "no process more"
        async with Client([late.url], network.genesis, wallet) as client:
            found = await client.records(bytes(32), limit=RECORDS)
            assert len(found) == RECORDS
            await client.receipt(added[0].committed.id)
            for _ in range(300):
                if "bodies fetched" in {line["event"] for line in log_of(network, late)}:
                    break
                await asyncio.sleep(0.1)
            await client.open_record(added[0].record)
        ended = await asyncio.to_thread(network.stop, network.nodes)
        assert {each.code for each in ended.values() if each} == {0}
    for one in network.nodes:
        report = check_path(network.folder(one) / "data" / "ledger", network.genesis, lambda *_: None)
        assert report.ok, report.problems
        assert report.unreferenced_bodies == 0
    assert [path.name for path in sorted((network.folder(late) / "data").iterdir())] == ["ledger", "snapshots"]
