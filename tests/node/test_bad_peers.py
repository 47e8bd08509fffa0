"""Peers that a real daemon does not let in, and frames that it does not take: counted, and nothing recorded.

tests/network shows each refusal at the links, in all its forms. Here a whole daemon stands behind them, with TLS,
LevelDB and its provider port, and goes on as if nothing had happened.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from ledger.contracts import identity as members
from ledger.genesis import Genesis, Node, Organisation, Parameters, decode_genesis
from ledger.keys import SigningKey, account_id
from ledger.node_cert import key_pem
from ledger.transaction import FORMAT, NONCE_BYTES, Envelope, Transaction, sign_transaction
from network.frames import FRAME_BYTES_MAX, pack
from network.greeting import Greeter
from network.messages import PROTOCOL_VERSION, Hello, Lane, transaction_batches
from network.peer_network import PeerNetwork
from network.port import Identity, Peer, SharedTransaction
from node import daemon
from node.config import parse_config
from node.metrics import Metrics
from node.node import Node as RunningNode
from node.peering import NetworkCounters
from storage.leveldb import LevelDb
from storage.port import Write
from storage.schema import Roots
from tests.network.peers import PATIENCE_S, client_context, goodbye, identity, raw_lane, refuses_handshake

pytestmark = pytest.mark.asyncio(loop_scope="module")

ADMIN = SigningKey(b"the admin of both organisations.")
CONFIG = """
preset = "machine"
[node]
genesis = "genesis"
data_dir = "data"
key_file = "node.key"
found = true
[peers]
listen_port = 0
[provider]
port = 0
[consensus]
tick_ms = 50
election_timeout_min_ms = 500
election_timeout_max_ms = 1_000
seal_delay_ms = 10
"""


def make_genesis() -> Genesis:
    """Node "a" alone votes; "b" follows, and is played by the tests."""
    nodes = [
        Node(
            address="127.0.0.1:1",
            certificate=identity(node_id).certificate,
            id=node_id,
            organisation="hospital",
            role="voter" if node_id == "a" else "learner",
        )
        for node_id in ("a", "b")
    ]
    hospital = Organisation(admin_keys=[ADMIN.public], id="hospital", kind="hospital", name="Hospital")
    now_ms = time.time_ns() // 1_000_000
    genesis = Genesis(
        format=1, network="peers", nodes=nodes, organisations=[hospital], parameters=Parameters(), time=now_ms
    )
    return decode_genesis(genesis.encode())


class CountedLevelDb(LevelDb):
    """Knows how often it was written to."""

    batches = 0

    def write(self, batch: Sequence[Write], *, sync: bool) -> None:
        self.batches += 1
        super().write(batch, sync=sync)


class WatchedCounters(NetworkCounters):
    """Tells when a connection or a frame is refused."""

    def __init__(self, metrics: Metrics, counted: asyncio.Event) -> None:
        super().__init__(metrics)
        self._counted = counted

    def connection_refused(self, reason: str) -> None:
        super().connection_refused(reason)
        self._counted.set()

    def frame_refused(self, reason: str) -> None:
        super().frame_refused(reason)
        self._counted.set()


@dataclass
class Daemon:
    """Node "a", as its daemon runs it; `counted` is set whenever it counts a refused connection or frame."""

    genesis: Genesis
    counted: asyncio.Event = field(default_factory=asyncio.Event)
    disks: list[CountedLevelDb] = field(default_factory=list)
    running: RunningNode | None = None

    @property
    def node(self) -> RunningNode:
        assert self.running is not None, "the daemon runs"
        return self.running

    @property
    def network(self) -> PeerNetwork:
        assert isinstance(self.node.network, PeerNetwork)
        return self.node.network

    def open_disk(self, path: Path) -> CountedLevelDb:
        self.disks.append(CountedLevelDb(path))
        return self.disks[-1]

    def make_counters(self, metrics: Metrics) -> NetworkCounters:
        return WatchedCounters(metrics, self.counted)

    def count_of(self, series: str, **labels: str) -> float:
        return self.node.metrics.registry.get_sample_value(f"carequorum_{series}_total", labels) or 0.0

    def holdings(self) -> tuple[int, Roots, int, int]:
        """Executed height, roots, transactions waiting, batches written."""
        store = self.node._store
        height = store.executed_height
        return height, store.roots(height), len(self.node.pool), sum(disk.batches for disk in self.disks)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hospital(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Daemon]:
    folder = tmp_path_factory.mktemp("daemon")
    started = Daemon(make_genesis())
    (folder / "genesis").write_bytes(started.genesis.encode())
    (folder / "node.key").touch(mode=0o600)
    (folder / "node.key").write_bytes(key_pem(identity("a").seed, None))
    (folder / "data").mkdir()
    config = parse_config(CONFIG, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(daemon, "LevelDb", started.open_disk)
        patch.setattr(daemon, "NetworkCounters", started.make_counters)
        async with daemon.running(config, daemon.identify(config)) as started.running:
            yield started


def registration(genesis: Genesis) -> Transaction:
    key = SigningKey(secrets.token_bytes(32))
    proof = members.possession_proof(key, genesis.chain_id(), account_id(ADMIN.public))
    envelope = Envelope(
        actions=[members.Register(key.public, proof, "patient")],
        bodies=[],
        by=account_id(ADMIN.public),
        chain=genesis.chain_id(),
        format=FORMAT,
        key=ADMIN.public,
        nonce=secrets.token_bytes(NONCE_BYTES),
        until=time.time_ns() // 1_000_000 + 60_000,
    )
    return sign_transaction(envelope, ADMIN)


async def commit_one(hospital: Daemon) -> int:
    """A good transaction commits and is sealed; its height."""
    transaction = registration(hospital.genesis)
    (answer,) = hospital.node.backend.submit([(transaction.data, [])])
    assert answer.rejection is None
    status = await hospital.node.backend.wait(transaction.id, "sealed", PATIENCE_S)
    assert (status.status, status.code) == ("sealed", "ok")
    assert status.height is not None
    return status.height


@asynccontextmanager
async def nothing_recorded(hospital: Daemon, series: str, **labels: str) -> AsyncIterator[None]:
    """What happens inside is counted in this series once, or more often where the peer tries again, and leaves no
    other trace; afterwards a good transaction commits in the very next block."""
    await commit_one(hospital)
    # It is sealed by the block above, whose results are written behind the answer.
    while hospital.node._store.pending_commits:
        await hospital.node._in_writer(lambda: None)
    before, counted = hospital.holdings(), hospital.count_of(series, **labels)
    hospital.counted.clear()
    yield
    async with asyncio.timeout(PATIENCE_S):
        while hospital.count_of(series, **labels) == counted:
            await hospital.counted.wait()
            hospital.counted.clear()
    assert hospital.holdings() == before
    assert await commit_one(hospital) == before[0] + 1


async def hangs_up(hospital: Daemon, node: Identity | None) -> bool:
    return await refuses_handshake(hospital.network.address, client_context(node, [identity("a").certificate]))


async def says(hospital: Daemon, *frames: bytes, hello: Hello | None = None) -> str:
    """Node "b" greets and says this; the reason of the goodbye that it gets."""
    chain = hospital.genesis.chain_id()
    first = pack(hello).frames[0] if hello else Greeter(identity("b"), chain).hello("a")
    async with raw_lane(hospital.network.address, identity("b")) as socket:
        await socket.send_bytes(first)
        if frames:
            await socket.receive_bytes(timeout=PATIENCE_S)
        for frame in frames:
            await socket.send_bytes(frame)
        return await goodbye(socket, chain)


async def test_no_certificate(hospital: Daemon) -> None:
    async with nothing_recorded(hospital, "refused_connections", reason="no_certificate"):
        assert await hangs_up(hospital, None)


async def test_a_wrong_certificate(hospital: Daemon) -> None:
    async with nothing_recorded(hospital, "refused_connections", reason="unknown_certificate"):
        assert await hangs_up(hospital, identity("stranger"))


async def test_a_removed_certificate(hospital: Daemon) -> None:
    peer = Peer(identity("b").certificate, ("127.0.0.1", 1))
    async with nothing_recorded(hospital, "refused_connections", reason="removed"):
        hospital.network.set_peers({"b": replace(peer, standing="removed")})
        try:
            async with raw_lane(hospital.network.address, identity("b")) as socket:
                assert await goodbye(socket, hospital.genesis.chain_id()) == "removed"
        finally:
            hospital.network.set_peers({"b": peer})


async def test_another_chain_id(hospital: Daemon) -> None:
    async with nothing_recorded(hospital, "refused_connections", reason="wrong_chain"):
        assert await says(hospital, hello=Hello(PROTOCOL_VERSION, bytes(32), "b")) == "wrong_chain"


async def test_another_protocol_version(hospital: Daemon) -> None:
    hello = Hello(PROTOCOL_VERSION + 1, hospital.genesis.chain_id(), "b")
    async with nothing_recorded(hospital, "refused_connections", reason="protocol_version"):
        assert await says(hospital, hello=hello) == "protocol_version"


@pytest.mark.parametrize(
    ("frame", "reason"),
    [(b"\xff\x00", "unknown_kind"), (b"\x10\x00\xc1", "bad_message"), (b"", "bad_frame")],
    ids=["of no kind", "of no message", "empty"],
)
async def test_a_malformed_frame(hospital: Daemon, frame: bytes, reason: str) -> None:
    async with nothing_recorded(hospital, "bad_frames", kind=reason):
        assert await says(hospital, frame) == reason


async def test_an_oversized_frame(hospital: Daemon) -> None:
    async with (
        nothing_recorded(hospital, "bad_frames", kind="frame_too_large"),
        raw_lane(hospital.network.address, identity("b")) as socket,
    ):
        await socket.send_bytes(Greeter(identity("b"), hospital.genesis.chain_id()).hello("a"))
        await socket.receive_bytes(timeout=PATIENCE_S)
        await socket.send_bytes(bytes(FRAME_BYTES_MAX + 1))
        assert (await socket.receive(timeout=PATIENCE_S)).type is not aiohttp.WSMsgType.BINARY


async def test_a_member_s_good_frame_is_taken(hospital: Daemon) -> None:
    """What the refusals above are measured against: the same certificate and greeting, and a transaction commits."""
    transaction = registration(hospital.genesis)
    (batch,) = transaction_batches([SharedTransaction(transaction.data, [])])
    async with raw_lane(hospital.network.address, identity("b"), Lane.GOSSIP) as socket:
        await socket.send_bytes(Greeter(identity("b"), hospital.genesis.chain_id()).hello("a"))
        await socket.receive_bytes(timeout=PATIENCE_S)
        for frame in pack(batch).frames:
            await socket.send_bytes(frame)
        status = await hospital.node.backend.wait(transaction.id, "committed", PATIENCE_S)
    assert status.code == "ok"
