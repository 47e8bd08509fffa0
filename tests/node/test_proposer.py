"""When the leader makes a block: at once while idle, gathering while busy, an empty one to seal."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import cast

import msgspec
import pytest
import pytest_asyncio

from consensus.messages import Role
from ledger.block import Block
from ledger.genesis import Parameters
from ledger.transaction import UNTIL_AHEAD_MAX_MS, Transaction
from node import proposer as proposer_module
from node.driver import Driver
from node.pool import LENGTH_BYTES, Pool, PoolLimits
from node.proposer import IN_FLIGHT_MAX, Proposer
from node.tail import Tail
from storage.store import Store
from tests.fakes.disk import PowerLossDisk
from tests.ledger.founding import GENESIS, NOW_MS, registration, sign
from tests.storage.chains import Chain

SEAL_DELAY_MS = 1
PATIENCE_S = 20.0


@dataclass
class Core:
    role: Role = Role.LEADER
    last_height: int = 1

    @property
    def can_propose(self) -> bool:
        return self.role is Role.LEADER


@dataclass
class Heights:
    """What the proposer asks of the store."""

    executed_height: int = 1
    sealed_height: int | None = None


@dataclass
class Log:
    """What the proposer asks of the driver: each block goes into the log, and nowhere until `execute`."""

    tail: Tail
    core: Core = field(default_factory=Core)
    blocks: list[list[Transaction]] = field(default_factory=list)
    proposed: asyncio.Event = field(default_factory=asyncio.Event)

    def propose(self, payload: list[Transaction]) -> bool:
        self.core.last_height += 1
        self.blocks.append(payload)
        self.tail.in_log(sealed_at(self.core.last_height, payload))
        self.proposed.set()
        return True


def sealed_at(height: int, transactions: list[Transaction]) -> Block:
    block = Chain(PowerLossDisk()).seal(*transactions)
    return cast(Block, _At(msgspec.structs.replace(block.header, height=height), block.transactions))


@dataclass(frozen=True)
class _At:
    header: object
    transactions: tuple[Transaction, ...]


class Desk:
    """A leader at height 1, all of it executed, nothing of it to seal."""

    def __init__(
        self,
        *,
        transactions_max: int = 1_000,
        bytes_max: int = 1 << 20,
        last_busy_height: int = 0,
        seal_delay_ms: int = SEAL_DELAY_MS,
    ) -> None:
        limits = msgspec.structs.replace(
            Parameters(), block_transactions_max=transactions_max, block_bytes_max=bytes_max
        )
        self.pool = Pool(PoolLimits(1_000, 1 << 30, 1.0, 1.0))
        self.tail = Tail()
        self.log = Log(self.tail)
        self.store = Heights()
        self.now_ms = NOW_MS
        self.block_time_ms = NOW_MS - 1
        self.held_back = False
        self.proposer = Proposer(
            msgspec.structs.replace(GENESIS, parameters=limits),
            cast(Driver, self.log),
            cast(Store, self.store),
            self.pool,
            self.tail,
            now_ms=lambda: self.now_ms,
            block_time_ms=lambda: self.block_time_ms,
            held_back=lambda: self.held_back,
            seal_delay_ms=seal_delay_ms,
            last_busy_height=last_busy_height,
        )

    def admit(self, count: int = 1, until: int = NOW_MS + 60_000) -> list[Transaction]:
        """So many new transactions wait, and the proposer is told."""
        made = [sign([registration("doctor", "clinician")], by="north-admin", until=until) for _ in range(count)]
        for transaction in made:
            self.pool.add(transaction, [], "north", from_peer=False)
        self.proposer.consider()
        return made

    def execute(self) -> None:
        """The oldest block in flight is committed and executed here."""
        height = self.store.executed_height + 1
        block = self.log.blocks[height - 2]
        for transaction in block:
            self.pool.remove(transaction.id)
        self.store.executed_height = height
        self.tail.executed(height)
        self.proposer.executed(height, len(block))

    def timer(self) -> asyncio.TimerHandle | None:
        return self.proposer._seal_timer

    async def gathered(self) -> None:
        """Wait until the next block waits for company no longer."""
        async with asyncio.timeout(PATIENCE_S):
            while self.proposer._gather_timer is not None:
                self.log.proposed.clear()
                await self.log.proposed.wait()

    async def sealing(self) -> None:
        """Wait for the next proposal, which the timer makes."""
        self.log.proposed.clear()
        async with asyncio.timeout(PATIENCE_S):
            await self.log.proposed.wait()


@pytest_asyncio.fixture
async def make() -> AsyncIterator[Callable[..., Desk]]:
    desks: list[Desk] = []

    def one(**limits: int) -> Desk:
        desks.append(Desk(**limits))
        return desks[-1]

    yield one
    for desk in desks:
        desk.proposer.close()


Make = Callable[..., Desk]


@pytest.mark.asyncio
async def test_an_idle_leader_makes_a_block_at_once(make: Make) -> None:
    desk = make()
    made = desk.admit(3)
    assert desk.log.blocks == [made]


@pytest.mark.parametrize("role", [Role.FOLLOWER, Role.PRE_CANDIDATE, Role.CANDIDATE])
@pytest.mark.asyncio
async def test_nobody_else_makes_one(make: Make, role: Role) -> None:
    desk = make(last_busy_height=1)
    desk.log.core.role = role
    desk.admit()
    assert (desk.log.blocks, desk.timer()) == ([], None)


@pytest.mark.asyncio
async def test_while_a_block_is_in_flight_the_pool_gathers(make: Make) -> None:
    """And nothing goes into two blocks."""
    desk = make()
    first, second, third = desk.admit(), desk.admit(), desk.admit()
    assert desk.log.blocks == [first]
    desk.execute()
    await desk.gathered()
    assert desk.log.blocks == [first, second + third]


@pytest.mark.asyncio
async def test_after_a_block_of_several_as_many_more_are_waited_for(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They who waited for it come again together; then the wait is over at once."""
    monkeypatch.setattr(proposer_module, "GATHER_S", 3_600.0)
    monkeypatch.setattr(proposer_module, "GATHER_MAX_S", 3_600.0)
    desk = make(seal_delay_ms=3_600_000)
    first = desk.admit(3)
    early = desk.admit()
    desk.execute()
    more = desk.admit(2)
    assert desk.log.blocks == [first]
    more += desk.admit()
    assert desk.log.blocks == [first, early + more]
    assert desk.proposer._gather_timer is None


