"""Words for what cores say to each other: the transcripts of scenarios are made of these."""

from collections.abc import Callable, Mapping

from consensus.messages import (
    Answer,
    Append,
    AppendReply,
    Certificate,
    Configuration,
    Message,
    PreVote,
    PreVoteReply,
    ReadIndex,
    ReadIndexReply,
    Ready,
    TimeoutNow,
    Vote,
    VoteReply,
)

# block hash -> "5@3": height, term, and a mark where a story needs two blocks of one height and term.
Labels = Mapping[bytes, str]


def label(labels: Labels, block: bytes) -> str:
    return labels.get(block, "?" + block.hex()[:6])


def certified(labels: Labels, certificate: Certificate | None) -> str:
    if certificate is None:
        return ""
    signers = ",".join(signer for signer, _ in certificate.signatures)
    return f", certified {label(labels, certificate.hash)} by {signers}"


def membership(configuration: Configuration) -> str:
    """voters, then the old voters while joint, then learners: "n1,n2 old n1,n2,n3 learners n4"."""
    words = [",".join(configuration.voters)]
    if configuration.old_voters:
        words += ["old", ",".join(configuration.old_voters)]
    if configuration.learners:
        words += ["learners", ",".join(configuration.learners)]
    return " ".join(words)


def _append(message: Append, labels: Labels) -> str:
    blocks = " ".join(label(labels, entry.hash) for entry in message.entries) or "nothing"
    prev = f"{message.prev_height}@{message.prev_term}"
    return f"Append term {message.term}: after {prev} {blocks}{certified(labels, message.certificate)}"


def _append_reply(message: AppendReply, labels: Labels) -> str:
    standing = ("stopping, " if message.stopping else "") + ("" if message.binding else "may not vote, ")
    head = f"AppendReply term {message.term}: {standing}{message.answer.value}"
    if message.answer is Answer.ACCEPTED:
        acks = " ".join(label(labels, ack.hash) for ack in message.acknowledgements)
        return f"{head} to {message.height}" + (f", acknowledges {acks}" if acks else "")
    if message.answer is Answer.REFUSED:
        return f"{head} {message.height}, {message.reason.value}"
    return f"{head} at {message.rejected_height}, perhaps {message.height}@{message.hint_term}"


def _question(message: PreVote | Vote) -> str:
    told = " as its leader told it" if isinstance(message, Vote) and message.transfer else ""
    ends = f"log ends at {message.last_height}@{message.last_term}"
    return f"{type(message).__name__} term {message.term}{told}, {ends}"


def _read_index(message: ReadIndexReply) -> str:
    return f"ReadIndexReply term {message.term}: {'failed' if message.height is None else message.height}"


def _verdict(message: PreVoteReply | VoteReply) -> str:
    return f"{type(message).__name__} term {message.term} {'granted' if message.granted else 'denied'}"


_WORDS: dict[type, Callable[..., str]] = {
    Append: _append,
    AppendReply: _append_reply,
    PreVote: lambda message, _: _question(message),
    Vote: lambda message, _: _question(message),
    PreVoteReply: lambda message, _: _verdict(message),
    VoteReply: lambda message, _: _verdict(message),
    TimeoutNow: lambda message, _: f"TimeoutNow term {message.term}",
    ReadIndex: lambda message, _: f"ReadIndex term {message.term}",
    ReadIndexReply: lambda message, _: _read_index(message),
}


def describe(message: Message, labels: Labels) -> str:
    """One line, beginning with the message's kind."""
    return _WORDS[type(message)](message, labels)


def describe_write(ready: Ready, labels: Labels) -> str:
    """What a batch does to the disk."""
    words = []
    if ready.truncate_from is not None:
        words.append(f"removes {ready.truncate_from} and above")
    if ready.entries:
        words.append("writes " + " ".join(label(labels, entry.hash) for entry in ready.entries))
    if ready.hard_state is not None:
        words.append(f"writes term {ready.hard_state.term} vote {ready.hard_state.vote or 'none'}")
    return ", ".join(words)
