"""Traces of whole nodes, and of real daemons: accepted. One of a disk that forgot: rejected."""

import asyncio
from pathlib import Path

import pytest

from carequorum.devnet import create
from tests.node.cluster import Cluster
from tests.node.members import register
from tests.node.test_power_loss import kills_under_load
from tests.processes.hospitals import started
from tests.processes.load import writing
from tests.tracecheck.__main__ import load
from tests.tracecheck.check import Report, check
from tests.tracecheck.lines import Forbidden

KILLS = 3


def judge(folder: Path) -> Report:
    return check([load(path) for path in sorted(folder.rglob("*.trace"))])


@pytest.mark.asyncio
async def test_nodes_whose_leaders_lose_their_power_do_what_raft_allows(tmp_path: Path) -> None:
    async with Cluster(traces=tmp_path) as cluster:
        await register(cluster, "ada")
        await kills_under_load(cluster, KILLS)
    report = judge(tmp_path)
    assert report.nodes == 4
    assert report.leaders > KILLS


@pytest.mark.asyncio
async def test_a_disk_that_forgets_what_it_reported_is_found_out(tmp_path: Path) -> None:
    async with Cluster(traces=tmp_path, sync_ignored=True) as cluster:
        await register(cluster, "ada")
        await kills_under_load(cluster, 0)
    with pytest.raises(Forbidden, match="not handed to it"):
        judge(tmp_path)


@pytest.mark.asyncio
@pytest.mark.processes
async def test_daemons_that_are_killed_do_what_raft_allows(tmp_path: Path) -> None:
    network = create(tmp_path / "net")
    for node in network.nodes:
        network.configure(node, {"consensus": {"trace": f"{node.id}.trace"}})
    async with started(network):
        async with writing(network, tmp_path, 2) as answers:
            for _ in range(KILLS):
                await answers.more(5)
                leader = await asyncio.to_thread(network.leader)
                if leader is not None:
                    await asyncio.to_thread(network.kill, [leader])
                    await answers.more(2)
                    await asyncio.to_thread(network.start, [leader])
        await asyncio.to_thread(network.stop, network.nodes)
    report = judge(tmp_path)
    assert report.nodes == len(network.nodes)
    assert report.leaders > 1
    assert report.certificates >= 5 * KILLS
