"""The trial of `make join-trial`, small: a snapshot and every block lead to the same state."""

from pathlib import Path

import pytest

from tests.processes.join_trial import run, sound

pytestmark = pytest.mark.processes

TRANSACTIONS = 300


@pytest.mark.asyncio
async def test_a_learner_comes_to_the_same_roots_from_a_snapshot_and_by_replay(tmp_path: Path) -> None:
    figures = await run(tmp_path, TRANSACTIONS, rounds=1)
    assert [joined.join for joined in figures.joins] == ["replay", "snapshot"]
    assert sound(figures), figures
