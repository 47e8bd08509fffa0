"""Requests that a provider port refuses, each with patient data where a careless program might put it."""

import base64
import json
from collections.abc import Iterator
from urllib.parse import quote

from ledger.encoding import encode
from ledger.transaction import Transaction
from tests.processes.watched import http

MSGPACK, JSON = "application/msgpack", "application/json"
SUBMIT = "/v1/transactions"


def submissions(resource: bytes, signed: Transaction) -> Iterator[bytes]:
    """A resource handed over unsealed, in every place of a submission. `signed` commits to another body."""
    yield http("POST", SUBMIT, resource, Content_Type=JSON)
    yield http("POST", SUBMIT, resource, Content_Type="application/fhir+json")
    yield http("POST", SUBMIT, resource, Content_Type=MSGPACK)
    yield http("POST", SUBMIT, encode(resource), Content_Type=MSGPACK)
    yield http("POST", SUBMIT, encode({"bodies": [], "envelope": resource}), Content_Type=MSGPACK)
    yield http("POST", SUBMIT, encode({"bodies": [resource], "envelope": signed.data}), Content_Type=MSGPACK)
    yield http("POST", SUBMIT, encode({resource.decode(): 1}), Content_Type=MSGPACK)
    yield http("POST", SUBMIT, json.dumps([json.loads(resource)]).encode(), Content_Type=JSON)
    yield http("POST", SUBMIT, resource)
    yield http("POST", "/v1/network", resource, Content_Type=JSON)
    yield http("GET", "/v1/network", resource, Content_Type=JSON)
    yield resource + b"\r\n\r\n"


def mentions(text: str) -> Iterator[bytes]:
    """A text in every part of a request."""
    quoted, raw = quote(text, safe=""), text.encode()
    yield http("POST", SUBMIT, json.dumps({text: 1}).encode(), Content_Type=JSON)
    yield http("POST", SUBMIT, json.dumps({"bodies": [text], "envelope": text}).encode(), Content_Type=JSON)
    yield http("POST", SUBMIT, encode({"bodies": [text], "envelope": text}), Content_Type=MSGPACK)
    yield http("POST", f"{SUBMIT}?wait={quoted}", encode({}), Content_Type=MSGPACK)
    for target in (
        f"/{quoted}",
        f"/v1/transactions/{quoted}",
        f"/v1/transactions/{quoted}/receipt",
        f"/v1/blocks/{quoted}",
        f"/v1/blocks?from={quoted}",
        f"/v1/blocks?{quoted}=1",
        f"/v1/state/{quoted}/{quoted}",
        f"/v1/state/identity/{quoted}",
        f"/v1/state/identity/account/{raw.hex()}",
        f"/v1/state/records/{quoted}",
        f"/v1/bodies/{quoted}",
        f"/v1/records?subject={quoted}",
        f"/v1/events?from=x{quoted}",
        f"/v1/events?contract={quoted}",
        f"/v1/events?member={quoted}",
    ):
        yield http("GET", target)
    yield http("GET", "/v1/events", Last_Event_ID=f"x{quoted}")
    yield http("DELETE", f"/v1/blocks/{quoted}")
    yield http("GET", "/v1/blocks/none", Accept=quoted, User_Agent=quoted, Referer=quoted, Cookie=f"name={quoted}")
    signature = base64.b64encode(raw).decode()
    for authorization in (f"CareQuorum {quoted}", f"CareQuorum {signature}", f"Basic {signature}", quoted):
        yield http("GET", f"/v1/bodies/{'0' * 64}", Authorization=authorization)
    yield http("POST", SUBMIT, raw, Content_Type=quoted)
    yield http("POST", SUBMIT, raw, Content_Type=f"{JSON}; charset={quoted}")
    yield http("POST", SUBMIT, raw, Content_Type=JSON, Content_Encoding=quoted)
    yield http("POST", SUBMIT, raw, Content_Type=JSON, Expect=quoted)
    yield from _not_http(raw)


def _not_http(raw: bytes) -> Iterator[bytes]:
    close = b"Host: localhost\r\nConnection: close\r\n"
    head = b"POST /v1/transactions HTTP/1.1\r\n" + close
    chunked = head + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    yield raw + b"\r\n\r\n"
    yield b"GET " + raw + b" HTTP/1.1\r\n" + close + b"\r\n"
    yield b"GET / " + raw + b"\r\n" + close + b"\r\n"
    yield b"GET /\x01" + raw + b" HTTP/1.1\r\n" + close + b"\r\n"
    yield head + b"X-Name: " + raw + b"\x00\r\n\r\n"
    yield head + raw + b"\r\n\r\n"
    yield head + raw + b" : 1\r\n\r\n"
    yield head + b"X-Name: " + raw * 4_000 + b"\r\n\r\n"
    yield head + b"Content-Length: x" + raw + b"\r\n\r\n"
    yield head + b"Transfer-Encoding: " + raw + b"\r\n\r\n"
    yield chunked + b"x" + raw + b"\r\n\r\n"
    yield chunked + b"4\r\n" + raw + b"\r\n0\r\n\r\n"
