"""The trial of `make membership-trial`: nodes come and go, and whoever waits for a commit hardly notices."""

from collections.abc import Callable
from pathlib import Path

import pytest

from node.config import ConsensusSection
from tests.processes.membership_trial import run, sound

pytestmark = pytest.mark.processes


@pytest.mark.asyncio
async def test_three_nodes_become_five_and_three_again_under_load(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    figures = await run(tmp_path)
    record_property("longest_gap_s", figures.longest_gap_s)
    assert sound(figures), figures
    assert [row.voters for row in figures.rows] == [3, 4, 4, 5, 4, 3, 3, 3, 4, 3, 4]
    assert figures.steps == 7
    assert figures.longest_gap_s <= ConsensusSection().election_timeout_max_ms / 1000
