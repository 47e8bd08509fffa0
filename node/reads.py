"""Linearizable reads: how high this node must have executed before it answers.

The core says it (read index): a height at or above all that was committed when it was asked. Those who read while a
question is under way share the next one, so that however many read, one question at a time costs the network a round.
A question that found no leader, or one that could not prove to be the leader, is asked again until the reader's time
is over; nothing is ever answered from before.

Bound: READERS_MAX readers wait; more are refused, `busy`.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence

from consensus.messages import ReadState
from ledger.errors import Rejection

READERS_MAX = 1_024
RETRY_S = 0.05


class Reads:
    """`ask(token)` puts a question to the core, `answered` brings the answer. `executed(height)` waits until that is
    executed here, `proved(height)` says whether this node can prove all that took effect up to it.
    """

    def __init__(
        self,
        ask: Callable[[int], None],
        executed: Callable[[int], Awaitable[None]],
        executed_height: Callable[[], int],
        proved: Callable[[int], bool],
    ) -> None:
        self._ask = ask
        self._executed = executed
        self._executed_height = executed_height
        self._proved = proved
        self._readers = 0
        # Not from 0: a leader's answer to a question from before a restart must not pass for one from after it.
        self._token = secrets.randbits(52)
        self._asked: asyncio.Future[int | None] | None = None
        self._next: asyncio.Future[int | None] | None = None
        self._released = False

    async def confirm(self, timeout_s: float, *, sealed: bool) -> None:
        """Return once everything acknowledged before this call is executed here, or with `sealed` provable.

        Raises Rejection: "not_confirmed", "busy".
        """
        if self._readers >= READERS_MAX:
            raise Rejection("busy", "too many linearizable reads wait")
        self._readers += 1
        try:
            async with asyncio.timeout(timeout_s):
                height = await self._height()
                await self._executed(height)
                while sealed and not self._proved(height):
                    await self._executed(self._executed_height() + 1)
        except TimeoutError:
            raise Rejection("not_confirmed", "no quorum confirmed in time what is newest") from None
        finally:
            self._readers -= 1

    def answered(self, states: Sequence[ReadState]) -> None:
        """The core's answers."""
        for state in states:
            asked = self._asked
            if state.token != self._token or asked is None:
                continue
            self._asked = None
            if not asked.done():
                asked.set_result(state.height)
            if self._next is not None:
                self._begin()

    def release(self) -> None:
        """The node stops: nobody is kept waiting."""
        self._released = True
        for future in (self._asked, self._next):
            if future is not None and not future.done():
                future.set_result(None)

    async def _height(self) -> int:
        while not self._released:
            height = await asyncio.shield(self._question())
            if height is not None:
                return height
            if not self._released:
                await asyncio.sleep(RETRY_S)
        raise Rejection("not_confirmed", "this node is stopping")

    def _question(self) -> asyncio.Future[int | None]:
        """The answer to a question that is put after this call."""
        question = self._next
        if question is None:
            question = self._next = asyncio.get_running_loop().create_future()
        if self._asked is None:
            self._begin()
        return question

    def _begin(self) -> None:
        self._asked, self._next = self._next, None
        self._token += 1
        self._ask(self._token)
