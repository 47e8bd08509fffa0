"""What was executed waits for company on its way to the disk, unless somebody waits for it to be there."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from node import executor as module
from node.certificates import plain
from node.executor import Executor
from node.http_types import TxStatus
from node.metrics import Metrics
from node.pool import Pool, PoolLimits
from node.tail import Tail
from node.tracker import Tracker
from storage.store import Store
from tests.fakes.disk import PowerLossDisk
from tests.ledger.founding import GENESIS
from tests.storage.chains import Chain, certify

PATIENCE_S = 5.0


@dataclass
class Desk:
    """An executor that runs over a store, whose writer thread is the loop."""

    chain: Chain
    executor: Executor

    @property
    def store(self) -> Store:
        return self.chain.store

    async def execute(self) -> None:
        """One more empty block, executed and not yet written."""
        block = self.chain.seal()
        self.chain.persist(block)
        self.executor.certified(plain(certify(block)))
        await self.executor.executed(block.header.height)


@asynccontextmanager
async def desk() -> AsyncIterator[Desk]:
    chain = Chain(PowerLossDisk())

    async def in_writer(function: Callable[[], object]) -> None:
        function()

    executor = Executor(
        GENESIS,
        chain.store,
        Tail(),
        Pool(PoolLimits(100, 1 << 20, 1.0, 1.0)),
        Tracker(lambda tx_id: TxStatus("unknown")),
        Metrics(),
        in_writer=in_writer,
        on_executed=lambda commit: None,
    )
    task = asyncio.create_task(executor.run())
    try:
        yield Desk(chain, executor)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.asyncio
async def test_who_waits_for_the_disk_waits_for_no_company(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WRITE_BEHIND_S", 3_600.0)
    async with desk() as here, asyncio.timeout(PATIENCE_S):
        for _ in range(3):
            await here.execute()
            await here.execute()
            assert here.store.pending_commits == 2
            await here.executor.written()
            assert here.store.pending_commits == 0
        await here.executor.written()


@pytest.mark.asyncio
async def test_waiting_begins_at_any_moment_of_the_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in the turn in which the wait for company has just run out."""
    monkeypatch.setattr(module, "WRITE_BEHIND_S", 0.0)
    async with desk() as here, asyncio.timeout(PATIENCE_S):
        for turns in range(12):
            await here.execute()
            for _ in range(turns):
                await asyncio.sleep(0)
            await here.executor.written()
            assert here.store.pending_commits == 0
