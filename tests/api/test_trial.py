"""The trial in small: every phase of schemathesis with few examples each, against a real daemon."""

from pathlib import Path

import pytest

from node.endpoints import ENDPOINTS
from tests.api.facts import Seen
from tests.api.trial import SEED, expected, missing, run

EXAMPLES = 4
LIMIT_S = 180.0


@pytest.mark.processes
@pytest.mark.asyncio
async def test_schemathesis_finds_nothing(tmp_path: Path) -> None:
    """`make api-trial` is the same for three minutes, and requires every code."""
    arguments = ["--seed", str(SEED), "--max-examples", str(EXAMPLES), "--continue-on-failure"]
    outcome = await run(tmp_path, arguments, nodes=1, limit_s=LIMIT_S)
    print(f"{outcome.requests} requests in {outcome.seconds} s")
    assert outcome.findings == []
    assert not [seen for seen in outcome.seen if seen.status >= 500]


def test_a_trial_that_asks_nothing_does_not_hold() -> None:
    everything = [
        Seen(row.handler, status, media, code) for row in ENDPOINTS for media, status, code in expected(row)
    ]
    assert missing(everything) == []
    assert len(everything) > 60
    for place, seen in enumerate(everything):
        lines = missing([*everything[:place], *everything[place + 1 :]])
        assert len(lines) == (seen.operation != "openapi")
