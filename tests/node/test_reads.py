"""Linearizable reads at the shell: questions shared, asked again, given up; and the parameter that asks for them."""

import asyncio

import pytest

from consensus.messages import ReadState
from ledger.errors import Rejection
from node import reads
from node.endpoints import ENDPOINTS
from node.http_types import ReadQuery
from node.reads import Reads
from tests.node.http_client import SUBJECT, Port

PATIENCE_S = 20.0


class Network:
    """Questions are answered by hand, unless `answers`; execution reaches what `reach` says."""

    def __init__(self, *, answers: int | None = None, proved: int = 0) -> None:
        self.asked: list[int] = []
        self.executed_height = 0
        self.proved_height = proved
        self.grown = asyncio.Event()
        self.questioned = asyncio.Event()
        self._answers = answers
        self.reads = Reads(
            self.ask, self.executed, lambda: self.executed_height, lambda height: self.proved_height >= height
        )

    def ask(self, token: int) -> None:
        self.asked.append(token)
        self.questioned.set()
        if self._answers is not None:
            self.reads.answered([ReadState(token, self._answers)])

    async def executed(self, height: int) -> None:
        while self.executed_height < height:
            await self.grown.wait()

    def reach(self, height: int, *, proved: int = 0) -> None:
        self.executed_height, self.proved_height = height, proved
        self.grown.set()
        self.grown.clear()

    def answer(self, height: int | None) -> None:
        self.reads.answered([ReadState(self.asked[-1], height)])

    def read(self, timeout_s: float = PATIENCE_S, *, sealed: bool = False) -> "asyncio.Task[None]":
        return asyncio.create_task(self.reads.confirm(timeout_s, sealed=sealed))


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def refusal(task: "asyncio.Task[None]") -> str:
    with pytest.raises(Rejection) as caught:
        await task
    return caught.value.code


@pytest.mark.asyncio
async def test_a_read_waits_until_what_it_must_know_is_executed() -> None:
    network = Network()
    task = network.read()
    await turns()
    network.answer(7)
    network.reach(6)
    await turns()
    assert not task.done()
    network.reach(7)
    await task


@pytest.mark.asyncio
async def test_a_proof_waits_until_the_seal_covers_it() -> None:
    network = Network(answers=7)
    network.reach(7)
    task = network.read(sealed=True)
    await turns()
    assert not task.done()
    network.reach(8, proved=6)
    await turns()
    assert not task.done()
    network.reach(9, proved=8)
    await task


@pytest.mark.asyncio
async def test_readers_share_a_question_that_is_put_after_they_came() -> None:
    network = Network()
    first = network.read()
    await turns()
    others = [network.read() for _ in range(50)]
    await turns()
    assert len(network.asked) == 1
    # The first answer may be older than those who came after the question.
    network.answer(0)
    await first
    await turns()
    assert len(network.asked) == 2
    assert not any(task.done() for task in others)
    network.answer(0)
    await asyncio.gather(*others)
    assert len(network.asked) == 2


@pytest.mark.asyncio
async def test_no_answer_is_asked_for_again() -> None:
    network = Network()
    task = network.read()
    await turns()
    network.answer(None)
    network.questioned.clear()
    async with asyncio.timeout(PATIENCE_S):
        await network.questioned.wait()
    assert len(network.asked) == 2
    network.answer(0)
    await task


@pytest.mark.asyncio
async def test_what_nobody_confirms_in_time_is_refused() -> None:
    """No answer, no leader, no execution so far, no proof so far: never the old answer."""
    assert await refusal(Network().read(0.01)) == "not_confirmed"
    leaderless = Network()
    task = leaderless.read(0.01)
    await turns()
    leaderless.answer(None)
    assert await refusal(task) == "not_confirmed"
    behind = Network(answers=7)
    assert await refusal(behind.read(0.01)) == "not_confirmed"
    behind.reach(7)
    assert await refusal(behind.read(0.01, sealed=True)) == "not_confirmed"


@pytest.mark.asyncio
async def test_the_number_of_readers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reads, "READERS_MAX", 2)
    network = Network()
    waiting = [network.read() for _ in range(2)]
    await turns()
    assert await refusal(network.read()) == "busy"
    network.answer(0)
    await waiting[0]
    await turns()
    network.answer(0)
    await waiting[1]
    last = network.read()
    await turns()
    network.answer(0)
    await last


@pytest.mark.asyncio
async def test_a_stopping_node_keeps_nobody_waiting() -> None:
    network = Network()
    waiting = [network.read() for _ in range(3)]
    await turns()
    network.reads.release()
    for task in waiting:
        assert await refusal(task) == "not_confirmed"
    assert await refusal(network.read()) == "not_confirmed"


@pytest.mark.asyncio
async def test_a_reader_that_left_takes_no_other_with_it() -> None:
    network = Network()
    first, leaving, staying = network.read(), network.read(), network.read()
    await turns()
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    network.answer(0)
    await first
    await turns()
    network.answer(0)
    await staying
    assert [task.cancelled() for task in (first, leaving, staying)] == [False, True, False]


READS = [row for row in ENDPOINTS if issubclass(row.parameters, ReadQuery)]
PATHS = {
    "transaction": "/v1/transactions/" + "00" * 32,
    "receipt": "/v1/transactions/" + "00" * 32 + "/receipt",
    "blocks": "/v1/blocks",
    "block": "/v1/blocks/1",
    "state": "/v1/state/network/parameters",
    "body": "/v1/bodies/" + "00" * 32,
    "records": f"/v1/records?subject={SUBJECT}",
    "network": "/v1/network",
}


def test_every_read_of_state_or_status_can_be_linearizable() -> None:
    """All of /v1 but genesis, which never changes, and events, which come in order whoever tells them."""
    assert {row.handler for row in READS} == set(PATHS)
    others = {row.handler for row in ENDPOINTS if row.method == "GET" and row.path.startswith("/v1")} - set(PATHS)
    assert others == {"genesis", "events"}


@pytest.mark.parametrize("handler", PATHS)
@pytest.mark.asyncio
async def test_it_is_confirmed_before_it_is_answered(recorded: Port, handler: str) -> None:
    backend, path = recorded.backend, PATHS[handler]
    await recorded.ask("GET", path)
    assert backend.confirmed == []
    backend.unconfirmed = Rejection("not_confirmed", "no quorum")
    asked = path + ("&" if "?" in path else "?") + "consistency=linearizable"
    assert await recorded.problem("GET", asked) == "not_confirmed"
    assert backend.confirmed == [(1.5, handler == "receipt")]
    assert await recorded.problem("GET", asked.replace("linearizable", "certain")) == "bad_request"


@pytest.mark.asyncio
async def test_a_proof_is_confirmed_as_one(recorded: Port) -> None:
    await recorded.bytes_of("/v1/state/network/parameters?proof=1&consistency=linearizable")
    assert recorded.backend.confirmed == [(1.5, True)]


@pytest.mark.asyncio
async def test_too_many_linearizable_reads_are_told_when_to_come_again(recorded: Port) -> None:
    recorded.backend.unconfirmed = Rejection("busy", "too many")
    status, headers, _ = await recorded.ask("GET", "/v1/network?consistency=linearizable")
    assert (status, headers["Retry-After"]) == (503, "1")


@pytest.mark.asyncio
async def test_a_token_does_not_come_again_after_a_restart() -> None:
    """An answer that was late for the life before must not be taken for one in this."""
    first, second = Network(answers=0), Network(answers=0)
    await first.read()
    await second.read()
    assert first.asked != second.asked
    assert 0 <= first.asked[0] < 2**53
