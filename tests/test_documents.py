"""docs/testing.md says which test shows what, and with which code: it must not promise more than there is."""

import re
from pathlib import Path

import pytest

from tests.node.test_bad_input import BAD

ROOT = Path(__file__).parents[1]
ROW = re.compile(r"^\| (.+?) \| `(tests/[\w/]+\.py)::(\w+)(?:\[(.+?)\])?` \| `(\w+)` \|$", re.MULTILINE)
ROWS = ROW.findall((ROOT / "docs/testing.md").read_text())
AT_THE_PORT = "test_bad_input_is_refused_at_the_port"


def test_there_are_rows() -> None:
    assert len(ROWS) > 40
    assert len({item for item, *_ in ROWS}) == len(ROWS)


@pytest.mark.parametrize(
    ("path", "name", "parameter", "code"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS]
)
def test_each_row_names_a_test_and_its_code(path: str, name: str, parameter: str, code: str) -> None:
    source = (ROOT / path).read_text()
    assert re.search(rf"def {name}\(", source)
    if name == AT_THE_PORT:
        assert BAD[parameter][1] == code
    else:
        # A code that the test's own file compares with.
        assert f'"{code}"' in source
        assert parameter in source
    explained = (ROOT / "docs/errors.md").read_text() + (ROOT / "docs/network.md").read_text()
    assert f"`{code}`" in explained


def test_every_other_test_that_the_page_names_is_there() -> None:
    text = (ROOT / "docs/testing.md").read_text()
    for path, name in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?", text):
        assert not name or f"def {name}(" in (ROOT / path).read_text()
    for path in re.findall(r"`(tests/[\w/]+)`", text):
        assert (ROOT / path).exists()