@pytest.mark.asyncio
async def test_company_that_does_not_come_is_not_waited_for_long(make: Make) -> None:
    desk = make(seal_delay_ms=3_600_000)
    first = desk.admit(3)
    desk.execute()
    alone = desk.admit()
    await desk.gathered()
    assert desk.log.blocks == [first, alone]


@pytest.mark.asyncio
async def test_nobody_waits_for_company_of_a_block_that_was_made_elsewhere(make: Make) -> None:
    """Nor after an empty one."""
    desk = make(seal_delay_ms=3_600_000)
    desk.proposer.executed(1, 50)
    first = desk.admit()
    assert desk.log.blocks == [first]


@pytest.mark.asyncio
async def test_who_waits_for_company_goes_along_when_the_block_before_is_sealed(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proposer_module, "GATHER_S", 3_600.0)
    monkeypatch.setattr(proposer_module, "GATHER_MAX_S", 3_600.0)
    desk = make()
    first = desk.admit(3)
    desk.execute()
    alone = desk.admit()
    await desk.sealing()
    assert desk.log.blocks == [first, alone]


@pytest.mark.asyncio
async def test_more_blocks_join_only_if_they_are_full(make: Make) -> None:
    desk = make(transactions_max=2)
    first = desk.admit(5)
    assert desk.log.blocks == [first[:2]]
    desk.proposer.consider()
    assert desk.log.blocks == [first[:2], first[2:4]]
    desk.proposer.consider()
    assert len(desk.log.blocks) == 2
    more = desk.admit()
    assert desk.log.blocks[2:] == [[first[4], *more]]


