"""However nodes fail, a client learns what became of its transaction, or that it cannot know."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from carequorum.client import Client
from carequorum.submission import (
    GRACE_MS,
    OutcomeUnknown,
    TransactionExpired,
    TransactionFailed,
    TxStatus,
    _wait_ms,
)
from carequorum.transport import RETRY_AFTER_MAX_S, Refused, Unreachable
from carequorum.wallet import Wallet
from ledger.contracts import records
from ledger.errors import Rejection
from ledger.keys import sha256
from ledger.transaction import Transaction
from tests.carequorum.ports import (
    IMPATIENT,
    QUICK,
    Fault,
    Port,
    answers,
    client_of,
    closed_url,
    loses_the_answer,
    loses_the_request,
    make_wallet,
    refuses,
)
from tests.ledger.founding import NOW_MS

SUBJECT = sha256(b"subject")
pytestmark = pytest.mark.asyncio


def addition(name: str) -> tuple[list[records.Add], list[bytes]]:
    return [records.Add(body=0, record=sha256(name.encode()), subject=SUBJECT)], [b"a body of " + name.encode()]


def signed(client: Client, name: str = "record") -> tuple[Transaction, list[bytes]]:
    actions, bodies = addition(name)
    return client.sign(actions, bodies), bodies


def said(**fields: object) -> bytes:
    return json.dumps({"results": [fields]}).encode()


def height_of(port: Port) -> int:
    return port.backend.heights().executed


async def test_a_committed_transaction_says_where_it_is(ports: list[Port], doctor: Wallet) -> None:
    async with client_of(ports, doctor) as client:
        transaction, bodies = signed(client)
        committed = await client.submit_signed(transaction.data, bodies, wait="sealed")
    assert (committed.id, committed.index) == (transaction.id, 0)
    status = ports[0].backend.status(transaction.id)
    assert (status.status, status.height, status.code) == ("sealed", committed.height, "ok")
    assert ports[0].requests == ["POST /v1/transactions?wait=sealed&wait_ms=8000"]
    assert ports[1].requests == []


@pytest.mark.parametrize("fault", [loses_the_answer, loses_the_request])
async def test_when_an_answer_is_lost_the_same_bytes_go_to_the_next_node_and_count_once(
    ports: list[Port], doctor: Wallet, fault: Fault
) -> None:
    ports[0].faults.append(fault)
    async with client_of(ports, doctor) as client:
        committed = await client.transact(*addition("once"))
        assert ports[0].bodies == ports[1].bodies
        subject = await client.state(records.subject_path(SUBJECT))
    assert subject.value is not None
    assert ports[1].backend.status(committed.id).code == "ok"
    assert len(ports[0].backend.subject_records(SUBJECT, None, 10)) == 1


async def test_a_node_that_is_down_is_passed_over_and_then_asked_last(ports: list[Port], doctor: Wallet) -> None:
    async with client_of([await closed_url(), *ports], doctor) as client:
        await client.transact(*addition("first"))
        await client.transact(*addition("second"))
    assert len(ports[0].requests) == 2
    assert ports[1].requests == []


async def test_a_pending_transaction_is_taken_to_the_next_node(ports: list[Port], doctor: Wallet) -> None:
    # As a node without a majority says it.
    ports[0].faults.append(answers(said(id="00", status="pending"), 202))
    async with client_of(ports, doctor) as client:
        committed = await client.transact(*addition("cut off"))
    assert ports[1].backend.status(committed.id).code == "ok"


@pytest.mark.parametrize(
    ("answer_timeout_s", "left_ms", "wait_ms"),
    [
        pytest.param(10.0, 60_000, 8_000, id="by default"),
        pytest.param(2.0, 60_000, 1_600, id="as patient as the client"),
        pytest.param(10.0, 6_000, 6_000, id="until its time is over"),
        pytest.param(10.0, -1, 1_000, id="a moment, when its time is over"),
        pytest.param(0.5, -1, 400, id="never longer than the client"),
        pytest.param(0.0001, 60_000, 1, id="what the port takes at least"),
        pytest.param(5_000.0, 3_600_000, 600_000, id="what the port takes at most"),
    ],
)
async def test_a_node_waits_no_longer_than_its_client_does(
    answer_timeout_s: float, left_ms: int, wait_ms: int
) -> None:
    """Otherwise one that may wait longer would seem not to answer at all."""
    assert _wait_ms(replace(QUICK, answer_timeout_s=answer_timeout_s), left_ms) == wait_ms


async def test_the_time_of_the_transaction_is_what_is_left(ports: list[Port], doctor: Wallet) -> None:
    async with client_of(ports, doctor) as client:
        transaction = client.sign(*addition("soon"), valid_ms=1_000)
        await client.submit_signed(transaction.data, addition("soon")[1])
    assert ports[0].requests == [f"POST /v1/transactions?wait=committed&wait_ms={1_000 + GRACE_MS}"]


async def test_a_node_that_may_wait_longer_waits_as_long_as_it_was_asked_to(
    ports: list[Port], doctor: Wallet
) -> None:
    async with client_of(ports, doctor, settings=replace(QUICK, answer_timeout_s=2.0)) as client:
        await client.transact(*addition("patience"))
    assert ports[0].backend.timeouts_s[-1] == 1.6


async def test_202_is_an_answer_to_a_submission_alone(ports: list[Port], doctor: Wallet) -> None:
    ports[0].faults.append(answers(b"{}", 202))
    async with client_of(ports, doctor, settings=IMPATIENT) as client:
        await client.network()
    assert len(ports[1].requests) == 1


async def test_one_whose_time_is_over_is_still_asked_for(ports: list[Port], doctor: Wallet) -> None:
    async with client_of(ports, doctor) as client:
        transaction, bodies = signed(client)
        committed = await client.submit_signed(transaction.data, bodies)
    async with client_of(ports, doctor, now_ms=lambda: NOW_MS + 3_600_000) as late:
        assert await late.submit_signed(transaction.data, bodies) == committed
    assert ports[0].requests[-1].endswith("wait_ms=1000")


async def test_committed_is_not_enough_for_who_waits_for_the_seal(ports: list[Port], doctor: Wallet) -> None:
    ports[0].faults.append(answers(said(id="00", status="committed", height=9, index=0, code="ok")))
    async with client_of(ports, doctor) as client:
        committed = await client.transact(*addition("sealed"), wait="sealed")
    assert committed.height == ports[1].backend.status(committed.id).height != 9


async def test_a_committed_failure_is_told_with_its_code_and_height(ports: list[Port], doctor: Wallet) -> None:
    async with client_of(ports, doctor) as client:
        await client.transact(*addition("twice"))
        with pytest.raises(TransactionFailed) as caught:
            await client.transact(*addition("twice"))
    assert caught.value.code == "record_exists"
    assert ports[0].backend.status(caught.value.id).height == caught.value.height


async def test_submitting_again_what_was_committed_gives_the_same_answer(ports: list[Port], doctor: Wallet) -> None:
    async with client_of(ports, doctor) as client:
        transaction, bodies = signed(client)
        first = await client.submit_signed(transaction.data, bodies)
        assert await client.submit_signed(transaction.data, bodies) == first


async def test_a_refusal_of_form_ends_it_at_the_first_node(ports: list[Port], doctor: Wallet) -> None:
    ports[0].faults.append(refuses("unknown_action", 400))
    async with client_of(ports, doctor) as client:
        with pytest.raises(Refused, match="unknown_action") as caught:
            await client.transact(*addition("form"))
    assert (caught.value.status, len(ports[0].requests), ports[1].requests) == (400, 1, [])


async def test_who_is_unknown_to_one_node_may_be_known_to_the_next(ports: list[Port], doctor: Wallet) -> None:
    ports[0].faults.append(refuses("unregistered", 403))
    async with client_of(ports, doctor) as client:
        committed = await client.transact(*addition("behind"))
    assert ports[1].backend.status(committed.id).code == "ok"


async def test_who_is_unknown_to_every_node_is_refused(ports: list[Port], tmp_path: Path) -> None:
    before = height_of(ports[0])
    async with client_of(ports, make_wallet(tmp_path, "stranger")) as client:
        with pytest.raises(Refused, match="unregistered"):
            await client.transact(*addition("nobody"))
    assert height_of(ports[0]) == before
    assert [len([each for each in port.requests if each.startswith("POST")]) for port in ports] == [1, 1]


async def test_a_refusal_by_the_state_that_the_transaction_itself_made_is_no_refusal(
    ports: list[Port], doctor: Wallet
) -> None:
    """It was committed by an attempt whose answer was lost, and then the signer's key changed."""
    async with client_of(ports, doctor) as client:
        transaction, bodies = signed(client)
        committed = await client.submit_signed(transaction.data, bodies)
        ports[0].faults.append(refuses("wrong_signer", 403))
        assert await client.submit_signed(transaction.data, bodies) == committed
    assert ports[0].requests[-1] == f"GET /v1/transactions/{transaction.id.hex()}"


