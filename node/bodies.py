"""The bodies that a snapshot left out: fetched from peers behind the work, until this node holds as many as any.

What is missing follows from what this node holds: the blocks of its log that came with the snapshot, and the records
in the state, whose blocks may be pruned. Execution needs none of them; readers do, and so does the promise that
nothing acknowledged is lost with a minority of the nodes.

Bounds: ASKED_AT_ONCE bodies are asked for at a time, of one peer after the other, with PAUSE_S between; what nobody
has is asked for again after RETRY_S.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice

import structlog

from ledger.block import stored_transactions
from ledger.contracts.records import Record
from ledger.encoding import decode_as
from ledger.transaction import stored_envelope
from node.driver import InWriter
from node.intake import FetchBodies, fetch_all
from storage import schema
from storage.port import View, Viewable
from storage.store import Store

_log = structlog.get_logger(__name__)

ASKED_AT_ONCE = 256
PAUSE_S = 0.05
# First the node catches up with the chain.
BEGIN_S = 2.0
RETRY_S = 10.0
RECORD_BYTES_MAX = 64 * 1024
# The state keys whose values name bodies.
_NAMING = ("records/record/", "records/version/")


class MissingBodies:
    """`complete` is called once nothing is missing any more."""

    def __init__(
        self,
        store: Store,
        kv: Viewable,
        *,
        fetch: FetchBodies,
        peers: Callable[[], Sequence[str]],
        in_writer: InWriter,
        complete: Callable[[], None],
    ) -> None:
        self._store = store
        self._kv = kv
        self._fetch = fetch
        self._peers = peers
        self._in_writer = in_writer
        self._complete = complete
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="bodies")

    async def run(self) -> None:
        """Return when everything is here."""
        if self._store.base.bodiless:
            await asyncio.sleep(BEGIN_S)
        while self._store.base.bodiless:
            view = self._kv.view()
            try:
                missing = await self._pass(view)
            except asyncio.CancelledError:
                # The thread reads the view until its slice is done.
                self._thread.shutdown(wait=True, cancel_futures=True)
                raise
            finally:
                view.close()
            if missing == 0:
                self._complete()
                return
            _log.info("bodies are missing", count=missing)
            await asyncio.sleep(RETRY_S)

    async def _pass(self, view: View) -> int:
        """Ask for everything that is missing once; how much still is."""
        missing, found = 0, 0
        named = _named(view, self._store.base.height, self._store.base.bodiless)
        loop = asyncio.get_running_loop()
        while names := await loop.run_in_executor(self._thread, lambda: list(islice(named, ASKED_AT_ONCE))):
            wanted = [commitment for commitment in names if self._store.body(commitment) is None]
            if not wanted:
                continue
            bodies: dict[bytes, bytes] = {}
            for peer in self._peers():
                left = [commitment for commitment in wanted if commitment not in bodies]
                if not left or await fetch_all(self._fetch, peer, left, bodies):
                    break
            if bodies:
                await self._in_writer(partial(self._store.put_bodies, bodies))
            missing += len(set(wanted)) - len(bodies)
            found += len(bodies)
            await asyncio.sleep(PAUSE_S)
        if found:
            _log.info("bodies fetched", count=found)
        return missing


def _named(view: View, base: int, bodiless: int) -> Iterator[bytes]:
    """Every commitment that blocks above the base and records in the state name, some twice."""
    for height in range(base + 1, bodiless + 1):
        data = view.get(schema.block_key(height))
        if data is not None:
            for transaction in stored_transactions(data):
                yield from (reference.commitment for reference in stored_envelope(transaction).bodies)
    for prefix in _NAMING:
        start = schema.state_key(prefix)
        for _, value in view.range(start, start[:-1] + bytes((start[-1] + 1,))):
            yield decode_as(Record, value, RECORD_BYTES_MAX).body.commitment
