"""Whole nodes that take snapshots, prune, and join from the snapshots of others."""

import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from consensus.progress import Progress
from ledger.errors import Rejection
from network.port import BlockRange, SnapshotOffer
from node import catchup
from node.joining import Joining
from node.snapshots import SnapshotSettings
from storage.check import check_store
from storage.port import Reads
from storage.shelf import Kept, Shelf
from storage.snapshot import Pause
from storage.store import Store
from tests.fakes.disk import PowerLossDisk
from tests.node.cluster import Cluster, SnapshotServer
from tests.node.entrance import at_rest, entrance
from tests.node.members import addition, register, transact

GAP_BLOCKS = 4
SETTINGS = SnapshotSettings(interval_blocks=10, keep_blocks=5)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No patience between questions, chunks of a few records, and a window of ids of no time at all."""
    monkeypatch.setattr(catchup, "RETRY_S", 0.01)
    monkeypatch.setattr("node.bodies.BEGIN_S", 0)
    monkeypatch.setattr("storage.snapshot.WINDOW_MS", 0)
    monkeypatch.setattr("storage.snapshot.CHUNK_BYTES", 2048)


def prunes(cluster: Cluster, node_id: str) -> Callable[[], bool]:
    def pruned() -> bool:
        store = cluster.members[node_id].store
        return store is not None and 0 < store.base.swept == store.base.height

    return pruned


async def grow(cluster: Cluster, blocks: int) -> None:
    """So many blocks with a record each, at least."""
    node_id = cluster.leader()
    assert node_id is not None
    for _ in range(blocks):
        node = cluster.members[node_id].running
        transaction, body = addition(cluster, "ada", node.backend.now_ms())
        assert await transact(cluster, node_id, transaction, [body]) == "ok"


@asynccontextmanager
async def one_left_behind(folder: Path, settings: SnapshotSettings = SETTINGS) -> AsyncIterator[tuple[Cluster, str]]:
    """A running network of three that has pruned what the fourth, switched off, would need next."""
    cluster = Cluster(replicate_gap_blocks=GAP_BLOCKS, snapshots=settings, folder=folder)
    async with cluster:
        await register(cluster, "ada")
        await cluster.until(lambda: at_rest(cluster))
        late = cluster.follower()
        await cluster.stop(late)
        await cluster.led()
        await grow(cluster, 30)
        for node_id in cluster.members:
            if node_id != late:
                await cluster.until(prunes(cluster, node_id))
        yield cluster, late


def same_everywhere(cluster: Cluster) -> bool:
    stores = [member.store for member in cluster.members.values() if member.store is not None]
    return at_rest(cluster) and len({(s.executed_height, s.roots(s.executed_height)[:2]) for s in stores}) == 1


def same_bodies(cluster: Cluster) -> bool:
    """Every node has every body, those of pruned blocks too, and knows it."""
    held = [
        {key for key, _ in member.disk.view().range(b"d", b"e")}
        for member in cluster.members.values()
        if member.store
    ]
    complete = all(member.store is None or member.store.base.bodiless == 0 for member in cluster.members.values())
    return complete and all(one == held[0] for one in held)


async def settled(cluster: Cluster) -> None:
    await cluster.until(lambda: same_everywhere(cluster))
    for member in cluster.members.values():
        disk = member.disk
        problems = check_store(_Still(disk), cluster.genesis, PowerLossDisk(), lambda *_: None).problems
        assert problems == []


class _Still(PowerLossDisk):
    """A copy of another disk."""

    def __init__(self, disk: PowerLossDisk) -> None:
        super().__init__()
        self.write(list(disk.view().range(b"", b"\xff")), sync=True)


@pytest.mark.asyncio
async def test_who_is_below_every_base_starts_again_on_a_snapshot(tmp_path: Path) -> None:
    """B/D: pruned peers, a follower below their base; it installs a snapshot, votes go with it, roots are equal."""
    async with one_left_behind(tmp_path) as (cluster, late):
        before = Store(cluster.members[late].disk.open(), cluster.genesis).hard_state()
        await cluster.start(late)
        await cluster.start_on_snapshot(late)
        store = cluster.members[late].store
        assert store is not None
        assert store.base.height > 0
        assert store.hard_state().term >= before.term
        await grow(cluster, 5)
        await settled(cluster)
        await cluster.until(lambda: same_bodies(cluster))
        await settled(cluster)


@pytest.mark.asyncio
@pytest.mark.parametrize("join", ["snapshot", "replay"])
async def test_a_joiner_from_snapshot_and_one_from_genesis_agree(tmp_path: Path, join: str) -> None:
    settings = SnapshotSettings(interval_blocks=10, keep_blocks=0, join=join)  # type: ignore[arg-type]
    cluster = Cluster(replicate_gap_blocks=GAP_BLOCKS, snapshots=settings, folder=tmp_path)
    async with cluster:
        await register(cluster, "ada")
        late = cluster.follower()
        await cluster.stop(late)
        cluster.members[late].disk = PowerLossDisk()
        await grow(cluster, 25)
        running = [member.running for member in cluster.members.values() if member.node is not None]
        await cluster.until(lambda: all(node.snapshots and node.snapshots.serve_snapshot() for node in running))
        await cluster.start(late)
        if join == "snapshot":
            await cluster.start_on_snapshot(late)
        await settled(cluster)
        assert (cluster.members[late].store.base.height > 0) == (join == "snapshot")  # type: ignore[union-attr]


class Crooked:
    """A member whose snapshots, or chunks of them, are changed on the way."""

    def __init__(
        self,
        member: SnapshotServer,
        offer: Callable[[SnapshotOffer], SnapshotOffer | None] = lambda offer: offer,
        chunk: Callable[[bytes], bytes | None] = lambda data: data,
    ) -> None:
        self.member, self.offer, self.chunk = member, offer, chunk
        self.chunks = 0

    def serve_snapshot(self) -> SnapshotOffer | None:
        found = self.member.serve_snapshot()
        return None if found is None else self.offer(found)

    def serve_chunk(self, snapshot: bytes, index: int) -> bytes | None:
        found = self.member.serve_chunk(snapshot, index)
        self.chunks += 1
        return None if found is None else self.chunk(found)


def flipped(data: bytes) -> bytes:
    return data[:-1] + bytes((data[-1] ^ 1,))


LIES = {
    "bad chunks": {"chunk": flipped},
    "no chunks": {"chunk": lambda data: None},
    "a lying manifest": {"offer": lambda offer: SnapshotOffer(flipped(offer.manifest), offer.proof)},
    "a lying proof": {"offer": lambda offer: SnapshotOffer(offer.manifest, flipped(offer.proof))},
    "rubbish": {"offer": lambda offer: SnapshotOffer(b"\x80", b"\x80")},
}


@pytest.mark.asyncio
@pytest.mark.parametrize("lie", LIES)
async def test_two_of_three_peers_lie(tmp_path: Path, lie: str) -> None:
    async with one_left_behind(tmp_path) as (cluster, late):
        liars = [node_id for node_id in cluster.members if node_id != late][:2]
        for liar in liars:
            peering = cluster.members[liar].running.peering
            cluster.snapshot_stand_ins[liar] = Crooked(peering, **LIES[lie])  # type: ignore[arg-type]
        await cluster.start(late)
        await cluster.start_on_snapshot(late)
        store = cluster.members[late].store
        assert store is not None
        assert store.base.height > 0
        await settled(cluster)


@pytest.mark.asyncio
async def test_a_half_fetched_snapshot_is_resumed(tmp_path: Path) -> None:
    """D4: what came before the restart is not asked for again."""
    async with one_left_behind(tmp_path) as (cluster, late):
        peers = [node_id for node_id in cluster.members if node_id != late]
        givers = {peer: Crooked(cluster.members[peer].running.peering) for peer in peers}
        cluster.snapshot_stand_ins.update(givers)
        served = 0

        def three(data: bytes) -> bytes | None:
            nonlocal served
            served += 1
            return data if served <= 3 else None

        for giver in givers.values():
            giver.chunk = three
        await cluster.start(late)
        shelf = Shelf(tmp_path / str(cluster.members[late].index))
        await cluster.until(lambda: served > 9)
        await cluster.kill(late)
        fetched = shelf.fetching()
        assert fetched.manifest is not None
        missing = len(fetched.missing())
        assert missing == len(fetched.manifest.chunks) - 3
        for giver in givers.values():
            giver.chunk, giver.chunks = (lambda data: data), 0
        await cluster.start(late)
        await cluster.start_on_snapshot(late)
        assert sum(giver.chunks for giver in givers.values()) == missing
        await settled(cluster)


@pytest.mark.asyncio
async def test_a_node_that_is_not_behind_asks_for_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0

    async def attempt(self: Joining) -> bool:
        nonlocal asked
        asked += 1
        return False

    monkeypatch.setattr(Joining, "attempt", attempt)
    cluster = Cluster(replicate_gap_blocks=GAP_BLOCKS, snapshots=SETTINGS, folder=tmp_path)
    async with cluster:
        await register(cluster, "ada")
        await grow(cluster, 20)
        late = cluster.follower()
        await cluster.kill(late)
        await cluster.start(late)
        await settled(cluster)
    assert asked == 0


@pytest.mark.asyncio
async def test_power_lost_in_the_middle_of_pruning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """F8, D13: the base is known, the sweep goes on after the start, and the node follows as before."""
    monkeypatch.setattr("storage.base.SWEEP_KEYS_MAX", 5)
    cluster = Cluster(replicate_gap_blocks=GAP_BLOCKS, snapshots=SETTINGS, folder=tmp_path)
    async with cluster:
        await register(cluster, "ada")
        node_id = cluster.follower()
        store = cluster.members[node_id].store
        assert store is not None
        while not 0 < store.base.swept < store.base.height:
            await grow(cluster, 1)
        await cluster.kill(node_id)
        base = store.base.height
        await grow(cluster, 3)
        await cluster.start(node_id)
        again = cluster.members[node_id].store
        assert again is not None
        assert again.base.height in (0, base)
        await cluster.until(prunes(cluster, node_id))
        await grow(cluster, 3)
        await settled(cluster)


@pytest.mark.asyncio
async def test_what_is_pruned_is_said_to_be_so(tmp_path: Path) -> None:
    async with one_left_behind(tmp_path) as (cluster, late):
        node_id = next(node_id for node_id in cluster.members if node_id != late)
        member = cluster.members[node_id]
        store, backend = member.store, member.running.backend
        assert store is not None
        base = store.base.height
        assert backend.heights().base == base
        for ask in (backend.block, backend.executed_block):
            with pytest.raises(Rejection, match="pruned"):
                ask(base)
        assert backend.block(base + 1) is not None
        assert member.running.peering.serve_blocks(base, 1 << 20) == BlockRange((), None, base)
        assert member.running.peering.serve_blocks(base + 1, 1 << 20).blocks
        with pytest.raises(Rejection, match="pruned"):
            backend.receipt(b"?" * 32)
        async with entrance(cluster, node_id) as port:
            for path, status in (("/v1/events?from=1", 410), (f"/v1/blocks?from={base}", 410), ("/v1/blocks/1", 410)):
                async with port.session.get(port.url + path) as answer:
                    assert answer.status == status, path
                    assert (await answer.json())["code"] == "pruned"
            async with port.session.get(f"{port.url}/v1/events?from={base + 1}") as answer:
                assert answer.status == 200


@pytest.mark.asyncio
async def test_d9_one_snapshot_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that falls due while another is taken waits for it, and gives way to a newer one."""
    begun: dict[Shelf, list[int]] = {}
    under_way: set[Shelf] = set()
    take = Shelf.take

    def slow(self: Shelf, view: Reads, height: int, before: Mapping[str, bytes | None], pause: Pause) -> Kept | None:
        assert self not in under_way
        under_way.add(self)
        begun.setdefault(self, []).append(height)
        time.sleep(0.2)
        kept = take(self, view, height, before, pause)
        under_way.remove(self)
        return kept

    cluster = Cluster(size=3, snapshots=SnapshotSettings(interval_blocks=2), folder=tmp_path)
    async with cluster:
        await register(cluster, "ada")
        monkeypatch.setattr(Shelf, "take", slow)
        while len(begun) < 3 or min(map(len, begun.values())) < 3:
            await grow(cluster, 1)
        store = cluster.members["hospital-0"].store
        assert store is not None
        for heights in begun.values():
            assert len(heights) < store.executed_height // 2
            assert heights == sorted(set(heights))


@pytest.mark.asyncio
async def test_every_node_takes_the_same_snapshots(tmp_path: Path) -> None:
    """D10: also those that restart, and whoever leads; so that chunks may come from any of them."""
    cluster = Cluster(snapshots=SnapshotSettings(interval_blocks=10), folder=tmp_path)
    async with cluster:
        await register(cluster, "ada")
        await grow(cluster, 8)
        leader = cluster.leader()
        assert leader is not None
        await cluster.kill(leader)
        await cluster.led()
        await cluster.start(leader)
        await grow(cluster, 30)

        def offers() -> list[SnapshotOffer | None]:
            return [member.running.peering.serve_snapshot() for member in cluster.members.values()]

        await cluster.until(lambda: at_rest(cluster) and None not in offers())
        await cluster.until(lambda: len({offer.manifest for offer in offers() if offer}) == 1)


def test_d7_no_peer_waits_for_a_snapshot_to_arrive() -> None:
    """The core has no state "snapshot" of a follower: whoever is below its base gets heartbeats, and asks itself."""
    assert [field for field in Progress.__slots__ if "snapshot" in field] == []
