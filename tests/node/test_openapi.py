"""What /openapi.json says is what the port does; `tests/api` holds a running node to it."""

import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest
import schemathesis

from ledger.contracts import ACTION_NAMES
from ledger.contracts.network import Promote
from node.endpoints import ENDPOINTS, EVENTS, JSON, MSGPACK
from node.http_types import SCHEMAS
from node.http_views import state_view
from node.json_types import json_type
from node.openapi import STATE, describe
from node.problems import PROBLEMS
from tests.ledger.founding import GENESIS, Ledger, addition, amendment, new_node, registration, rotation, sign
from tests.node.http_client import SUBJECT, Port, item

DOCUMENT: dict[str, Any] = json.loads(json.dumps(describe(ENDPOINTS)))
PATHS = DOCUMENT["paths"]
COMPONENTS = DOCUMENT["components"]["schemas"]


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    """Every object of the document."""
    if isinstance(value, dict):
        yield value
        for each in value.values():
            yield from nodes(each)
    elif isinstance(value, list):
        for each in value:
            yield from nodes(each)


def schema(name: str) -> jsonschema_rs.Validator:
    return jsonschema_rs.validator_for({"$ref": SCHEMAS + name, "components": DOCUMENT["components"]})


def operation(row_handler: str) -> dict[str, Any]:
    (found,) = [each for path in PATHS.values() for each in path.values() if each["operationId"] == row_handler]
    return dict(found)


def test_it_is_openapi_3_1() -> None:
    schemathesis.openapi.from_dict(DOCUMENT).validate()
    assert DOCUMENT["openapi"].startswith("3.1.")


def test_every_reference_leads_somewhere_and_nothing_is_left_over() -> None:
    named = {each["$ref"] for each in nodes(DOCUMENT) if "$ref" in each}
    there = {SCHEMAS + name for name in COMPONENTS}
    there |= {f"#/components/headers/{name}" for name in DOCUMENT["components"]["headers"]}
    assert named == there


def test_every_schema_is_one() -> None:
    for name in COMPONENTS:
        schema(name)
    for each in nodes(DOCUMENT):
        if isinstance(each.get("pattern"), str):
            assert r"\Z" not in each["pattern"]
            re.compile(each["pattern"])


@pytest.mark.asyncio
async def test_the_port_serves_it(port: Port) -> None:
    assert await port.get("/openapi.json") == DOCUMENT


def test_every_endpoint_is_there_with_its_parameters_answers_and_codes() -> None:
    described = {(method.upper(), path) for path, methods in PATHS.items() for method in methods}
    assert described == {(row.method, row.template) for row in ENDPOINTS}
    for row in ENDPOINTS:
        found = PATHS[row.template][row.method.lower()]
        in_path = set(re.findall(r"{(\w+)}", row.template))
        assert {each["name"] for each in found["parameters"] if each["in"] == "path"} == in_path
        assert all(each["required"] for each in found["parameters"] if each["in"] == "path")
        assert all(each["description"] for each in found["parameters"])
        assert list(found["responses"]["200"]["content"]) == [answer.media for answer in row.answers]
        codes = {
            code: int(status)
            for status, response in found["responses"].items()
            if status not in ("200", "202")
            for code in response["content"]["application/problem+json"]["schema"]["allOf"][1]["properties"]["code"][
                "enum"
            ]
        }
        assert codes == {code: PROBLEMS[code][0] for code in row.codes}
        assert ("202" in found["responses"]) == (row.late is not None)


def test_every_code_of_the_port_is_some_endpoint_s() -> None:
    used = {code for row in ENDPOINTS for code in row.codes}
    # Kept for nodes that will forget.
    assert set(PROBLEMS) == used


def test_headers_are_described_where_they_come() -> None:
    responses = operation("receipt")["responses"]
    assert "Retry-After" in responses["409"]["headers"]
    assert "Retry-After" not in responses["404"]["headers"]
    assert "WWW-Authenticate" in operation("body")["responses"]["401"]["headers"]
    assert "Allow" in operation("network")["responses"]["405"]["headers"]
    for row in ENDPOINTS:
        for response in operation(row.handler)["responses"].values():
            assert {"Cache-Control", "X-Content-Type-Options"} <= set(response["headers"])


