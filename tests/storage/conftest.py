"""A disk, and a short chain on it."""

import pytest

from tests.fakes.disk import PowerLossDisk
from tests.storage.chains import Chain, doctor


@pytest.fixture
def disk() -> PowerLossDisk:
    return PowerLossDisk()


@pytest.fixture
def chain(disk: PowerLossDisk) -> Chain:
    """Height 1 registers the doctor."""
    chain = Chain(disk)
    assert [result.code for result in chain.add(doctor()).results] == ["ok"]
    return chain
