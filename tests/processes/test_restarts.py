"""Real daemons whose folders go back to an earlier state, and plain restarts, which must cost nothing."""

import asyncio
import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from carequorum.client import Client
from carequorum.devnet import Devnet, DevnetError, DevnetNode, create
from carequorum.submission import Committed
from storage.check import check_path
from tests.processes.hospitals import (
    SETTLE_TIMEOUT_S,
    enrol,
    log_of,
    missing_in_stores,
    settled,
    started,
    urls_from,
    view_of,
)

pytestmark = pytest.mark.processes

# A leader would be elected in a fraction of it.
NO_LEADER_S = 4.0

Record = Callable[[str, object], None]


async def commit(client: Client, count: int = 3) -> list[Committed]:
    readers = [client.wallet.public_key]
    content_type = "application/fhir+json"
    added = [
        await client.add_record(b"{}", content_type, subject=secrets.token_bytes(32), readers=readers, wait="sealed")
        for _ in range(count)
    ]
    return [each.committed for each in added]


async def start_without_quorum(network: Devnet, node: DevnetNode) -> None:
    """It runs, and finds no leader."""
    with pytest.raises(DevnetError, match="not ready within"):
        await asyncio.to_thread(network.start, [node], NO_LEADER_S)


async def until_leaderless(network: Devnet, node: DevnetNode) -> None:
    for _ in range(200):
        if (await view_of(network, node)).leader is None:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{node.id} still has a leader")


def amnesiacs(network: Devnet) -> set[str]:
    return {node.id for node in network.nodes for line in log_of(network, node) if line["event"] == "amnesia"}


@pytest.mark.parametrize("goes_back_to", ["a backup", "nothing"])
@pytest.mark.asyncio
async def test_a_folder_that_went_back_loses_nothing_while_who_remembers_is_up(
    tmp_path: Path, goes_back_to: str
) -> None:
    """Two commit while the third is off; then one of the two goes back, and the other is off. Nobody is elected."""
    network = create(tmp_path / "net", 3)
    first, second, third = network.nodes
    data = network.folder(second) / "data"
    async with started(network):
        wallet = await enrol(network, first, tmp_path, "clinician", "clinician")
        async with Client(urls_from(network, first), network.genesis, wallet) as client:
            committed = await commit(client)
            await asyncio.to_thread(network.stop, [second])
            shutil.copytree(data, data.with_name("backup"))
            await asyncio.to_thread(network.start, [second])
            committed += await commit(client)
            await asyncio.to_thread(network.kill, [third])
            committed += await commit(client)

            await asyncio.to_thread(network.kill, [second])
            # Else a leader that has nothing to propose would go on with the one that may not vote.
            await until_leaderless(network, first)
            shutil.rmtree(data)
            if goes_back_to == "a backup":
                shutil.copytree(data.with_name("backup"), data)
            else:
                data.mkdir()
            await start_without_quorum(network, second)
            assert amnesiacs(network) == {second.id}
            assert (await view_of(network, second)).amnesia

            await asyncio.to_thread(network.kill, [first])
            await start_without_quorum(network, third)
            # Also after one more start, when nobody is up who would show it again.
            await asyncio.to_thread(network.kill, [second])
            await start_without_quorum(network, second)
            assert (await view_of(network, second)).amnesia

            await asyncio.to_thread(network.start, network.nodes)
            committed += await commit(client)
        views = await settled(network)
        assert {view.leader for view in views} & {first.id, third.id}
        assert [view.node for view in views if view.amnesia] == [second.id]
        await asyncio.to_thread(network.stop, network.nodes)
    assert missing_in_stores(network, committed) == []
    for node in network.nodes:
        report = check_path(network.folder(node) / "data" / "ledger", network.genesis, lambda *_: None)
        assert report.problems == []


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.asyncio
async def test_plain_restarts_are_nothing_to_notice(tmp_path: Path, size: int, record_property: Record) -> None:
    network = create(tmp_path / "net", size)
    took_s: dict[str, float] = {}
    async with started(network):
        wallet = await enrol(network, network.nodes[0], tmp_path, "clinician", "clinician")
        async with Client([node.url for node in network.nodes], network.genesis, wallet) as client:
            for end in (network.stop, network.kill):
                for nodes in ([network.nodes[-1]], list(network.nodes)):
                    await commit(client)
                    await asyncio.to_thread(end, nodes)
                    await asyncio.to_thread(network.start, nodes)
                    begin_s = time.monotonic()
                    await commit(client, 1)
                    took_s[f"{end.__name__} {len(nodes)} of {size}"] = round(time.monotonic() - begin_s, 3)
        views = await settled(network)
        async with asyncio.timeout(SETTLE_TIMEOUT_S):
            await asyncio.to_thread(network.stop, network.nodes)
    record_property("commit_after_restart_s", took_s)
    print("first commit after all were ready, s:", took_s)
    assert amnesiacs(network) == set()
    assert not any(view.amnesia for view in views)
