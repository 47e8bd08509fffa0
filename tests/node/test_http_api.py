"""The provider port over a real socket, a real store and real admission; consensus is a method call."""

import asyncio
import base64
import io
import json
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import msgpack
import msgspec
import pytest
import pytest_asyncio
from yarl import URL

from ledger.block import decode_block
from ledger.encoding import decode, encode
from ledger.finality import decode_certificate
from ledger.genesis import decode_genesis, genesis_from_json
from ledger.keys import sha256
from ledger.receipt import verify_receipt, verify_state_answer
from ledger.request import sign_request
from ledger.transaction import TRANSACTION, Transaction, body_commitment
from node import http_api
from node.config import ProviderSection
from node.http_api import ENDPOINTS, SUBMIT_BATCH, provider_port
from node.http_types import ITEMS_MAX, BlocksAnswer, NetworkView, RecordsAnswer
from node.problems import PROBLEMS
from tests.ledger.founding import (
    GENESIS,
    NOW_MS,
    account_of,
    addition,
    make_genesis,
    registration,
    revocation,
    rotation,
    sign,
    signing_key,
)
from tests.node.fake_backend import FakeBackend
from tests.storage.chains import body_of, doctor, record

MSGPACK = "application/msgpack"
REQUEST_BYTES_MAX = 2 * 1024 * 1024
SUBJECT = sha256(b"subject").hex()


class Port:
    """A client of one running port. `ask` gives (status, headers, body)."""

    def __init__(self, url: str, session: aiohttp.ClientSession, backend: FakeBackend) -> None:
        self.url = url
        self.session = session
        self.backend = backend

    async def ask(
        self, method: str, path: str, *, signer: str | None = None, key: str | None = None, **options: Any
    ) -> tuple[int, Any, bytes]:
        headers = dict(options.pop("headers", {}))
        if signer is not None:
            headers["Authorization"] = sign_request(
                signing_key(key or signer),
                account_of(signer),
                self.backend.node_id,
                method,
                path,
                b"",
                self.backend.clock_ms,
            )
        target = URL(self.url + path, encoded=True)
        async with self.session.request(method, target, headers=headers, **options) as answer:
            return answer.status, answer.headers, await answer.read()

    async def get(self, path: str, **options: Any) -> Any:
        status, headers, body = await self.ask("GET", path, **options)
        assert status == 200, body
        assert headers["Content-Type"].startswith("application/json")
        return json.loads(body)

    async def bytes_of(self, path: str, accept: str = MSGPACK, **options: Any) -> bytes:
        status, headers, body = await self.ask("GET", path, headers={"Accept": accept}, **options)
        assert (status, headers["Content-Type"]) == (200, accept)
        return body

    async def problem(self, method: str, path: str, **options: Any) -> str:
        """The code of an answer that is an error, once everything about its form was checked."""
        status, headers, body = await self.ask(method, path, **options)
        assert headers["Content-Type"] == "application/problem+json"
        problem = json.loads(body)
        assert (status, problem["title"]) == PROBLEMS[problem["code"]]
        assert problem["status"] == status
        assert problem["type"] == "about:blank"
        assert ("Retry-After" in headers) == (problem["code"] in {"pool_full", "busy", "not_ready", "not_sealed"})
        assert ("WWW-Authenticate" in headers) == (status == 401)
        return str(problem["code"])

    async def send(self, *transactions: Transaction, wait: str = "accepted", bodies: Any = ()) -> Any:
        """Submit a list; the results."""
        items = [item(each, bodies) for each in transactions]
        status, _, body = await self.post(items, wait)
        assert status == 200, body
        return json.loads(body)["results"]

    async def post(self, content: Any, wait: str = "accepted", content_type: str = MSGPACK) -> tuple[int, Any, bytes]:
        return await self.ask("POST", f"/v1/transactions?wait={wait}", **posted(content, content_type))

    async def refusal(self, content: Any, content_type: str = MSGPACK) -> str:
        """The code by which a submission of one is refused; nothing may stay of it."""
        heights, waiting = self.backend.heights(), len(self.backend.pool)
        code = await self.problem("POST", "/v1/transactions", **posted(content, content_type))
        assert (self.backend.heights(), len(self.backend.pool)) == (heights, waiting)
        return code


