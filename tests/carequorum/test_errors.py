"""docs/errors.md names every code that the client gives."""

import re
from pathlib import Path

import carequorum

ROOM = Path(carequorum.__file__).parent
DOCUMENT = ROOM.parent / "docs" / "errors.md"
RAISED = re.compile(r'(?:Rejection|Unreachable|super\(\).__init__)\(\s*"([a-z_]+)",')


def section(text: str) -> str:
    return text.split("\n## Client and command line\n")[1].split("\n## ")[0]


def codes(text: str) -> list[str]:
    return re.findall(r"^\| `(\w+)` \|", text, flags=re.MULTILINE)


def test_every_code_is_documented_and_none_is_made_up() -> None:
    raised = {code for path in ROOM.glob("*.py") for code in RAISED.findall(path.read_text())}
    text = DOCUMENT.read_text()
    assert len(raised) > 20
    assert raised <= set(codes(text))
    assert set(codes(section(text))) <= raised
    assert len(codes(section(text))) == len(set(codes(section(text))))
