import json
import logging
import re
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import structlog

from node.config import Level, LoggingSection
from node.logs import logs

SECRET = "Maria Schneider, 1961-04-02"


class Written:
    """Starts logging to a file and reads back what it holds."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self.path = path
        self._stack = stack

    def at(self, level: Level) -> "Written":
        self._stack.enter_context(logs(LoggingSection(level=level, file=self.path)))
        return self

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path.read_text().splitlines()]


@pytest.fixture
def written(tmp_path: Path) -> Iterator[Written]:
    with ExitStack() as stack:
        yield Written(tmp_path / "node.log", stack)


def fail() -> None:
    raise ValueError(SECRET)


def test_a_line_is_one_json_object(written: Written) -> None:
    written.at("info")
    structlog.get_logger("node.driver").info("became_leader", term=3, node="hospital-a")
    (line,) = written.lines()
    assert line.pop("time").endswith("Z")
    assert line == {
        "event": "became_leader",
        "level": "info",
        "logger": "node.driver",
        "node": "hospital-a",
        "term": 3,
    }


def test_lines_below_the_level_are_not_written(written: Written) -> None:
    written.at("warning")
    log = structlog.get_logger("node")
    log.info("quiet")
    log.warning("loud")
    assert [line["event"] for line in written.lines()] == ["loud"]


def test_content_never_reaches_a_log(written: Written) -> None:
    written.at("debug")
    log = structlog.get_logger("node")
    log.debug("body", body=SECRET.encode(), nested={"bodies": [SECRET.encode()]}, what=object(), path=Path("/x"))
    log.warning("refused", error=ValueError(SECRET))
    try:
        fail()
    except ValueError as error:
        log.exception("failed")
        log.error("failed", exc_info=error)
    assert "Schneider" not in written.path.read_text()
    body, refused, *failed = written.lines()
    assert body["body"] == f"<{len(SECRET)} bytes>"
    assert body["nested"] == {"bodies": [f"<{len(SECRET)} bytes>"]}
    assert body["what"] == "<object>"
    assert body["path"] == "/x"
    assert refused["error"] == "ValueError"
    for line in failed:
        assert line["error"] == "ValueError"
        assert re.fullmatch(r"test_logs\.py:\d+ fail", line["where"][-1])


def test_a_library_cannot_write_content_either(written: Written) -> None:
    written.at("debug")
    try:
        fail()
    except ValueError:
        logging.getLogger("some.library").exception("request failed\nfuture: %s", SECRET)
    logging.getLogger("aiohttp.server").debug("received %s", SECRET)
    assert "Schneider" not in written.path.read_text()
    (line,) = written.lines()
    assert line["event"] == "request failed"
    assert line["logger"] == "some.library"
    assert line["error"] == "ValueError"


def test_groups_of_exceptions_show_what_they_hold(written: Written) -> None:
    written.at("info")
    try:
        raise ExceptionGroup(SECRET, [ValueError(SECRET), KeyError(SECRET)])
    except ExceptionGroup:
        structlog.get_logger("node").exception("stopped")
    assert "Schneider" not in written.path.read_text()
    (line,) = written.lines()
    assert line["error"] == "ExceptionGroup"
    assert [one["error"] for one in line["of"]] == ["ValueError", "KeyError"]


def test_a_long_text_is_cut(written: Written) -> None:
    written.at("info")
    structlog.get_logger("node").info("event", text="x" * 10_000)
    assert len(written.lines()[0]["text"]) == 203


def test_the_file_is_the_owners_and_survives_rotation(written: Written) -> None:
    written.at("info")
    log = structlog.get_logger("node")
    log.info("before")
    assert stat.S_IMODE(written.path.stat().st_mode) == 0o600
    written.path.rename(written.path.with_suffix(".1"))
    log.info("after")
    assert [line["event"] for line in written.lines()] == ["after"]


def test_logging_ends_with_its_block(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    with logs(LoggingSection()):
        structlog.get_logger("node").info("to_standard_error")
        assert len(root.handlers) == 1
    assert (root.handlers, root.level) == (before, level)
    assert json.loads(capsys.readouterr().err)["event"] == "to_standard_error"
