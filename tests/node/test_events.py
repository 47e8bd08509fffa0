"""Events: every one, once, in order, from anywhere; and a reader costs the node next to nothing, whatever it does."""

import asyncio
import re
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, get_args

import aiohttp
import pytest

from ledger.events import CONTRACTS, Filter, end_of, parse_event_id
from ledger.keys import sha256
from ledger.request import sign_request
from ledger.transaction import body_commitment
from node import events as events_module
from node.config import ProviderSection
from node.events import EventSource
from node.http_api import provider_port
from node.http_types import Contract
from tests.ledger.founding import (
    GENESIS,
    account_of,
    addition,
    registration,
    revocation,
    sign,
    signing_key,
)
from tests.node.cluster import Cluster, hospital
from tests.node.entrance import entrance
from tests.node.event_stream import Stream, ids, stream
from tests.node.fake_backend import FakeBackend
from tests.node.http_client import SUBJECT, Port
from tests.node.members import addition as member_addition
from tests.node.members import register, transact
from tests.storage.chains import body_of

# Of `recorded`: "doctor" and three records, each followed by the empty block that seals it.
RECORDED = ["1.0.0", "3.0.0", "5.0.0", "7.0.0"]


def metric(port: Port, name: str) -> float:
    found = re.search(rf"^carequorum_{re.escape(name)} (\S+)$", port.backend.metrics.render().decode(), re.MULTILINE)
    return float(found.group(1)) if found else 0.0


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop go round until it holds: for what has no event of its own to wait for."""
    async with asyncio.timeout(5.0):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


def many(count: int) -> list[Any]:
    """One transaction each, with an action that takes effect and one that fails every third."""
    return [
        sign(
            [registration(f"member-{index}", "patient", "doctor" if index % 3 == 2 else "north-admin")],
            by="north-admin",
        )
        for index in range(count)
    ]


async def grow(port: Port, blocks: int, transactions: int) -> list[str]:
    """Blocks of that many transactions each; the ids of their events."""
    found = []
    for _ in range(blocks):
        made = [
            sign([registration(f"m-{port.backend.heights().last}-{each}", "patient")], by="north-admin")
            for each in range(transactions)
        ]
        port.backend.append(port.backend.chain.seal(*made), {})
        found += [f"{port.backend.heights().last}.{index}.0" for index in range(transactions)]
    return found


@pytest.mark.asyncio
async def test_everything_that_happened_is_an_event_in_order(recorded: Port) -> None:
    failing = sign([addition("one")], by="doctor", bodies=[body_of("one")])
    atomic = sign([registration("nurse", "clinician"), revocation("doctor", 1)], by="north-admin")
    await recorded.send(failing, bodies=[body_of("one")])
    await recorded.send(atomic)
    recorded.backend.commit()
    async with stream(recorded, "?from=1") as one:
        found = await one.events(7)
    assert [message.id for message in found] == [*RECORDED, "9.0.0", "9.1.0", "9.1.1"]
    assert [message.name for message in found] == ["action"] * 4 + ["failed"] + ["action"] * 2
    assert {message.data["id"] == message.id for message in found} == {True}
    registered, written, failed = found[0].data, found[1].data, found[4].data
    assert (registered["by"], registered["accounts"]) == (
        account_of("north-admin").hex(),
        [account_of("doctor").hex()],
    )
    block = await recorded.get("/v1/blocks/3")
    (transaction,) = block["transactions"]
    assert written == {
        "id": "3.0.0",
        "height": 3,
        "time": block["header"]["time"],
        "transaction": transaction["id"],
        "by": account_of("doctor").hex(),
        "code": "ok",
        "accounts": [],
        "actions": transaction["envelope"]["actions"],
        "bodies": [{"commitment": body_commitment(body_of("one")).hex(), "size": len(body_of("one"))}],
    }
    assert (failed["code"], failed["transaction"]) == ("record_exists", failing.id.hex())
    assert [found[5].data["actions"][0]["do"], found[6].data["actions"][0]["do"]] == [
        "member.register",
        "member.revoke",
    ]


@pytest.mark.asyncio
async def test_an_event_says_no_more_than_its_block_does(recorded: Port) -> None:
    """To whoever does not sign: all of it but results stands in GET /v1/blocks."""
    _, _, blocks = await recorded.ask("GET", "/v1/blocks?from=1&limit=100")
    async with stream(recorded, "?from=1&contract=records") as one:
        found = await one.events(3)
    for message in found:
        view = message.data
        said = {view["transaction"], view["by"], *view["accounts"], view["actions"][0]["record"]}
        said |= {view["actions"][0]["subject"], view["bodies"][0]["commitment"]}
        assert all(each.encode() in blocks for each in said)


@pytest.mark.asyncio
async def test_a_stream_goes_on_after_any_id(recorded: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when every slice is one transaction."""
    monkeypatch.setattr(events_module, "SLICE_S", 0.0)
    await recorded.send(sign([registration("a", "patient"), registration("b", "patient")], by="north-admin"))
    recorded.backend.commit()
    all_ids = [*RECORDED, "9.0.0", "9.0.1"]
    assert await ids(recorded, 6) == all_ids
    for place, event_id in enumerate(all_ids[:-1]):
        assert await ids(recorded, 5 - place, "", after=event_id) == all_ids[place + 1 :]
        # A browser that comes back sends both.
        assert await ids(recorded, 5 - place, "?from=1", after=event_id) == all_ids[place + 1 :]
    assert await ids(recorded, 4, "?from=4") == all_ids[2:]
    assert await ids(recorded, 4, "", after="3") == all_ids[2:]
    assert await ids(recorded, 4, "", after="4.12.7") == all_ids[2:]
    # In genesis, which is no block.
    assert await ids(recorded, 6, "", after="0") == all_ids
    assert await ids(recorded, 6, "", after="0.3.1") == all_ids


