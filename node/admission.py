"""The one way into the pool, for clients and peers alike: decode, verify once, admit, hold.

Whatever is refused here leaves no trace but a counter. A transaction that is known already is not checked again and
counts as accepted.
"""

from collections.abc import Callable, Sequence
from typing import Literal

from ledger.execution import admit
from ledger.transaction import (
    Transaction,
    check_bodies,
    check_signature,
    decode_transaction,
    transaction_hash,
)
from node.pool import Pool

Source = Literal["client", "peer"]


class Admission:
    """`read` answers from the newest executed state; `executed` whether an id is in a block already."""

    def __init__(
        self,
        chain: bytes,
        pool: Pool,
        *,
        read: Callable[[str], bytes | None],
        executed: Callable[[bytes], bool],
        now_ms: Callable[[], int],
        block_time_ms: Callable[[], int],
    ) -> None:
        self._chain = chain
        self._pool = pool
        self._read = read
        self._executed = executed
        self._now_ms = now_ms
        self._block_time_ms = block_time_ms

    def take(self, data: bytes, bodies: Sequence[bytes], source: Source) -> tuple[Transaction, bool]:
        """The transaction, and whether it is new to this node. Raises Rejection."""
        known = self._pool.by_hash(transaction_hash(data))
        if known is not None:
            return known, False
        transaction = decode_transaction(data)
        if transaction.id in self._pool or self._executed(transaction.id):
            return transaction, False
        # A following clock may lag behind block time, and a leading one run ahead of it: the later of both decides
        # what has expired, as it will when the transaction is executed.
        account = admit(transaction, self._read, max(self._now_ms(), self._block_time_ms()))
        check_signature(transaction, self._chain)
        check_bodies(transaction, list(bodies))
        new = self._pool.add(transaction, bodies, account.organisation, from_peer=source == "peer")
        return transaction, new
