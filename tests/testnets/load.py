"""Clinicians who write the demo's resources over and over, each through its own hospital's node only.

A writer whose node is cut off, paused or down waits for it, by the client's own rules: the same signed bytes, until
they are committed or expired. So nothing hides that a node is cut off, and the others show what the network does.
"""

import asyncio
import itertools
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from carequorum import fhir
from carequorum.client import Client
from carequorum.demo.plan import Plan
from carequorum.sealing import Label, seal_record
from carequorum.submission import Committed, OutcomeUnknown, TransactionExpired, TransactionFailed
from carequorum.transport import Settings
from carequorum.wallet import Wallet
from ledger.contracts.records import Add
from ledger.errors import Rejection
from ledger.genesis import Genesis

# Submissions of one node at a time.
IN_FLIGHT = 6
VALID_MS = 60_000
# A node that is back is found soon.
PATIENCE = Settings(pause_max_s=0.25)
# Longer than a submission can take: its time, the client's grace, one last answer.
REST_TIMEOUT_S = 90.0


@dataclass(frozen=True, slots=True)
class Answer:
    """One `committed`: when it came (monotonic, s), what was answered, and the record's id."""

    at_s: float
    committed: Committed
    record: bytes


@dataclass(slots=True)
class Tally:
    """What came of the submissions since it was made. `expired`, `unknown` (nobody could tell their end) and
    `refused` are ids of transactions, `refusals` and `failures` are counted by code.
    """

    answers: list[Answer] = field(default_factory=list)
    expired: list[bytes] = field(default_factory=list)
    unknown: list[bytes] = field(default_factory=list)
    refused: list[bytes] = field(default_factory=list)
    refusals: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Resource:
    content: bytes
    subject: bytes
    reader: bytes


class Pacer:
    """Turns that come `rate_per_s` times a second at most; None: at once. What was missed is not made up for."""

    def __init__(self) -> None:
        self.rate_per_s: float | None = None
        self._next_s = 0.0

    async def turn(self) -> None:
        if self.rate_per_s is None:
            return
        now = time.monotonic()
        at_s = max(self._next_s, now)
        self._next_s = at_s + 1 / self.rate_per_s
        await asyncio.sleep(at_s - now)


class Load:
    """The writers of all nodes. They rest until `go`. `answers` are all there ever were, `tally` those of a row."""

    def __init__(self, nodes: int) -> None:
        self.answers: list[Answer] = []
        self.tally = Tally()
        self._open = asyncio.Event()
        self._came = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._in_flight = 0
        self._nodes = nodes
        self._pacers: list[Pacer] = []

    def go(self, rate_per_s: float | None) -> None:
        """Write `rate_per_s` resources a second over all nodes, None: as fast as they are answered."""
        for pacer in self._pacers:
            pacer.rate_per_s = None if rate_per_s is None else rate_per_s / self._nodes
        self._open.set()

    async def rest(self) -> None:
        """No new submission; return once each has its end. Raises TimeoutError."""
        self._open.clear()
        async with asyncio.timeout(REST_TIMEOUT_S):
            await self._idle.wait()

    async def more(self, count: int, timeout_s: float) -> float:
        """Wait for `count` answers from now on; the seconds until the first. Raises TimeoutError."""
        began, before = time.monotonic(), len(self.answers)
        async with asyncio.timeout(timeout_s):
            while len(self.answers) < before + count:
                self._came.clear()
                await self._came.wait()
        return self.answers[before].at_s - began

    async def work(self, client: Client, resources: list[Resource], pacer: Pacer) -> None:
        """One writer, until it is cancelled."""
        for resource in itertools.cycle(resources):
            await pacer.turn()
            await self._open.wait()
            self._begin()
            try:
                await self._write(client, resource)
            finally:
                self._end()

    def pacer(self) -> Pacer:
        pacer = Pacer()
        self._pacers.append(pacer)
        return pacer

    async def _write(self, client: Client, resource: Resource) -> None:
        tally = self.tally
        # As Client.add_record, but for the id: it is known whatever comes of it.
        record, wallet = secrets.token_bytes(32), client.wallet
        label = Label(author=wallet.account, chain=client.chain, record=record, subject=resource.subject, version=1)
        body = seal_record(resource.content, fhir.CONTENT_TYPE, label, [wallet.public_key, resource.reader])
        action = Add(body=0, record=record, subject=resource.subject)
        signed = client.sign([action], [body], valid_ms=VALID_MS)
        try:
            committed = await client.submit_signed(signed.data, [body])
        except TransactionExpired:
            tally.expired.append(signed.id)
        except OutcomeUnknown:
            tally.unknown.append(signed.id)
        except TransactionFailed as error:
            tally.failures[error.code] += 1
        except Rejection as error:
            tally.refusals[error.code] += 1
            tally.refused.append(signed.id)
        else:
            answer = Answer(time.monotonic(), committed, record)
            self.answers.append(answer)
            tally.answers.append(answer)
            self._came.set()

    def _begin(self) -> None:
        self._in_flight += 1
        self._idle.clear()

    def _end(self) -> None:
        self._in_flight -= 1
        if self._in_flight == 0:
            self._idle.set()


@asynccontextmanager
async def writing(plan: Plan, genesis: Genesis, opened: Callable[[str], Wallet]) -> AsyncIterator[Load]:
    """The writers of every node of the plan, at rest; cancelled when the block ends. `opened`: a clinician's wallet.

    Raises what a writer failed by, if that was no Rejection, when the block ends.
    """
    load = Load(len(plan.urls))
    async with AsyncExitStack() as stack:
        tasks: list[asyncio.Task[None]] = []
        for node, url in plan.urls.items():
            client = Client([url], genesis, opened(node), settings=PATIENCE)
            resources, pacer = _resources(plan, node), load.pacer()
            await stack.enter_async_context(client)
            for place in range(IN_FLIGHT):
                turned = resources[place % len(resources) :] + resources[: place % len(resources)]
                tasks.append(asyncio.create_task(load.work(client, turned, pacer)))
        try:
            yield load
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            failed = [each for each in ended if isinstance(each, Exception)]
            if failed:
                # It is why nothing came any more, if that is what ended the block.
                raise failed[0]


def _resources(plan: Plan, node: str) -> list[Resource]:
    """What this hospital writes, in memory."""
    found = []
    for place in plan.items_of(node):
        item = plan.items[place]
        patient = plan.patients[item.patient]
        found.append(Resource(item.read(), bytes.fromhex(patient.subject), bytes.fromhex(patient.key)))
    return found
