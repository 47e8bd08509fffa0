"""Build the wheel and check what is in it: our packages, whole, and nothing else. Run by `make check`."""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("carequorum", "consensus", "ledger", "network", "node", "storage")
METADATA = {"METADATA", "RECORD", "WHEEL", "entry_points.txt"}
SUFFIXES = (".py", "/py.typed")


def problems(names: list[str], expected: set[str]) -> list[str]:
    """What is wrong with a wheel of these file names, where `expected` are the sources that it must hold."""
    found = set()
    wrong = []
    for name in names:
        top, _, rest = name.partition("/")
        if top.endswith(".dist-info"):
            if rest not in METADATA and not rest.startswith("licenses/"):
                wrong.append(f"unexpected metadata: {name}")
        elif top not in PACKAGES or not name.endswith(SUFFIXES):
            wrong.append(f"does not belong in the wheel: {name}")
        else:
            found.add(name)
    wrong += [f"missing: {name}" for name in sorted(expected - found)]
    wrong += [f"not a source file here: {name}" for name in sorted(found - expected)]
    return wrong


def build(folder: Path) -> list[str]:
    """Build the wheel into `folder` and return the names of the files in it."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    built = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    if built.returncode:
        raise SystemExit(built.stderr)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def sources() -> set[str]:
    files = (path for package in PACKAGES for path in (ROOT / package).rglob("*"))
    return {path.relative_to(ROOT).as_posix() for path in files if f"/{path.name}".endswith(SUFFIXES)}


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        wrong = problems(build(Path(folder)), sources())
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
