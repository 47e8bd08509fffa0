"""`make mutants`: break the core one line at a time, and see whether the tests notice.

Each mutant of the table is applied to a copy of `consensus/` that stands first on the path of a new
process. There the scenario that is named beside it must fail; where the table names the simulator instead, one of its
first SEEDS seeds must. Unless the table says otherwise the core's own assertions are off (`require` does nothing), so
that the tests and not the assertions find the fault. The core as it is must pass everything, with assertions and
without. Budget: all scenarios once, SEEDS seeds, BUDGET_SECONDS a mutant; a mutant that hangs is noticed, too.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.sim.mutant import SIMULATOR, Mutant
from tests.sim.mutations import ELECTIONS_AND_REPLICATION
from tests.sim.mutations_beyond import BEYOND_THE_CORE
from tests.sim.mutations_more import MEMBERSHIP_TO_BLOCKS

MUTANTS = (*ELECTIONS_AND_REPLICATION, *MEMBERSHIP_TO_BLOCKS, *BEYOND_THE_CORE)

ROOT = Path(__file__).parents[2]
SEEDS = 20
BUDGET_SECONDS = 180
ASSERTION = "    if not condition:\n        raise InvariantViolation(invariant)"
SILENCED = "    return"


class TableError(Exception):
    """The table does not fit the core any more."""


def mutated(source: str, mutant: Mutant) -> str:
    """The file's text with the mutation. Raises TableError unless its old text stands there exactly once."""
    if source.count(mutant.old) != 1:
        raise TableError(f"{mutant.id}: {mutant.file} has {source.count(mutant.old)} times {mutant.old!r}")
    if mutant.old == mutant.new:
        raise TableError(f"{mutant.id} changes nothing")
    return source.replace(mutant.old, mutant.new)


def _copy(folder: Path, mutant: Mutant | None, assertions: bool) -> None:
    for room in {"consensus", mutant.room if mutant is not None else "consensus"}:
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    if mutant is not None:
        target = folder / mutant.room / mutant.file
        target.write_text(mutated(target.read_text(encoding="utf-8"), mutant), encoding="utf-8")
    if not assertions:
        errors = folder / "consensus" / "errors.py"
        source = errors.read_text(encoding="utf-8")
        if source.count(ASSERTION) != 1:
            raise TableError("consensus/errors.py has no `require` to silence")
        errors.write_text(source.replace(ASSERTION, SILENCED), encoding="utf-8")


def _command(killer: str | None) -> list[list[str]]:
    """What to run, one after the other: a named scenario, the simulator, or everything."""
    scenarios = [sys.executable, "-m", "tests.sim.trial"]
    simulator = [sys.executable, "-m", "tests.sim", "--seeds", str(SEEDS), "--stop-at-first"]
    if killer is None:
        return [scenarios, simulator]
    return [simulator] if killer == SIMULATOR else [[*scenarios, killer]]


def _last_word(output: str) -> str:
    """The line that says what went wrong: the last that names an error, else the last one."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"\w*(Error|Violation|Failure)\b", line)]
    return (errors or lines or [""])[-1]


def trial(killer: str | None, mutant: Mutant | None, assertions: bool) -> str:
    """How the copy was found out; empty if it survived."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _copy(folder, mutant, assertions)
        environment = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "PYTHONDONTWRITEBYTECODE": "1"}
        for command in _command(killer):
            try:
                done = subprocess.run(
                    command,
                    cwd=folder,
                    env=environment,
                    capture_output=True,
                    text=True,
                    timeout=BUDGET_SECONDS,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                return f"it hangs for {BUDGET_SECONDS} s"
            if done.returncode:
                return _last_word(done.stdout + done.stderr) or f"exit code {done.returncode}"
    return ""


@dataclass(frozen=True)
class Verdict:
    mutant: Mutant
    found: str

    def __str__(self) -> str:
        mutant = self.mutant
        word = "killed" if self.found else "SURVIVED"
        mode = "assertions on" if mutant.assertions else "assertions off"
        return f"{word:9} {mutant.id:32} {mutant.hazard:5} {mode:15} {mutant.killer:42} {self.found[:110]}"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.mutants", description=__doc__)
    parser.add_argument("ids", nargs="*", help="only these")
    parser.add_argument("--skip-baseline", action="store_true", help="do not run the core as it is")
    parser.add_argument("--anyone", action="store_true", help="let every test try, not only the one named")
    options = parser.parse_args(arguments)
    chosen = [mutant for mutant in MUTANTS if not options.ids or mutant.id in options.ids]
    begin, survived = time.monotonic(), 0
    for assertions in (True, False):
        if not options.skip_baseline and (found := trial(None, None, assertions)):
            print(f"the core as it is, assertions {'on' if assertions else 'off'}, does not pass: {found}")
            return 1
    for mutant in chosen:
        try:
            found = trial(None if options.anyone else mutant.killer, mutant, mutant.assertions)
        except TableError as error:
            print(f"NO FIT    {error}")
            survived += 1
            continue
        verdict = Verdict(mutant, found)
        survived += not verdict.found
        print(verdict, flush=True)
    silent = sum(not mutant.assertions for mutant in chosen)
    took = time.monotonic() - begin
    print(f"\n{len(chosen)} mutants, {silent} of them with the core's assertions off, in {took:.0f} s")
    print(f"killed {len(chosen) - survived}, survived {survived}")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
