"""Messages that no core of the story sent: strangers, liars, and leaders who are not on the stage."""

import re
from collections.abc import Callable
from dataclasses import replace

from consensus.messages import (
    Acknowledgement,
    Answer,
    Append,
    AppendReply,
    Certificate,
    Configuration,
    Entry,
    Message,
    PreVote,
    PreVoteReply,
    ReadIndex,
    ReadIndexReply,
    Reason,
    TimeoutNow,
    Vote,
    VoteReply,
)
from tests.stage.stage import GENESIS, Stage, StageError, acknowledgement, block_hash

Fields = dict[str, str]
_BLOCK = re.compile(r"(\d+)@(\d+)([a-z]*)")


def parse_block(word: str) -> tuple[int, int, bytes]:
    """ "5@3x": height 5, term 3, and data that tells it from "5@3"."""
    found = _BLOCK.fullmatch(word)
    if not found:
        raise StageError(f"{word} is not a block, such as 5@3")
    return int(found[1]), int(found[2]), found[3].encode()


def _hash_of(stage: Stage, word: str) -> bytes:
    if word.startswith("0@"):
        return GENESIS
    for block, name in stage.labels.items():
        if name == word:
            return block
    raise StageError(f"no block is called {word}")


def _entries(stage: Stage, parent: bytes, words: str) -> tuple[Entry, ...]:
    entries: list[Entry] = []
    for word in words.split(",") if words else ():
        height, term, data = parse_block(word)
        block = block_hash(height, term, parent, data)
        stage.labels.setdefault(block, word)
        entries.append(Entry(height, term, parent, block, data))
        parent = block
    return tuple(entries)


def _certificate(stage: Stage, word: str | None) -> Certificate | None:
    """ "5@3:n1+n2": a certificate of 5@3 by n1 and n2."""
    if not word:
        return None
    name, _, signers = word.partition(":")
    height, term, _ = parse_block(name)
    block = _hash_of(stage, name)
    signatures = tuple((s, acknowledgement(s, term, height, block)) for s in signers.split("+"))
    return Certificate(term, height, block, signatures)


def _append(stage: Stage, fields: Fields) -> Message:
    term, prev = int(fields.pop("term")), fields.pop("prev", "0@0")
    height, prev_term, _ = parse_block(prev)
    parent = _hash_of(stage, prev)
    first = fields.pop("parent", prev)
    entries = _entries(stage, _hash_of(stage, first), fields.pop("entries", ""))
    entries = _bringing(entries, fields.pop("brings", ""))
    certificate = _certificate(stage, fields.pop("certificate", None))
    return Append(term, height, prev_term, parent, entries, certificate, int(fields.pop("round", "0")))


def _bringing(entries: tuple[Entry, ...], word: str) -> tuple[Entry, ...]:
    """ "3:n1+n2+n3+n4|n1+n2+n3|n5": the block at height 3 brings these voters, old voters and learners."""
    if not word:
        return entries
    height, _, members = word.partition(":")
    voters, old_voters, learners = (
        tuple(side.split("+")) if side else () for side in (members + "||").split("|")[:3]
    )
    made = Configuration(voters, learners, old_voters)
    return tuple(replace(entry, configuration=made) if entry.height == int(height) else entry for entry in entries)


def _append_reply(stage: Stage, fields: Fields) -> Message:
    term, answer = int(fields.pop("term")), Answer(fields.pop("answer"))
    by = fields.pop("by", "")
    acks = []
    for word in fields.pop("acks", "").split(","):
        if word:
            height, block_term, _ = parse_block(word)
            block = _hash_of(stage, word)
            acks.append(Acknowledgement(height, block, acknowledgement(by, block_term, height, block)))
    return AppendReply(
        term,
        answer,
        int(fields.pop("height", "0")),
        int(fields.pop("rejected", "0")),
        int(fields.pop("hint", "0")),
        tuple(acks),
        Reason(fields.pop("reason", "")),
        int(fields.pop("round", "0")),
        fields.pop("stopping", "no") == "yes",
        fields.pop("binding", "yes") == "yes",
    )


def _pre_vote(stage: Stage, fields: Fields) -> Message:
    height, last_term, _ = parse_block(fields.pop("last", "0@0"))
    return PreVote(int(fields.pop("term")), height, last_term)


def _vote(stage: Stage, fields: Fields) -> Message:
    height, last_term, _ = parse_block(fields.pop("last", "0@0"))
    return Vote(int(fields.pop("term")), height, last_term, fields.pop("transfer", "no") == "yes")


def _timeout_now(stage: Stage, fields: Fields) -> Message:
    return TimeoutNow(int(fields.pop("term")))


def _read_index(stage: Stage, fields: Fields) -> Message:
    return ReadIndex(int(fields.pop("term")), int(fields.pop("request")))


def _read_index_reply(stage: Stage, fields: Fields) -> Message:
    height = fields.pop("height")
    return ReadIndexReply(
        int(fields.pop("term")), int(fields.pop("request")), None if height == "none" else int(height)
    )


def _pre_vote_reply(stage: Stage, fields: Fields) -> Message:
    return PreVoteReply(int(fields.pop("term")), fields.pop("granted") == "yes")


def _vote_reply(stage: Stage, fields: Fields) -> Message:
    return VoteReply(int(fields.pop("term")), fields.pop("granted") == "yes", b"forged")


_BUILDERS: dict[str, Callable[[Stage, Fields], Message]] = {
    "Append": _append,
    "AppendReply": _append_reply,
    "PreVote": _pre_vote,
    "Vote": _vote,
    "PreVoteReply": _pre_vote_reply,
    "VoteReply": _vote_reply,
    "TimeoutNow": _timeout_now,
    "ReadIndex": _read_index,
    "ReadIndexReply": _read_index_reply,
}


def message(stage: Stage, kind: str, fields: Fields) -> Message:
    """A message of `kind` with these fields. Raises StageError on an unknown kind or field."""
    if kind not in _BUILDERS:
        raise StageError(f"there is no message {kind}")
    try:
        built = _BUILDERS[kind](stage, fields)
    except KeyError as missing:
        raise StageError(f"{kind} needs {missing}") from None
    if fields:
        raise StageError(f"{kind} has no {', '.join(fields)}")
    return built
