"""Many records at once: sealed, submitted and answered with a bounded number in flight."""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from carequorum.client import AddedRecord, Client
from carequorum.submission import Level

Name = TypeVar("Name")


@dataclass(frozen=True, slots=True)
class NewRecord(Generic[Name]):
    """What `Client.add_record` needs, under a name of the caller's choice."""

    name: Name
    content: bytes
    content_type: str
    subject: bytes
    readers: list[bytes]


@dataclass(frozen=True, slots=True)
class Imported(Generic[Name]):
    """One record that was answered as it should be, and when: CLOCK_MONOTONIC, ns."""

    name: Name
    added: AddedRecord
    submitted_ns: int
    answered_ns: int


async def add_records(
    client: Client,
    new: Iterable[NewRecord[Name]],
    in_flight: int,
    on_added: Callable[[Imported[Name]], None],
    *,
    wait: Level = "committed",
) -> None:
    """Add every record of `new`, which is drawn from as places become free; call `on_added` as answers come.

    The first failure ends it: what was in flight is abandoned, though it may still be committed. Raises that
    failure, as `Client.add_record` does, and whatever `new` or `on_added` raise.
    """
    source = iter(new)
    tasks = [asyncio.create_task(_add_in_turn(client, source, on_added, wait)) for _ in range(in_flight)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _add_in_turn(
    client: Client,
    source: Iterator[NewRecord[Name]],
    on_added: Callable[[Imported[Name]], None],
    wait: Level,
) -> None:
    for record in source:
        submitted_ns = time.monotonic_ns()
        added = await client.add_record(
            record.content, record.content_type, subject=record.subject, readers=record.readers, wait=wait
        )
        on_added(Imported(record.name, added, submitted_ns, time.monotonic_ns()))