@pytest.mark.asyncio
async def test_blocks_in_flight_are_bounded(make: Make) -> None:
    desk = make(transactions_max=1)
    made = desk.admit(IN_FLIGHT_MAX + 2)
    for _ in range(IN_FLIGHT_MAX + 2):
        desk.proposer.consider()
    assert desk.log.blocks == [[one] for one in made[:IN_FLIGHT_MAX]]
    desk.execute()
    assert desk.log.blocks == [[one] for one in made[: IN_FLIGHT_MAX + 1]]


@pytest.mark.asyncio
async def test_a_block_holds_what_its_bytes_allow(make: Make) -> None:
    size = len(sign([registration("doctor", "clinician")], by="north-admin").data) + LENGTH_BYTES
    desk = make(bytes_max=2 * size + size // 2)
    made = desk.admit(3)
    assert desk.log.blocks == [made[:2]]


@pytest.mark.asyncio
async def test_what_would_fail_for_its_time_alone_is_left_out(make: Make) -> None:
    """Too early by this clock: its time may still come. Expired: it waits to be dropped."""
    desk = make()
    desk.log.core.role = Role.FOLLOWER
    early = desk.admit(until=NOW_MS + UNTIL_AHEAD_MAX_MS + 1)
    desk.admit(until=NOW_MS - 1)
    good = desk.admit()
    desk.log.core.role = Role.LEADER
    desk.proposer.consider()
    assert desk.log.blocks == [good]
    desk.now_ms += 1
    desk.execute()
    await desk.gathered()
    assert desk.log.blocks == [good, early]


@pytest.mark.asyncio
async def test_an_empty_block_moves_block_time_past_what_expired(make: Make) -> None:
    """Only then may the pool drop it and say so; once block time is there, no more blocks are made for it."""
    desk = make()
    desk.now_ms = NOW_MS + 100
    (late,) = desk.admit(until=NOW_MS + 50)
    assert desk.log.blocks == [[]]
    desk.block_time_ms = desk.now_ms
    assert desk.pool.expire(desk.block_time_ms) == [late.id]
    desk.execute()
    desk.proposer.consider()
    assert desk.log.blocks == [[]]


@pytest.mark.asyncio
async def test_no_block_is_made_for_what_is_too_early(make: Make) -> None:
    desk = make()
    desk.admit(until=NOW_MS + UNTIL_AHEAD_MAX_MS + 1)
    desk.proposer.consider()
    assert desk.log.blocks == []


@pytest.mark.asyncio
async def test_results_without_proof_are_sealed_by_an_empty_block(make: Make) -> None:
    """Once: the empty block needs no seal of its own."""
    desk = make()
    made = desk.admit()
    desk.execute()
    await desk.sealing()
    assert desk.log.blocks == [made, []]
    desk.store.sealed_height = 2
    desk.execute()
    assert desk.timer() is None
    assert desk.log.blocks == [made, []]


@pytest.mark.asyncio
async def test_the_next_block_seals_as_well(make: Make) -> None:
    """Work that comes before the delay is over makes the block; the timer then finds nothing to do."""
    desk = make()
    first = desk.admit()
    desk.execute()
    assert desk.timer() is not None
    second = desk.admit()
    desk.proposer.close()
    desk.proposer._seal()
    assert desk.log.blocks == [first, second]
    assert desk.timer() is None
    desk.store.sealed_height = 2
    desk.execute()
    await desk.sealing()
    assert desk.log.blocks == [first, second, []]


@pytest.mark.asyncio
async def test_what_was_unsealed_at_boot_is_sealed(make: Make) -> None:
    desk = make(last_busy_height=1)
    desk.proposer.consider()
    await desk.sealing()
    assert desk.log.blocks == [[]]


@pytest.mark.asyncio
async def test_a_leader_no_more_seals_nothing(make: Make) -> None:
    desk = make(last_busy_height=1)
    desk.proposer.consider()
    assert desk.timer() is not None
    desk.log.core.role = Role.FOLLOWER
    desk.proposer.close()
    desk.proposer._seal()
    assert desk.log.blocks == []


@pytest.mark.asyncio
async def test_closing_stops_the_timer(make: Make) -> None:
    desk = make(last_busy_height=1)
    desk.proposer.consider()
    timer = desk.timer()
    assert timer is not None
    desk.proposer.close()
    assert timer.cancelled()
