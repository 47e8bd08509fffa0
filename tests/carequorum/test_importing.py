"""Many records at once: never more in flight than allowed, and one failure ends all."""

import asyncio
from collections.abc import Iterator, Sequence
from typing import cast

import pytest

from carequorum.client import AddedRecord, Client
from carequorum.importing import Imported, NewRecord, add_records
from carequorum.submission import Committed, Level, TransactionFailed

SUBJECT = bytes(32)


class SlowClient:
    """Answers each record after the loop has turned; refuses the content b"bad"."""

    def __init__(self) -> None:
        self.flying = 0
        self.most = 0
        self.calls: list[tuple[bytes, str, bytes, list[bytes], Level]] = []

    async def add_record(
        self, content: bytes, content_type: str, *, subject: bytes, readers: Sequence[bytes], wait: Level
    ) -> AddedRecord:
        self.calls.append((content, content_type, subject, list(readers), wait))
        self.flying += 1
        self.most = max(self.most, self.flying)
        try:
            await asyncio.sleep(0)
        finally:
            self.flying -= 1
        if content == b"bad":
            raise TransactionFailed(bytes(32), "not_clinician", 5)
        return AddedRecord(bytes(32), Committed(bytes(32), len(self.calls), 0))


def new(contents: list[bytes]) -> Iterator[NewRecord[int]]:
    for place, content in enumerate(contents):
        yield NewRecord(place, content, "text/plain", SUBJECT, [b"key"])


@pytest.mark.asyncio
async def test_all_are_added_with_so_many_in_flight_and_no_more() -> None:
    client, imported = SlowClient(), list[Imported[int]]()
    contents = [b"%d" % number for number in range(20)]
    await add_records(cast(Client, client), new(contents), 4, imported.append, wait="sealed")
    assert client.most == 4
    assert sorted(each.name for each in imported) == list(range(20))
    assert client.calls[3] == (b"3", "text/plain", SUBJECT, [b"key"], "sealed")
    assert all(each.submitted_ns <= each.answered_ns for each in imported)


@pytest.mark.asyncio
async def test_a_failure_ends_it_and_is_raised_as_it_is() -> None:
    client, imported = SlowClient(), list[Imported[int]]()
    source = new([b"good", b"bad"] + [b"later"] * 100)
    with pytest.raises(TransactionFailed, match="not_clinician"):
        await add_records(cast(Client, client), source, 2, imported.append)
    assert client.flying == 0
    assert len(client.calls) < 10


@pytest.mark.asyncio
async def test_a_source_that_fails_ends_it_too() -> None:
    def failing() -> Iterator[NewRecord[int]]:
        yield from new([b"good"])
        raise OSError("the disk is gone")

    client, imported = SlowClient(), list[Imported[int]]()
    with pytest.raises(OSError, match="the disk is gone"):
        await add_records(cast(Client, client), failing(), 3, imported.append)
    assert client.flying == 0
