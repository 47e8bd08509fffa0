"""The provider port over a real socket, a real store and real admission; consensus is a method call."""

from collections.abc import AsyncIterator

import aiohttp
import pytest_asyncio

from node.config import ProviderSection
from node.http_api import provider_port
from tests.ledger.founding import (
    GENESIS,
)
from tests.node.fake_backend import FakeBackend
from tests.node.http_client import REQUEST_BYTES_MAX, Port
from tests.storage.chains import body_of, doctor, record


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
