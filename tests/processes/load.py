"""Writers that never stop, and the moments at which they were answered."""

import asyncio
import itertools
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from carequorum.client import Client
from carequorum.devnet import Devnet
from carequorum.submission import Committed
from tests.processes.hospitals import enrol, urls_from

ANSWER_TIMEOUT_S = 60.0
CONTENT = b'{"resourceType":"Basic"}'


@dataclass(slots=True)
class Load:
    """What was answered `committed`, and when (monotonic, s), in the order of the answers."""

    answers: list[tuple[float, Committed]] = field(default_factory=list)
    _came: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def committed(self) -> list[Committed]:
        return [committed for _, committed in self.answers]

    def note(self, committed: Committed) -> None:
        self.answers.append((time.monotonic(), committed))
        self._came.set()

    async def more(self, count: int) -> None:
        """Wait for `count` answers from now on."""
        wanted = len(self.answers) + count
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            while len(self.answers) < wanted:
                self._came.clear()
                await self._came.wait()

    def longest_gaps_s(self, moments: Sequence[float]) -> list[float]:
        """For each moment: the longest time without an answer that ended after it and before the next moment."""
        times = [answered for answered, _ in self.answers]
        ends = [*moments[1:], times[-1]]
        return [
            max(later - earlier for earlier, later in itertools.pairwise(times) if begin < later <= end)
            for begin, end in zip(moments, ends, strict=True)
        ]


@asynccontextmanager
async def writing(network: Devnet, folder: Path, writers: int) -> AsyncIterator[Load]:
    """`writers` clinicians spread over the hospitals, each adding records one after the other until the block ends.

    A writer goes to its own hospital's node first, to another while that does not answer. Its failure ends the block.
    """
    load = Load()
    clinicians = [
        (node, await enrol(network, node, folder, f"clinician-{node.id}", "clinician")) for node in network.nodes
    ]
    async with asyncio.TaskGroup() as group:
        tasks = []
        for _, (node, wallet) in zip(range(writers), itertools.cycle(clinicians), strict=False):
            client = Client(urls_from(network, node), network.genesis, wallet)
            tasks.append(group.create_task(_write(client, load)))
        yield load
        for task in tasks:
            task.cancel()


async def _write(client: Client, load: Load) -> None:
    async with client:
        readers = [client.wallet.public_key]
        while True:
            added = await client.add_record(
                CONTENT, "application/fhir+json", subject=secrets.token_bytes(32), readers=readers
            )
            load.note(added.committed)
