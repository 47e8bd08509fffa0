"""The trace: one JSON line for each transition of the consensus core, written before anything of it leaves the node.

    {"line": 17, "node": "n1",
     "input": {"kind": "message", "from": "n2", "message": {…}},
     "left": {"messages": [["n2", {…}]], "writes": [{…}], "committed": [[term, height, hash, [signers]]],
              "reads": [[token, height]]},
     "state": {"role": …, "term": …, "vote": …, "leader": …, "last": [height, term, hash], "durable": …, "commit": …,
               "base": …, "configuration": {…}}}

`left` is all that the core wanted done after this input, up to the next. The first line of every run has input
"start": what the disk held, with the blocks above the newest stored certificate. Blocks appear as [height, term,
parent, hash, configuration], configurations as {"voters", "learners", "old_voters"}, certificates with their signers'
names and without signatures. No block's content, no signature and no key is written. A tick after which nothing is
different leaves no line.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

import msgspec
import structlog

from consensus.core import RaftCore
from consensus.messages import (
    Append,
    AppendReply,
    Certificate,
    CertifiedBlocks,
    Configuration,
    Entry,
    HardState,
    Message,
    Ready,
)
from consensus.ports import Restored

_log = structlog.get_logger(__name__)

FILE_BYTES_MAX = 64 * 1024 * 1024
KEPT_MAX = 4

Json = dict[str, object]


def configuration_json(configuration: Configuration) -> Json:
    return {
        "voters": configuration.voters,
        "learners": configuration.learners,
        "old_voters": configuration.old_voters,
    }


def entry_json(entry: Entry) -> list[object]:
    configuration = None if entry.configuration is None else configuration_json(entry.configuration)
    return [entry.height, entry.term, entry.parent.hex(), entry.hash.hex(), configuration]


def certificate_json(certificate: Certificate | None) -> list[object] | None:
    if certificate is None:
        return None
    signers = [signer for signer, _ in certificate.signatures]
    return [certificate.term, certificate.height, certificate.hash.hex(), signers]


def message_json(message: Message) -> Json:
    """A message by the names of its fields; blocks and certificates as above, and no signature."""
    kind = type(message).__name__
    if isinstance(message, Append):
        return {
            "kind": kind,
            "term": message.term,
            "prev": [message.prev_height, message.prev_term, message.prev_hash.hex()],
            "blocks": [entry_json(entry) for entry in message.entries],
            "certificate": certificate_json(message.certificate),
            "round": message.round,
        }
    if isinstance(message, AppendReply):
        return {
            "kind": kind,
            "term": message.term,
            "answer": message.answer.value,
            "height": message.height,
            "rejected": message.rejected_height,
            "hint": message.hint_term,
            "acknowledges": [[ack.height, ack.hash.hex()] for ack in message.acknowledgements],
            "reason": message.reason.value,
            "round": message.round,
            "stopping": message.stopping,
            "binding": message.binding,
        }
    return {"kind": kind} | {
        field: getattr(message, field) for field in message.__dataclass_fields__ if field != "signature"
    }


def start_json(restored: Restored) -> Json:
    return {
        "kind": "start",
        "base": [restored.base_height, restored.base_term, restored.base_hash.hex()],
        "last_height": restored.last_height,
        "term": restored.hard_state.term,
        "vote": restored.hard_state.vote,
        "certificate": certificate_json(restored.certificate),
        "configurations": [[height, configuration_json(made)] for height, made in restored.configurations],
        "must_compare": restored.must_compare,
        "forsworn": restored.forsworn,
    }


def value_json(value: object) -> object:
    """One value of an input: what the core was given."""
    if isinstance(value, CertifiedBlocks):
        return {
            "blocks": [entry_json(entry) for entry in value.entries],
            "certificate": certificate_json(value.certificate),
        }
    if isinstance(value, Configuration):
        return configuration_json(value)
    return message_json(value) if isinstance(value, Message) else value


class Tracer:
    """Puts the lines of one core together. `write` gets each, complete; it must not lose one and go on.

    Usage: `end` after the core was made; then `begin` before it acts, `left` for each Ready, `end` when none is left.
    """

    def __init__(self, node_id: str, restored: Restored, write: Callable[[Json], None]) -> None:
        self._node_id = node_id
        self._write = write
        self._line = 0
        self._hard_state = restored.hard_state
        self._input: Json = start_json(restored)
        self._ready: list[Ready] = []
        self._state: Json | None = None

    def begin(self, kind: str, **values: object) -> None:
        """What the core is about to be given. Values are messages, blocks, configurations, or plain."""
        self._input = {"kind": kind} | {name.rstrip("_"): value_json(value) for name, value in values.items()}

    def left(self, ready: Ready) -> None:
        self._ready.append(ready)
        self._hard_state = ready.hard_state or self._hard_state

    def end(self, core: RaftCore, fault: str = "") -> None:
        """The core wants nothing more. `fault`: what it complained about."""
        state = state_json(core, self._hard_state)
        if self._input["kind"] == "start":
            heights = range(core.commit_height + 1, core.last_height + 1)
            self._input["blocks"] = [entry_json(entry) for height in heights if (entry := core.entry(height))]
        idle = self._input["kind"] == "tick" and not self._ready and state == self._state
        if not idle:
            self._line += 1
            line: Json = {"line": self._line, "node": self._node_id, "input": self._input}
            if fault:
                line["fault"] = fault
            self._write(line | {"left": _left_json(self._ready), "state": state})
        self._ready.clear()
        self._state = state


def state_json(core: RaftCore, hard_state: HardState) -> Json:
    last = core.term_hash(core.last_height)
    assert last is not None, "a log has its own end"
    return {
        "role": core.role.value,
        "term": core.term,
        "vote": hard_state.vote if hard_state.term == core.term else None,
        "leader": core.leader,
        "last": [core.last_height, last[0], last[1].hex()],
        "durable": core.durable_height,
        "commit": core.commit_height,
        "base": core.base_height,
        "configuration": configuration_json(core.configuration),
    }


def _left_json(readies: Iterable[Ready]) -> Json:
    readies = list(readies)
    return {
        "messages": [[receiver, message_json(message)] for ready in readies for receiver, message in ready.messages],
        "writes": [_write_json(ready) for ready in readies if ready.seq],
        "committed": [certificate_json(ready.committed) for ready in readies if ready.committed is not None],
        "reads": [[read.token, read.height] for ready in readies for read in ready.reads],
    }


def _write_json(ready: Ready) -> Json:
    hard_state = None if ready.hard_state is None else [ready.hard_state.term, ready.hard_state.vote]
    return {
        "seq": ready.seq,
        "truncate_from": ready.truncate_from,
        "blocks": [entry_json(entry) for entry in ready.entries],
        "hard_state": hard_state,
    }


class TraceFile:
    """Lines into a file, each handed to the system before `write` returns.

    A line that would take it past FILE_BYTES_MAX goes into a new one: the old file is renamed to "<name>.1" (".1"
    becomes ".2", up to KEPT_MAX; the oldest is deleted). Files in order, oldest first, are one trace. Where a line
    cannot be written the trace ends for this run, lest it have a hole; the node goes on.
    """

    def __init__(self, path: Path, bytes_max: int = FILE_BYTES_MAX) -> None:
        self._path = path
        self._bytes_max = bytes_max
        self._size = 0
        self._file: BinaryIO | None = None
        self._attempt(self._open)

    def _attempt(self, action: Callable[[], None]) -> None:
        try:
            action()
        except OSError as error:
            _log.error("the trace ends here", path=str(self._path), why=error.strerror)
            self.close()

    def _open(self) -> None:
        self._file = self._path.open("ab", buffering=0)
        self._size = self._file.tell()

    def write(self, line: Json) -> None:
        data = msgspec.json.encode(line) + b"\n"
        self._attempt(lambda: self._put(data))

    def _put(self, data: bytes) -> None:
        if self._file is not None and self._size and self._size + len(data) > self._bytes_max:
            self._rotate()
        if self._file is not None:
            self._file.write(data)
            self._size += len(data)

    def _rotate(self) -> None:
        self.close()
        names = [self._path, *(Path(f"{self._path}.{number}") for number in range(1, KEPT_MAX + 1))]
        for older, newer in zip(reversed(names), reversed(names[:-1]), strict=False):
            if newer.exists():
                newer.replace(older)
        self._open()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
