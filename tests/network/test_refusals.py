"""Who is not let in, and what is not taken from those who are: each with its reason, each counted."""

import asyncio
import ssl
from dataclasses import replace
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web

from consensus.messages import Append, PreVote
from network.frames import FRAME_BYTES_MAX, MORE, pack
from network.greeting import Greeter
from network.messages import PROTOCOL_VERSION, Announce, Goodbye, Hello, Lane, Stream, kind_of
from network.port import Peer
from tests.network.peers import (
    CHAIN,
    PATIENCE_S,
    SETTINGS,
    Recorder,
    client_context,
    fake_acceptor,
    goodbye,
    greeted_lane,
    identity,
    member,
    network,
    pair,
    raw_lane,
    refuses_handshake,
)

PRE_VOTE = pack(PreVote(1, 0, 0)).frames[0]


@pytest.mark.asyncio
async def test_no_certificate() -> None:
    recorder = Recorder()
    async with network("a", recorder, {"b": member("b")}) as a:
        assert await refuses_handshake(a.address, client_context(None, [identity("a").certificate]))
        await recorder.until(lambda: recorder.counts["connection no_certificate"])
        assert not a.peers()["b"].receiving


@pytest.mark.asyncio
async def test_a_certificate_that_the_ledger_does_not_name() -> None:
    recorder = Recorder()
    async with network("a", recorder, {"b": member("b")}) as a:
        assert await refuses_handshake(a.address, client_context(identity("stranger"), [identity("a").certificate]))
        await recorder.until(lambda: recorder.counts["connection unknown_certificate"])


@pytest.mark.asyncio
async def test_an_older_tls() -> None:
    recorder = Recorder()
    context = client_context(None, [identity("a").certificate])
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with network("a", recorder, {"b": member("b")}) as a:
        assert await refuses_handshake(a.address, context)
        await recorder.until(lambda: recorder.counts["connection tls"])


@pytest.mark.asyncio
async def test_a_connection_that_is_gone_before_it_has_begun_leaves_no_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gone: list[str] = []
    can_prepare = web.WebSocketResponse.can_prepare

    def cut_off(self: web.WebSocketResponse, request: web.BaseRequest) -> Any:
        assert request.transport is not None
        request.transport.abort()
        gone.append(request.path)
        return can_prepare(self, request)

    recorder = Recorder()
    async with network("a", recorder, {"b": member("b")}) as a:
        monkeypatch.setattr(web.WebSocketResponse, "can_prepare", cut_off)
        with pytest.raises((aiohttp.ClientError, ConnectionError)):
            async with raw_lane(a.address, identity("b")):
                pass
        assert gone
        # By the time that another has come in, the first is done with.
        monkeypatch.undo()
        async with greeted_lane(a.address, "b"):
            pass
    assert [record.getMessage() for record in caplog.records if record.name.startswith("aiohttp")] == []


@pytest.mark.asyncio
async def test_a_pin_that_was_taken_away() -> None:
    """The trust anchor stays in the TLS context; the comparison with the pins must refuse on its own."""
    recorder = Recorder()
    async with network("a", recorder, {"b": member("b")}) as a:
        a.set_peers({})
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            async with raw_lane(a.address, identity("b")):
                pass
        assert caught.value.status == 403
        assert recorder.counts["connection unknown_certificate"] == 1


@pytest.mark.asyncio
async def test_a_removed_node_gets_a_signed_goodbye() -> None:
    recorder = Recorder()
    removed = replace(member("b"), standing="removed")
    async with network("a", recorder, {"b": removed}) as a, raw_lane(a.address, identity("b")) as socket:
        assert await goodbye(socket) == "removed"
        assert recorder.counts["connection removed"] == 1
        assert a.peers() == {}


@pytest.mark.asyncio
async def test_a_node_removed_while_connected_is_told_and_cut_off() -> None:
    async with pair() as two:
        two.a.set_peers({"b": replace(member("b", two.b.address), standing="removed")})
        await two.at_b.until(lambda: two.at_b.goodbyes)
        assert two.at_b.goodbyes[0] == ("a", "removed")
        two.a.send_consensus("b", PreVote(1, 0, 0))
        assert two.at_a.counts["dropped prevote not_connected"] == 1
        await two.at_a.until(lambda: two.at_a.counts["connection removed"])


@pytest.mark.asyncio
async def test_another_member_at_the_address_of_a_peer() -> None:
    """Its certificate is trusted, but it is not the one that was dialled: nothing is said to it."""
    at_a, at_c = Recorder(), Recorder()
    async with network("c", at_c, {"a": member("a")}) as c:
        peers = {"b": member("b", c.address), "c": member("c")}
        async with network("a", at_a, peers):
            await at_a.until(lambda: at_a.counts["connection wrong_certificate"])
        assert at_c.counts["in hello"] == 0
        assert not at_c.tapped