def test_who_must_sign() -> None:
    signed = {row.handler: operation(row.handler).get("security") for row in ENDPOINTS}
    must: list[dict[str, list[str]]] = [{"memberSignature": []}]
    assert {name: security for name, security in signed.items() if security is not None} == {
        "body": must,
        "records": must,
        "state": [{}, *must],
        "events": [{}, *must],
    }


def test_a_submission_is_described_in_both_forms() -> None:
    content = operation("submit")["requestBody"]["content"]
    assert set(content) == {JSON, MSGPACK}
    assert content[JSON]["schema"] != content[MSGPACK]["schema"]
    assert COMPONENTS["Item"]["properties"]["envelope"]["contentEncoding"] == "base64"
    assert COMPONENTS["Item.msgpack"]["properties"]["envelope"]["format"] == "binary"
    validator = schema("Item")
    transaction = sign([registration("n", "patient")], by="north-admin")
    assert validator.is_valid(json.loads(json.dumps({"envelope": "AAAA", "bodies": ["AA==", ""]})))
    for wrong in (
        {},
        {"envelope": "A"},
        {"envelope": 1},
        {"envelope": "", "more": 1},
        {"envelope": "", "bodies": ["x"]},
    ):
        assert not validator.is_valid(wrong)
    assert item(transaction)["envelope"] == transaction.data


def test_every_action_is_described() -> None:
    assert set(COMPONENTS["Action"]["discriminator"]["mapping"]) == ACTION_NAMES


def test_events_are_described_field_by_field() -> None:
    stream = operation("events")["responses"]["200"]["content"][EVENTS]["schema"]
    assert [each["properties"]["event"]["const"] for each in stream["anyOf"]] == ["action", "failed", "cut"]
    (header,) = [each for each in operation("events")["parameters"] if each["in"] == "header"]
    assert header["name"] == "Last-Event-ID"


def test_every_kind_of_state_value_is_described() -> None:
    """By executing every action: what stands in the state afterwards has the form that is promised."""
    ledger = Ledger(GENESIS)
    transactions = [
        sign([registration("doctor", "clinician")], by="north-admin"),
        sign([addition("r")], by="doctor", bodies=[b"x"]),
        sign([amendment("r", 1)], by="doctor", bodies=[b"y"]),
        sign([rotation("doctor", "doctor-2", 1)], by="doctor"),
    ]
    assert ledger.run(*transactions) == ["ok"] * 4
    assert ledger.pass_vote("up", Promote("zone-1")) == ["ok"] * 2
    ledger.complete()
    assert ledger.pass_vote("in", new_node("north-2")) == ["ok"] * 2
    validator = schema("StateValue")
    kinds = [schema(json_type(kind).__name__) for kind in STATE]
    found = set()
    for value in ledger.state.values():
        view = state_view("contract", "key", 1, value).value
        assert validator.is_valid(view)
        found.add(tuple(kind.is_valid(view) for kind in kinds))
    # Each value is of one kind, or the account of a key; and every kind came.
    assert found == {tuple(place == each for place in range(len(STATE))) for each in range(-1, len(STATE))}


@pytest.mark.asyncio
async def test_what_the_port_shows_of_the_ledger_is_as_described(recorded: Port) -> None:
    """Block, receipt, proofs of presence and absence, records, each to its own schema, opened parts included."""
    block = await recorded.get("/v1/blocks/3")
    tx_id = block["transactions"][0]["id"]
    accept = {"headers": {"Accept": JSON}}
    shown = {
        "BlockView": [block, await recorded.get("/v1/blocks/1")],
        "BlocksAnswer": [await recorded.get("/v1/blocks?limit=3")],
        "ReceiptView": [await recorded.get(f"/v1/transactions/{tx_id}/receipt", **accept)],
        "StateProofView": [
            await recorded.get(f"/v1/state/{key}?proof=1", signer="doctor", **accept)
            for key in ("network/parameters", "identity/account/00", f"records/subject/{SUBJECT}")
        ],
        "RecordsAnswer": [await recorded.get(f"/v1/records?subject={SUBJECT}", signer="doctor")],
        "NetworkView": [await recorded.get("/v1/network")],
        "Genesis": [await recorded.get("/v1/genesis")],
    }
    for name, answers in shown.items():
        for answer in answers:
            schema(name).validate(answer)
    assert not schema("ReceiptView").is_valid({**shown["ReceiptView"][0], "content": {}})
