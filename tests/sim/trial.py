"""The tests that a mutant must not survive: `python -m tests.sim.trial [SCENARIO …]`, in the order given, or all.

Transcripts are not compared: what a scenario expects must find the fault, not any difference. Exits 1 at the first
scenario that fails, and says where.
"""

import sys
from pathlib import Path

from tests.stage.script import NotPerformedError, load, run

FOLDER = Path(__file__).parent / "scenarios"


def main(names: list[str]) -> int:
    paths = [FOLDER / f"{name}.txt" for name in names] or sorted(FOLDER.glob("*.txt"))
    for path in paths:
        try:
            run(load(path))
        except NotPerformedError:
            continue
        except Exception as error:  # noqa: BLE001 - a mutant may fail in any way
            print(f"{path.stem}: {type(error).__name__}: {error}")
            return 1
    print(f"{len(paths)} scenarios pass")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
