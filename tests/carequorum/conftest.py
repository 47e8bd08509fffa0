"""Two nodes and the wallet of somebody whom they know."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from carequorum.wallet import Wallet
from tests.carequorum.ports import Hospital, Port, make_wallet, open_port


@pytest.fixture
def doctor(tmp_path: Path) -> Wallet:
    return make_wallet(tmp_path, "doctor")


@pytest_asyncio.fixture
async def ports(doctor: Wallet) -> AsyncIterator[list[Port]]:
    """They share a ledger, on which the doctor is registered: event 1.0.0."""
    hospital = Hospital()
    hospital.register(doctor, "clinician")
    async with open_port(hospital) as first, open_port(hospital.twin("south-1")) as second:
        yield [first, second]
