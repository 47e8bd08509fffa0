"""Taking snapshots, serving them, and pruning what they make dispensable: in the background, a little at a time.

A snapshot is due when a block's `executed_height` passes a multiple of the interval. Which height that is follows
from the chain, so that every node takes the same one. The state after it is read from a view of the database, which
may already be some blocks further: what those changed is remembered from the moment the snapshot is due.

Pruning follows a snapshot. The base of the log moves up to where the oldest snapshot kept begins, or less far where
`keep_blocks` says so; what is below is deleted in small batches between the log's own, then its space is given back.

Bounds: one snapshot is taken at a time; one that falls due meanwhile waits, until a newer takes its place; at most
shelf.KEPT_MAX are kept; after each chunk its thread rests REST times as long; a batch deletes about
base.SWEEP_KEYS_MAX records.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import structlog

from consensus.core import RaftCore
from ledger.block import Block, header_of
from ledger.genesis import Genesis
from network.port import SnapshotOffer
from node.driver import InWriter
from node.metrics import Metrics
from storage import schema
from storage.base import base_header, swept_ranges
from storage.executed import UndoStep
from storage.port import KeyValue, Viewable
from storage.schema import ExecutedRecord
from storage.shelf import Kept, Shelf
from storage.snapshot import make_proof
from storage.store import Store

_log = structlog.get_logger(__name__)

# How long the thread that takes a snapshot rests after each chunk, measured by the chunk's own time.
REST = 2
SWEEP_PAUSE_S = 0.02
# How long to wait for the disk to come as far as execution.
WRITE_WAIT_S = 0.1


@dataclass(frozen=True, slots=True)
class SnapshotSettings:
    """`interval_blocks`: 0 for no snapshots; `keep_blocks`: 0 for no pruning; `join`: how an empty node starts."""

    interval_blocks: int = 0
    keep_blocks: int = 0
    join: Literal["snapshot", "replay"] = "snapshot"


@dataclass(frozen=True, slots=True)
class SnapshotPlaces:
    """Where a node's snapshots lie, what they are taken of, and where a store is built from those of others."""

    kv: Viewable
    shelf: Shelf
    settings: SnapshotSettings
    fresh: Callable[[], KeyValue]


@dataclass(slots=True)
class _Due:
    """A snapshot to take at `height`, and what the blocks above it changed, as they execute."""

    height: int
    steps: list[UndoStep] = field(default_factory=list)