@pytest.mark.asyncio
async def test_what_is_executed_while_somebody_reads_comes_at_once(recorded: Port) -> None:
    async with stream(recorded) as one:
        first = await one.next()
        assert first is not None
        assert (first.id, first.name) == ("8", "")
        for height in (9, 11, 13):
            await recorded.send(sign([registration(f"m-{height}", "patient")], by="north-admin"))
            recorded.backend.commit()
            (event,) = await one.events(1)
            assert event.id == f"{height}.0.0"


@pytest.mark.asyncio
async def test_a_reader_ahead_of_the_node_waits_for_it(recorded: Port) -> None:
    """Whoever read at another node, that was further, misses nothing here and sees nothing twice."""
    async with stream(recorded, "", after="9.1.0") as one:
        assert await one.next() == ("9.1.0", "", None)
        recorded.backend.append(recorded.backend.chain.seal(*many(2), *many(5)[3:]), {})
        assert [message.id for message in await one.events(2)] == ["9.2.0", "9.3.0"]


@pytest.mark.asyncio
async def test_filters(recorded: Port) -> None:
    doctor, admin = account_of("doctor").hex(), account_of("north-admin").hex()
    await recorded.send(sign([revocation("doctor", 1)], by="north-admin"))
    recorded.backend.commit()
    assert await ids(recorded, 2, "?from=1&contract=identity") == ["1.0.0", "9.0.0"]
    assert await ids(recorded, 3, "?from=1&contract=records") == ["3.0.0", "5.0.0", "7.0.0"]
    assert await ids(recorded, 5, f"?from=1&member={doctor}") == [*RECORDED, "9.0.0"]
    assert await ids(recorded, 2, f"?from=1&member={admin}") == ["1.0.0", "9.0.0"]
    assert await ids(recorded, 2, f"?from=1&member={doctor}&contract=identity") == ["1.0.0", "9.0.0"]


@pytest.mark.asyncio
async def test_places_are_told_where_nothing_wanted_happens(recorded: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events_module, "HEARTBEAT_S", 0.01)
    async with stream(recorded, f"?from=1&member={'00' * 32}") as one:
        places = [await one.next() for _ in range(4)]
    assert places[0] == ("0", "", None)
    assert set(places[2:]) == {("8", "", None)}


def test_the_contracts_that_can_be_asked_for_are_all_there_are() -> None:
    assert set(get_args(Contract)) == CONTRACTS


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("query", "headers", "code"),
    [
        ("?from=0", {}, "bad_request"),
        ("?from=-1", {}, "bad_request"),
        ("?from=1e3", {}, "bad_request"),
        ("?from=", {}, "bad_request"),
        ("?from=1&from=2", {}, "bad_request"),
        ("?contract=claims", {}, "bad_request"),
        ("?member=ab", {}, "bad_request"),
        ("?limit=1", {}, "bad_request"),
        ("", {"Last-Event-ID": "1.0"}, "bad_event_id"),
        ("", {"Last-Event-ID": ""}, "bad_event_id"),
    ],
)
async def test_a_malformed_request_starts_no_stream(
    recorded: Port, query: str, headers: dict[str, str], code: str
) -> None:
    assert await recorded.problem("GET", f"/v1/events{query}", headers=headers) == code
    assert metric(recorded, "event_readers") == 0


