"""Where each transaction stands, and who waits for it.

unknown -> pending -> committed -> sealed, or dropped. Forward only: "committed" means certified and executed here.
"dropped" is said only once the time of a committed block passed the transaction's `until`; it is remembered for the
newest DROPPED_MAX of them, after which the answer is "unknown" again.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import Literal

from node.http_types import TxStatus

DROPPED_MAX = 100_000
WAITERS_MAX = 100_000

Level = Literal["committed", "sealed"]
_REACHED: dict[str, tuple[str, ...]] = {
    "committed": ("committed", "sealed", "dropped"),
    "sealed": ("sealed", "dropped"),
}


class Tracker:
    """`status_of` looks a transaction up in the store and the pool."""

    def __init__(self, lookup: Callable[[bytes], TxStatus]) -> None:
        self._lookup = lookup
        self._dropped: OrderedDict[bytes, None] = OrderedDict()
        self._waiters: dict[bytes, list[asyncio.Future[None]]] = {}
        self._waiting = 0
        self._stopping = False
        self._unsealed: deque[tuple[int, tuple[bytes, ...]]] = deque()

    def status(self, tx_id: bytes) -> TxStatus:
        found = self._lookup(tx_id)
        if found.status == "unknown" and tx_id in self._dropped:
            return TxStatus(status="dropped")
        return found

    async def wait(self, tx_id: bytes, level: Level, timeout_s: float) -> TxStatus:
        """The status once `level` is reached, or as it is after `timeout_s`, or at once beyond WAITERS_MAX."""
        reached = _REACHED[level]
        try:
            async with asyncio.timeout(timeout_s):
                while (status := self.status(tx_id)).status not in reached and self._may_wait:
                    await self._change(tx_id)
        except TimeoutError:
            status = self.status(tx_id)
        return status

    @property
    def _may_wait(self) -> bool:
        return not self._stopping and self._waiting < WAITERS_MAX

    def committed(self, height: int, ids: tuple[bytes, ...]) -> None:
        """The block at `height` was executed."""
        self._wake(ids)
        if ids:
            self._unsealed.append((height, ids))

    def sealed(self, height: int) -> None:
        """Everything up to `height` can be proved now."""
        while self._unsealed and self._unsealed[0][0] <= height:
            self._wake(self._unsealed.popleft()[1])

    def dropped(self, ids: Iterable[bytes]) -> None:
        for tx_id in ids:
            self._dropped[tx_id] = None
            if len(self._dropped) > DROPPED_MAX:
                self._dropped.popitem(last=False)
            self._wake((tx_id,))

    async def _change(self, tx_id: bytes) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiters = self._waiters.setdefault(tx_id, [])
        waiters.append(future)
        self._waiting += 1
        try:
            await future
        finally:
            self._waiting -= 1
            if not future.done() or future.cancelled():
                self._abandon(tx_id, future)

    def _abandon(self, tx_id: bytes, future: asyncio.Future[None]) -> None:
        waiters = self._waiters.get(tx_id, [])
        if future in waiters:
            waiters.remove(future)
            if not waiters:
                del self._waiters[tx_id]

    def release(self) -> None:
        """Let everyone who waits answer with what is known now: the node is stopping."""
        self._stopping = True
        self._wake(tuple(self._waiters))

    def _wake(self, ids: tuple[bytes, ...]) -> None:
        for tx_id in ids:
            for future in self._waiters.pop(tx_id, ()):
                if not future.done():
                    future.set_result(None)
