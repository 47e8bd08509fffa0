"""Traces of real cores are accepted; the same with one thing edited are not."""

import ast
import json
import random
from pathlib import Path

import pytest

from tests.stage.script import Play, Script
from tests.tracecheck.__main__ import main
from tests.tracecheck.check import check
from tests.tracecheck.edits import EDITS, Traces, applied
from tests.tracecheck.lines import Forbidden

# Elections, a lost one, replaced blocks, a crash, a slow disk: every kind of line and message.
STORY = """
voters n1 n2 n3
elect n1
propose n1
settle
propose n1
propose n1
settle
cut n1 n2
cut n1 n3
propose n1
propose n1
elect n2 of n2,n3
propose n2
settle
heal
tick n1 60
tick n2 6
settle
tick n2 2
settle
crash n2
restart n2
timeout n1
tick n3 10
deliver n1 n3 PreVote
deliver n3 n1 PreVoteReply
timeout n3
deliver n3 n2 PreVote
deliver n2 n3 PreVoteReply
deliver n1 n2 Vote
deliver n3 n2 Vote
settle
slow n2
propose n1
propose n1
settle n1,n3
tick n1 4
settle
persist n2
settle
propose n1
settle
power-loss n3
restart n3
tick n1 4
settle
spawn n4
change n1 n1,n2,n3 learners n4
settle
tick n1 4
settle
change n1 n1,n2,n3,n4
settle
read n1 1
settle
read n2 2
settle
transfer n1 n3
settle
"""


@pytest.fixture(scope="module")
def traces() -> Traces:
    play = Play(Script("story", STORY))
    play.run()
    found: Traces = json.loads(json.dumps([node.trace for node in play.stage.nodes.values()]))
    return found


def test_the_trace_of_a_real_run_is_accepted(traces: Traces) -> None:
    report = check(traces)
    assert report.nodes == 4
    assert report.leaders >= 3
    assert report.certificates >= 3


@pytest.mark.parametrize("kind", EDITS)
def test_an_edited_trace_is_rejected(kind: str, traces: Traces) -> None:
    chance = random.Random(kind)
    for _ in range(2):
        edited = applied(traces, kind, chance)
        assert edited is not None, "the story has a place for every edit"
        with pytest.raises(Forbidden):
            check(edited)


def test_the_judge_knows_nothing_of_the_core() -> None:
    folder = Path(__file__).parent
    modules = [path for path in folder.glob("*.py") if path.stem != "traced" and not path.stem.startswith("test_")]
    assert len(modules) >= 8
    for path in modules:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                ours = name.split(".")[0] in ("consensus", "node", "storage", "ledger", "network", "carequorum")
                assert not ours, f"{path.name} imports {name}"
                assert not name.startswith("tests.") or name.startswith("tests.tracecheck"), f"{path.name}: {name}"


def test_files_are_read_and_judged(traces: Traces, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = []
    for trace in traces:
        file = tmp_path / f"{trace[0]['node']}.trace"
        lines = [json.dumps(line) + "\n" for line in trace]
        half = len(lines) // 2
        Path(f"{file}.1").write_text("".join(lines[:half]), encoding="utf-8")
        file.write_text("".join(lines[half:]) + '{"line": 9', encoding="utf-8")
        names.append(str(file))
    assert main(names) == 0
    assert "accepted: 4 nodes" in capsys.readouterr().out
    Path(names[0]).write_text("", encoding="utf-8")
    assert main(names) == 1
    assert "rejected: " in capsys.readouterr().out
    assert main([]) == 2