async def raw(port: Port, request: bytes) -> bytes:
    """The whole answer to bytes that a client library would not send."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(port.url.rpartition(":")[2]))
    writer.write(request)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


def item(transaction: Transaction, bodies: Any = ()) -> dict[str, Any]:
    return {"envelope": transaction.data, "bodies": list(bodies)}


def posted(content: Any, content_type: str) -> dict[str, Any]:
    data = content if isinstance(content, bytes) else msgpack.packb(content)
    return {"data": data, "headers": {"Content-Type": content_type}}


@pytest_asyncio.fixture
async def port() -> AsyncIterator[Port]:
    backend = FakeBackend(GENESIS)
    settings = ProviderSection(port=0, request_bytes_max=REQUEST_BYTES_MAX, wait_ms_max=1_500)
    async with provider_port(backend, settings) as number, aiohttp.ClientSession() as session:
        yield Port(f"http://127.0.0.1:{number}", session, backend)


@pytest_asyncio.fixture
async def recorded(port: Port) -> Port:
    """With a clinician "doctor" and three records of one subject, committed and sealed."""
    await port.send(doctor())
    port.backend.commit()
    for name in ("one", "two", "three"):
        await port.send(record(name), bodies=[body_of(name)])
        port.backend.commit()
    return port


# Submission.


@pytest.mark.asyncio
async def test_a_transaction_is_accepted_then_committed_then_sealed(port: Port) -> None:
    transaction = doctor()
    (accepted,) = await port.send(transaction)
    assert accepted == {"id": transaction.id.hex(), "status": "pending"}
    assert await port.get(f"/v1/transactions/{transaction.id.hex()}") == accepted
    port.backend.commit()
    assert await port.get(f"/v1/transactions/{transaction.id.hex()}") == {
        "id": transaction.id.hex(),
        "status": "sealed",
        "height": 1,
        "index": 0,
        "code": "ok",
    }


@pytest.mark.asyncio
@pytest.mark.parametrize("wait", ["committed", "sealed"])
async def test_an_answer_waits_for_the_commit(port: Port, wait: str) -> None:
    asked = asyncio.create_task(port.send(doctor(), wait=wait))
    await port.backend.waiting.wait()
    assert not asked.done()
    port.backend.commit()
    (result,) = await asked
    assert (result["status"], result["code"]) == ("sealed", "ok")
    assert port.backend.timeouts_s == [1.5]


@pytest.mark.asyncio
async def test_what_failed_in_its_block_is_committed_with_its_code(port: Port) -> None:
    await port.send(doctor(), sign([registration("nurse", "auditor")], by="doctor"), wait="accepted")
    port.backend.commit()
    late = sign([registration("nurse", "auditor")], by="doctor")
    await port.send(late)
    port.backend.commit()
    result = await port.get(f"/v1/transactions/{late.id.hex()}")
    assert (result["status"], result["code"]) == ("sealed", "not_admin")


@pytest.mark.asyncio
async def test_the_same_bytes_again_change_nothing(port: Port) -> None:
    transaction = doctor()
    await port.send(transaction)
    await port.send(transaction)
    assert len(port.backend.pool) == 1
    port.backend.commit()
    (replayed,) = await port.send(transaction, wait="sealed")
    assert (replayed["status"], replayed["height"]) == ("sealed", 1)
    assert len(port.backend.pool) == 0


@pytest.mark.asyncio
async def test_json_carries_bytes_as_base64(port: Port) -> None:
    await port.send(doctor())
    port.backend.commit()
    transaction, body = record("one"), body_of("one")
    content = {
        "envelope": base64.b64encode(transaction.data).decode(),
        "bodies": [base64.b64encode(body).decode()],
    }
    status, _, answer = await port.post(json.dumps(content).encode(), content_type="application/json")
    assert (status, json.loads(answer)["results"][0]["id"]) == (200, transaction.id.hex())
    assert port.backend.pool.body(body_commitment(body)) == body


@pytest.mark.asyncio
async def test_a_list_has_a_result_for_each_in_order(port: Port) -> None:
    good, bad = doctor(), sign([registration("nobody", "patient")], by="stranger")
    refused, accepted, broken = await port.send(bad, good, Transaction(good.envelope, b"", b"", b"\xc1", b"", b""))
    assert (refused["id"], refused["status"], refused["code"]) == (None, "refused", "unregistered")
    assert accepted == {"id": good.id.hex(), "status": "pending"}
    assert (broken["status"], broken["code"]) == ("refused", "not_canonical")


@pytest.mark.asyncio
async def test_a_long_list_leaves_the_loop_to_others(port: Port) -> None:
    transactions = [doctor() for _ in range(2 * SUBMIT_BATCH + 1)]
    results = await port.send(*transactions)
    assert [result["id"] for result in results] == [each.id.hex() for each in transactions]
    assert port.backend.batches == [SUBMIT_BATCH, SUBMIT_BATCH, 1]


# Bad input: one code each, and nothing recorded.


def resigned(**changes: Any) -> bytes:
    """A valid transaction's bytes with fields of its envelope changed, signed again by the same key."""
    fields = {**msgspec.to_builtins(doctor().envelope, builtin_types=(bytes,)), **changes}
    body = encode(fields)
    signature = signing_key("north-admin").sign(TRANSACTION, sha256(body))
    return encode({"body": body, "signature": signature})


