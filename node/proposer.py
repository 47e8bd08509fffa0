"""When the leader makes a block.

At once when nothing is in flight, so that an idle network answers fast; while a block is in flight the pool gathers,
so that a busy one makes larger blocks. A second block joins the first only if it would be full.

After a block of n transactions the next one waits until n more have come, for at most n * GATHER_S: clients that wait
for their commits come again together, and each block costs every node a synced write and a handful of signatures,
however little is in it. It is a wait about as long as the work on those n; after a single transaction it is none.

When results stand without proof and nothing else comes, an empty block follows after `seal_delay_ms`.

While a change of membership is about to be appended, or is not complete, it has the log for itself (`held_back`, and
the core's `can_propose`).
"""

import asyncio
from collections.abc import Callable

from ledger.errors import Rejection
from ledger.genesis import Genesis
from ledger.transaction import Transaction, check_time
from node.driver import Driver
from node.pool import Pool
from node.tail import Tail
from storage.store import Store

# Blocks that may wait for their certificate or execution here before the next is made.
IN_FLIGHT_MAX = 4
# How long a block waits for company at most: for each transaction of the one before it, and in all.
GATHER_S = 0.001
GATHER_MAX_S = 0.05


class Proposer:
    def __init__(
        self,
        genesis: Genesis,
        driver: Driver,
        store: Store,
        pool: Pool,
        tail: Tail,
        *,
        now_ms: Callable[[], int],
        block_time_ms: Callable[[], int],
        held_back: Callable[[], bool],
        seal_delay_ms: int,
        last_busy_height: int,
    ) -> None:
        self._parameters = genesis.parameters
        self._driver = driver
        self._store = store
        self._pool = pool
        self._tail = tail
        self._now_ms = now_ms
        self._block_time_ms = block_time_ms
        self._held_back = held_back
        self._seal_delay_s = seal_delay_ms / 1000
        self._last_busy_height = last_busy_height
        self._seal_timer: asyncio.TimerHandle | None = None
        self._gather_timer: asyncio.TimerHandle | None = None
        # How many transactions the newest block has that was made here; once it is executed, how many the next one
        # waits for, and until when (loop time).
        self._newest_count = 0
        self._company = 0
        self._company_until_s = float("-inf")

    def consider(self) -> None:
        """Something changed: make a block if there is one to make."""
        core = self._driver.core
        if not core.can_propose or self._held_back():
            return
        in_flight = core.last_height - self._store.executed_height
        waiting = self._waiting
        full = waiting >= self._parameters.block_transactions_max
        if waiting > 0 and ((in_flight == 0 and self._gathered(waiting)) or (full and in_flight < IN_FLIGHT_MAX)):
            self._propose_from_pool()
        if core.last_height == self._store.executed_height and self._unsealed():
            self._start_seal_timer()

    def executed(self, height: int, count: int, *, reconfigured: bool = False) -> None:
        """A block was executed here; `reconfigured`: without transactions it still changed the state."""
        if count or reconfigured:
            self._last_busy_height = max(self._last_busy_height, height)
        if height == self._driver.core.last_height:
            self._company = self._waiting + self._newest_count
            wait_s = min(self._newest_count * GATHER_S, GATHER_MAX_S)
            self._company_until_s = asyncio.get_running_loop().time() + wait_s
        self.consider()

    def close(self) -> None:
        """Stop the timers."""
        for timer in (self._seal_timer, self._gather_timer):
            if timer is not None:
                timer.cancel()
        self._seal_timer = self._gather_timer = None

    @property
    def last_busy_height(self) -> int:
        """The highest executed block that changed the state, of those that were not sealed when this node started."""
        return self._last_busy_height

    @property
    def _waiting(self) -> int:
        """Transactions in no block yet."""
        return len(self._pool) - self._tail.transactions

    def _gathered(self, waiting: int) -> bool:
        """Whether the next block waits for company no longer; else it is considered again when it shall not."""
        loop = asyncio.get_running_loop()
        if waiting >= self._company or loop.time() >= self._company_until_s:
            return True
        if self._gather_timer is None:
            self._gather_timer = loop.call_at(self._company_until_s, self._stop_gathering)
        return False

    def _stop_gathering(self) -> None:
        self._gather_timer = None
        self._company = 0
        self.consider()

    def _propose_from_pool(self) -> None:
        now_ms = self._now_ms()
        chosen = self._choose(now_ms)
        if chosen or self._someone_waits_past(now_ms):
            self._propose(chosen)

    def _choose(self, now_ms: int) -> list[Transaction]:
        def fits(transaction: Transaction) -> bool:
            try:
                check_time(transaction.envelope, now_ms)
            except Rejection:
                return False
            return True

        parameters = self._parameters
        return self._pool.take(parameters.block_transactions_max, parameters.block_bytes_max, self._tail, fits)

    def _propose(self, chosen: list[Transaction]) -> None:
        # It is what either timer was for: the wait is over, and it seals as well as an empty block would.
        self.close()
        self._newest_count = len(chosen)
        self._driver.propose(chosen)

    def _someone_waits_past(self, now_ms: int) -> bool:
        """Whether only a newer block time lets the pool say "dropped"; it also shows the others a clock far ahead."""
        until = self._pool.earliest_until
        return until is not None and self._block_time_ms() <= until < now_ms

    def _unsealed(self) -> bool:
        sealed = self._store.sealed_height
        return self._last_busy_height > (0 if sealed is None else sealed)

    def _start_seal_timer(self) -> None:
        if self._seal_timer is None:
            self._seal_timer = asyncio.get_running_loop().call_later(self._seal_delay_s, self._seal)

    def _seal(self) -> None:
        self._seal_timer = None
        core = self._driver.core
        if not core.can_propose or self._held_back():
            return
        if core.last_height == self._store.executed_height and self._unsealed():
            # Whoever still waits for company goes along.
            self._propose(self._choose(self._now_ms()))
