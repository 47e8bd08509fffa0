"""The trace's file: every line in the system's hands at once, bounded, and no reason to stop a node."""

import json
from pathlib import Path

import pytest

from consensus.messages import Configuration, HardState, TimeoutNow, VoteReply
from consensus.ports import Restored
from node.trace import KEPT_MAX, Json, TraceFile, Tracer, message_json
from tests.consensus.nodes import GENESIS, Node, follower, make_chain


def test_a_line_is_there_as_soon_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "n1.trace"
    file = TraceFile(path)
    file.write({"line": 1})
    assert json.loads(path.read_bytes()) == {"line": 1}
    file.close()
    again = TraceFile(path)
    again.write({"line": 2})
    again.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"line": 1}, {"line": 2}]


def test_a_full_file_is_put_aside_and_the_oldest_deleted(tmp_path: Path) -> None:
    path = tmp_path / "n1.trace"
    file = TraceFile(path, bytes_max=30)
    for number in range(40):
        file.write({"line": number})
    file.close()
    parts = [Path(f"{path}.{number}") for number in range(KEPT_MAX, 0, -1)] + [path]
    assert sorted(tmp_path.iterdir()) == sorted(parts)
    assert all(part.stat().st_size <= 30 for part in parts)
    lines = [json.loads(line)["line"] for part in parts for line in part.read_text().splitlines()]
    assert lines == list(range(40 - len(lines), 40))
    assert len(lines) > KEPT_MAX


def test_a_trace_that_cannot_be_written_ends_and_stays_ended(tmp_path: Path) -> None:
    nowhere = TraceFile(tmp_path / "missing" / "n1.trace")
    nowhere.write({"line": 1})
    nowhere.close()
    path = tmp_path / "n1.trace"
    file = TraceFile(path, bytes_max=10)
    file.write({"line": 1})
    Path(f"{path}.{KEPT_MAX - 1}").touch()
    Path(f"{path}.{KEPT_MAX}").mkdir()
    file.write({"line": 2})
    file.write({"line": 3})
    assert json.loads(path.read_bytes()) == {"line": 1}, "a hole would be worse than an end"


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (VoteReply(3, granted=True, signature=b"secret"), {"kind": "VoteReply", "term": 3, "granted": True}),
        (TimeoutNow(4), {"kind": "TimeoutNow", "term": 4}),
    ],
)
def test_messages_by_their_fields_without_signatures(message: VoteReply | TimeoutNow, expected: Json) -> None:
    assert message_json(message) == expected


def test_nothing_of_a_block_s_content_and_no_idle_tick() -> None:
    lines: list[Json] = []
    node: Node = follower(make_chain(1, data=b"content"), term=1)
    restored = Restored(HardState(1), 0, 0, GENESIS, 1, None, ((0, Configuration(("n1", "n2", "n3"))),))
    tracer = Tracer("n1", restored, lines.append)
    tracer.end(node.core)
    for _ in range(5):
        tracer.begin("tick")
        node.core.tick()
        tracer.end(node.core)
    assert [line["line"] for line in lines] == [1], "five ticks in which nothing happens"
    assert "content" not in json.dumps(lines)
    assert b"content".hex() not in json.dumps(lines)
