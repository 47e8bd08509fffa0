"""What goes in: submissions, good and bad."""

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import msgpack
import msgspec
import pytest
from aiohttp import web

from ledger.encoding import decode, encode
from ledger.keys import sha256
from ledger.transaction import TRANSACTION, UNTIL_AHEAD_MAX_MS, Transaction, body_commitment
from node import http_api
from node.config import ProviderSection
from node.http_api import SUBMIT_BATCH, provider_port
from node.http_types import ITEMS_MAX
from node.readiness import BY_STATE
from tests.ledger.founding import (
    GENESIS,
    NOW_MS,
    addition,
    make_genesis,
    registration,
    revocation,
    rotation,
    sign,
    signing_key,
)
from tests.node.fake_backend import FakeBackend
from tests.node.http_client import MSGPACK, REQUEST_BYTES_MAX, Port, item, posted, raw
from tests.storage.chains import body_of, doctor, record


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
    assert (refused["status"], refused["code"]) == ("refused", "unregistered")
    assert "id" not in refused
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
    assert answer.startswith(b"HTTP/1.0 400")
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
async def test_a_node_that_is_not_ready_refuses_nobody_by_its_state(port: Port) -> None:
    """It may take the same a moment later. What is wrong with the bytes themselves it says as ever."""
    stranger, good = sign([registration("nobody", "patient")], by="stranger"), doctor()
    port.backend.not_ready = "executing its log"
    for name, (make, code) in BAD.items():
        expected = "not_ready" if code in BY_STATE else code
        assert await port.refusal({"envelope": make()}) == expected, name
    assert await port.refusal([item(stranger), item(stranger)]) == "not_ready"
    # Each for itself, where not all are refused for what passes.
    accepted, refused = await port.send(good, stranger)
    assert (accepted["status"], refused["status"], refused["code"]) == ("pending", "refused", "not_ready")
    assert refused["detail"].startswith("executing its log: ")
    broken = Transaction(good.envelope, b"", b"", b"\xc1", b"", b"")
    assert [result["code"] for result in await port.send(stranger, broken)] == ["not_ready", "not_canonical"]
    port.backend.not_ready = None
    assert await port.refusal(item(stranger)) == "unregistered"
    (result,) = await port.send(stranger)
    assert (result["status"], result["code"]) == ("refused", "unregistered")


@pytest.mark.asyncio
async def test_too_many_at_once_are_told_so(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_api, "WAITS_MAX", 1)
    waiting = asyncio.create_task(port.send(doctor(), wait="committed"))
    await port.backend.waiting.wait()
    options = posted(item(doctor()), MSGPACK)
    assert await port.problem("POST", "/v1/transactions?wait=committed", **options) == "busy"
    port.backend.commit()
    await waiting
    # The room is free again; this one is not committed, and the answer says so.
    status, _, body = await port.post([item(doctor())], wait="committed")
    assert (status, json.loads(body)["results"][0]["status"]) == (202, "pending")


@pytest.mark.asyncio
async def test_who_waits_for_a_commit_chooses_how_long_and_is_told_202_when_there_is_none(port: Port) -> None:
    port.backend.committed.set()
    for asked, waited_s in ((None, 1.5), (400, 0.4), (60_000, 1.5)):
        more = "" if asked is None else f"&wait_ms={asked}"
        status, _, body = await port.post([item(doctor()), item(doctor())], wait=f"committed{more}")
        assert status == 202
        assert [result["status"] for result in json.loads(body)["results"]] == ["pending", "pending"]
        assert port.backend.timeouts_s[-2:] == [waited_s, waited_s]
    posting = posted(item(doctor()), MSGPACK)
    assert await port.problem("POST", "/v1/transactions?wait_ms=0", **posting) == "bad_request"


@pytest.mark.asyncio
async def test_uploads_have_a_bound_together(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_api, "UPLOADS_MAX", 1)
    reading, go_on = asyncio.Event(), asyncio.Event()
    read = http_api.ProviderApi._body

    async def tell(api: http_api.ProviderApi, request: web.Request) -> bytes:
        reading.set()
        return await read(api, request)

    async def slowly(data: bytes) -> AsyncIterator[bytes]:
        yield data[:10]
        await go_on.wait()
        yield data[10:]

    monkeypatch.setattr(http_api.ProviderApi, "_body", tell)
    # Without a Content-Length all of the room is set aside for it.
    options: dict[str, Any] = {"headers": {"Content-Type": MSGPACK}}
    first = asyncio.create_task(
        port.ask("POST", "/v1/transactions", data=slowly(msgpack.packb(item(doctor()))), **options)
    )
    await reading.wait()
    assert await port.refusal(item(doctor())) == "busy"
    go_on.set()
    assert (await first)[0] == 200
    assert (await port.send(doctor()))[0]["status"] == "pending"


@pytest.mark.asyncio
async def test_a_body_that_does_not_come_is_not_waited_for(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_api, "BODY_S", 0.0)
    reader, writer = await asyncio.open_connection("127.0.0.1", int(port.url.rpartition(":")[2]))
    lines = ["POST /v1/transactions HTTP/1.1", "Host: node", f"Content-Type: {MSGPACK}", "Content-Length: 9"]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    assert await reader.readline() == b"HTTP/1.1 408 Request Timeout\r\n"
    writer.close()
    await writer.wait_closed()


@pytest.mark.asyncio
async def test_what_a_pruned_node_may_have_forgotten_is_not_called_expired(port: Port) -> None:
    """Its block, and so its id, was pruned: this node cannot tell it from one that no block ever held."""
    transaction = doctor()
    await port.send(transaction)
    port.backend.commit()
    for _ in range(2):
        port.backend.append(port.backend.chain.seal(), {})
    port.backend.clock_ms = transaction.envelope.until + 1
    stranger = sign([registration("nurse", "patient")], by="north-admin", until=transaction.envelope.until)
    assert await port.refusal(item(stranger)) == "expired"
    assert await port.get(f"/v1/transactions/{stranger.id.hex()}") == {"id": stranger.id.hex(), "status": "unknown"}

    store = port.backend.chain.store
    store.prune(store.prunable(store.executed_height))
    since = store.known_since_ms
    assert since == store.roots(store.base.height).time_ms
    for each in (transaction, stranger):
        assert await port.refusal(item(each)) == "pruned"
        told = {"id": each.id.hex(), "status": "unknown", "known_since": since}
        assert await port.get(f"/v1/transactions/{each.id.hex()}") == told
    (result,) = await port.send(transaction)
    assert (result["status"], result["code"]) == ("refused", "pruned")

    # No forgotten block can have held one that reaches further ahead than that.
    assert since is not None
    for ahead_ms, code in ((0, "pruned"), (1, "expired")):
        late = sign([registration("late", "patient")], by="north-admin", until=since + UNTIL_AHEAD_MAX_MS + ahead_ms)
        port.backend.clock_ms = late.envelope.until + 1
        assert await port.refusal(item(late)) == code
