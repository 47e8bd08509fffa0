"""Every scenario does what it expects, and tells the story that is written below it."""

import os
from pathlib import Path

import pytest

from tests.stage.script import Script, ScriptError, load, rewritten, run

FOLDER = Path(__file__).parent / "scenarios"
SCENARIOS = sorted(FOLDER.glob("*.txt"))
REWRITE = bool(os.environ.get("REWRITE"))


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_a_scenario_goes_as_it_is_written(path: Path) -> None:
    script = load(path)
    transcript = run(script)
    if REWRITE:
        path.write_text(rewritten(script, transcript), encoding="utf-8")
    else:
        assert transcript == script.golden, "make scenarios REWRITE=1 writes the story anew"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("voters n1\nfly n1", "s.txt:2: fly n1: there is no command 'fly' here"),
        ("voters n1\n\ntick n2", "s.txt:3: tick n2: there is no node n2"),
        ("voters n1\ntick n1 x", "s.txt:2: .*invalid literal"),
        ("voters n1\nexpect n1 mood happy", "mood is nothing that can be expected"),
        ("voters n1\nexpect n1 term 4", "s.txt:2: expect n1 term 4: n1 has term 0"),
        ("voters n1 n2\ndeliver n1 n2", "no message is on its way from n1 to n2"),
        ("voters n1 n2\nforge n2 n1 Letter", "there is no message Letter"),
        ("voters n1 n2\nforge n2 n1 Vote term=1 colour=red", "Vote has no colour"),
        ("voters n1 n2\nforge n2 n1 Append term=1 entries=1@4\ntick n1", "which nobody expected"),
        ("voters n1 n2\nforge n2 n1 Append term=1 entries=1@4", "which nobody expected"),
    ],
)
def test_a_script_that_goes_wrong_says_where(text: str, complaint: str) -> None:
    with pytest.raises(ScriptError, match=complaint):
        run(Script("s.txt", text))
