"""One changed byte on one node's disk: it refuses to start and says where, touches nothing, and the others go on.

What an operator then does (docs/operations.md) brings the node back.
"""

import asyncio
import json
import random
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from carequorum.cli import main
from carequorum.client import Client
from carequorum.devnet import Devnet, DevnetError, DevnetNode, create
from carequorum.submission import Committed
from storage import schema
from storage.check import check_path
from storage.leveldb import LevelDb
from tests.processes.hospitals import enrol, missing, settled, started, view_of
from tests.storage.folders import change_value, flip

pytestmark = pytest.mark.processes

SEED = 20_260_119
DISK_FAILED = 3


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


class Others:
    """A clinician at the sound nodes, and what they committed."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.committed: list[Committed] = []

    async def go_on(self, records: int = 2) -> None:
        for _ in range(records):
            subject, readers = secrets.token_bytes(32), [self._client.wallet.public_key]
            added = await self._client.add_record(b"{}", "application/fhir+json", subject=subject, readers=readers)
            self.committed.append(added.committed)


async def refused(network: Devnet, node: DevnetNode, others: Others, match: str) -> None:
    """Start the node, which must end by itself with exit code 3; the others commit meanwhile and after."""
    starting = asyncio.create_task(asyncio.to_thread(network.start, [node]))
    await others.go_on()
    with pytest.raises(DevnetError, match=f"ended with {DISK_FAILED}: .*{match}"):
        await starting
    await others.go_on()


def last_line(log: Path) -> dict[str, Any]:
    line: dict[str, Any] = json.loads(log.read_text().splitlines()[-1])
    assert (line["event"], line["code"], line["error"]) == ("fault", DISK_FAILED, "DamageError")
    return line


async def flipped_bytes(network: Devnet, node: DevnetNode, others: Others) -> None:
    """One file of each kind: a byte in its middle, which in a log or a table is a record's, that is named too."""
    choose = random.Random(SEED)
    store = network.folder(node) / "data" / "ledger"
    for pattern in ("CURRENT", "MANIFEST-*", "*.ldb", "*.log"):
        file = max(store.glob(pattern), key=lambda each: each.stat().st_size)
        offset, mask = file.stat().st_size // 2, choose.randrange(1, 256)
        flip(file, offset, mask)
        before = contents(store)
        await refused(network, node, others, file.name)
        last = last_line(network.log(node))
        assert last["file"] == file.name
        if pattern.startswith("*"):
            assert last["record"]
        assert contents(store) == before, "a node that refuses leaves everything to be looked at"
        report = await asyncio.to_thread(check_path, store, network.genesis, lambda stage, done, of: None)
        assert file.name in [problem.file for problem in report.problems]
        flip(file, offset, mask)


async def changed_value(network: Devnet, node: DevnetNode, others: Others) -> None:
    """In the newest block, with sound checksums; the log goes to a file, and standard error says it too."""
    store = network.folder(node) / "data" / "ledger"
    kept = shutil.copytree(store, store.with_name("kept"))
    kv = LevelDb(store, create=False)
    height = schema.unseal(schema.LogRecord, kv.get(schema.LOG_KEY) or b"", "log").height
    kv.close()
    change_value(store, schema.block_key(height), random.Random(SEED))
    network.configure(node, {"logging": {"file": "lines.log"}})
    await refused(network, node, others, f"height {height}, block {height}, file 0")
    last = last_line(network.folder(node) / "lines.log")
    assert (last["height"], last["record"]) == (height, f"block {height}")
    shutil.rmtree(store)
    kept.rename(store)


async def brought_back_empty(network: Devnet, node: DevnetNode, others: Others) -> None:
    """The others have its acknowledgements: it fetches everything from them, serves, and votes no more."""
    data = network.folder(node) / "data"
    data.rename(data.with_name("data.damaged"))
    data.mkdir()
    await asyncio.to_thread(network.start, [node])
    await others.go_on()
    assert (await view_of(network, node)).amnesia


@pytest.mark.asyncio
async def test_a_damaged_node_refuses_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], record_property: Callable[[str, object], None]
) -> None:
    network = create(tmp_path / "net", 3)
    *sound, node = network.nodes
    async with started(network):
        wallet = await enrol(network, sound[0], tmp_path, "clinician", "clinician")
        async with Client([each.url for each in sound], network.genesis, wallet) as client:
            others = Others(client)
            await others.go_on()
            # LevelDB makes a table of its log when it opens.
            await asyncio.to_thread(network.stop, [node])
            await asyncio.to_thread(network.start, [node])
            await others.go_on()
            await asyncio.to_thread(network.stop, [node])
            await flipped_bytes(network, node, others)
            await changed_value(network, node, others)
            # With every byte as it was it starts again.
            await asyncio.to_thread(network.start, [node])
            await asyncio.to_thread(network.stop, [node])
            await brought_back_empty(network, node, others)
        await settled(network)
        assert await missing(network, others.committed) == []
        await asyncio.to_thread(network.stop, network.nodes)
    record_property("committed meanwhile", len(others.committed))
    for each in network.nodes:
        assert main(["check", "--data", str(network.folder(each) / "data"), "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert (report["ok"], report["chain"]) == (True, network.genesis.chain_id().hex())
