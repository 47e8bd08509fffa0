"""docs/errors.md and the code name the same codes."""

import re
from pathlib import Path

import ledger
from ledger.execution import DUPLICATE, OK, UNTIL_TOO_FAR

ROOM = Path(ledger.__file__).parent
DOCUMENT = ROOM.parent / "docs" / "errors.md"


def raised() -> set[str]:
    """Every code that this room gives, read from its source."""
    sources = [path.read_text() for path in ROOM.rglob("*.py")]
    codes = {code for source in sources for code in re.findall(r'Rejection\(\s*"(\w+)"', source)}
    return codes | {OK, DUPLICATE, UNTIL_TOO_FAR}


def documented() -> list[str]:
    """Every code in the tables under the heading "Ledger"."""
    section = re.split(r"^## ", DOCUMENT.read_text(), flags=re.MULTILINE)
    (text,) = [part for part in section if part.startswith("Ledger\n")]
    return re.findall(r"^\| `(\w+)` \|", text, flags=re.MULTILINE)


def test_every_code_of_the_ledger_is_documented_once_and_none_is_made_up() -> None:
    assert len(documented()) == len(set(documented()))
    assert set(documented()) == raised()
