"""The language of scenarios: one command a line, carried out on a Stage. tests/sim/scenarios/README.md lists them.

A file is a story (lines that begin with #), commands, and below a line of dashes the transcript that they gave when
it was last rewritten. `run_text` carries out the commands; `transcript_of` is what stands below the dashes.
"""

from collections.abc import Callable
from pathlib import Path

from consensus.errors import InvariantViolation
from consensus.messages import Configuration, NodeId
from tests.stage.stage import Stage, StageError

DASHES = "-" * 20


class ScriptError(Exception):
    """Something is wrong at `where` ("a01.txt:12")."""

    def __init__(self, where: str, detail: str) -> None:
        super().__init__(f"{where}: {detail}")


class NotPerformedError(Exception):
    """The scenario is about the core's assertions, and they are off."""


class Script:
    """The commands of one file, read and numbered."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        body, dashes, golden = text.partition("\n" + DASHES + "\n")
        self.body = body
        self.golden = golden if dashes else ""
        self.lines = [
            (number, line.split("#")[0].split())
            for number, line in enumerate(body.splitlines(), 1)
            if line.split("#")[0].strip()
        ]

    def where(self, number: int) -> str:
        return f"{self.name}:{number}"


def load(path: Path) -> Script:
    return Script(path.name, path.read_text(encoding="utf-8"))


def run(script: Script) -> str:
    """Carry out the whole script: its transcript. Raises ScriptError."""
    return Play(script).run()


class Play:
    """One performance. Setup lines come first; the first other line starts the nodes."""

    def __init__(self, script: Script) -> None:
        from tests.stage.commands import COMMANDS, SETTINGS  # the commands know Play

        self._commands: dict[str, Callable[[Play, list[str]], None]] = COMMANDS
        self._setup: dict[str, Callable[[Play, list[str]], None]] = SETTINGS
        self._script = script
        self._stage: Stage | None = None
        self.voters: tuple[NodeId, ...] = ()
        self.learners: tuple[NodeId, ...] = ()
        self.settings: dict[str, int] = {}
        self.before_start: list[Callable[[Stage], None]] = []
        self.down: set[NodeId] = set()

    @property
    def stage(self) -> Stage:
        if self._stage is None:
            raise StageError("the stage is not set")
        return self._stage

    def run(self) -> str:
        for number, words in self._script.lines:
            try:
                self._line(words)
            except (StageError, InvariantViolation, ValueError, IndexError) as error:
                raise ScriptError(self._script.where(number), f"{' '.join(words)}: {error}") from error
        if self._stage is not None and self._stage.complaint is not None:
            name, text = self._stage.complaint
            raise ScriptError(self._script.where(self._script.lines[-1][0]), f"{name} {text}, which nobody expected")
        if self._stage is not None:
            try:
                self._stage.judge()
            except StageError as error:
                raise ScriptError(self._script.name, str(error)) from error
        return "\n".join(self._stage.transcript if self._stage else ()) + "\n"

    def _line(self, words: list[str]) -> None:
        verb = words[0]
        if self._stage is None:
            if verb in self._setup:
                self._setup[verb](self, words[1:])
                return
            self._begin()
        if verb not in self._commands:
            raise StageError(f"there is no command {verb!r} here")
        stage = self.stage
        if stage.complaint is not None and verb != "expect":
            name, text = stage.complaint
            raise StageError(f"{name} {text}, which nobody expected")
        if verb != "expect":
            stage.transcript.append(" ".join(words))
        self._commands[verb](self, words[1:])

    def _begin(self) -> None:
        stage = self._stage = Stage(Configuration(self.voters, self.learners), self.settings)
        for prepare in self.before_start:
            prepare(stage)
        for name in stage.nodes:
            if name not in self.down:
                stage.start(name)


def rewritten(script: Script, transcript: str) -> str:
    """The file's text with this transcript below the dashes."""
    return f"{script.body.rstrip()}\n{DASHES}\n{transcript}"


__all__ = ["DASHES", "NotPerformedError", "Play", "Script", "ScriptError", "load", "rewritten", "run"]
