"""The client's stream of events: each once, in order, over nodes that end it, break off, repeat or contradict it."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from itertools import cycle, islice
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.typedefs import Handler
from hypothesis import assume, given
from hypothesis import strategies as st

from carequorum.client import Client
from carequorum.events import Event, Following
from carequorum.transport import Node, NodeFailed, Refused, Settings, Transport, Unreachable
from carequorum.wallet import Wallet
from ledger.contracts import records
from ledger.errors import Rejection
from ledger.events import EventId, end_of, parse_event_id
from ledger.keys import sha256
from node import events as node_events
from tests.carequorum.ports import (
    Fault,
    Hospital,
    Port,
    answers,
    client_of,
    closed_url,
    make_wallet,
    refuses,
)

HURRIED = Settings(pause_min_s=0.001, pause_max_s=0.002, stream_timeout_s=0.0)


async def take(events: AsyncGenerator[Event, None], count: int) -> list[Event]:
    """The next `count` events; the stream is over after that."""
    found: list[Event] = []
    async with asyncio.timeout(20.0), aclosing(events):
        async for event in events:
            found.append(event)
            if len(found) == count:
                break
    return found


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop go round until it holds."""
    async with asyncio.timeout(10.0):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


def ids(events: Sequence[Event]) -> list[str]:
    return [str(event.id) for event in events]


# One stream, whatever the nodes do.


def frame(event_id: EventId, name: str = "action") -> bytes:
    view = {
        "id": str(event_id),
        "height": event_id.height,
        "time": 1,
        "transaction": "aa" * 32,
        "by": "bb" * 32,
        "code": "ok",
        "accounts": [],
        "actions": [{"do": "member.revoke", "account": "cc" * 32}],
        "bodies": [],
    }
    return f"id: {event_id}\nevent: {name}\ndata: {json.dumps(view)}\n\n".encode()


def place(event_id: EventId) -> bytes:
    return f": here\nid: {event_id}\n\n".encode()


def cut(event_id: EventId) -> bytes:
    return f'id: {event_id}\nevent: cut\ndata: {{"reason":"too_slow","resume":"{event_id}"}}\n\n'.encode()


class Connection:
    """What a node does with one connection: how many events it sends, in pieces of which sizes, and how it ends.

    `back`: it begins so many events before the place that it was asked to go on after.
    """

    def __init__(self, sends: int, pieces: list[int], ends: str, back: int) -> None:
        self.sends = sends
        self.pieces = pieces
        self.ends = ends
        self.back = back

    def __repr__(self) -> str:
        return f"Connection({self.sends}, {self.pieces}, {self.ends!r}, {self.back})"


CONNECTIONS = st.builds(
    Connection,
    sends=st.integers(0, 12),
    pieces=st.lists(st.integers(1, 700), min_size=1, max_size=5),
    ends=st.sampled_from(["cut", "silently", "in the middle", "failing"]),
    back=st.sampled_from([0, 0, 0, 1, 3]),
)


class ScriptedTransport(Transport):
    """A ledger of these events, at nodes that behave as `connections` say, one after the other; then well."""

    def __init__(self, events: Sequence[EventId], connections: Sequence[Connection]) -> None:
        super().__init__(["http://a", "http://b"], Settings(pause_min_s=0.0, pause_max_s=0.0))
        self._events = list(events)
        self._connections = iter(connections)

    async def chunks(self, node: Node, target: str, headers: dict[str, str]) -> AsyncGenerator[bytes, None]:
        behaviour = next(self._connections, Connection(len(self._events), [100], "silently", 0))
        after = parse_event_id(headers["Last-Event-ID"]) if "Last-Event-ID" in headers else end_of(0)
        first = sum(event <= after for event in self._events)
        sent = self._events[max(first - behaviour.back, 0) :][: behaviour.sends]
        data = b"retry: 1000\n" + place(after) + b"".join(frame(event) + place(event) for event in sent)
        if behaviour.ends == "cut":
            data += cut(sent[-1] if sent else after)
        if behaviour.ends == "in the middle":
            data = data[:-30]
        sizes = cycle(behaviour.pieces)
        while data:
            size = next(sizes)
            yield data[:size]
            data = data[size:]
        if behaviour.ends == "failing":
            raise NodeFailed(node.url, "broken off", sent=True)


