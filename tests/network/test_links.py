"""Two peers that know each other: what is sent arrives, what cannot be sent is counted."""

import asyncio
from dataclasses import replace

import pytest
import uvloop

from consensus.messages import Append, Certificate, Entry, PreVote, PreVoteReply, Vote
from ledger.errors import Rejection
from network.greeting import Greeter
from network.messages import Lane
from network.port import PeerStatus
from tests.network.peers import (
    CHAIN,
    PATIENCE_S,
    SETTINGS,
    Recorder,
    client_context,
    fake_acceptor,
    greeted_lane,
    identity,
    member,
    network,
    pair,
    refuses_handshake,
    shared,
)

H = b"h" * 32


def append(height: int, data: bytes) -> Append:
    entry = Entry(height, 3, b"p" * 32, H, data)
    return Append(3, height - 1, 3, b"p" * 32, (entry,), Certificate(3, 1, H, (("a", b"s" * 64),)))


@pytest.mark.asyncio
async def test_consensus_messages_arrive_with_their_sender() -> None:
    async with pair() as two:
        assert two.a.peers() == {"b": PeerStatus(sending=True, receiving=True)}
        two.a.send_consensus("b", PreVote(4, 10, 3))
        two.b.send_consensus("a", PreVoteReply(4, granted=True))
        await two.at_b.until(lambda: two.at_b.consensus)
        await two.at_a.until(lambda: two.at_a.consensus)
        assert two.at_b.consensus == [("a", PreVote(4, 10, 3))]
        assert two.at_a.consensus == [("b", PreVoteReply(4, granted=True))]


@pytest.mark.asyncio
async def test_equal_fields_of_another_kind_are_not_confused() -> None:
    async with pair() as two:
        two.a.send_consensus("b", PreVote(4, 10, 3))
        two.a.send_consensus("b", Vote(4, 10, 3))
        await two.at_b.until(lambda: len(two.at_b.consensus) == 2)
        assert [message for _, message in two.at_b.consensus] == [PreVote(4, 10, 3), Vote(4, 10, 3)]


