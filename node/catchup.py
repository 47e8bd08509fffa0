"""Catching up: a node far behind its leader's certificate fetches certified blocks from any peer.

The core's leader sends blocks only to those close behind; who is further behind asks, one peer after the other,
for ranges that end at a certificate, checks them as it would check a leader's, and hands them to the core. One
range is under way at a time: its blocks are at most RANGE_BYTES_MAX or one block, its bodies BODIES_BYTES_MAX.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import pairwise

import structlog

from consensus.messages import Certificate, CertifiedBlocks, Entry, Reason
from ledger.block import header_of
from ledger.errors import Rejection
from ledger.finality import decode_certificate
from ledger.transaction import bodies_bytes
from network.port import BlockRange, FetchFailed
from node.certificates import plain
from node.driver import Driver
from node.intake import BlockChecks, FetchBodies, RefusedAtError, fetch_all
from storage.executed import Divergence

_log = structlog.get_logger(__name__)

RANGE_BYTES_MAX = 256 * 1024
BODIES_BYTES_MAX = 32 * 1024 * 1024
RETRY_S = 0.2

FetchBlocks = Callable[[str, int, int], Awaitable[BlockRange]]


class ForkError(Exception):
    """Two certified chains differ: invariant 2 is broken somewhere, so this node stops and keeps what it holds."""


class CatchUp:
    """`peers` lists who can be asked now; `executed` waits until a height is executed here.

    A leader sends blocks itself to those within `replicate_gap_blocks`; asking at half of that leaves no distance
    at which nobody moves.
    """

    def __init__(
        self,
        driver: Driver,
        checks: BlockChecks,
        *,
        replicate_gap_blocks: int,
        certificate_holds: Callable[[Certificate], bool],
        fetch_blocks: FetchBlocks,
        fetch_bodies: FetchBodies,
        peers: Callable[[], Sequence[str]],
        executed: Callable[[int], Awaitable[None]],
    ) -> None:
        self._driver = driver
        self._checks = checks
        self._ask_gap_blocks = replicate_gap_blocks // 2
        self._certificate_holds = certificate_holds
        self._fetch_blocks = fetch_blocks
        self._fetch_bodies = fetch_bodies
        self._peers = peers
        self._executed = executed
        self._target = 0
        self._turn = 0
        self._range_bytes = RANGE_BYTES_MAX
        self._complained = ("", "")
        self._work = asyncio.Event()

    def notice(self, certified_height: int) -> None:
        """A verified certificate at this height exists."""
        self._target = max(self._target, certified_height)
        if self._behind():
            self._work.set()

    async def run(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            while self._behind():
                peers = self._peers()
                peer = peers[self._turn % len(peers)] if peers else None
                if peer is None or not await self._advance(peer):
                    self._turn += 1
                    # Nobody had it, or the one asked failed: ask the next, without spinning.
                    await asyncio.sleep(RETRY_S)

    def _behind(self) -> bool:
        return self._target - self._driver.core.commit_height > self._ask_gap_blocks

    async def _advance(self, peer: str) -> bool:
        """One range from `peer` into the log; whether that moved this node."""
        begin = self._driver.core.commit_height
        try:
            answer = await self._fetch_blocks(peer, begin + 1, self._range_bytes)
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
        await self._executed(blocks.certificate.height)
        self._range_bytes = RANGE_BYTES_MAX
        return True

    def _complain(self, peer: str, detail: str) -> None:
        """One line for a peer's fault, however often it is met in a row."""
        if (peer, detail) != self._complained:
            self._complained = (peer, detail)
            _log.warning("catch-up failed", peer=peer, detail=detail)

    def _checked(self, peer: str, begin: int, answer: BlockRange) -> CertifiedBlocks | None:
        """The range as entries, linked to this log and ending at a certificate that holds."""
        if not answer.blocks or answer.certificate is None:
            return None
        certificate = plain(decode_certificate(answer.certificate))
        entries = tuple(entry_of(data) for data in answer.blocks)
        heights = [entry.height for entry in entries]
        linked = all(after.parent == before.hash for before, after in pairwise(entries))
        if (
            heights != list(range(begin + 1, begin + 1 + len(entries)))
            or not linked
            or entries[-1].hash != certificate.hash
            or not self._certificate_holds(certificate)
        ):
            self._complain(peer, "no certified range on top of this log")
            return None
        own = self._driver.core.term_hash(begin)
        if own is None or own[1] != entries[0].parent:
            raise ForkError(f"a certified chain of {peer} contradicts the block committed here at height {begin}")
        return CertifiedBlocks(entries, certificate)


def entry_of(data: bytes) -> Entry:
    """A stored block as the core's entry. Raises Rejection."""
    header, block_hash = header_of(data)
    return Entry(header.height, header.term, header.parent, block_hash, data)
