"""`python -m tests.tracecheck FILES`: one file a node; "<file>.4" … "<file>.1", older parts, are read before it."""

import sys
from pathlib import Path

from tests.tracecheck.check import check
from tests.tracecheck.lines import Forbidden, Json, read

PARTS_MAX = 64


def load(path: Path) -> list[Json]:
    older = [Path(f"{path}.{number}") for number in range(PARTS_MAX, 0, -1)]
    return read([*(part for part in older if part.exists()), path])


def main(names: list[str]) -> int:
    if not names:
        print(__doc__)
        return 2
    try:
        report = check([load(Path(name)) for name in names])
    except (Forbidden, OSError) as error:
        print(f"rejected: {error}")
        return 1
    print(f"accepted: {report}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
