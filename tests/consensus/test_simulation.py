"""Seeded runs of whole clusters: first safety under every fault, then progress once all is healed."""

import pytest

from tests.consensus.cluster import Cluster

STEPS = 6_000
LIVENESS_TICKS = 10 * 20


def run(seed: int) -> int:
    """After so many ticks without faults a new block is committed on every node."""
    sizes = ((3, 0, 0), (4, 0, 0), (5, 0, 0), (3, 1, 0), (2, 0, 0), (1, 1, 0), (3, 1, 2), (1, 0, 3))
    voters, learners, outsiders = sizes[seed % len(sizes)]
    cluster = Cluster(seed, voters, learners, outsiders=outsiders)
    cluster.run(STEPS)
    return cluster.settle(LIVENESS_TICKS)


@pytest.mark.parametrize("first", range(0, 200, 20))
def test_no_seed_breaks_a_promise_and_every_seed_recovers(first: int) -> None:
    for seed in range(first, first + 20):
        try:
            assert run(seed) < LIVENESS_TICKS
        except Exception as error:
            error.add_note(f"seed {seed}: tests.consensus.test_simulation.run({seed}) shows it again")
            raise


@pytest.mark.parametrize(
    "seed", [279, 1790], ids=["only a removed voter can win", "a little below the leader's base"]
)
def test_a_seed_that_once_stood_still_recovers(seed: int) -> None:
    assert run(seed) < LIVENESS_TICKS
