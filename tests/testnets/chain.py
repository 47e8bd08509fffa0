"""The chain as it is served, each block fetched once and linked to the one before, from genesis up."""

from collections.abc import Iterable

import aiohttp
import msgspec

from carequorum.submission import Committed
from ledger.block import Block, decode_block
from ledger.genesis import Genesis

PAGE = 100
BLOCK_BYTES_MAX = 4 * 1024 * 1024
REQUEST_TIMEOUT_S = 10.0


class ChainError(Exception):
    """What was served is no continuation of the chain; one line for people."""


class _Stored(msgspec.Struct, frozen=True):
    block: bytes


class _Page(msgspec.Struct, frozen=True):
    blocks: list[_Stored]
    next: int | None


class Chain:
    """What the blocks up to `height` hold. `hashes` and `proposers` are by height, genesis being 0; `places` are the
    heights of transactions by id, `twice` the heights at which one came again, `falls` those of blocks whose time is
    not after their parent's.
    """

    def __init__(self, genesis: Genesis) -> None:
        self.hashes = [genesis.chain_id()]
        self.time_ms = genesis.time
        self.places: dict[bytes, int] = {}
        self.proposers = ["genesis"]
        self.twice: list[int] = []
        self.falls: list[int] = []

    @property
    def height(self) -> int:
        return len(self.hashes) - 1

    def add(self, block: Block) -> None:
        """The next block. Raises ChainError."""
        header = block.header
        if (header.height, header.parent) != (self.height + 1, self.hashes[-1]):
            raise ChainError(f"block {header.height} does not follow on block {self.height}")
        if header.time <= self.time_ms:
            self.falls.append(header.height)
        for transaction in block.transactions:
            if transaction.id in self.places:
                self.twice.append(header.height)
            self.places.setdefault(transaction.id, header.height)
        self.hashes.append(block.hash)
        self.time_ms = header.time
        self.proposers.append(header.proposer)

    async def read(self, url: str) -> None:
        """Take every block that the node at `url` holds beyond `height`.

        Raises ChainError, also where it does not answer.
        """
        timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            more = True
            while more:
                try:
                    page = await self._page(session, url)
                except (aiohttp.ClientError, TimeoutError, msgspec.DecodeError) as error:
                    raise ChainError(f"{url} serves no blocks: {type(error).__name__}") from None
                for stored in page.blocks:
                    self.add(decode_block(stored.block, BLOCK_BYTES_MAX))
                more = page.next is not None

    async def _page(self, session: aiohttp.ClientSession, url: str) -> _Page:
        target = f"{url}/v1/blocks?from={self.height + 1}&limit={PAGE}"
        async with session.get(target, headers={"Accept": "application/msgpack"}) as answer:
            if answer.status != 200:
                raise ChainError(f"{target}: status {answer.status}")
            return msgspec.msgpack.decode(await answer.read(), type=_Page)

    def lost(self, answered: Iterable[Committed]) -> list[Committed]:
        """Which of them it does not hold at the very height that was answered."""
        return [each for each in answered if self.places.get(each.id) != each.height]