IDS = st.lists(
    st.builds(EventId, st.integers(1, 20), st.integers(0, 9), st.integers(0, 3)), min_size=1, max_size=40, unique=True
).map(sorted)


@given(events=IDS, connections=st.lists(CONNECTIONS, max_size=8))
def test_every_event_comes_once_and_in_order(events: list[EventId], connections: list[Connection]) -> None:
    transport = ScriptedTransport(events, connections)
    found = asyncio.run(take(Following(transport, "/v1/events?from=1", None, None).events(), len(events)))
    assert [event.id for event in found] == events


@given(events=IDS, after=st.integers(0, 10))
def test_a_stream_goes_on_after_any_event(events: list[EventId], after: int) -> None:
    rest = events[after + 1 :]
    assume(rest)
    following = Following(ScriptedTransport(events, []), "/v1/events", events[after], None)
    assert [event.id for event in asyncio.run(take(following.events(), len(rest)))] == rest


# Real ports.


async def add(client: Client, count: int, subject: bytes = b"s" * 32) -> None:
    for _ in range(count):
        await client.add_record(b"{}", "application/fhir+json", subject=subject, readers=[])


def breaks_off(after_bytes: int) -> Fault:
    """Serve so many bytes of the answer, then cut the connection."""

    async def fault(request: web.Request, handler: Handler) -> web.StreamResponse:
        transport = request.transport
        assert transport is not None
        write, left = transport.write, after_bytes

        def count(data: bytes) -> None:
            nonlocal left
            write(data[:left])
            left -= len(data)
            if left <= 0:
                transport.close()

        transport.write = count  # type: ignore[method-assign, assignment]
        return await handler(request)

    return fault


@pytest.mark.asyncio
async def test_an_event_is_what_the_ledger_says(ports: list[Port], doctor: Wallet) -> None:
    async with client_of(ports, doctor) as client:
        added = await client.add_record(b"{}", "application/fhir+json", subject=b"s" * 32, readers=[])
        registered, written = await take(client.events(1), 2)
        block = await client.block(3)
        record = await client.record(added.record)
    (transaction,) = block.transactions
    assert (str(registered.id), registered.accounts) == ("1.0.0", (doctor.account,))
    assert written == Event(
        id=EventId(3, 0, 0),
        time=block.header.time,
        transaction=transaction.id,
        by=doctor.account,
        code="ok",
        accounts=(),
        actions=({"do": "record.add", "body": 0, "record": added.record.hex(), "subject": (b"s" * 32).hex()},),
        bodies=(record.body,),
    )


@pytest.mark.asyncio
@pytest.mark.parametrize("after_bytes", [300, 700, 1_500])
async def test_a_connection_that_breaks_is_gone_on_with_elsewhere(
    ports: list[Port], doctor: Wallet, after_bytes: int
) -> None:
    async with client_of(ports, doctor) as client:
        await add(client, 5)
        ports[0].faults.append(breaks_off(after_bytes))
        ports[1].faults.append(breaks_off(after_bytes + 400))
        found = await take(client.events(1), 6)
    assert ids(found) == ["1.0.0", *(f"{height}.0.0" for height in range(3, 13, 2))]
    assert any("/v1/events" in request for request in ports[1].requests)


@pytest.mark.asyncio
async def test_what_happens_while_one_reads_comes_as_it_happens(ports: list[Port], doctor: Wallet) -> None:
    async with client_of(ports, doctor) as client, aclosing(client.events()) as events:
        coming = asyncio.ensure_future(anext(events))
        await until(lambda: any("/v1/events" in request for request in ports[0].requests))
        await add(client, 1)
        assert str((await coming).id) == "3.0.0"
        for height in (5, 7, 9):
            await add(client, 1)
            assert str((await anext(events)).id) == f"{height}.0.0"


@pytest.mark.asyncio
async def test_a_consumer_that_dawdles_is_cut_and_misses_nothing(
    ports: list[Port], doctor: Wallet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_events, "UNSENT_S", 0.02)
    monkeypatch.setattr(node_events, "SOCKET_BYTES", 4_096)
    hospital = ports[0].backend
    async with client_of(ports, doctor) as client:
        for batch in range(10):
            actions = [
                [records.Add(body=0, record=sha256(bytes([batch, each])), subject=b"s" * 32)] for each in range(200)
            ]
            signed = [client.sign(each, [b"b"]) for each in actions]
            block = hospital.chain.seal(*signed)
            hospital.append(block, {})
        found: list[Event] = []
        async with aclosing(client.events(1)) as events:
            async for event in events:
                found.append(event)
                if len(found) == 2:
                    await until(lambda: cuts(hospital) == 1)
                if len(found) == 2_001:
                    break
    assert ids(found) == ["1.0.0", *(f"{height}.{index}.0" for height in range(3, 13) for index in range(200))]


