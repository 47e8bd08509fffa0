"""`run_seed`: one whole run, for the command line, for tests, and for whoever runs it over a changed core."""

import logging
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import structlog

from tests.sim.signatures import verified_once
from tests.sim.simulation import Simulation
from tests.sim.turns import in_turns

STEPS = 16_000
COMMITS_MIN = 20
SIZES = (3, 4, 5, 7)


@dataclass(slots=True)
class Report:
    """What one run, or several, amounted to. `digest` is the same only where every event was."""

    seeds: int = 0
    steps: int = 0
    elections: int = 0
    commits: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    digest: int = 0
    steps_min: int = 0
    commits_min: int = 0

    def add(self, other: "Report") -> None:
        if other.steps:
            self.steps_min = min(self.steps_min or other.steps, other.steps)
            self.commits_min = min(self.commits_min or other.commits, other.commits)
        self.seeds += other.seeds
        self.steps += other.steps
        self.elections += other.elections
        self.commits += other.commits
        self.faults.update(other.faults)
        self.digest ^= other.digest


def run_seed(seed: int, voters: int | None = None, steps: int = STEPS) -> Report:
    """First safety under every fault, then progress once a majority is healed, then all. Raises on any violation.

    `voters` None: the seed chooses among SIZES. The run depends on the arguments alone.
    """
    size = SIZES[seed % len(SIZES)] if voters is None else voters
    with in_simulation():
        run = Simulation(seed, size, 1 if seed % 3 == 0 else 0)
        try:
            run.run(steps)
            run.end(COMMITS_MIN)
        except Exception as error:
            error.add_note(f"seed {seed}, {size} voters, step {run.steps}: {command(seed, voters, steps)}")
            raise
    height = run.watch.commit_height
    run.counts.update({"read answered": run.watch.reads, "pruning": run.watch.prunings})
    return Report(1, run.steps, run.watch.elections, height, run.counts, run.digest, run.steps, height)


@dataclass(frozen=True, slots=True)
class Share:
    """Some of the work, for one process."""

    seeds: Sequence[int]
    voters: int | None
    steps: int


def run_share(share: Share) -> list[tuple[Report, str]]:
    """A report for each seed, and of a violation what it was and how to see it again."""
    results: list[tuple[Report, str]] = []
    for seed in share.seeds:
        try:
            results.append((run_seed(seed, share.voters, share.steps), ""))
        except Exception:  # noqa: BLE001 - whatever it is, it ended this run, and the others go on
            again = command(seed, share.voters, share.steps)
            told = f"\nVIOLATION with seed {seed}. To see it again:\n  {again}\n{traceback.format_exc(limit=-4)}"
            results.append((Report(seeds=1), told))
    return results


def command(seed: int, voters: int | None, steps: int) -> str:
    """What reproduces this run, to be typed."""
    nodes = "" if voters is None else f" --nodes {voters}"
    length = "" if steps == STEPS else f" --steps {steps}"
    return f"python -m tests.sim --seeds 1 --first-seed {seed}{nodes}{length}"


@contextmanager
def in_simulation() -> Iterator[None]:
    """Nothing of the machine's clock gets in, nothing of what nodes log gets out, no signature is verified twice."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        with verified_once(), in_turns():
            yield
    finally:
        structlog.configure(**before)