@pytest.mark.asyncio
async def test_a_stranger_at_the_address_of_a_peer() -> None:
    recorder = Recorder()
    async with fake_acceptor("stranger", []) as address, network("a", recorder, {"b": member("b", address)}):
        await recorder.until(lambda: recorder.counts["connection unknown_certificate"])
        assert not recorder.tapped


@pytest.mark.asyncio
async def test_a_member_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("network.server.GREETING_TIMEOUT_S", 0.01)
    recorder = Recorder()
    async with network("a", recorder, {"b": member("b")}) as a, raw_lane(a.address, identity("b")) as socket:
        assert await goodbye(socket) == "bad_hello"
        assert recorder.counts["connection bad_hello"] == 1


@pytest.mark.asyncio
async def test_more_connections_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("network.server.CONNECTIONS_MAX", 1)
    recorder = Recorder()
    async with network("a", recorder, {"b": member("b")}) as a, raw_lane(a.address, identity("b")):
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            async with raw_lane(a.address, identity("b"), Lane.GOSSIP):
                pass
        assert caught.value.status == 503
        assert recorder.counts["connection busy"] == 1


@pytest.mark.asyncio
async def test_another_chain_is_refused_by_both_sides() -> None:
    at_a, at_b = Recorder(), Recorder()
    async with (
        network("a", at_a, {"b": member("b")}) as a,
        network("b", at_b, {"a": member("a", a.address)}, chain=b"x" * 32),
    ):
        await at_a.until(lambda: at_a.counts["connection wrong_chain"])
        await at_b.until(lambda: at_b.counts["connection wrong_chain"])
        assert not at_b.connected


@pytest.mark.parametrize(
    ("hello", "reason"),
    [
        (Hello(PROTOCOL_VERSION + 1, CHAIN, "b"), "protocol_version"),
        (Hello(PROTOCOL_VERSION, b"x" * 32, "b"), "wrong_chain"),
        (Hello(PROTOCOL_VERSION, CHAIN, "c"), "wrong_node"),
    ],
)
@pytest.mark.asyncio
async def test_a_hello_that_does_not_fit(hello: Hello, reason: str) -> None:
    recorder = Recorder()
    async with network("a", recorder, {"b": member("b")}) as a, raw_lane(a.address, identity("b")) as socket:
        await socket.send_bytes(pack(hello).frames[0])
        assert await goodbye(socket) == reason
        assert recorder.counts[f"connection {reason}"] == 1


@pytest.mark.asyncio
async def test_a_hello_of_a_later_version_is_read_although_it_is_longer() -> None:
    recorder = Recorder()
    later = msgspec.msgpack.encode([PROTOCOL_VERSION + 1, CHAIN, "b", None, {"what": "we cannot know"}])
    async with network("a", recorder, {"b": member("b")}) as a, raw_lane(a.address, identity("b")) as socket:
        await socket.send_bytes(bytes((1, 0)) + later)
        assert await goodbye(socket) == "protocol_version"


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\x01",
        PRE_VOTE,
        b"\x01\x00\xc1",
        b"\x01\x80" + msgspec.msgpack.encode([1, CHAIN, "b"]),
        pack(Hello(PROTOCOL_VERSION, CHAIN, "b")).frames[0],
    ],
    ids=["empty", "no body", "no hello", "not MessagePack", "unfinished", "without statements"],
)
@pytest.mark.asyncio
async def test_a_first_frame_that_is_no_hello(frame: bytes) -> None:
    recorder = Recorder()
    async with network("a", recorder, {"b": member("b")}) as a, raw_lane(a.address, identity("b")) as socket:
        await socket.send_bytes(frame)
        assert await goodbye(socket) == "bad_hello"


@pytest.mark.asyncio
async def test_a_path_that_is_no_lane() -> None:
    recorder = Recorder()
    async with network("a", recorder, {"b": member("b")}) as a:
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            async with raw_lane(a.address, identity("b"), path="/v1/transactions"):
                pass
        assert caught.value.status == 404
        assert recorder.counts["connection bad_request"] == 1


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (b"", "bad_frame"),
        (b"\x10", "bad_frame"),
        (b"\xff\x00", "unknown_kind"),
        (pack(Announce([b"i" * 32])).frames[0], "bad_frame"),
        (pack(Hello(PROTOCOL_VERSION, CHAIN, "b")).frames[0], "bad_frame"),
        (b"\x10\x03" + PRE_VOTE[2:], "bad_frame"),
        (b"\x10\x00\xc1", "bad_message"),
        (PRE_VOTE + b"\x00", "bad_message"),
        (b"\x10\x00" + msgspec.msgpack.encode([1, 0, 0, 0]), "bad_message"),
        (b"\x10\x00" + msgspec.msgpack.encode([-1, 0, 0]), "bad_message"),
        (b"\x10\x00\xdd\xff\xff\xff\xff", "bad_message"),
        (b"\x10\x00" + bytes(2_000), "message_too_large"),
        (b"\x10" + bytes((MORE,)) + bytes(2_000), "message_too_large"),
    ],
    ids=[
        "empty", "one byte", "unknown kind", "wrong lane", "a second hello", "wrong stream", "not MessagePack",
        "trailing byte", "a field too many", "negative", "a huge array", "too large", "too large in pieces",
    ],
)  # fmt: skip
@pytest.mark.asyncio
async def test_a_malformed_frame_closes_the_link(frame: bytes, reason: str) -> None:
    recorder = Recorder()
    async with network("a", recorder, {"b": member("b")}) as a, greeted_lane(a.address, "b") as socket:
        await socket.send_bytes(frame)
        assert await goodbye(socket) == reason
        assert recorder.counts[f"frame {reason}"] == 1
        assert not recorder.consensus