# A subject's events are for members.


def signed(port: Port, path: str, signer: str = "doctor") -> str:
    return sign_request(
        signing_key(signer), account_of(signer), port.backend.node_id, "GET", path, b"", port.backend.clock_ms
    )


@pytest.mark.asyncio
async def test_a_subjects_events_are_for_members(recorded: Port) -> None:
    query = f"?from=1&subject={SUBJECT}"
    path = f"/v1/events{query}"
    assert await recorded.problem("GET", path) == "no_read_request"
    assert await recorded.problem("GET", path, signer="stranger") == "unregistered"
    assert await recorded.problem("GET", path, headers={"Authorization": signed(recorded, path + "0")}) == (
        "bad_read_request"
    )
    authorised = {"Authorization": signed(recorded, path)}
    assert await ids(recorded, 3, query, **authorised) == ["3.0.0", "5.0.0", "7.0.0"]


@pytest.mark.asyncio
async def test_a_member_that_is_revoked_reads_no_further(recorded: Port) -> None:
    query = f"?from=1&subject={SUBJECT}"
    async with stream(recorded, query, Authorization=signed(recorded, f"/v1/events{query}")) as one:
        await one.events(3)
        await recorded.send(sign([addition("four")], by="doctor", bodies=[b"four"]), bodies=[b"four"])
        await recorded.send(sign([revocation("doctor", 1)], by="north-admin"))
        recorded.backend.commit()
        (cut,) = await one.rest()
    assert (cut.id, cut.name) == ("8", "cut")
    assert cut.data == {"reason": "not_allowed", "resume": "8"}


# Readers that do not read.


@asynccontextmanager
async def stalled(
    port: Port, query: str = "?from=1"
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.Transport]]:
    """A connection whose other side has asked, and takes nothing until it reads."""
    loop = asyncio.get_running_loop()
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    one.setblocking(False)
    await loop.sock_connect(one, ("127.0.0.1", int(port.url.rpartition(":")[2])))
    reader = asyncio.StreamReader(limit=2**20)
    transport, _ = await loop.create_connection(lambda: asyncio.StreamReaderProtocol(reader), sock=one)
    transport.pause_reading()
    transport.write(f"GET /v1/events{query} HTTP/1.0\r\nHost: node\r\n\r\n".encode())
    try:
        yield reader, transport
    finally:
        transport.abort()