def wire(transaction: Transaction) -> dict[str, Any]:
    value: dict[str, Any] = decode(transaction.data, 65_536)
    return value


def flipped_signature() -> bytes:
    parts = wire(doctor())
    return encode({**parts, "signature": bytes(64)})


def long_form() -> bytes:
    """The same map with a 32-bit length where a shorter one does."""
    body: bytes = wire(doctor())["body"]
    return b"\x82\xa4body\xc6" + len(body).to_bytes(4, "big") + body + b"\xa9signature\xc4\x40" + bytes(64)


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "unsigned": (lambda: encode({"body": wire(doctor())["body"]}), "unsigned"),
    "empty signature": (lambda: encode({**wire(doctor()), "signature": b""}), "unsigned"),
    "bad signature": (flipped_signature, "bad_signature"),
    "another's key": (lambda: resigned(key=signing_key("south-admin").public), "wrong_signer"),
    "another chain": (lambda: resigned(chain=make_genesis("other").chain_id()), "wrong_chain"),
    "expired": (lambda: resigned(until=NOW_MS - 1), "expired"),
    "until too far": (lambda: resigned(until=NOW_MS + 600_001), "until_too_far"),
    "unknown format": (lambda: resigned(format=2), "unknown_format"),
    "unknown action": (lambda: resigned(actions=[{"do": "member.promote"}]), "unknown_action"),
    "unknown field": (lambda: resigned(surprise=1), "bad_structure"),
    "no actions": (lambda: resigned(actions=[]), "bad_structure"),
    "unregistered": (lambda: sign([registration("x", "patient")], by="stranger").data, "unregistered"),
    "oversized": (lambda: b"\xc6" + (70_000).to_bytes(4, "big") + bytes(70_000), "too_large"),
    "trailing bytes": (lambda: doctor().data + b"\x00", "not_canonical"),
    "key order": (
        lambda: msgpack.packb({"signature": bytes(64), "body": wire(doctor())["body"]}),
        "not_canonical",
    ),
    "duplicate key": (lambda: b"\x82\xa4body\xc0\xa4body\xc0", "not_canonical"),
    "long form": (long_form, "not_canonical"),
    "float": (lambda: msgpack.packb({"body": 1.5}), "not_canonical"),
    "extension type": (lambda: msgpack.packb({"body": msgpack.ExtType(1, b"x")}), "not_canonical"),
    "depth": (lambda: b"\x91" * 100 + b"\xc0", "not_canonical"),
    "nothing": (lambda: b"", "not_canonical"),
}


@pytest.mark.asyncio
@pytest.mark.parametrize("name", BAD)
async def test_bad_input_is_refused_with_its_code(port: Port, name: str) -> None:
    make, code = BAD[name]
    assert await port.refusal({"envelope": make()}) == code


