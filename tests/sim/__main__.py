"""`python -m tests.sim --seeds 2000 --first-seed 1 --jobs 2`: many runs, and what they amounted to.

Prints seeds, steps, faults by kind, elections, commits, steps per second; for each violation what went wrong and the
command that reproduces it. Exit code 0: no violation, 1: some, 2: usage.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from tests.sim.run import STEPS, Report, Share, run_share

SHARE_SEEDS = 4
FIGURES = Path("build/sim.json")


def main() -> int:
    options = _options()
    begin = time.monotonic()
    total, failures = Report(), 0
    for report, failure in _results(options):
        total.add(report)
        if failure:
            failures += 1
            print(failure, file=sys.stderr, flush=True)
            if options.stop_at_first:
                break
        if options.progress and total.seeds % 100 == 0:
            print(f"{total.seeds} of {options.seeds} seeds", file=sys.stderr, flush=True)
    seconds = time.monotonic() - begin
    _show(total, failures, seconds)
    return 1 if failures else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="how many runs")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="worker processes")
    parser.add_argument("--nodes", type=int, default=None, help="voters; without it the seed chooses")
    parser.add_argument("--steps", type=int, default=STEPS, help="events before the liveness phase")
    parser.add_argument("--stop-at-first", action="store_true", help="end with the first violation")
    parser.add_argument("--progress", action="store_true")
    return parser.parse_args()


def _results(options: argparse.Namespace) -> Iterator[tuple[Report, str]]:
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    size = 1 if options.jobs <= 1 else SHARE_SEEDS
    shares = [
        Share(seeds[start : start + size], options.nodes, options.steps) for start in range(0, len(seeds), size)
    ]
    if options.jobs <= 1 or len(shares) == 1:
        for share in shares:
            yield from run_share(share)
        return
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        running = [pool.submit(run_share, share) for share in shares]
        try:
            for finished in as_completed(running):
                yield from finished.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _show(total: Report, failures: int, seconds: float) -> None:
    rate = total.steps / seconds if seconds else 0.0
    figures = {
        "seeds": total.seeds,
        "violations": failures,
        "steps": total.steps,
        "elections": total.elections,
        "commits": total.commits,
        "seconds": round(seconds, 1),
        "steps_per_second": round(rate),
        "steps_per_seed_min": total.steps_min,
        "commits_per_seed_min": total.commits_min,
    }
    for name, value in figures.items():
        print(f"{name.replace('_', ' '):<24}{value:>14,}")
    print("\nfaults, and what else came about")
    for name, count in sorted(total.faults.items(), key=lambda item: (-item[1], item[0])):
        print(f"  {name:<32}{count:>12,}")
    FIGURES.parent.mkdir(exist_ok=True)
    FIGURES.write_text(json.dumps(figures | {"faults": dict(sorted(total.faults.items()))}, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