async def taken(reader: asyncio.StreamReader, transport: asyncio.Transport) -> list[Any]:
    """Everything that was sent, once it reads again."""
    transport.resume_reading()
    while await reader.readline() != b"\r\n":
        pass
    # HTTP/1.0: the body is what comes until the end, as it is.
    return await Stream(reader).rest()  # type: ignore[arg-type]


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little fits between the node and a reader that takes nothing."""
    monkeypatch.setattr(events_module, "SOCKET_BYTES", 4_096)
    monkeypatch.setattr(events_module, "CHUNK_BYTES", 4_096)


@pytest.mark.asyncio
@pytest.mark.usefixtures("narrow")
async def test_a_slow_reader_is_cut_and_told_where_to_go_on(recorded: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events_module, "UNSENT_S", 0.05)
    all_ids = [*RECORDED, *await grow(recorded, 5, 200)]
    async with stalled(recorded) as (reader, transport):
        await until(lambda: metric(recorded, 'event_readers_cut_total{reason="too_slow"}') == 1)
        assert metric(recorded, "event_readers") == 0
        *found, cut = await taken(reader, transport)
    assert (cut.name, cut.data["reason"]) == ("cut", "too_slow")
    assert cut.id == cut.data["resume"]
    got = [message.id for message in found]
    assert 0 < len(got) < len(all_ids)
    rest = await ids(recorded, len(all_ids) - len(got), "", after=cut.id)
    assert got + rest == all_ids


@pytest.mark.asyncio
@pytest.mark.usefixtures("narrow")
async def test_a_cut_reader_that_never_reads_is_reset(recorded: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events_module, "UNSENT_S", 0.05)
    monkeypatch.setattr(events_module, "LINGER_S", 0.05)
    await grow(recorded, 5, 200)
    async with stalled(recorded) as (reader, transport):
        await until(lambda: metric(recorded, 'http_requests_total{endpoint="/v1/events",status="200"}') == 1)
        transport.resume_reading()
        # What had reached it, and then neither a last event nor a proper end.
        with pytest.raises((ConnectionResetError, AssertionError), match=r"reset|cut in two"):
            await taken(reader, transport)


@pytest.mark.asyncio
@pytest.mark.usefixtures("narrow")
async def test_a_stalled_reader_gives_its_place_to_the_next(recorded: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events_module, "READERS_MAX", 1)
    monkeypatch.setattr(events_module, "STALLED_S", 0.05)
    await grow(recorded, 5, 200)
    async with stalled(recorded) as (reader, transport):
        await until(lambda: metric(recorded, "event_readers") == 1)
        # It may still be about to take what it was sent.
        assert await recorded.problem("GET", "/v1/events") == "busy"
        async with asyncio.timeout(10.0):
            while (answer := await recorded.session.get(f"{recorded.url}/v1/events")).status == 503:
                answer.close()
        assert await Stream(answer.content).next() == (str(recorded.backend.heights().executed), "", None)
        assert metric(recorded, "event_readers") == 1
        *found, cut = await taken(reader, transport)
        answer.close()
    assert cut.data == {"reason": "too_many", "resume": cut.id}
    assert parse_event_id(found[-1].id) < parse_event_id(cut.id)


@pytest.mark.asyncio
async def test_readers_are_bounded_and_the_gone_do_not_count(recorded: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events_module, "READERS_MAX", 2)
    async with stream(recorded) as one:
        await one.next()
        async with stream(recorded) as two:
            await two.next()
            assert await recorded.problem("GET", "/v1/events") == "busy"
            assert metric(recorded, "event_readers") == 2
        async with stream(recorded, "?from=1") as three:
            assert [message.id for message in await three.events(4)] == RECORDED
            assert metric(recorded, "event_readers") == 2
    assert metric(recorded, 'event_readers_cut_total{reason="too_many"}') == 0


@pytest.mark.asyncio
async def test_readers_are_told_that_the_node_stops() -> None:
    backend = FakeBackend(GENESIS)
    async with aiohttp.ClientSession() as session:
        async with provider_port(backend, ProviderSection(port=0)) as number:
            port = Port(f"http://127.0.0.1:{number}", session, backend)
            answer = await session.get(f"{port.url}/v1/events?from=1")
            one = Stream(answer.content)
            await one.next()
            left_s = time.monotonic()
        assert [message.data for message in await one.rest()] == [{"reason": "stopping", "resume": "0"}]
        assert time.monotonic() - left_s < 2.0


@pytest.mark.asyncio
@pytest.mark.usefixtures("narrow")
async def test_the_node_does_not_wait_for_readers_that_do_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events_module, "UNSENT_S", 0.05)
    backend = FakeBackend(GENESIS)
    async with AsyncExitStack() as readers, aiohttp.ClientSession() as session:
        async with provider_port(backend, ProviderSection(port=0)) as number:
            port = Port(f"http://127.0.0.1:{number}", session, backend)
            await grow(port, 5, 200)
            # One that has been cut already and has time to take it, and one that has not.
            await readers.enter_async_context(stalled(port))
            await until(lambda: metric(port, 'event_readers_cut_total{reason="too_slow"}') == 1)
            monkeypatch.setattr(events_module, "UNSENT_S", 60.0)
            await readers.enter_async_context(stalled(port))
            await until(lambda: metric(port, "event_readers") == 1)
            left_s = time.monotonic()
        assert time.monotonic() - left_s < 3.0


# What a reader costs.


@pytest.fixture
def opened(recorded: Port, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The height of each block that is read, as often as it is."""
    heights: list[int] = []
    executed_block = recorded.backend.executed_block

    def count(height: int) -> Any:
        heights.append(height)
        return executed_block(height)

    monkeypatch.setattr(recorded.backend, "executed_block", count)
    return heights


@pytest.mark.asyncio
async def test_few_blocks_are_kept_and_none_without_readers(
    recorded: Port, opened: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_module, "HEARTBEAT_S", 0.01)
    assert await ids(recorded, 4) == RECORDED
    await until(lambda: metric(recorded, "event_readers") == 0)
    assert await ids(recorded, 1, "?from=7") == RECORDED[3:]
    assert opened.count(7) == 2
    source = EventSource(recorded.backend)
    opened.clear()
    for _ in range(2):
        after, more = end_of(0), True
        while more:
            found = await source.read(after, Filter())
            after, more = found.after, found.more
    assert opened == [*range(1, 9), *range(1, 9)]


