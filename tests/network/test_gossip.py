"""Transactions pushed, announced, fetched; blocks and bodies asked for and answered. Over real links."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import aiohttp
import pytest

from ledger.transaction import body_commitment
from network import gossip, sync
from network.frames import pack
from network.messages import TRANSACTION_BYTES_MAX, Blocks, Bodies, Lane
from network.port import BlockRange, FetchFailed, NetworkSettings, SharedTransaction, SnapshotOffer
from tests.network.peers import SETTINGS, Pair, Recorder, greeted_lane, member, network, pair, shared

QUICK = replace(SETTINGS, fetch_timeout_ms=50)


@pytest.mark.asyncio
async def test_pushed_transactions_arrive_whole_in_order_and_share_frames() -> None:
    pushed = [shared(number) for number in range(200)]
    async with pair() as two:
        for transaction in pushed:
            two.a.push_transactions([transaction])
        await two.at_b.until(lambda: len(two.at_b.transactions) == 200)
        assert two.at_b.transactions == [("a", transaction) for transaction in pushed]
        assert two.at_b.counts["in transactions"] <= 4


@pytest.mark.asyncio
async def test_a_burst_beyond_the_pending_bound_leaves_at_once() -> None:
    async with pair(replace(SETTINGS, gossip_interval_ms=3_600_000)) as two:
        two.a.push_transactions([shared(0)])
        await two.at_b.until(lambda: len(two.at_b.transactions) == 1)
        two.a.push_transactions([shared(1)])
        two.a.push_transactions([shared(number) for number in range(gossip.PENDING_TRANSACTIONS_MAX - 1)])
        await two.at_b.until(lambda: len(two.at_b.transactions) == 1 + gossip.PENDING_TRANSACTIONS_MAX)
        numbers = [0, 1, *range(gossip.PENDING_TRANSACTIONS_MAX - 1)]
        assert two.at_b.transactions == [("a", shared(number)) for number in numbers]


@pytest.mark.asyncio
async def test_a_batch_waits_no_longer_than_the_interval() -> None:
    async with pair(replace(SETTINGS, gossip_interval_ms=1)) as two:
        two.a.push_transactions([shared(1)])
        await two.at_b.until(lambda: len(two.at_b.transactions) == 1)
        two.a.push_transactions([shared(2)])
        await two.at_b.until(lambda: len(two.at_b.transactions) == 2)
        assert two.at_b.transactions == [("a", shared(1)), ("a", shared(2))]


@pytest.mark.asyncio
async def test_the_largest_transaction_passes_and_a_larger_one_is_our_mistake() -> None:
    async with pair() as two:
        largest = SharedTransaction(b"e" * 1024, [b"b" * (1024 * 1024)] * 15 + [b"b" * (1024 * 1024 - 1024)])
        two.a.push_transactions([largest])
        await two.at_b.until(lambda: two.at_b.transactions)
        assert two.at_b.transactions == [("a", largest)]
        larger = SharedTransaction(largest.envelope + b"e", largest.bodies)
        with pytest.raises(ValueError, match=str(TRANSACTION_BYTES_MAX)):
            two.a.push_transactions([larger])


@pytest.mark.asyncio
async def test_a_full_gossip_queue_drops_the_new_batch_and_counts_it() -> None:
    async with pair(replace(SETTINGS, gossip_queue_bytes_max=100_000)) as two:
        # Nothing leaves between two pushes of one event-loop callback, so that the queue fills.
        two.a.push_transactions([shared(number, 40_000) for number in range(5)])
        await two.at_a.until(lambda: two.at_a.counts["dropped transactions queue_full"])
        await two.at_b.until(lambda: len(two.at_b.transactions) == 2)
        assert two.at_a.counts["dropped transactions queue_full"] == 3
        assert two.at_b.transactions == [("a", shared(number, 40_000)) for number in range(2)]


@pytest.mark.asyncio
async def test_a_peer_that_connects_is_told_what_is_pooled_and_fetches_what_it_lacks() -> None:
    known, missing = bytes(32), b"m" * 32
    at_a = Recorder(pool={known: shared(1), missing: shared(2)})
    at_b = Recorder(pool={known: shared(1)})
    async with (
        network("b", at_b, {"a": member("a")}) as b,
        network("a", at_a, {"b": member("b", b.address)}) as a,
    ):
        # Told while its own link is not up yet, it asks once it is.
        await at_b.until(lambda: at_b.counts["in announce"])
        b.set_peers({"a": member("a", a.address)})
        await at_b.until(lambda: at_b.transactions)
        assert at_b.announced == [("a", [known, missing])]
        assert at_b.transactions == [("a", shared(2))]


@pytest.mark.asyncio
async def test_what_is_pooled_is_announced_again_and_asked_for_once() -> None:
    item = b"m" * 32
    async with pair(replace(SETTINGS, reannounce_ms=2)) as two:
        two.at_a.pool[item] = shared(5)
        await two.at_b.until(lambda: two.at_b.transactions)
        await two.at_b.until(lambda: two.at_b.counts["in announce"] >= 5)
        assert two.at_b.transactions == [("a", shared(5))]
        assert two.at_b.announced == [("a", [item])]


@pytest.mark.asyncio
async def test_a_fetch_that_was_not_answered_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gossip, "FETCHING_MS", 0)
    item = b"m" * 32
    async with pair(replace(SETTINGS, reannounce_ms=2)) as two:
        two.at_a.pool[item] = shared(5)
        await two.at_b.until(lambda: len(two.at_b.transactions) >= 2)
        assert two.at_b.transactions[:2] == [("a", shared(5))] * 2


@pytest.mark.asyncio
async def test_no_more_is_asked_for_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gossip, "FETCHING_MAX", 3)
    async with pair(replace(SETTINGS, reannounce_ms=2)) as two:
        two.at_a.pool.update({bytes([number]) * 32: shared(number) for number in range(10)})
        await two.at_b.until(lambda: two.at_b.counts["in announce"] >= 3)
        await two.at_b.until(lambda: len(two.at_b.transactions) >= 3)
        assert len(two.at_b.transactions) == 3


@pytest.mark.asyncio
async def test_blocks_are_fetched_as_they_are_stored() -> None:
    async with pair() as two:
        two.at_b.blocks = BlockRange([b"one" * 100_000, b"two"], b"certificate")
        fetched = await two.a.fetch_blocks("b", 17, 5_000_000)
        assert fetched == two.at_b.blocks
        assert two.at_b.counts["serve_blocks from 17 bytes 5000000"] == 1


@pytest.mark.asyncio
async def test_no_blocks_is_an_answer_too() -> None:
    async with pair() as two:
        assert await two.a.fetch_blocks("b", 1, 1) == BlockRange([], None)


@pytest.mark.asyncio
async def test_bodies_come_by_commitment_and_only_those_that_are_held() -> None:
    bodies = [bytes([number]) * 1000 for number in range(5)]
    names = [body_commitment(body) for body in bodies]
    async with pair() as two:
        two.at_b.bodies = dict(zip(names[:3], bodies[:3], strict=True))
        assert await two.a.fetch_bodies("b", names) == dict(zip(names[:3], bodies[:3], strict=True))


@pytest.mark.asyncio
async def test_answers_to_questions_asked_at_once_are_not_mixed_up() -> None:
    bodies = [bytes([number]) * 10 for number in range(10)]
    names = [body_commitment(body) for body in bodies]
    async with pair() as two:
        two.at_b.bodies = dict(zip(names, bodies, strict=True))
        answers = await asyncio.gather(*(two.a.fetch_bodies("b", [name]) for name in names))
        assert answers == [{name: body} for name, body in zip(names, bodies, strict=True)]


@pytest.mark.asyncio
async def test_more_questions_than_the_bound_are_refused_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync, "REQUESTS_MAX", 2)
    async with pair() as two:
        outcomes = await asyncio.gather(*(two.a.fetch_blocks("b", 1, 1) for _ in range(3)), return_exceptions=True)
        assert [str(outcome) for outcome in outcomes if isinstance(outcome, FetchFailed)] == ["b: busy"]
        assert await two.a.fetch_blocks("b", 1, 1) == BlockRange([], None)


@pytest.mark.asyncio
async def test_a_peer_that_is_not_connected_cannot_be_asked() -> None:
    async with network("a", Recorder(), {"b": member("b")}) as a:
        with pytest.raises(FetchFailed, match="not_connected"):
            await a.fetch_bodies("b", [b"c" * 32])


@pytest.mark.asyncio
async def test_blocks_that_reach_no_certificate_within_an_answer_are_not_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sync, "BLOCKS_BYTES_MAX", 100)
    async with pair(QUICK) as two:
        two.at_b.blocks = BlockRange([bytes(60), bytes(60)], b"certificate")
        with pytest.raises(FetchFailed, match="timed_out"):
            await two.a.fetch_blocks("b", 1, 1_000)
        assert two.at_b.counts["dropped blocks too_large"] == 1


@pytest.mark.asyncio
async def test_a_peer_that_leaves_ends_the_questions_put_to_it() -> None:
    settings: NetworkSettings = replace(SETTINGS, fetch_timeout_ms=600_000)
    async with pair(settings) as two:
        question = asyncio.create_task(two.a.fetch_blocks("b", 1, 1))
        await asyncio.sleep(0)
        two.a.set_peers({})
        with pytest.raises(FetchFailed, match="disconnected"):
            await question


@asynccontextmanager
async def answered_by_hand() -> AsyncIterator[tuple[Pair, aiohttp.ClientWebSocketResponse]]:
    """Node "a" asks "b"; what is sent on this lane comes to it as from "b"."""
    at_a, at_b = Recorder(), Recorder()
    async with (
        network("b", at_b, {"a": member("a")}) as b,
        network("a", at_a, {"b": member("b", b.address)}) as a,
        greeted_lane(a.address, "b") as lane,
        greeted_lane(a.address, "b", Lane.GOSSIP),
    ):
        await at_a.until(lambda: at_a.connected)
        yield Pair(a, b, at_a, at_b), lane


@pytest.mark.parametrize(
    "answer",
    [Bodies(1, []), Blocks(1, [b"block"], None, 0), Blocks(1, [], b"certificate", 0)],
    ids=["bodies for blocks", "no certificate", "no blocks"],
)
@pytest.mark.asyncio
async def test_an_answer_to_another_question_closes_the_link(answer: object) -> None:
    async with answered_by_hand() as (two, lane):
        question = asyncio.create_task(two.a.fetch_blocks("b", 1, 1))
        await two.at_b.until(lambda: two.at_b.counts["in getblocks"])
        await lane.send_bytes(pack(answer).frames[0])
        with pytest.raises(FetchFailed, match="malformed"):
            await question
        await two.at_a.until(lambda: two.at_a.counts["frame bad_message"])


@pytest.mark.asyncio
async def test_a_body_that_nobody_asked_for_closes_the_link() -> None:
    async with answered_by_hand() as (two, lane):
        question = asyncio.create_task(two.a.fetch_bodies("b", [body_commitment(b"asked")]))
        await two.at_b.until(lambda: two.at_b.counts["in getbodies"])
        await lane.send_bytes(pack(Bodies(1, [b"asked", b"another"])).frames[0])
        with pytest.raises(FetchFailed, match="malformed"):
            await question


@pytest.mark.asyncio
async def test_an_answer_that_nobody_waits_for_is_dropped_and_the_link_stays() -> None:
    recorder = Recorder()
    async with network("a", recorder, {"b": member("b")}) as a, greeted_lane(a.address, "b") as lane:
        await lane.send_bytes(pack(Blocks(99, [], None, 0)).frames[0])
        await recorder.until(lambda: recorder.counts["dropped blocks unasked"])
        assert not lane.closed


@pytest.mark.asyncio
async def test_a_snapshot_is_offered_and_served_by_chunks() -> None:
    async with pair() as two:
        assert await two.a.fetch_snapshot("b") is None
        two.at_b.snapshot = SnapshotOffer(b"manifest", b"proof")
        two.at_b.chunks[b"s" * 32, 7] = chunk = b"c" * (1 << 20)
        assert await two.a.fetch_snapshot("b") == two.at_b.snapshot
        assert await two.a.fetch_chunk("b", b"s" * 32, 7) == chunk
        assert await two.a.fetch_chunk("b", b"s" * 32, 8) is None
