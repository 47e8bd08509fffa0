"""Decoded blocks above the executed height, so that no block is decoded twice on its way to execution.

Bounded by what the core allows uncommitted plus what sync steps at once; whatever executes leaves. A block held
here is not in the log by that alone: `appended` follows the log.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from consensus.messages import Entry
from ledger.block import Block


@dataclass(slots=True)
class Held:
    """`bodies` by commitment, until the block is on the disk; then empty."""

    block: Block
    bodies: Mapping[bytes, bytes]


class Tail:
    def __init__(self) -> None:
        self._held: dict[bytes, Held] = {}
        self._ids_at: dict[int, tuple[bytes, ...]] = {}
        self._in_log: dict[bytes, int] = {}

    def __contains__(self, tx_id: object) -> bool:
        """Whether the log above the executed height holds this transaction already."""
        return tx_id in self._in_log

    @property
    def transactions(self) -> int:
        """How many transactions the log holds above the executed height."""
        return len(self._in_log)

    def hold(self, block: Block, bodies: Mapping[bytes, bytes]) -> None:
        self._held[block.hash] = Held(block, bodies)

    def discard(self, block_hash: bytes) -> None:
        """The log did not take this block."""
        self._held.pop(block_hash, None)

    def get(self, block_hash: bytes) -> Held | None:
        return self._held.get(block_hash)

    def appended(self, truncate_from: int | None, entries: tuple[Entry, ...]) -> None:
        """The log changed as one Ready says."""
        if truncate_from is not None:
            for height in [height for height in self._ids_at if height >= truncate_from]:
                self._forget_ids(height)
        for entry in entries:
            self.in_log(self._held[entry.hash].block)

    def in_log(self, block: Block) -> None:
        """This block is in the log (as just appended, or as found there at boot)."""
        ids = tuple(transaction.id for transaction in block.transactions)
        self._ids_at[block.header.height] = ids
        for tx_id in ids:
            self._in_log[tx_id] = block.header.height

    def persisted(self, entries: tuple[Entry, ...]) -> None:
        """Their bodies are on the disk now."""
        for entry in entries:
            held = self._held.get(entry.hash)
            if held is not None:
                held.bodies = {}

    def executed(self, height: int) -> None:
        """Forget everything up to `height`."""
        for gone in [block for block, held in self._held.items() if held.block.header.height <= height]:
            del self._held[gone]
        for past in [past for past in self._ids_at if past <= height]:
            self._forget_ids(past)

    def _forget_ids(self, height: int) -> None:
        for tx_id in self._ids_at.pop(height):
            if self._in_log.get(tx_id) == height:
                del self._in_log[tx_id]