@pytest.mark.asyncio
async def test_revoked_and_rotated_members_are_refused(recorded: Port) -> None:
    await recorded.send(sign([rotation("doctor", "doctor-2", 1)], by="doctor"))
    recorded.backend.commit()
    assert await recorded.refusal(item(record("four"), [body_of("four")])) == "wrong_signer"
    await recorded.send(sign([revocation("doctor", 2)], by="north-admin"))
    recorded.backend.commit()
    last = sign([addition("five")], by="doctor", key="doctor-2", bodies=[body_of("five")])
    assert await recorded.refusal(item(last, [body_of("five")])) == "revoked"


@pytest.mark.asyncio
@pytest.mark.parametrize("bodies", [[], [b"another body"], [body_of("four"), b"one more"]])
async def test_a_body_that_is_not_the_one_named_is_refused(recorded: Port, bodies: list[bytes]) -> None:
    assert await recorded.refusal(item(record("four"), bodies)) == "body_mismatch"


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("content", "content_type", "code"),
    [
        (b"\xc1", MSGPACK, "bad_request"),
        (b"", MSGPACK, "bad_request"),
        ({"envelope": "text"}, MSGPACK, "bad_request"),
        ({"envelope": b"", "surprise": 1}, MSGPACK, "bad_request"),
        ([], MSGPACK, "bad_request"),
        ([{"envelope": b""}] * (ITEMS_MAX + 1), MSGPACK, "bad_request"),
        ({"envelope": b"", "bodies": [b""] * 65}, MSGPACK, "bad_request"),
        (b'{"envelope": "not base64!"}', "application/json", "bad_request"),
        (b"[" * 100_000, "application/json", "bad_request"),
        (b"\x91" * 100_000, MSGPACK, "bad_request"),
        (b"envelope=1", "application/x-www-form-urlencoded", "unsupported_media_type"),
        (b"{}", "text/plain", "unsupported_media_type"),
    ],
)
async def test_a_malformed_submission_is_refused(port: Port, content: Any, content_type: str, code: str) -> None:
    assert await port.refusal(content, content_type) == code


@pytest.mark.asyncio
async def test_an_oversized_request_is_refused(port: Port) -> None:
    options = posted(b"", MSGPACK) | {"data": io.BytesIO(bytes(REQUEST_BYTES_MAX + 1))}
    assert await port.problem("POST", "/v1/transactions", **options) == "too_large"


