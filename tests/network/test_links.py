"""Two peers that know each other: what is sent arrives, what cannot be sent is counted."""

import asyncio
from dataclasses import replace

import pytest

from consensus.messages import Append, Certificate, Entry, PreVote, PreVoteReply, Vote
from ledger.errors import Rejection
from network.messages import Lane
from network.port import PeerStatus
from tests.network.peers import PATIENCE_S, SETTINGS, Recorder, greeted_lane, member, network, pair

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
async def test_a_newer_connection_of_a_member_replaces_the_older() -> None:
    recorder = Recorder()
    async with network("a", recorder, {"b": member("b")}) as a:
        async with greeted_lane(a.address, "b") as first, greeted_lane(a.address, "b", Lane.GOSSIP):
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
        with pytest.raises(ExceptionGroup) as caught:
            async with network("b", at_b, {"a": member("a")}) as b:
                a.set_peers({"b": member("b", b.address)})
                await at_a.until(lambda: at_a.connected)
                a.send_consensus("b", PreVote(1, 0, 0))
                await asyncio.Event().wait()
        assert caught.group_contains(ZeroDivisionError, match="ours")


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