def cuts(hospital: Hospital | object) -> float:
    assert isinstance(hospital, Hospital)
    return (
        hospital.metrics.registry.get_sample_value("carequorum_event_readers_cut_total", {"reason": "too_slow"})
        or 0.0
    )


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "lie",
    [
        frame(EventId(1, 0, 0)) + frame(EventId(1, 0, 0)),
        frame(EventId(1, 0, 0)) + place(end_of(0)),
        frame(EventId(1, 0, 0)).replace(b'"id": "1.0.0"', b'"id": "1.0.1"'),
        frame(EventId(1, 0, 0)).replace(b"id: 1.0.0\n", b""),
        frame(EventId(1, 0, 0)).replace(b"id: 1.0.0\n", b"id: one\n"),
        frame(EventId(1, 0, 0)).replace(b'"code": "ok", ', b""),
        frame(EventId(1, 0, 0)).replace(b"{", b"<"),
        b"id: 0\n" * 300_000,
    ],
)
async def test_a_node_that_talks_nonsense_is_passed_over(ports: list[Port], doctor: Wallet, lie: bytes) -> None:
    async with client_of(ports, doctor) as client:
        await add(client, 1)
        ports[0].faults.append(answers(lie, headers={"Content-Type": "text/event-stream"}))
        found = await take(client.events(1), 2)
    assert ids(found) == ["1.0.0", "3.0.0"]
    assert sum("/v1/events" in request for request in ports[1].requests) == 1


@pytest.mark.asyncio
async def test_a_subjects_events_are_a_signed_read(ports: list[Port], doctor: Wallet, tmp_path: Path) -> None:
    async with client_of(ports, doctor) as client:
        await add(client, 1, subject=b"a" * 32)
        await add(client, 2, subject=b"b" * 32)
        assert ids(await take(client.events(1, subject=b"b" * 32), 2)) == ["5.0.0", "7.0.0"]
        assert ids(await take(client.events(1, member=doctor.account, contract="records"), 3))[0] == "3.0.0"
    async with client_of(ports, make_wallet(tmp_path, "stranger")) as client:
        with pytest.raises(Refused, match="unregistered"):
            await take(client.events(1, subject=b"b" * 32), 1)
    async with client_of(ports) as observer:
        with pytest.raises(Rejection, match="no_wallet"):
            await take(observer.events(1, subject=b"b" * 32), 1)
        assert ids(await take(observer.events(1, contract="identity"), 1)) == ["1.0.0"]


@pytest.mark.asyncio
async def test_a_refusal_for_a_time_is_waited_out(ports: list[Port], doctor: Wallet) -> None:
    for port in ports:
        port.faults.append(refuses("busy", 503))
    async with client_of(ports, doctor) as client:
        assert ids(await take(client.events(1), 1)) == ["1.0.0"]


@pytest.mark.asyncio
async def test_a_stream_that_every_node_refuses_ends(ports: list[Port]) -> None:
    async with client_of(ports) as client:
        with pytest.raises(Refused, match="bad_request"):
            await take(client.events(1, contract="claims"), 1)


@pytest.mark.asyncio
async def test_a_stream_that_no_node_serves_ends() -> None:
    async with client_of([await closed_url()], settings=HURRIED) as client:
        with pytest.raises(Unreachable):
            await take(client.events(1), 1)


@pytest.mark.asyncio
async def test_a_node_that_repeats_itself_for_ever_is_given_up(ports: list[Port]) -> None:
    again = frame(EventId(1, 0, 0)) * 2
    port = ports[0]
    port.faults.extend(answers(again, headers={"Content-Type": "text/event-stream"}) for _ in range(100))
    async with client_of([port], settings=HURRIED) as client:
        with pytest.raises(Unreachable, match=r"1\.0\.0 comes after 1\.0\.0"):
            await take(client.events(1), 2)
    assert len(list(islice(port.faults, 100))) > 90