@pytest.mark.asyncio
async def test_an_oversized_body_without_a_length_is_cut_off(port: Port) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(REQUEST_BYTES_MAX // 65_536 + 2):
            yield bytes(65_536)

    options: dict[str, Any] = {"data": chunks(), "headers": {"Content-Type": MSGPACK}}
    assert await port.problem("POST", "/v1/transactions", **options) == "too_large"


@pytest.mark.asyncio
async def test_a_compressed_body_is_refused(port: Port) -> None:
    headers = {"Content-Type": MSGPACK, "Content-Encoding": "gzip"}
    options: dict[str, Any] = {"data": b"\x1f\x8b", "headers": headers}
    assert await port.problem("POST", "/v1/transactions", **options) == "unsupported_media_type"


@pytest.mark.asyncio
async def test_refusals_quote_nothing_of_the_request(port: Port) -> None:
    secret = "Maria Schneider"
    for content in ({"envelope": b"", secret: 1}, [{"envelope": b"", "bodies": {secret: secret}}]):
        _, _, body = await port.post(content)
        assert b"Schneider" not in body
    for path in (f"/v1/blocks?{secret}={secret}", f"/v1/state/{secret}/{secret}", f"/{secret}"):
        _, _, body = await port.ask("GET", path.replace(" ", "%20"))
        assert b"Schneider" not in body
    _, _, body = await port.ask("POST", "/v1/transactions?wait=Schneider")
    assert b"Schneider" not in body


@pytest.mark.asyncio
async def test_what_is_not_http_is_not_quoted_either(
    port: Port, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    answer = await raw(port, b"GET /v1/blocks?Maria Schneider HTTP/1.1\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"application/problem+json" in answer
    assert b'"code":"bad_request"' in answer
    printed = capsys.readouterr()
    assert "Schneider" not in answer.decode() + printed.out + printed.err + caplog.text
    assert "request_unreadable" in printed.out + printed.err


@pytest.mark.asyncio
async def test_a_full_pool_says_when_to_come_back() -> None:
    backend = FakeBackend(GENESIS, pool_transactions_max=2)
    async with (
        provider_port(backend, ProviderSection(port=0)) as number,
        aiohttp.ClientSession() as session,
    ):
        port = Port(f"http://127.0.0.1:{number}", session, backend)
        accepted, refused = await port.send(doctor(), doctor())
        assert accepted["status"] == "pending"
        assert (refused["status"], refused["code"]) == ("refused", "pool_full")
        assert await port.refusal(item(doctor())) == "pool_full"
        assert await port.refusal([item(doctor()), item(doctor())]) == "pool_full"


@pytest.mark.asyncio
async def test_too_many_at_once_are_told_so(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_api, "WAITS_MAX", 1)
    waiting = asyncio.create_task(port.send(doctor(), wait="committed"))
    await port.backend.waiting.wait()
    options = posted(item(doctor()), MSGPACK)
    assert await port.problem("POST", "/v1/transactions?wait=committed", **options) == "busy"
    port.backend.commit()
    await waiting
    (result,) = await port.send(doctor(), wait="committed")
    assert result["status"] == "pending" or result["code"] is not None


# Reads.


@pytest.mark.asyncio
async def test_a_receipt_verifies_offline(recorded: Port) -> None:
    block = await recorded.get("/v1/blocks/1")
    tx_id = block["transactions"][0]["id"]
    path = f"/v1/transactions/{tx_id}/receipt"
    receipt = await recorded.bytes_of(path)
    verified = verify_receipt(receipt, GENESIS)
    assert (verified.id.hex(), verified.code, verified.height) == (tx_id, "ok", 1)
    view = await recorded.get(path, headers={"Accept": "application/json"})
    assert base64.b64decode(view["receipt"]) == receipt
    assert view["content"]["result"]["id"] == tx_id
    assert view["content"]["seal"]["header"]["history_root"]
    _, headers, _ = await recorded.ask("GET", path)
    assert headers["Content-Type"] == MSGPACK


@pytest.mark.asyncio
async def test_a_receipt_before_its_time_is_refused(port: Port) -> None:
    unknown = "00" * 32
    assert await port.problem("GET", f"/v1/transactions/{unknown}/receipt") == "unknown_transaction"
    assert await port.get(f"/v1/transactions/{unknown}") == {"id": unknown, "status": "unknown"}
    assert await port.problem("GET", "/v1/state/identity/account/ab?proof=1") == "not_sealed"
    transaction = doctor()
    port.backend.append(port.backend.chain.seal(transaction), {})
    assert await port.problem("GET", f"/v1/transactions/{transaction.id.hex()}/receipt") == "not_sealed"


@pytest.mark.asyncio
async def test_blocks_are_shown_and_given_as_stored(recorded: Port) -> None:
    stored = recorded.backend.block(3)
    assert stored is not None
    view = await recorded.get("/v1/blocks/3")
    assert view["hash"] == stored.block.hash.hex()
    assert view["header"]["parent"] == (await recorded.get("/v1/blocks/2"))["hash"]
    (shown,) = view["transactions"]
    (transaction,) = stored.block.transactions
    assert shown["envelope"]["actions"][0]["do"] == "record.add"
    assert shown["envelope"]["by"] == account_of("doctor").hex()
    assert shown["hash"] == transaction.hash.hex()
    assert len(view["certificate"]["signatures"]) == 2
    data = await recorded.bytes_of("/v1/blocks/3")
    assert decode_block(data, REQUEST_BYTES_MAX).hash == stored.block.hash


@pytest.mark.asyncio
async def test_blocks_come_in_pages(recorded: Port) -> None:
    seen: list[int] = []
    following: int | None = 1
    while following is not None:
        _, _, body = await recorded.ask("GET", f"/v1/blocks?from={following}&limit=3")
        page = msgspec.json.decode(body, type=BlocksAnswer)
        assert len(page.blocks) <= 3
        seen += [block.height for block in page.blocks]
        following = page.next
    assert seen == list(range(1, 9))
    rows = decode(await recorded.bytes_of("/v1/blocks?from=7&limit=1"), REQUEST_BYTES_MAX)
    assert rows["next"] == 8
    (row,) = rows["blocks"]
    assert decode_certificate(row["certificate"]).hash == decode_block(row["block"], REQUEST_BYTES_MAX).hash


@pytest.mark.asyncio
async def test_a_page_of_large_blocks_is_shorter(recorded: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_api, "BLOCKS_BYTES_MAX", 1)
    page = await recorded.get("/v1/blocks?from=2&limit=5")
    assert [block["height"] for block in page["blocks"]] == [2]
    assert page["next"] == 3


@pytest.mark.asyncio
async def test_state_is_shown_and_proven(recorded: Port) -> None:
    path = f"/v1/state/identity/account/{account_of('doctor').hex()}"
    view = await recorded.get(path)
    assert view["value"]["role"] == "clinician"
    assert view["value"]["key"] == signing_key("doctor").public.hex()
    assert view["height"] == recorded.backend.heights().executed
    answer = await recorded.bytes_of(f"{path}?proof=1")
    verified = verify_state_answer(answer, GENESIS)
    assert verified.key == path.removeprefix("/v1/state/")
    assert verified.value == recorded.backend.state(verified.key)
    shown = await recorded.get(f"{path}?proof=1", headers={"Accept": "application/json"})
    assert base64.b64decode(shown["answer"]) == answer
    assert shown["content"]["value"]["role"] == "clinician"


@pytest.mark.asyncio
async def test_absence_is_proven_too(recorded: Port) -> None:
    path = "/v1/state/identity/account/" + "00" * 32
    assert await recorded.problem("GET", path) == "not_found"
    assert verify_state_answer(await recorded.bytes_of(f"{path}?proof=1"), GENESIS).value is None


@pytest.mark.asyncio
async def test_genesis_comes_in_both_views(port: Port) -> None:
    _, _, text = await port.ask("GET", "/v1/genesis")
    assert genesis_from_json(text.decode()) == GENESIS
    assert decode_genesis(await port.bytes_of("/v1/genesis")) == GENESIS


@pytest.mark.asyncio
async def test_the_network_is_shown(recorded: Port) -> None:
    _, _, body = await recorded.ask("GET", "/v1/network")
    view = msgspec.json.decode(body, type=NetworkView)
    assert view == recorded.backend.network()
    assert (view.heights.committed, view.heights.sealed) == (8, 7)


@pytest.mark.asyncio
async def test_health_readiness_and_metrics(port: Port) -> None:
    assert await port.get("/healthz") == {"status": "ok"}
    assert await port.get("/readyz") == {"status": "ready"}
    port.backend.not_ready = "catching up"
    assert await port.problem("GET", "/readyz") == "not_ready"
    assert await port.get("/healthz") == {"status": "ok"}
    _, headers, body = await port.ask("GET", "/metrics")
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert b'carequorum_http_requests_total{endpoint="/readyz",status="503"} 1.0' in body


@pytest.mark.asyncio
async def test_what_clients_choose_makes_no_metric(port: Port) -> None:
    for path in ("/v1/blocks/1", "/v1/blocks/77", "/nowhere", "/elsewhere", "/v1/state/identity/x"):
        await port.ask("GET", path)
    _, _, body = await port.ask("GET", "/metrics")
    endpoints = set(re.findall(rb'http_requests_total\{endpoint="([^"]+)"', body))
    assert endpoints == {b"/v1/blocks/{height}", b"none", b"/v1/state/{contract}/{key}"}


# Reads that are linked to a subject.

SIGNED = [
    f"/v1/records?subject={SUBJECT}",
    f"/v1/bodies/{body_commitment(body_of('one')).hex()}",
    f"/v1/state/records/subject/{SUBJECT}",
    f"/v1/state/records/subject/{SUBJECT}?proof=1",
    f"/v1/state/%72ecords/subject/{SUBJECT}",
]


@pytest.mark.asyncio
@pytest.mark.parametrize("path", SIGNED)
async def test_what_is_linked_to_a_subject_needs_a_members_signature(recorded: Port, path: str) -> None:
    assert await recorded.problem("GET", path) == "no_read_request"
    assert await recorded.problem("GET", path, signer="stranger") == "unregistered"
    assert await recorded.problem("GET", path, signer="doctor", key="stranger") == "wrong_signer"
    other = sign_request(
        signing_key("doctor"), account_of("doctor"), "south-1", "GET", path, b"", recorded.backend.clock_ms
    )
    assert await recorded.problem("GET", path, headers={"Authorization": other}) == "bad_read_request"


@pytest.mark.asyncio
async def test_a_revoked_member_reads_no_more(recorded: Port) -> None:
    path = SIGNED[0]
    assert await recorded.get(path, signer="doctor")
    await recorded.send(sign([revocation("doctor", 1)], by="north-admin"))
    recorded.backend.commit()
    assert await recorded.problem("GET", path, signer="doctor") == "revoked"


@pytest.mark.asyncio
async def test_a_read_request_is_good_for_its_time(recorded: Port) -> None:
    value = sign_request(
        signing_key("doctor"),
        account_of("doctor"),
        "north-1",
        "GET",
        SIGNED[0],
        b"",
        recorded.backend.clock_ms,
    )
    recorded.backend.clock_ms += 30_001
    headers = {"Authorization": value}
    assert await recorded.problem("GET", SIGNED[0], headers=headers) == "stale_read_request"


@pytest.mark.asyncio
async def test_two_authorizations_are_none(recorded: Port) -> None:
    value = sign_request(signing_key("doctor"), account_of("doctor"), "north-1", "GET", SIGNED[0], b"", NOW_MS)
    lines = [
        f"GET {SIGNED[0]} HTTP/1.1",
        "Host: node",
        f"Authorization: {value}",
        f"Authorization: {value}",
        "Connection: close",
    ]
    answer = await raw(recorded, "\r\n".join([*lines, "", ""]).encode())
    assert answer.startswith((b"HTTP/1.1 401", b"HTTP/1.1 400"))


@pytest.mark.asyncio
async def test_a_member_gets_the_sealed_body(recorded: Port) -> None:
    body = body_of("two")
    path = f"/v1/bodies/{body_commitment(body).hex()}"
    status, headers, answer = await recorded.ask("GET", path, signer="doctor")
    assert (status, answer) == (200, body)
    assert headers["Content-Type"] == "application/octet-stream"
    assert headers["Cache-Control"] == "no-store"
    assert await recorded.problem("GET", "/v1/bodies/" + "00" * 32, signer="doctor") == "not_found"


@pytest.mark.asyncio
async def test_a_subjects_records_are_newest_first_in_pages(recorded: Port) -> None:
    _, _, body = await recorded.ask("GET", f"/v1/records?subject={SUBJECT}&limit=2", signer="doctor")
    page = msgspec.json.decode(body, type=RecordsAnswer)
    assert [each.record for each in page.records] == [sha256(name).hex() for name in (b"three", b"two")]
    path = f"/v1/records?subject={SUBJECT}&limit=2&before={page.next}"
    _, _, body = await recorded.ask("GET", path, signer="doctor")
    rest = msgspec.json.decode(body, type=RecordsAnswer)
    assert [each.record for each in rest.records] == [sha256(b"one").hex()]
    assert rest.next is None
    assert rest.records[0].body == {
        "commitment": body_commitment(body_of("one")).hex(),
        "size": len(body_of("one")),
    }
    nobody = await recorded.get(f"/v1/records?subject={'00' * 32}", signer="doctor")
    assert nobody == {"records": [], "next": None}


# Malformed requests.


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/", "not_found"),
        ("GET", "/v2/network", "not_found"),
        ("GET", "/v1/blocks/99", "not_found"),
        ("GET", "/v1/blocks/0", "not_found"),
        ("GET", "/v1/blocks/99999999999999999999", "bad_request"),
        ("GET", "/v1/blocks/-1", "bad_request"),
        ("GET", "/v1/blocks/latest", "bad_request"),
        ("GET", "/v1/blocks?from=0", "bad_request"),
        ("GET", "/v1/blocks?limit=101", "bad_request"),
        ("GET", "/v1/blocks?limit=1&limit=2", "bad_request"),
        ("GET", "/v1/blocks?limit=", "bad_request"),
        ("GET", "/v1/blocks?colour=red", "bad_request"),
        ("GET", "/v1/network?verbose=1", "bad_request"),
        ("GET", "/v1/transactions/abc", "bad_request"),
        ("GET", "/v1/transactions/" + "AB" * 32, "bad_request"),
        ("GET", "/v1/transactions/" + "ab" * 32 + "%0A", "bad_request"),
        ("GET", "/v1/state/identity/../records/x", "bad_request"),
        ("GET", "/v1/state/identity/account%00", "bad_request"),
        ("GET", "/v1/state/identity/a?proof=maybe", "bad_request"),
        ("GET", "/v1/state/records%2Fsubject/x", "bad_request"),
        ("POST", "/v1/transactions?wait=forever", "bad_request"),
        ("GET", "/v1/transactions", "method_not_allowed"),
        ("POST", "/v1/network", "method_not_allowed"),
        ("HEAD", "/v1/network", None),
        ("DELETE", "/v1/blocks/1", "method_not_allowed"),
    ],
)
async def test_a_malformed_request_is_refused(port: Port, method: str, path: str, code: str | None) -> None:
    if code is None:
        status, headers, _ = await port.ask(method, path)
        assert (status, headers["Allow"]) == (405, "GET")
    else:
        assert await port.problem(method, path) == code


@pytest.mark.asyncio
async def test_a_get_has_no_body(port: Port) -> None:
    assert await port.problem("GET", "/healthz", data=b"x") == "bad_request"


@pytest.mark.asyncio
async def test_a_fault_ends_its_request_only(
    port: Port, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = "Maria Schneider"

    def fail(tx_id: bytes) -> None:
        raise RuntimeError(secret)

    monkeypatch.setattr(port.backend, "status", fail)
    assert await port.problem("GET", "/v1/transactions/" + "00" * 32) == "internal"
    printed = capsys.readouterr()
    assert "request_failed" in printed.out + printed.err
    assert secret not in printed.out + printed.err
    assert await port.get("/healthz") == {"status": "ok"}


@pytest.mark.asyncio
async def test_an_open_request_is_answered_before_the_port_closes() -> None:
    backend = FakeBackend(GENESIS)
    async with aiohttp.ClientSession() as session:
        async with provider_port(backend, ProviderSection(port=0)) as number:
            port = Port(f"http://127.0.0.1:{number}", session, backend)
            asked = asyncio.create_task(port.send(doctor(), wait="committed"))
            await backend.waiting.wait()
            asyncio.get_running_loop().call_soon(backend.commit)
        assert (await asked)[0]["status"] == "sealed"
        with pytest.raises(aiohttp.ClientConnectorError):
            await port.get("/healthz")


# The documents.

ROOT = Path(__file__).parents[2]


def section(document: str, heading: str) -> str:
    parts = re.split(r"^## ", (ROOT / document).read_text(), flags=re.MULTILINE)
    (text,) = [part for part in parts if part.startswith(f"{heading}\n")]
    return text


def test_every_code_of_the_port_is_documented_with_its_status() -> None:
    rows = re.findall(r"^\| ([0-9]{3}) \| (.+?) \|", section("docs/errors.md", "Node"), re.MULTILINE)
    documented = {code: int(status) for status, codes in rows for code in re.findall(r"`(\w+)`", codes)}
    assert documented == {code: status for code, (status, _) in PROBLEMS.items()}


def test_every_code_has_its_meaning_somewhere() -> None:
    text = (ROOT / "docs/errors.md").read_text()
    explained = set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
    assert set(PROBLEMS) <= explained


def test_every_endpoint_is_documented() -> None:
    text = (ROOT / "docs/api.md").read_text()
    documented = set(re.findall(r"^#+ `(GET|POST) (/[^?`\[]*)", text, re.MULTILINE))
    assert documented == {(each.method, each.path.replace(":.+", "")) for each in ENDPOINTS}
