"""What a node does beside its log: catching up, taking snapshots, pruning, starting again on another's snapshot.

The shell's own coroutines, a turn at every tick; what they ask of other nodes is answered at once, or not at all.
"""

from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

from network.port import FetchFailed, SnapshotOffer
from node.joining import Joining
from node.metrics import Metrics
from node.snapshots import SnapshotPlaces, Snapshots, SnapshotSettings
from storage.port import KeyValue, StorageFailure
from storage.shelf import Shelf
from storage.store import Store
from storage.swap import carry
from tests.sim.disk import SimDisk
from tests.sim.shelf import SimShelf
from tests.sim.shell import World, never
from tests.sim.turns import take_turn, wait_for

if TYPE_CHECKING:
    from tests.sim.node import SimNode

T = TypeVar("T")

INTERVAL_BLOCKS = 8
KEEP_BLOCKS = 6


class NoMetrics:
    """Takes what is measured, and keeps nothing."""

    def __getattr__(self, name: str) -> "NoMetrics":
        return self

    def inc(self, amount: float = 1) -> None: ...

    def set(self, value: float) -> None: ...


class Background:
    """`jobs` wait for the writer thread: each is a write, and what is to be told once it is on the disk."""

    def __init__(self, node: "SimNode", world: World, disk: SimDisk, shelf: SimShelf) -> None:
        self._node = node
        self._world = world
        self._disk = disk
        self._tasks: list[Coroutine[Any, Any, object]] = []
        self._started = False
        self._fresh: SimDisk | None = None
        self.jobs: list[tuple[Callable[[], object], list[None]]] = []
        settings = SnapshotSettings(INTERVAL_BLOCKS, KEEP_BLOCKS)
        places = SnapshotPlaces(disk, cast(Shelf, shelf), settings, self._begin_fresh)
        metrics = cast(Metrics, NoMetrics())
        self.snapshots = Snapshots(world.genesis, node.store, places, node.core, metrics, in_writer=self._in_writer)
        self.joining = Joining(
            world.genesis,
            node.store,
            cast(Shelf, shelf),
            metrics,
            fetch_snapshot=self._fetch_snapshot,
            fetch_chunk=self._fetch_chunk,
            fetch_blocks=node._fetch_blocks,
            fetch_bodies=never,
            peers=self._peers,
            fresh=self._begin_fresh,
            ready=node.fail,
        )

    def turn(self) -> None:
        if not self._started:
            self._started = True
            self._tasks = [self._node.catch_up.run(), self.snapshots.run()]
            if self._node.store.base.bodiless:
                # No transaction here has a body.
                self.snapshots.have_all_bodies()
        for task in self._tasks:
            if self._node.failed is None and not take_turn(task):
                self._tasks = [other for other in self._tasks if other is not task]

    def close(self) -> None:
        for task in self._tasks:
            task.close()
        self._tasks = []

    def take_over(self) -> dict[bytes, bytes]:
        """What the disk holds once the built store has taken the place of the other; both are at rest."""
        assert self._fresh is not None, "it was built"
        genesis = self._world.genesis
        new = self._fresh.open()
        carry(self._disk, self._node.store, new, Store(new, genesis))
        new.close()
        return new.durable

    def _begin_fresh(self) -> KeyValue:
        self._fresh = SimDisk(lambda batch: None)
        return self._fresh.open()

    def _peers(self) -> Sequence[str]:
        return self._world.peers(self._node.name)

    async def _in_writer(self, function: Callable[[], object]) -> None:
        done: list[None] = []
        self.jobs.append((function, done))
        await wait_for(done)

    async def _fetch_snapshot(self, peer: str) -> SnapshotOffer | None:
        return self._asked(peer, lambda snapshots: snapshots.serve_snapshot())

    async def _fetch_chunk(self, peer: str, snapshot: bytes, index: int) -> bytes | None:
        return self._asked(peer, lambda snapshots: snapshots.serve_chunk(snapshot, index))

    def _asked(self, peer: str, answer: Callable[[Snapshots], T]) -> T:
        server = self._world.reachable(self._node.name, peer)
        if server is None:
            raise FetchFailed(peer, "disconnected")
        try:
            return answer(server.background.snapshots)
        except StorageFailure as failure:
            server.disk_failed(failure)
            raise FetchFailed(peer, "disconnected") from None