@pytest.mark.asyncio
async def test_a_heartbeat_overtakes_the_rest_of_a_large_block() -> None:
    async with pair() as two:
        block = append(2, b"d" * 2_000_000)
        heartbeat = replace(block, entries=())
        two.a.send_consensus("b", block)
        two.a.send_consensus("b", heartbeat)
        await two.at_b.until(lambda: len(two.at_b.consensus) == 2)
        assert [message for _, message in two.at_b.consensus] == [heartbeat, block]
        assert two.at_b.counts["in append"] == 1 + -(-2_000_000 // 65_534)


@pytest.mark.asyncio
async def test_nothing_is_queued_for_a_peer_that_is_not_connected() -> None:
    recorder = Recorder()
    async with network("a", recorder, {"b": member("b")}) as a:
        a.send_consensus("b", PreVote(1, 0, 0))
        a.send_consensus("nobody", PreVote(1, 0, 0))
        assert recorder.counts["dropped prevote not_connected"] == 2
        assert a.peers() == {"b": PeerStatus(sending=False, receiving=False)}


@pytest.mark.asyncio
async def test_a_peer_that_restarts_is_dialled_again() -> None:
    at_a, first, second = Recorder(), Recorder(), Recorder()
    async with network("a", at_a, {"b": member("b")}) as a:
        async with network("b", first, {"a": member("a", a.address)}) as b:
            address = b.address
            a.set_peers({"b": member("b", address)})
            await at_a.until(lambda: at_a.connected)
        settings = replace(SETTINGS, listen_port=address[1])
        async with network("b", second, {"a": member("a", a.address)}, settings=settings) as b:
            await second.until(lambda: "a" in second.connected)
            await at_a.until(lambda: at_a.connected.count("b") == 2)
            a.send_consensus("b", PreVote(9, 9, 9))
            await second.until(lambda: second.consensus)
            assert second.consensus == [("a", PreVote(9, 9, 9))]


@pytest.mark.asyncio
async def test_a_peer_that_comes_is_dialled_at_once() -> None:
    at_a, first, second = Recorder(), Recorder(), Recorder()
    # Whoever waits this long does not come within the test's patience.
    slow = replace(SETTINGS, redial_min_ms=600_000, redial_max_ms=600_000)
    async with network("a", at_a, {"b": member("b")}, settings=slow) as a:
        async with network("b", first, {"a": member("a", a.address)}) as b:
            address = b.address
            a.set_peers({"b": member("b", address)})
            await at_a.until(lambda: at_a.connected)
        async with network(
            "b", second, {"a": member("a", a.address)}, settings=replace(SETTINGS, listen_port=address[1])
        ):
            await at_a.until(lambda: at_a.connected.count("b") == 2)
            assert second.connected == ["a"]


@pytest.mark.asyncio
async def test_pins_given_before_it_listens_count_from_the_start() -> None:
    """As a daemon gives them, which reads them from its store."""
    at_a, at_b = Recorder(), Recorder()
    async with network("a", at_a, {"b": member("b")}) as a:
        later = network("b", at_b, {})
        later.set_peers({"a": member("a", a.address)})
        async with later:
            await at_b.until(lambda: at_b.connected)
            assert at_b.connected == ["a"]


@pytest.mark.asyncio
async def test_a_newer_connection_of_a_member_replaces_the_older() -> None:
    recorder = Recorder()
    async with (
        network("a", recorder, {"b": member("b")}) as a,
        greeted_lane(a.address, "b") as first,
        greeted_lane(a.address, "b", Lane.GOSSIP),
    ):
        assert a.peers()["b"].receiving
        async with greeted_lane(a.address, "b") as second:
            async with asyncio.timeout(PATIENCE_S):
                await first.receive()
            assert first.closed
            assert not second.closed
            assert a.peers()["b"].receiving


@pytest.mark.asyncio
async def test_the_gossip_lane_ends_with_the_control_lane() -> None:
    async with network("a", Recorder(), {"b": member("b")}) as a, greeted_lane(a.address, "b", Lane.GOSSIP) as gossip:
        async with greeted_lane(a.address, "b"):
            assert a.peers()["b"].receiving
        async with asyncio.timeout(PATIENCE_S):
            await gossip.receive()
        assert gossip.closed
        assert not a.peers()["b"].receiving


@pytest.mark.asyncio
async def test_a_rejection_by_the_handler_closes_the_link_and_tells_the_peer() -> None:
    async with pair() as two:
        two.at_b.fails_with = Rejection("bad_block", "made up")
        two.a.send_consensus("b", PreVote(1, 0, 0))
        await two.at_a.until(lambda: two.at_a.goodbyes)
        assert two.at_a.goodbyes == [("b", "bad_block")]
        assert two.at_b.counts["frame bad_block"] == 1
        await two.at_a.until(lambda: two.at_a.connected.count("b") == 2)


@pytest.mark.asyncio
async def test_a_fault_of_ours_ends_the_network_that_has_it() -> None:
    at_a, at_b = Recorder(), Recorder(fails_with=ZeroDivisionError("ours"))
    async with network("a", at_a, {"b": member("b")}) as a:

        async def live() -> None:
            async with network("b", at_b, {"a": member("a")}) as b:
                a.set_peers({"b": member("b", b.address)})
                await at_a.until(lambda: at_a.connected)
                a.send_consensus("b", PreVote(1, 0, 0))
                await asyncio.Event().wait()

        with pytest.raises(ExceptionGroup) as caught:
            await live()
        assert caught.group_contains(ZeroDivisionError, match="ours")


@pytest.mark.asyncio
async def test_what_the_body_raises_leaves_as_it_is() -> None:
    async def live() -> None:
        async with network("a", Recorder(), {}):
            raise LookupError("the node's own")

    with pytest.raises(LookupError, match="the node's own"):
        await live()


@pytest.mark.asyncio
async def test_the_tap_sees_every_frame_of_both_sides_in_clear() -> None:
    async with pair() as two:
        two.a.send_consensus("b", append(2, b"planted in clear"))
        await two.at_b.until(lambda: two.at_b.consensus)
        sent = [frame for direction, peer, frame in two.at_a.tapped if direction == "out" and peer == "b"]
        came = [frame for direction, peer, frame in two.at_b.tapped if direction == "in" and peer == "a"]
        assert any(b"planted in clear" in frame for frame in sent)
        assert set(came) <= set(sent)
        assert any(b"planted in clear" in frame for frame in came)


HELLO_OF_B = Greeter(identity("b"), CHAIN).hello("a")


@pytest.mark.asyncio
async def test_a_peer_that_stops_reading_fills_its_queue_and_no_more() -> None:
    """Were the transport to take everything, nothing would ever be dropped and the memory be unbounded."""
    recorder = Recorder()
    settings = replace(SETTINGS, gossip_interval_ms=0, gossip_queue_bytes_max=1_000_000)
    async with (
        fake_acceptor("b", [HELLO_OF_B], reads=False) as address,
        network("a", recorder, {"b": member("b", address)}, settings=settings) as a,
    ):
        await recorder.until(lambda: recorder.connected)
        pushed = 0
        while not recorder.counts["dropped transactions queue_full"]:
            assert pushed < 1_000
            a.push_transactions([shared(pushed, 100_000)])
            pushed += 1
            await asyncio.sleep(0)


@pytest.mark.asyncio
async def test_a_peer_that_answers_no_probe_is_given_up_and_dialled_again() -> None:
    recorder = Recorder()
    settings = replace(SETTINGS, liveness_ms=20)
    async with (
        fake_acceptor("b", [HELLO_OF_B], reads=False) as address,
        network("a", recorder, {"b": member("b", address)}, settings=settings),
    ):
        await recorder.until(lambda: len(recorder.connected) >= 2)
        assert recorder.connected[:2] == ["b", "b"]


@pytest.mark.asyncio
async def test_an_idle_link_stays_up_while_its_probes_are_answered() -> None:
    """Nothing crosses the control lane while a dozen announcements on the other one span two probes."""
    async with pair(replace(SETTINGS, liveness_ms=500, reannounce_ms=100)) as two:
        two.at_a.pool = {bytes(32): shared(1)}
        await two.at_b.until(lambda: two.at_b.counts["in announce"] >= 12)
        assert two.at_a.connected == ["b"]
        assert two.at_b.connected == ["a"]


def test_the_links_run_on_uvloop() -> None:
    async def story() -> None:
        async with pair() as two:
            two.a.send_consensus("b", append(2, b"d" * 200_000))
            two.a.push_transactions([shared(1)])
            await two.at_b.until(lambda: two.at_b.consensus and two.at_b.transactions)
            assert await two.b.fetch_bodies("a", [b"c" * 32]) == {}
            context = client_context(identity("stranger"), [identity("a").certificate])
            assert await refuses_handshake(two.a.address, context)
            await two.at_a.until(lambda: two.at_a.counts["connection unknown_certificate"])

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(story())
