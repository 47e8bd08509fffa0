"""`expect`: what must hold now. A table from a word to what it looks at."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from consensus.messages import Configuration
from tests.stage import story
from tests.stage.stage import Stage, StageError, StageNode

if TYPE_CHECKING:
    from tests.stage.script import Play


def _log(stage: Stage, node: StageNode) -> str:
    core = node.running
    entries = (core.entry(height) for height in range(node.disk.base[0] + 1, core.last_height + 1))
    return " ".join(story.label(stage.labels, entry.hash) for entry in entries if entry) or "empty"


def _disk_log(stage: Stage, node: StageNode) -> str:
    return " ".join(story.label(stage.labels, e.hash) for _, e in sorted(node.disk.blocks.items())) or "empty"


def _known(stage: Stage, node: StageNode) -> str:
    known = node.running.known_certificate
    return story.label(stage.labels, known.hash) if known else "none"


def _progress(node: StageNode, name: str) -> str:
    for view in node.running.followers():
        if view.node_id == name:
            return f"{view.match} {view.state.value}"
    return "unknown"


_LOOKS: dict[str, Callable[[Stage, StageNode], str]] = {
    "role": lambda stage, node: node.running.role.value,
    "term": lambda stage, node: str(node.running.term),
    "leader": lambda stage, node: node.running.leader or "none",
    "log": _log,
    "last": lambda stage, node: str(node.running.last_height),
    "durable": lambda stage, node: str(node.running.durable_height),
    "commit": lambda stage, node: str(node.running.commit_height),
    "told": lambda stage, node: str(node.told),
    "known": lambda stage, node: _known(stage, node),
    "transferring": lambda stage, node: "yes" if node.running.transferring else "no",
    "may-vote": lambda stage, node: "yes" if node.running.may_vote else "no",
    "barred": lambda stage, node: "yes" if node.running.barred else "no",
    "configuration": lambda stage, node: story.membership(node.running.configuration),
    "disk-log": _disk_log,
    "disk-term": lambda stage, node: str(node.disk.hard_state.term),
    "disk-vote": lambda stage, node: node.disk.hard_state.vote or "none",
    "waiting": lambda stage, node: str(len(node.pending)),
    "stepped-down": lambda stage, node: node.running.step_down_reason or "no",
}


def expect(play: Play, words: list[str]) -> None:
    """expect n1 WORD VALUE … | n1 follows n2: MATCH STATE | n1 -> n2 … | n1 blames|halts …"""
    stage = play.stage
    if len(words) < 2:
        raise StageError("expect NODE WORD VALUE")
    name, word, *wanted = words
    if word in ("blames", "halts:", "does"):
        _expect_complaint(stage, name, " ".join(words[1:]))
        return
    if stage.complaint is not None:
        raise StageError("{} {}, which nobody expected".format(*stage.complaint))
    node = stage.node(name)
    if word in ("->", "~>", "-/>"):
        _expect_message(stage, name, word, wanted[0], wanted[1:])
        return
    if word == "sees":
        wanted_view, found = " ".join(wanted[1:]), _progress(node, wanted[0])
        if found != wanted_view:
            raise StageError(f"{name} sees {wanted[0]} at {found}")
        return
    if word == "read":
        found_read = node.reads.get(int(wanted[0]), "open")
        if wanted[1] != ("failed" if found_read is None else str(found_read)):
            raise StageError(f"read {wanted[0]} is {found_read}")
        return
    if word == "refuses-change":
        _expect_refusal(node, wanted)
        return
    if word not in _LOOKS:
        raise StageError(f"{word} is nothing that can be expected")
    found = _LOOKS[word](stage, node)
    if found != " ".join(wanted):
        raise StageError(f"{name} has {word} {found}")


def _expect_refusal(node: StageNode, words: list[str]) -> None:
    """expect n1 refuses-change n1,n2 [learners n3] is REASON"""
    *target, is_word, reason = words
    voters, _, learners = [*target, "", ""][:3]
    wanted = Configuration(tuple(voters.split(",")), tuple(learners.split(",")) if learners else ())
    found = node.running.why_no_change(wanted)
    if is_word != "is" or found != reason:
        raise StageError(f"the reason is {found or 'none'}")


def _expect_complaint(stage: Stage, name: str, wanted: str) -> None:
    if stage.complaint is None:
        raise StageError("nothing was wrong")
    found_name, found = stage.complaint
    if found_name != name or wanted not in found:
        raise StageError(f"but {found_name} {found}")
    stage.complaint = None


def _expect_message(stage: Stage, sender: str, arrow: str, receiver: str, words: list[str]) -> None:
    """All the words are in: the newest message under way (->), some message (~>), no message (-/>)."""
    lines = [story.describe(message, stage.labels) for message in stage.queues[sender, receiver]]
    shown = "; ".join(lines) or "nothing"
    if words == ["nothing"]:
        if lines:
            raise StageError(f"there is {shown}")
        return
    considered = lines[-1:] if arrow == "->" else lines
    if any(_has(line, words) for line in considered) is (arrow == "-/>"):
        raise StageError(f"under way is: {shown}")


def _has(line: str, words: list[str]) -> bool:
    found = line.replace(",", " ").replace(":", " ").split()
    return all(word in found for word in words)
