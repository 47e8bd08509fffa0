"""What comes out: the ledger's facts to anyone, what is linked to a subject to members."""

import base64
import json
import re
from dataclasses import replace
from typing import Any

import msgpack
import msgspec
import pytest

from ledger.block import decode_block
from ledger.encoding import decode
from ledger.finality import decode_certificate
from ledger.genesis import decode_genesis, genesis_from_json
from ledger.keys import sha256
from ledger.receipt import verify_receipt, verify_state_answer
from ledger.request import sign_request
from ledger.transaction import body_commitment
from node import http_api
from node.http_types import BlocksAnswer, NetworkView, RecordsAnswer
from tests.ledger.founding import (
    GENESIS,
    NOW_MS,
    account_of,
    revocation,
    sign,
    signing_key,
)
from tests.node.http_client import MSGPACK, REQUEST_BYTES_MAX, SUBJECT, Port, raw
from tests.storage.chains import body_of, doctor


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
@pytest.mark.parametrize("media", ["application/json", MSGPACK])
async def test_a_saved_receipt_is_put_under_the_newest_seal(recorded: Port, media: str) -> None:
    tx_id = (await recorded.get("/v1/blocks/1"))["transactions"][0]["id"]
    saved = await recorded.bytes_of(f"/v1/transactions/{tx_id}/receipt")
    store = recorded.backend.chain.store
    for _ in range(2):
        recorded.backend.append(recorded.backend.chain.seal(), {})
    store.prune(store.prunable(2))
    assert await recorded.problem("GET", f"/v1/transactions/{tx_id}/receipt") == "pruned"

    def body(receipt: bytes) -> dict[str, Any]:
        packed = {"receipt": receipt if media == MSGPACK else base64.b64encode(receipt).decode()}
        data = msgpack.packb(packed) if media == MSGPACK else json.dumps(packed)
        return {"data": data, "headers": {"Content-Type": media, "Accept": MSGPACK}}

    status, _, data = await recorded.ask("POST", "/v1/receipts/extend", **body(saved))
    assert status == 200, data
    before, after = verify_receipt(saved, GENESIS), verify_receipt(data, GENESIS)
    assert replace(after, seal=before.seal) == before
    assert after.seal.sealed_height == store.sealed_height
    assert await recorded.problem("POST", "/v1/receipts/extend", **body(b"\x80")) == "bad_structure"
    foreign = saved.replace(before.block, b"x" * 32)
    assert await recorded.problem("POST", "/v1/receipts/extend", **body(foreign)) == "bad_receipt"
    text: dict[str, Any] = {"data": saved, "headers": {"Content-Type": "text/plain"}}
    assert await recorded.problem("POST", "/v1/receipts/extend", **text) == "unsupported_media_type"
    empty: dict[str, Any] = {"data": b"", "headers": {"Content-Type": media}}
    assert await recorded.problem("POST", "/v1/receipts/extend", **empty) == "bad_request"


@pytest.mark.asyncio
async def test_a_receipt_before_its_time_is_refused(port: Port) -> None:
    unknown = "00" * 32
    assert await port.problem("GET", f"/v1/transactions/{unknown}/receipt") == "unknown_transaction"
    assert await port.get(f"/v1/transactions/{unknown}") == {"id": unknown, "status": "unknown"}
    assert await port.problem("GET", "/v1/state/identity/account/ab?proof=1") == "not_sealed"
    transaction = doctor()
    await port.send(transaction)
    assert await port.problem("GET", f"/v1/transactions/{transaction.id.hex()}/receipt") == "not_sealed"
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
    port.backend.ails = "amnesia"
    assert await port.get("/readyz") == {"status": "ready", "detail": "amnesia"}
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
@pytest.mark.parametrize("path", SIGNED)
async def test_a_node_that_is_not_ready_calls_nobody_a_stranger(recorded: Port, path: str) -> None:
    recorded.backend.not_ready = "executing its log"
    assert await recorded.problem("GET", path, signer="stranger") == "not_ready"
    assert await recorded.problem("GET", path, signer="doctor", key="stranger") == "not_ready"
    assert await recorded.problem("GET", path) == "no_read_request"


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
    assert answer.startswith(b"HTTP/1.1 401")
    assert b'"code":"bad_read_request"' in answer


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