@pytest.mark.asyncio
async def test_text_closes_the_link() -> None:
    recorder = Recorder()
    async with network("a", recorder, {"b": member("b")}) as a, greeted_lane(a.address, "b") as socket:
        await socket.send_str("hello")
        assert await goodbye(socket) == "bad_frame"


@pytest.mark.asyncio
async def test_an_oversized_frame_closes_the_link_before_it_is_read() -> None:
    recorder = Recorder()
    async with network("a", recorder, {"b": member("b")}) as a, greeted_lane(a.address, "b") as socket:
        await socket.send_bytes(bytes(FRAME_BYTES_MAX + 1))
        await recorder.until(lambda: recorder.counts["frame frame_too_large"])
        assert (await socket.receive(timeout=PATIENCE_S)).type is not aiohttp.WSMsgType.BINARY


@pytest.mark.asyncio
async def test_a_frame_of_exactly_the_bound_is_read() -> None:
    recorder = Recorder()
    append = kind_of(Append(1, 0, 0, b"p" * 32, (), None)).number
    async with network("a", recorder, {"b": member("b")}) as a, greeted_lane(a.address, "b") as socket:
        await socket.send_bytes(bytes((append, Stream.BLOCKS | MORE)) + bytes(FRAME_BYTES_MAX - 2))
        await recorder.until(lambda: recorder.counts["in append"])
        assert not socket.closed


HELLO_OF_B = Greeter(identity("b"), CHAIN).hello("a")


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ([pack(Hello(PROTOCOL_VERSION, b"x" * 32, "b")).frames[0]], "wrong_chain"),
        ([pack(Hello(PROTOCOL_VERSION + 1, CHAIN, "b")).frames[0]], "protocol_version"),
        ([PRE_VOTE], "bad_hello"),
        ([HELLO_OF_B, PRE_VOTE], "bad_frame"),
        ([HELLO_OF_B, HELLO_OF_B], "bad_frame"),
        ([HELLO_OF_B, pack(Goodbye("removed", b"s" * 64)).frames[0]], "bad_frame"),
        ([Greeter(identity("b"), CHAIN).goodbye("another", "removed")], "bad_frame"),
        ([Greeter(identity("b"), CHAIN).goodbye("a", "removed")], "refused_by_peer"),
        ([HELLO_OF_B, Greeter(identity("b"), CHAIN).goodbye("a", "removed")], "refused_by_peer"),
    ],
    ids=[
        "another chain", "another version", "no hello", "a message", "hello twice", "a forged goodbye",
        "a goodbye to another", "a goodbye at once", "a goodbye later",
    ],
)  # fmt: skip
@pytest.mark.asyncio
async def test_what_the_accepting_side_may_say(answers: list[bytes], reason: str) -> None:
    recorder = Recorder()
    async with fake_acceptor("b", answers) as address, network("a", recorder, {"b": member("b", address)}):
        await recorder.until(lambda: recorder.counts[f"connection {reason}"])
        assert (("b", "removed") in recorder.goodbyes) == (reason == "refused_by_peer")


@pytest.mark.asyncio
async def test_a_certificate_is_replaced_at_run_time() -> None:
    """A node that the ledger has just admitted may come without a restart of the others."""
    recorder, newcomer = Recorder(), Recorder()
    async with network("a", recorder, {}) as a:
        a.set_peers({"n": Peer(identity("n").certificate, None)})
        async with network("n", newcomer, {"a": member("a", a.address)}, settings=SETTINGS):
            await newcomer.until(lambda: newcomer.connected)
            assert a.peers()["n"].receiving


@pytest.mark.asyncio
async def test_too_many_handshakes_at_once_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("network.tls.HANDSHAKES_MAX", 1)
    recorder = Recorder()
    async with network("a", recorder, {"b": member("b")}) as a:
        context = client_context(identity("b"), [identity("a").certificate])
        # One that begins with half a hello and then waits.
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        with pytest.raises(ssl.SSLWantReadError):
            context.wrap_bio(incoming, outgoing).do_handshake()
        _, idle = await asyncio.open_connection(*a.address)
        idle.write(outgoing.read()[:20])
        assert await refuses_handshake(a.address, context)
        assert recorder.counts["connection busy"] >= 1
        idle.close()