@pytest.mark.asyncio
async def test_readers_share_what_is_read(recorded: Port, opened: list[int]) -> None:
    streams = [recorded.session.get(f"{recorded.url}/v1/events") for _ in range(8)]
    answers = [await each for each in streams]
    try:
        readers = [Stream(answer.content) for answer in answers]
        for reader in readers:
            await reader.next()
        await grow(recorded, 1, 5)
        for reader in readers:
            assert len(await reader.events(5)) == 5
    finally:
        for answer in answers:
            answer.close()
    assert opened == [9]


@pytest.mark.asyncio
async def test_blocks_that_follow_upon_each_other_come_in_one_chunk(
    recorded: Port, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_module, "GATHER_S", 0.5)
    chunks: list[int] = []
    async with asyncio.timeout(10.0), recorded.session.get(f"{recorded.url}/v1/events?from=7") as answer:
        chunk = b""
        async for data, ends in answer.content.iter_chunks():
            chunk += data
            if not ends:
                continue
            happened = chunk.count(b"event: action")
            chunk = b""
            if happened:
                chunks.append(happened)
                await grow(recorded, 5, 1)
            if len(chunks) == 2:
                break
    assert chunks == [1, 5]


@pytest.mark.asyncio
async def test_a_long_read_leaves_the_loop_to_others_most_of_the_time(
    recorded: Port, monkeypatch: pytest.MonkeyPatch
) -> None:
    await grow(recorded, 4, 250)
    source = EventSource(recorded.backend)
    slices, longest_s = 0, 0.0
    begin_s = time.perf_counter()
    worked_s = 0.0
    original = source._slice

    def timed(*arguments: Any) -> Any:
        nonlocal slices, longest_s, worked_s
        begun_s = time.thread_time()
        found = original(*arguments)
        taken_s = time.thread_time() - begun_s
        slices += 1
        longest_s = max(longest_s, taken_s)
        worked_s += taken_s
        return found

    monkeypatch.setattr(source, "_slice", timed)
    after, read, more = end_of(0), 0, True
    while more:
        found = await source.read(after, Filter())
        after, read, more = found.after, read + found.events, found.more
    assert read == 1_004
    assert slices > 4
    assert worked_s * (events_module.REST - 1) < time.perf_counter() - begin_s


@pytest.mark.asyncio
async def test_a_fault_ends_its_stream_only(
    recorded: Port, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    executed_block = recorded.backend.executed_block

    def fail(height: int) -> Any:
        if height == 5:
            raise RuntimeError("Maria Schneider")
        return executed_block(height)

    monkeypatch.setattr(recorded.backend, "executed_block", fail)
    async with stream(recorded, "?from=1") as one:
        found = await one.rest()
    printed = capsys.readouterr()
    assert "events_failed" in printed.out + printed.err
    assert "Maria" not in printed.out + printed.err
    assert found[-1].data["reason"] == "internal"
    assert await recorded.get("/healthz") == {"status": "ok"}
    monkeypatch.undo()
    rest = await ids(recorded, 5 - len(found), "", after=found[-1].id)
    assert [message.id for message in found[:-1]] + rest == RECORDED


@pytest.mark.asyncio
async def test_how_long_a_stream_lasted_is_no_figure_of_the_port(
    recorded: Port, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_module, "HEARTBEAT_S", 0.01)
    before = metric(recorded, "http_seconds_count")
    await ids(recorded, 4)
    await until(lambda: metric(recorded, 'http_requests_total{endpoint="/v1/events",status="200"}') == 1)
    assert metric(recorded, "http_seconds_count") == before
    assert metric(recorded, "events_sent_total") >= 4


# Whole nodes.


@pytest.mark.asyncio
async def test_every_node_tells_the_same_story_as_it_happens() -> None:
    async with Cluster(size=3) as cluster:
        await register(cluster, "ada")
        told: list[list[Any]] = []

        async def follow(node_id: str) -> None:
            async with entrance(cluster, node_id) as port, port.session.get(f"{port.url}/v1/events?from=1") as answer:
                told.append(await Stream(answer.content).events(21))

        async with asyncio.TaskGroup() as group:
            for index in range(3):
                group.create_task(follow(hospital(index)))
            for _ in range(20):
                now_ms = cluster.members[hospital(1)].running.backend.now_ms()
                transaction, body = member_addition(cluster, "ada", now_ms)
                assert await transact(cluster, hospital(1), transaction, [body]) == "ok"
    assert told[0] == told[1] == told[2]
    keys = [tuple(map(int, message.id.split("."))) for message in told[0]]
    assert keys == sorted(set(keys))
    assert {message.data["actions"][0]["subject"] for message in told[0][1:]} == {sha256(b"subject", b"ada").hex()}
