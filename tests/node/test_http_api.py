"""The port itself: malformed requests, faults, closing, and the documents that describe it."""

import asyncio
import re
from pathlib import Path

import aiohttp
import pytest

from node import http_api
from node.config import ProviderSection
from node.endpoints import ENDPOINTS
from node.http_api import provider_port
from node.problems import PROBLEMS
from tests.ledger.founding import (
    GENESIS,
)
from tests.node.fake_backend import FakeBackend
from tests.node.http_client import Port
from tests.storage.chains import doctor


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
        ("GET", "/v1/blocks?limit=1e1", "bad_request"),
        ("GET", "/v1/blocks?limit=1.0", "bad_request"),
        ("GET", "/v1/blocks?limit=%D9%A3", "bad_request"),
        ("GET", "/v1/blocks/1?height=1", "bad_request"),
        ("GET", "/v1/blocks/1.0", "bad_request"),
        ("GET", "/v1/events?contract=null", "bad_request"),
        ("GET", "/v1/events?contract=NULL", "bad_request"),
        ("GET", "/v1/events?from=null", "bad_request"),
        ("GET", "/v1/events?member=null", "bad_request"),
        ("GET", "/v1/records?subject=" + "ab" * 32 + "&before=null", "bad_request"),
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
async def test_a_client_that_leaves_in_the_middle_is_no_fault_of_the_node(
    port: Port, capsys: pytest.CaptureFixture[str]
) -> None:
    head = (
        b"POST /v1/transactions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
    )
    _, writer = await asyncio.open_connection("127.0.0.1", int(port.url.rpartition(":")[2]))
    writer.write(head)
    await writer.drain()
    while port.backend.metrics.http_requests.labels("/v1/transactions", "400")._value.get() == 0:
        writer.close()
        await port.get("/healthz")
    assert 'status="5' not in port.backend.metrics.render().decode()
    assert "request_failed" not in capsys.readouterr().out


@pytest.mark.asyncio
async def test_connections_beyond_the_bound_are_closed_at_once_and_the_others_served(
    port: Port, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_api, "CONNECTIONS_MAX", 3)
    await port.get("/healthz")
    host, _, number = port.url.removeprefix("http://").partition(":")
    idle = [await asyncio.open_connection(host, int(number)) for _ in range(4)]
    ended = [asyncio.create_task(reader.read()) for reader, _ in idle]
    done, waiting = await asyncio.wait(ended, return_when=asyncio.FIRST_COMPLETED)
    while len(done) < 2:
        more, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        done |= more
    await port.get("/healthz")
    assert len(waiting) == 2
    for _, writer in idle:
        writer.close()
    await asyncio.wait(ended)


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
