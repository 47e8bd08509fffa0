"""The trial of `make events-trial`, smaller: it cannot say much of latencies, but every event must come once."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.processes.events_trial import RECONNECT_EVERY, STALL_EVERY, run

pytestmark = pytest.mark.processes


@pytest.mark.asyncio
async def test_every_event_comes_once_through_a_reader_that_stalls_and_comes_back(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    figures = await run(tmp_path, events=1_600, rounds=2, cut=False)
    record_property("ratio", figures.ratio)
    assert figures.events == 1_665
    assert figures.exactly_once
    assert figures.stalls >= 1
    assert figures.connections >= 3
    assert figures.events > max(STALL_EVERY, RECONNECT_EVERY)
