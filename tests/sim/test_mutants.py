"""The table of mutants stays true: each fits the core as it is, once, and names what must notice it."""

from collections import Counter
from pathlib import Path

import pytest

from tests.sim.mutant import SIMULATOR, Mutant
from tests.sim.mutants import ASSERTION, MUTANTS, ROOT, TableError, mutated

# Of the hazards in docs/consensus.md those that cost safety.
SAFE_NUMBERS = {
    "A": (1, 2, 6, 7, 8, 10, 11, 12, 18, 26),
    "B": (1, 4, 5, 12, 13, 18, 19, 20, 23, 24, 25, 26, 28, 29),
    "C": (2, 3, 10, 13, 14),
    "D": (2,),
    "E": (1, 3, 4, 6, 10, 11, 15),
    "F": (1, 2, 7, 8, 9, 10, 11, 12, 13),
    "G": (1, 6, 8, 9, 10, 12, 16),
}
SAFE = [f"{group}{number}" for group, numbers in SAFE_NUMBERS.items() for number in numbers]
# No line of the core, nor of what the simulator runs, could let these in; the table of hazards names their tests.
OUT_OF_REACH = {
    "E4": "there are no leases",
    "E11": "no correct node includes twice what it knows; tests/node/test_replay.py has a leader that does",
    "E15": "what is executed is a function of the blocks, in the ledger",
    "F8": "pruning, at every crash point: tests/storage/test_pruning.py",
    "F10": "files and folders are LevelDB's: tests/storage/test_leveldb.py",
    "G16": "signatures are the shell's: tests/ledger/test_finality.py",
}

SCENARIOS = {path.stem for path in (Path(__file__).parent / "scenarios").glob("*.txt")}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.id)
def test_a_mutant_fits_and_its_killer_exists(mutant: Mutant) -> None:
    source = (ROOT / mutant.room / mutant.file).read_text(encoding="utf-8")
    compile(mutated(source, mutant), mutant.file, "exec")
    assert mutant.killer in SCENARIOS | {SIMULATOR}
    changed = [line for line in mutant.old.splitlines() if line not in mutant.new.splitlines()]
    assert len(changed) <= 2, "a mutant is one line; a condition and its body may go together"


def test_the_table_is_as_large_as_it_says() -> None:
    assert max(Counter(mutant.id for mutant in MUTANTS).values()) == 1
    assert len(MUTANTS) >= 45
    assert sum(not mutant.assertions for mutant in MUTANTS) >= 30
    assert (ROOT / "consensus" / "errors.py").read_text(encoding="utf-8").count(ASSERTION) == 1


def test_every_hazard_that_costs_safety_has_a_mutant_or_a_reason() -> None:
    covered = {mutant.hazard for mutant in MUTANTS}
    assert sorted(set(SAFE) - covered) == sorted(OUT_OF_REACH)


def test_a_mutant_that_does_not_fit_is_not_passed_over() -> None:
    with pytest.raises(TableError, match="2 times"):
        mutated("a\na\n", Mutant("m", "A1", "core.py", "a", "b", SIMULATOR))
    with pytest.raises(TableError, match="nothing"):
        mutated("a\n", Mutant("m", "A1", "core.py", "a", "a", SIMULATOR))
