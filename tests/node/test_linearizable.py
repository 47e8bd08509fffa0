"""Linearizable reads in a network: at any node the answer knows of all that was acknowledged anywhere before."""

import asyncio
import time
from dataclasses import replace

import aiohttp
import pytest

from consensus.messages import Append, Message
from ledger.contracts import identity
from ledger.errors import Rejection
from ledger.receipt import verify_state_answer
from node.config import ProviderSection
from node.http_api import provider_port
from tests.node.cluster import Cluster, hospital
from tests.node.members import account_of, register, registration, transact

PATIENCE_S = 20.0


def knows(cluster: Cluster, node_id: str, name: str) -> bool:
    return cluster.members[node_id].running.backend.state(identity.account_path(account_of(name))) is not None


async def confirmed(cluster: Cluster, node_id: str, timeout_s: float = PATIENCE_S, *, sealed: bool = False) -> None:
    await cluster.members[node_id].running.backend.confirm(timeout_s, sealed=sealed)


async def enrol(cluster: Cluster, node_id: str, name: str) -> None:
    """Register at this node; returns once it answered `committed`."""
    transaction = registration(cluster, name, "clinician", 0, time.time_ns() // 1_000_000)
    assert await transact(cluster, node_id, transaction) == "ok"


class Held:
    """Heartbeats reach the follower, blocks and certificates do not until `released`."""

    def __init__(self, follower: str) -> None:
        self.follower = follower
        self.released = False

    def __call__(self, sender: str, peer: str, message: Message) -> Message | None:
        if self.released or peer != self.follower or not isinstance(message, Append):
            return message
        return replace(message, entries=(), certificate=None)


@pytest.mark.asyncio
async def test_at_a_follower_that_is_behind_the_read_waits() -> None:
    async with Cluster() as cluster:
        await register(cluster, "ada")
        leader = await cluster.led()
        follower = next(node_id for node_id in cluster.members if node_id != leader)
        held = Held(follower)
        cluster.rewrite = held
        await enrol(cluster, leader, "eve")
        read = asyncio.create_task(confirmed(cluster, follower))
        with pytest.raises(Rejection, match="not_confirmed"):
            await confirmed(cluster, follower, 0.2)
        assert not knows(cluster, follower, "eve")
        assert not read.done()
        held.released = True
        await read
        assert knows(cluster, follower, "eve")


@pytest.mark.asyncio
async def test_every_node_reads_what_any_acknowledged() -> None:
    async with Cluster() as cluster:
        await register(cluster, "ada")
        for turn in range(8):
            writer, reader = hospital(turn % 4), hospital((turn * 3 + 1) % 4)
            await enrol(cluster, writer, f"member-{turn}")
            await confirmed(cluster, reader)
            assert knows(cluster, reader, f"member-{turn}")


@pytest.mark.asyncio
async def test_a_proof_covers_what_was_acknowledged() -> None:
    async with Cluster() as cluster:
        await register(cluster, "ada")
        for reader in cluster.members:
            name = f"of-{reader}"
            await enrol(cluster, hospital(0), name)
            await confirmed(cluster, reader, sealed=True)
            answer = cluster.members[reader].running.backend.state_answer(identity.account_path(account_of(name)))
            assert verify_state_answer(answer, cluster.genesis).value is not None


@pytest.mark.asyncio
async def test_an_old_leader_that_is_cut_off_answers_503_and_nothing_stale() -> None:
    async with Cluster() as cluster:
        await register(cluster, "ada")
        old = await cluster.led()
        others = [node_id for node_id in cluster.members if node_id != old]
        cluster.cut = {frozenset((old, other)) for other in others}
        core = cluster.members[old].running.driver.core
        assert core.role.value == "leader"
        reads = [asyncio.create_task(confirmed(cluster, old, 3.0)) for _ in range(3)]
        await cluster.until(lambda: cluster.leader() not in (None, old))
        await enrol(cluster, others[0], "eve")
        assert not any(read.done() and read.exception() is None for read in reads)
        settings = ProviderSection(port=0, wait_ms_max=500)
        backend = cluster.members[old].running.backend
        async with provider_port(backend, settings) as port, aiohttp.ClientSession() as session:
            asked = f"http://127.0.0.1:{port}/v1/state/{identity.account_path(account_of('eve'))}"
            async with session.get(asked) as stale:
                assert stale.status == 404
            async with session.get(asked + "?consistency=linearizable") as answer:
                assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
                assert (await answer.json(content_type=None))["code"] == "not_confirmed"
            for read in reads:
                with pytest.raises(Rejection, match="not_confirmed"):
                    await read
            cluster.cut.clear()
            await confirmed(cluster, old)
            async with session.get(asked + "?consistency=linearizable") as answer:
                assert answer.status == 200


@pytest.mark.asyncio
async def test_during_an_election_the_read_waits_for_the_new_leader() -> None:
    async with Cluster() as cluster:
        await register(cluster, "ada")
        leader = await cluster.led()
        await enrol(cluster, leader, "eve")
        await cluster.kill(leader)
        reader = next(node_id for node_id in cluster.members if node_id != leader)
        await confirmed(cluster, reader)
        assert knows(cluster, reader, "eve")


@pytest.mark.asyncio
async def test_many_readers_at_once_all_get_their_answer() -> None:
    async with Cluster() as cluster:
        await register(cluster, "ada")
        readers = [confirmed(cluster, node_id) for node_id in cluster.members for _ in range(200)]
        assert len(await asyncio.gather(*readers)) == 800


@pytest.mark.asyncio
async def test_a_network_of_one_reads_by_itself() -> None:
    async with Cluster(size=1) as cluster:
        # Also before it leads.
        await confirmed(cluster, hospital(0))
        await enrol(cluster, hospital(0), "eve")
        await confirmed(cluster, hospital(0), sealed=True)
        answer = cluster.members[hospital(0)].running.backend.state_answer(identity.account_path(account_of("eve")))
        assert verify_state_answer(answer, cluster.genesis).value is not None