async def test_what_a_node_may_hold_is_not_given_up_on_a_refusal(ports: list[Port], doctor: Wallet) -> None:
    ports[0].faults.append(loses_the_request)
    ports[1].faults.append(refuses("bad_structure", 400))
    async with client_of(ports, doctor) as client:
        committed = await client.transact(*addition("held"))
    assert ports[0].backend.status(committed.id).code == "ok"


@pytest.mark.parametrize(
    ("retry_after", "pause_s"), [("1", 1.0), ("3600", RETRY_AFTER_MAX_S), ("soon", 0.0), (None, 0.0)]
)
async def test_a_full_pool_is_asked_again_no_sooner_than_it_says(
    ports: list[Port],
    doctor: Wallet,
    retry_after: str | None,
    pause_s: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paused: list[float] = []
    sleep = asyncio.sleep

    async def note(seconds: float) -> None:
        paused.append(seconds)
        await sleep(0)

    for port in ports:
        port.faults.append(refuses("pool_full", 503, retry_after))
    monkeypatch.setattr(asyncio, "sleep", note)
    async with client_of(ports, doctor) as client:
        await client.transact(*addition("full"))
    pauses = [seconds for seconds in paused if seconds > 0]
    assert len(pauses) == 1
    assert pauses[0] == pause_s if pause_s else pauses[0] < 0.01


async def test_a_node_that_is_not_ready_is_asked_again_also_where_there_is_no_other(
    ports: list[Port], doctor: Wallet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power loss it cannot tell for a moment who is enrolled, and says so instead of `unregistered`."""
    paused: list[float] = []
    sleep = asyncio.sleep

    async def note(seconds: float) -> None:
        paused.append(seconds)
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", note)
    refused = said(status="refused", code="not_ready", detail="executing its log")
    ports[0].faults += [refuses("not_ready", 503, "1"), answers(refused), refuses("not_ready", 503, "1")]
    async with client_of(ports[:1], doctor) as client:
        committed = await client.transact(*addition("not ready"))
    assert ports[0].backend.status(committed.id).code == "ok"
    # None asks for a status: the refusal says nothing of the transaction.
    assert {request.partition("?")[0] for request in ports[0].requests} == {"POST /v1/transactions"}
    assert [seconds for seconds in paused if seconds >= 1.0] == [1.0, 1.0]


@pytest.mark.parametrize(
    "fault",
    [
        refuses("internal", 500),
        answers(b"<html>", 502),
        answers(b"{}"),
        answers(b"\xff"),
        answers(said(status="lost")),
    ],
)
async def test_a_node_that_makes_no_sense_is_passed_over(ports: list[Port], doctor: Wallet, fault: Fault) -> None:
    ports[0].faults.append(fault)
    async with client_of(ports, doctor) as client:
        committed = await client.transact(*addition("sense"))
    assert ports[1].backend.status(committed.id).code == "ok"
    assert len(ports[1].requests) == 1


async def test_a_refusal_inside_a_list_is_a_refusal(ports: list[Port], doctor: Wallet) -> None:
    ports[0].faults.append(answers(said(id=None, status="refused", code="bad_structure", detail="why")))
    async with client_of(ports, doctor) as client:
        with pytest.raises(Refused, match="bad_structure: why"):
            await client.transact(*addition("listed"))


async def test_dropped_is_certain(ports: list[Port], doctor: Wallet) -> None:
    ports[0].faults.append(answers(said(id="00", status="dropped")))
    async with client_of(ports, doctor) as client:
        with pytest.raises(TransactionExpired, match="expired"):
            await client.transact(*addition("dropped"))


class Clock:
    """Runs `step_ms` at each look."""

    def __init__(self, step_ms: int) -> None:
        self.now = NOW_MS
        self.step_ms = step_ms

    def __call__(self) -> int:
        self.now += self.step_ms
        return self.now


async def test_what_nobody_can_tell_is_unknown_and_carries_its_id(ports: list[Port], doctor: Wallet) -> None:
    for port in ports:
        port.faults += [answers(said(id="00", status="pending"))] * 100
    async with client_of(ports, doctor, Clock(20_000)) as client:
        transaction, bodies = signed(client)
        with pytest.raises(OutcomeUnknown, match="outcome_unknown") as caught:
            await client.submit_signed(transaction.data, bodies)
    assert caught.value.id == transaction.id


async def test_what_never_reached_a_node_is_not_unknown(doctor: Wallet) -> None:
    async with client_of([await closed_url()], doctor, Clock(20_000)) as client:
        with pytest.raises(Unreachable, match="unreachable"):
            await client.transact(*addition("nowhere"))


async def test_a_request_that_may_have_arrived_leaves_the_outcome_unknown(ports: list[Port], doctor: Wallet) -> None:
    ports[0].faults += [loses_the_request] * 100
    async with client_of(ports[:1], doctor, Clock(40_000)) as client:
        with pytest.raises(OutcomeUnknown):
            await client.transact(*addition("lost"))


async def test_bodies_that_are_not_its_own_are_refused_before_anything_is_sent(
    ports: list[Port], doctor: Wallet
) -> None:
    async with client_of(ports, doctor) as client:
        transaction, _ = signed(client)
        for bodies in ([], [b"another"]):
            with pytest.raises(Rejection, match="body_mismatch"):
                await client.submit_signed(transaction.data, bodies)
    assert ports[0].requests == []


async def test_fifty_in_flight_all_arrive(ports: list[Port], doctor: Wallet) -> None:
    async with client_of(ports, doctor) as client:
        committed = await asyncio.gather(*(client.transact(*addition(f"many {number}")) for number in range(50)))
    assert len({(each.height, each.index) for each in committed}) == 50


async def test_a_status_that_makes_no_sense_is_no_status(ports: list[Port], doctor: Wallet) -> None:
    ports[0].faults += [refuses("expired", 409), answers(b"[]")]
    async with client_of(ports, doctor) as client:
        committed = await client.transact(*addition("status"))
    assert ports[1].backend.status(committed.id).code == "ok"
    assert len(ports[1].requests) == 1


async def test_committed_without_a_place_is_not_believed(ports: list[Port], doctor: Wallet) -> None:
    ports[0].faults.append(answers(said(id="00", status="committed", code="ok")))
    async with client_of(ports, doctor) as client:
        with pytest.raises(OutcomeUnknown, match="not where"):
            await client.transact(*addition("nowhere"))


@pytest.mark.parametrize("codes", [("pruned", "pruned"), ("pruned", "expired"), ("expired", "pruned")])
async def test_late_and_forgotten_by_a_node_is_an_unknown_outcome(
    ports: list[Port], doctor: Wallet, codes: tuple[str, str]
) -> None:
    """A node that pruned cannot tell it from what never happened; every other node is asked before that is said."""
    for port, code in zip(ports, codes, strict=True):
        port.faults.append(refuses(code, 410))
    async with client_of(ports, doctor) as client:
        transaction, bodies = signed(client)
    async with client_of(ports, doctor, now_ms=lambda: NOW_MS + 3_600_000) as late:
        with pytest.raises(OutcomeUnknown, match="pruned") as caught:
            await late.submit_signed(transaction.data, bodies)
    assert caught.value.id == transaction.id
    assert [len(port.requests) for port in ports] == [2, 2]


async def test_late_and_forgotten_by_one_node_is_found_at_the_next(ports: list[Port], doctor: Wallet) -> None:
    async with client_of(ports, doctor) as client:
        transaction, bodies = signed(client)
        committed = await client.submit_signed(transaction.data, bodies)
    for port in ports:
        port.requests.clear()
    # The first node forgot it: asked to take it, it refuses, and of its status it knows nothing.
    forgotten = json.dumps({"id": transaction.id.hex(), "status": "unknown", "known_since": NOW_MS}).encode()
    ports[0].faults += [refuses("pruned", 410), answers(forgotten)]
    async with client_of(ports, doctor, now_ms=lambda: NOW_MS + 3_600_000) as late:
        assert await late.submit_signed(transaction.data, bodies) == committed
    assert [len(port.requests) for port in ports] == [2, 1]


async def test_late_and_expired_at_every_node_is_refused(ports: list[Port], doctor: Wallet) -> None:
    async with client_of(ports, doctor) as client:
        transaction, bodies = signed(client)
    ports[0].backend.clock_ms = ports[1].backend.clock_ms = NOW_MS + 3_600_000
    async with client_of(ports, doctor, now_ms=lambda: NOW_MS + 3_600_000) as late:
        with pytest.raises(Refused, match="expired"):
            await late.submit_signed(transaction.data, bodies)


async def test_a_pruned_node_says_since_when_it_knows(ports: list[Port], doctor: Wallet) -> None:
    forgotten = json.dumps({"id": "00" * 32, "status": "unknown", "known_since": NOW_MS}).encode()
    ports[0].faults.append(answers(forgotten))
    async with client_of(ports, doctor) as client:
        assert await client.status(bytes(32)) == TxStatus("unknown", known_since=NOW_MS)