class Snapshots:
    """`run` works; everything else is asked on the event loop."""

    def __init__(
        self,
        genesis: Genesis,
        store: Store,
        places: SnapshotPlaces,
        core: RaftCore,
        metrics: Metrics,
        *,
        in_writer: InWriter,
    ) -> None:
        self._genesis = genesis
        self._store = store
        self._kv = places.kv
        self._shelf = places.shelf
        self._settings = places.settings
        self._core = core
        self._metrics = metrics
        self._in_writer = in_writer
        self._due: _Due | None = None
        self._stated = self._newest_stated()
        self._work = asyncio.Event()
        self._offers: dict[bytes, SnapshotOffer] = {}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="snapshots")
        self._stopping = threading.Event()
        self._bodies_came = False
        self._show()

    def executed(self, block: Block) -> None:
        """A block was executed: is a snapshot due, or what did it change since one is?"""
        stated, before = block.header.executed_height, self._stated
        self._stated = stated
        interval = self._settings.interval_blocks
        if interval and stated // interval > before // interval:
            self._due = _Due(stated, list(self._store.undo_above(stated)))
            self._work.set()
        elif self._due is not None:
            self._due.steps += self._store.undo_above(block.header.height - 1)

    def have_all_bodies(self) -> None:
        """What the snapshot that this node began with left out has come."""
        self._bodies_came = True
        self._work.set()

    def serve_snapshot(self) -> SnapshotOffer | None:
        """The newest one that can be proved."""
        for kept in reversed(self._shelf.kept()):
            offer = self._offer(kept)
            if offer is not None:
                return offer
        return None

    def serve_chunk(self, snapshot: bytes, index: int) -> bytes | None:
        data = self._shelf.chunk(snapshot, index)
        if data is not None:
            self._metrics.snapshot_chunks_served.inc()
        return data

    async def run(self) -> None:
        try:
            await self._prune()
            while True:
                await self._work.wait()
                self._work.clear()
                if self._bodies_came:
                    self._bodies_came = False
                    self._store.have_all_bodies()
                    await self._in_writer(self._store.write_base)
                while self._due is not None:
                    await self._take()
                    await self._prune()
        finally:
            self._end_thread()

    async def _take(self) -> None:
        begin = time.monotonic()
        while True:
            due, view = self._due, self._kv.view()
            assert due is not None, "only here it is done with"
            reached = _executed(view.get(schema.EXECUTED_KEY))
            if reached >= due.height:
                break
            view.close()
            await asyncio.sleep(WRITE_WAIT_S)
        # Everything that changed between the snapshot and the view is at hand: nothing more need be remembered.
        self._due = None
        try:
            before: dict[str, bytes | None] = {}
            for step in due.steps:
                if step.height <= reached:
                    for key, value in step.state.items():
                        before.setdefault(key, value)
            kept = await self._in_thread(lambda: self._shelf.take(view, due.height, before, self._pause()))
        except asyncio.CancelledError:
            # The thread reads the view, and after it the database, until it has noticed.
            self._end_thread()
            raise
        finally:
            view.close()
        if kept is None:
            _log.warning("no snapshot: the state is too large", height=due.height)
            return
        await self._in_thread(lambda: self._shelf.tidy(self._store.base.height))
        self._show()
        manifest, seconds = kept.manifest, round(time.monotonic() - begin, 3)
        _log.info("snapshot taken", height=manifest.height, base=manifest.base, bytes=manifest.size, seconds=seconds)

    async def _prune(self) -> None:
        store, kept = self._store, self._shelf.kept()
        if self._settings.keep_blocks and kept:
            wanted = min(kept[0].manifest.base, store.executed_height - self._settings.keep_blocks)
            base = store.prunable(wanted) if wanted > store.base.height else store.base.height
            if base > store.base.height:
                self._core.compact(base)
                store.prune(base)
                await self._in_writer(store.write_base)
                _log.info("pruning", base=base)
        if store.base.swept < store.base.height:
            await self._sweep()

    async def _sweep(self) -> None:
        store, begin = self._store, self._store.base.swept
        while store.base.swept < store.base.height:
            await self._in_writer(store.sweep)
            await asyncio.sleep(SWEEP_PAUSE_S)
        base = store.base.height
        await self._in_thread(partial(self._shelf.tidy, base))
        for start, stop in swept_ranges(begin, base):
            await self._in_thread(partial(self._kv.compact, start, stop))
        self._show()
        _log.info("pruned", base=base)

    def _offer(self, kept: Kept) -> SnapshotOffer | None:
        found = self._offers.get(kept.id)
        if found is None:
            proof = make_proof(self._kv, self._genesis, kept.manifest.height)
            if proof is None:
                return None
            self._offers = {one.id: self._offers[one.id] for one in self._shelf.kept() if one.id in self._offers}
            self._offers[kept.id] = found = SnapshotOffer(kept.data, proof.encode())
        return found

    def _pause(self) -> Callable[[], None]:
        """Called after each chunk in the thread: rest, so that the event loop has its turn."""
        begun = time.monotonic()

        def pause() -> None:
            nonlocal begun
            if self._stopping.wait(min(REST * (time.monotonic() - begun), 1.0)):
                raise InterruptedError("the node stops")
            begun = time.monotonic()

        return pause

    def _end_thread(self) -> None:
        """Return once nothing reads or writes on behalf of this any more. A half-written snapshot is of no use."""
        self._stopping.set()
        self._thread.shutdown(wait=True, cancel_futures=True)

    async def _in_thread(self, function: Callable[[], "Kept | None"]) -> "Kept | None":
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    def _newest_stated(self) -> int:
        """What the newest executed header says of how far its maker had executed."""
        store = self._store
        height = store.executed_height
        if height > store.base.height:
            return header_of(store.block_data(height))[0].executed_height
        header = base_header(store.base)
        return 0 if header is None else header.executed_height

    def _show(self) -> None:
        kept = self._shelf.kept()
        self._metrics.snapshot_height.set(kept[-1].manifest.height if kept else 0)
        self._metrics.base_height.set(self._store.base.height)


def _executed(record: bytes | None) -> int:
    assert record is not None, "the store is founded"
    return schema.unseal(ExecutedRecord, record, "record of the executed height").height
