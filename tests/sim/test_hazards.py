"""The table of hazards in docs/consensus.md: complete, and everything it names exists."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCENARIOS = {path.stem for path in (Path(__file__).parent / "scenarios").glob("*.txt")}

# Ways in which other implementations went wrong, by group: elections, replication, membership, snapshots, reads and
# transfer, disk, blocks. Numbers are missing on purpose.
HAZARDS = {
    "A": [1, 2, 6, 7, 8, 10, 11, 12, 13, 15, 17, 18, 19, 21, 22, 23, 25, 26],
    "B": [1, 4, 5, 7, 9, 10, 12, 13, 14, 15, 16, 18, 19, 20, 23, 24, 25, 26, 28, 29],
    "C": [2, 3, 6, 7, 8, 9, 10, 12, 13, 14, 16, 18],
    "D": [1, 2, 4, 7, 8, 9, 10, 12, 13, 15],
    "E": [1, 3, 4, 5, 6, 8, 10, 11, 13, 14, 15],
    "F": [1, 2, 3, 7, 8, 9, 10, 11, 12, 13],
    "G": [1, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 15, 16],
}


def table() -> dict[str, str]:
    """Hazard to what is said to find it."""
    text = (ROOT / "docs/consensus.md").read_text(encoding="utf-8").partition("## Hazards")[2]
    return {found[1]: found[2] for found in re.finditer(r"^\| ([A-G]\d+) \| .* \| (.*) \|$", text, re.MULTILINE)}


def test_every_hazard_is_in_the_table_in_order() -> None:
    assert list(table()) == [f"{group}{number}" for group, numbers in HAZARDS.items() for number in numbers]


def test_every_row_names_a_scenario_or_a_test_or_says_why_it_cannot_occur() -> None:
    for hazard, found in table().items():
        named = re.findall(r"`([^`]+)`", found)
        assert named or "cannot occur" in found, hazard
        for name in named:
            if re.fullmatch(r"[a-g]\d\d_\w+", name):
                assert name in SCENARIOS, f"{hazard}: there is no scenario {name}"
            elif test := re.fullmatch(r"(\w+)/(test_\w+)::(\w+)", name):
                source = (ROOT / "tests" / test[1] / f"{test[2]}.py").read_text(encoding="utf-8")
                assert f"def test_{test[3]}(" in source, f"{hazard}: there is no test {name}"
            else:
                assert name == "HardState.term", f"{hazard}: what is {name}?"


def test_every_scenario_is_in_the_table_under_its_own_hazard() -> None:
    rows = table()
    for name in SCENARIOS:
        hazard = f"{name[0].upper()}{int(name[1:3])}"
        assert name in rows[hazard] or any(name in found for found in rows.values()), f"{name} is in no row"
        assert hazard in rows, f"{name} is of no hazard"
