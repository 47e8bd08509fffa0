"""A small share of `make sim`: first safety under every fault, then progress once all is healed."""

import os
import subprocess
import sys

import pytest

from tests.sim.run import COMMITS_MIN, run_seed

SEEDS = range(1, 49)
SHARE = 6
STEPS = 8_000


@pytest.mark.parametrize("first", SEEDS[::SHARE])
def test_no_seed_breaks_a_promise_and_every_seed_recovers(first: int) -> None:
    for seed in range(first, first + SHARE):
        assert run_seed(seed, steps=STEPS).commits >= COMMITS_MIN


@pytest.mark.parametrize("voters", [1, 2])
def test_the_smallest_networks_too(voters: int) -> None:
    for seed in range(1, 5):
        assert run_seed(seed, voters, STEPS).commits >= COMMITS_MIN


def test_one_seed_is_one_run() -> None:
    """In another process, whatever the order in which that one keeps its sets."""
    digests = {_digest_in_a_process(hash_seed) for hash_seed in ("1", "2")}
    assert digests == {str(run_seed(7).digest)}


def _digest_in_a_process(hash_seed: str) -> str:
    told = subprocess.run(
        [sys.executable, "-c", "from tests.sim.run import run_seed; print(run_seed(7).digest)"],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        check=True,
        text=True,
    )
    return told.stdout.strip()
