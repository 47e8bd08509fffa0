"""The one way into the pool, for clients and peers alike: decode, verify once, admit, hold.

Whatever is refused here leaves no trace but a counter. A transaction that is known already is not checked again and
counts as accepted. What comes together is judged one by one, but at one time and upon one state, so that the clock
is asked, and an account is read, once for all of them.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Literal, NamedTuple

from ledger.contracts.context import Read
from ledger.errors import Rejection
from ledger.execution import admit
from ledger.transaction import (
    UNTIL_AHEAD_MAX_MS,
    Transaction,
    check_bodies,
    check_signature,
    decode_transaction,
    transaction_hash,
)
from node.metrics import Metrics
from node.pool import Pool

Source = Literal["client", "peer"]


class Admitted(NamedTuple):
    """A transaction that this node holds now, or has executed; `new` if it did neither before."""

    transaction: Transaction
    new: bool


class Admission:
    """`read` answers from the newest executed state; `executed` whether an id is settled by an executed block,
    `logged` whether a block of the log above it holds it; `known_since_ms` up to which block time the ids of pruned
    blocks are forgotten, None where none is.
    """

    def __init__(
        self,
        chain: bytes,
        pool: Pool,
        metrics: Metrics,
        *,
        read: Read,
        executed: Callable[[bytes], bool],
        logged: Callable[[bytes], bool],
        known_since_ms: Callable[[], int | None],
        now_ms: Callable[[], int],
        block_time_ms: Callable[[], int],
    ) -> None:
        self._chain = chain
        self._pool = pool
        self._metrics = metrics
        self._read = read
        self._executed = executed
        self._logged = logged
        self._known_since_ms = known_since_ms
        self._now_ms = now_ms
        self._block_time_ms = block_time_ms

    def take(self, items: Sequence[tuple[bytes, Sequence[bytes]]], source: Source) -> list[Admitted | Rejection]:
        """For each signed transaction and its bodies, in order: that it is held now, or why it is refused."""
        with self._metrics.stage_seconds.timed("admit"):
            # A following clock may lag behind block time, and a leading one run ahead of it: the later of both
            # decides what has expired, as it will when the transaction is executed.
            time_ms = max(self._now_ms(), self._block_time_ms())
            read = cache(self._read)
            taken = [self._take(data, bodies, source, time_ms, read) for data, bodies in items]
        new = 0
        for one in taken:
            if isinstance(one, Rejection):
                self._metrics.transactions_refused.labels(one.code).inc()
            else:
                new += one.new
        if new:
            self._metrics.transactions_admitted.labels(source).inc(new)
        return taken

    def _take(
        self, data: bytes, bodies: Sequence[bytes], source: Source, time_ms: int, read: Read
    ) -> Admitted | Rejection:
        own_hash = transaction_hash(data)
        known = self._pool.by_hash(own_hash)
        if known is not None:
            return Admitted(known, new=False)
        try:
            transaction = decode_transaction(data, own_hash)
            if transaction.id in self._pool or self._executed(transaction.id):
                return Admitted(transaction, new=False)
            if source == "peer" and self._logged(transaction.id):
                # Its block was here first and was judged whole.
                return Admitted(transaction, new=False)
            self._require_known(transaction, time_ms)
            account = admit(transaction, read, time_ms)
            check_signature(transaction, self._chain)
            check_bodies(transaction, bodies)
            new = self._pool.add(transaction, bodies, account.organisation, from_peer=source == "peer")
        except Rejection as rejection:
            return rejection
        return Admitted(transaction, new)

    def _require_known(self, transaction: Transaction, time_ms: int) -> None:
        """Rejection("pruned") where its time is over, and a block that this node has forgotten may hold it.

        No block holds it as good whose time is more than UNTIL_AHEAD_MAX_MS before `until`.
        """
        until, since_ms = transaction.envelope.until, self._known_since_ms()
        if since_ms is not None and until < time_ms and until - UNTIL_AHEAD_MAX_MS <= since_ms:
            raise Rejection(
                "pruned", "its time is over, and it may have been committed long ago; this node cannot tell"
            )
