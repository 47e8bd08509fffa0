"""Which results of a block the index of transactions remembers, and for how long it must.

An id belongs to the first inclusion that settled it (`TxResult.settles`). A node forgets the ids of pruned blocks,
and must still decide as one that forgot nothing. Two rules make it so:

- an inclusion that is `expired` settles its id only up to UNTIL_AHEAD_MAX_MS after `until`. An earlier inclusion that
  executed was at most UNTIL_AHEAD_MAX_MS before `until`, so it is in the window and known;
- the window that is kept reaches back WINDOW_MS of block time, twice as long.
"""

from collections.abc import Callable, Iterator, Sequence

from ledger.execution import TxResult
from ledger.transaction import UNTIL_AHEAD_MAX_MS

WINDOW_MS = 2 * UNTIL_AHEAD_MAX_MS

_EXPIRED = "expired"


def settling(
    time_ms: int, results: Sequence[TxResult], until_ms: Callable[[int], int]
) -> Iterator[tuple[int, TxResult]]:
    """Index and result of those that settle their id, as far as the block itself can tell.

    `time_ms` is the block's, `until_ms(index)` the envelope's.
    """
    seen: set[bytes] = set()
    for index, result in enumerate(results):
        if not result.settles or result.id in seen:
            continue
        if result.code == _EXPIRED and time_ms > until_ms(index) + UNTIL_AHEAD_MAX_MS:
            continue
        seen.add(result.id)
        yield index, result
