"""Catching up: a node far behind its leader's certificate fetches certified blocks from any peer.

The core's leader sends blocks only to those close behind; who is further behind asks, one peer after the other,
for ranges that end at a certificate, checks them as it would check a leader's, and hands them to the core. One
range is under way at a time: its blocks are at most RANGE_BYTES_MAX or one block, its bodies BODIES_BYTES_MAX.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from itertools import pairwise

import structlog

from consensus.messages import Certificate, CertifiedBlocks, Entry, Reason
from ledger.block import header_of
from ledger.errors import Rejection
from ledger.finality import decode_certificate
from ledger.membership import Configuration
from ledger.transaction import bodies_bytes
from network.port import BlockRange, FetchFailed
from node.certificates import plain
from node.driver import Driver
from node.inspector import Parent
from node.intake import BlockChecks, FetchBodies, RefusedAtError, fetch_all
from node.membership import Place, entry_on
from storage.executed import Divergence

_log = structlog.get_logger(__name__)

RANGE_BYTES_MAX = 256 * 1024
BODIES_BYTES_MAX = 32 * 1024 * 1024
RETRY_S = 0.2
NOBODY_S = 0.02
STALL_S = 1.0
# How often a node that hears no leader asks its peers whether there are blocks that it has not. Before it has
# what they have certified it may not vote, so an election can wait for this.
LEADERLESS_S = 0.25

FetchBlocks = Callable[[str, int, int], Awaitable[BlockRange]]


class ForkError(Exception):
    """Two certified chains differ: invariant 2 is broken somewhere, so this node stops and keeps what it holds."""


class CatchUp:
    """`peers` lists who can be asked now; `executed` waits until a height is executed here.

    What no peer has any more, as all have pruned it, comes as a snapshot: `from_snapshot` fetches one, and says
    whether this node ends to start again on it. An empty node that `begins_with_snapshot` prefers that to blocks.

    A leader sends blocks itself to those within `replicate_gap_blocks`; asking at half of that, and nearer where
    nothing comes, leaves no distance at which nobody moves.
    """

    def __init__(
        self,
        driver: Driver,
        checks: BlockChecks,
        *,
        replicate_gap_blocks: int,
        parent_of: Callable[[int, bytes], Parent],
        certificate_holds: Callable[[Certificate, Configuration], bool],
        fetch_blocks: FetchBlocks,
        fetch_bodies: FetchBodies,
        peers: Callable[[], Sequence[str]],
        executed: Callable[[int], Awaitable[None]],
        begins_with_snapshot: bool = False,
        from_snapshot: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        self._driver = driver
        self._checks = checks
        self._ask_gap_blocks = replicate_gap_blocks // 2
        self._parent_of = parent_of
        self._certificate_holds = certificate_holds
        self._fetch_blocks = fetch_blocks
        self._fetch_bodies = fetch_bodies
        self._peers = peers
        self._executed = executed
        self._begins_with_snapshot = begins_with_snapshot
        self._from_snapshot = from_snapshot
        # How many peers in a row brought nothing, and whether one of them had pruned what was asked for.
        self._vain = 0
        self._pruned = False
        self._target = 0
        # A certificate that somebody told of, and how many more peers are asked in vain for what leads to it.
        self._hint = 0
        self._hint_tries = 0
        # Since when (monotonic) the commit height has stood here, below the target.
        self._stood_height, self._stood_since_s = -1, 0.0
        self._turn = 0
        self._range_bytes = RANGE_BYTES_MAX
        self._complained = ("", "")
        self._work = asyncio.Event()

    def notice(self, certified_height: int) -> None:
        """A verified certificate at this height exists."""
        self._target = max(self._target, certified_height)
        if self._behind():
            self._work.set()
        elif self._stands_still():
            self.hint(self._target)

    def hint(self, height: int) -> None:
        """Somebody shows a certificate at this height which this node cannot verify, or not use, as its log stands.

        It may be a lie. So each peer is asked once for what leads there, then no more until somebody says so again.
        """
        if height > self._driver.core.commit_height:
            self._hint = height
            self._hint_tries = max(len(self._peers()), 1)
            self._work.set()

    async def run(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(LEADERLESS_S):
                    await self._work.wait()
            self._work.clear()
            if self._driver.core.leader is None and self._peers():
                # A leader whom this node does not know yet cannot tell it that it is behind: it lets in only those
                # whom the chain, as far as it has it, names.
                self.hint(self._driver.core.commit_height + self._ask_gap_blocks + 1)
            while self._behind():
                if self._wants_snapshot() and await self._ask_for_snapshot():
                    return
                peers = self._peers()
                if not peers:
                    # Connections come up one way at a time; this one waits for nothing else.
                    await asyncio.sleep(NOBODY_S)
                elif await self._advance(peers[self._turn % len(peers)]):
                    self._vain, self._pruned = 0, False
                else:
                    self._turn += 1
                    self._vain += 1
                    self._hint_tries -= 1
                    # It had nothing, or failed: ask the next, without spinning.
                    await asyncio.sleep(RETRY_S)

    def _wants_snapshot(self) -> bool:
        """An empty node that is far behind, if it may; and one whose next blocks no peer has, and one had."""
        if self._from_snapshot is None:
            return False
        height = self._driver.core.commit_height
        if self._pruned and self._vain >= len(self._peers()):
            return True
        far = max(self._target, self._hint) - height > self._ask_gap_blocks
        return self._begins_with_snapshot and height == 0 and far and bool(self._peers())

    async def _ask_for_snapshot(self) -> bool:
        """Whether this node starts again from one. Where there is none, blocks are asked for (again)."""
        assert self._from_snapshot is not None, "it may be asked for"
        self._begins_with_snapshot = False
        self._vain, self._pruned = 0, False
        return await self._from_snapshot()

    def _behind(self) -> bool:
        height = self._driver.core.commit_height
        return self._target - height > self._ask_gap_blocks or (self._hint_tries > 0 and self._hint > height)

    def _stands_still(self) -> bool:
        """Whether the commit height has stood below a certificate for STALL_S.

        The leader sends whatever is this near; but not what it remembers a node to hold, which that node has lost.
        """
        height, now_s = self._driver.core.commit_height, time.monotonic()
        if height >= self._target or height != self._stood_height:
            self._stood_height, self._stood_since_s = height, now_s
        return now_s - self._stood_since_s >= STALL_S

    async def _advance(self, peer: str) -> bool:
        """One range from `peer` into the log; whether that moved this node."""
        begin = self._driver.core.commit_height
        try:
            answer = await self._fetch_blocks(peer, begin + 1, self._range_bytes)
            self._pruned = self._pruned or (not answer.blocks and answer.base > begin)
            blocks = self._checked(peer, begin, answer)
            if blocks is None:
                return False
            inspected = self._checks.inspect(blocks.entries, certified=True)
        except RefusedAtError as error:
            if error.reason is Reason.BAD_ROOTS:
                # The roots stand under a certified hash: no peer can have made them up.
                raise Divergence(str(error)) from None
            self._complain(peer, str(error))
            return False
        except (FetchFailed, Rejection) as error:
            self._complain(peer, str(error))
            return False
        weight = sum(bodies_bytes(transaction) for block in inspected for transaction in block.transactions)
        if len(inspected) > 1 and weight > BODIES_BYTES_MAX:
            self._range_bytes = max(self._range_bytes // 2, 1)
            return True
        bodies: dict[bytes, bytes] = {}
        missing = self._checks.missing(inspected, bodies)
        if not await fetch_all(self._fetch_bodies, peer, missing, bodies):
            return False
        if self._driver.core.commit_height != begin:
            return True
        self._checks.hold(inspected, bodies)
        held = self._driver.step_certified(peer, blocks)
        self._checks.drop_unlogged(inspected)
        if not held:
            # Too much waits for the disk already.
            return False
        # What the core has not committed would not be executed: for that, this asks again.
        reached = min(blocks.certificate.height, self._driver.core.commit_height)
        await self._executed(reached)
        self._range_bytes = RANGE_BYTES_MAX
        return reached > begin

    def _complain(self, peer: str, detail: str) -> None:
        """One line for a peer's fault, however often it is met in a row."""
        if (peer, detail) != self._complained:
            self._complained = (peer, detail)
            _log.warning("catch-up failed", peer=peer, detail=detail)

    def _checked(self, peer: str, begin: int, answer: BlockRange) -> CertifiedBlocks | None:
        """The range as entries, linked to this log and ending at a certificate that holds."""
        if not answer.blocks or answer.certificate is None:
            return None
        own = self._driver.core.term_hash(begin)
        assert own is not None, "the log holds what is committed"
        certificate = plain(decode_certificate(answer.certificate))
        first = header_of(answer.blocks[0])[0]
        # Where it does not follow on this log, whose voters count is what this log says of its own end.
        place = self._parent_of(begin, own[1]).place
        entries, configuration = _entries_on(place, answer.blocks)
        heights = [entry.height for entry in entries]
        linked = all(after.parent == before.hash for before, after in pairwise(entries))
        if (
            heights != list(range(begin + 1, begin + 1 + len(entries)))
            or not linked
            or entries[-1].hash != certificate.hash
            or not self._certificate_holds(certificate, configuration)
        ):
            self._complain(peer, "no certified range on top of this log")
            return None
        if own[1] != first.parent:
            raise ForkError(f"a certified chain of {peer} contradicts the block committed here at height {begin}")
        return CertifiedBlocks(entries, certificate)


def _entries_on(place: Place, blocks: Sequence[bytes]) -> tuple[tuple[Entry, ...], Configuration]:
    """Stored blocks above `place` as the core's entries, and the configuration in effect at the last of them.

    Every proof among them is verified. Raises Rejection.
    """
    entries: list[Entry] = []
    for data in blocks:
        entry, place = entry_on(place, data)
        entries.append(entry)
    return tuple(entries), place.configuration
