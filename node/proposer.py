"""When the leader makes a block.

At once when nothing is in flight, so that an idle network answers fast; while a block is in flight the pool gathers,
so that a busy one makes larger blocks. A second block joins the first only if it would be full. When results stand
without proof and nothing else comes, an empty block follows after `seal_delay_ms`.
"""

import asyncio
from collections.abc import Callable

from consensus.messages import Role
from ledger.errors import Rejection
from ledger.genesis import Genesis
from ledger.transaction import Transaction, check_time
from node.driver import Driver
from node.pool import Pool
from node.tail import Tail
from storage.store import Store

# Blocks that may wait for their certificate or execution here before the next is made.
IN_FLIGHT_MAX = 4


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
        self._seal_delay_s = seal_delay_ms / 1000
        self._last_busy_height = last_busy_height
        self._seal_timer: asyncio.TimerHandle | None = None

    def consider(self) -> None:
        """Something changed: make a block if there is one to make."""
        core = self._driver.core
        if core.role is not Role.LEADER:
            return
        in_flight = core.last_height - self._store.executed_height
        waiting = len(self._pool) - self._tail.transactions
        full = waiting >= self._parameters.block_transactions_max
        if waiting > 0 and (in_flight == 0 or (full and in_flight < IN_FLIGHT_MAX)):
            self._propose_from_pool()
        if core.last_height == self._store.executed_height and self._unsealed():
            self._start_seal_timer()

    def executed(self, height: int, count: int) -> None:
        """A block was executed here."""
        if count:
            self._last_busy_height = max(self._last_busy_height, height)
        self.consider()

    def close(self) -> None:
        if self._seal_timer is not None:
            self._seal_timer.cancel()

    def _propose_from_pool(self) -> None:
        now_ms = self._now_ms()

        def fits(transaction: Transaction) -> bool:
            try:
                check_time(transaction.envelope, now_ms)
            except Rejection:
                return False
            return True

        chosen = self._pool.take(
            self._parameters.block_transactions_max, self._parameters.block_bytes_max, self._tail, fits
        )
        if chosen or self._someone_waits_past(now_ms):
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
        if core.role is Role.LEADER and core.last_height == self._store.executed_height and self._unsealed():
            self._driver.propose([])
