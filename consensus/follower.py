"""The follower: takes what its leader sends, where the logs agree, and answers for what its disk holds."""

from collections.abc import Sequence

from consensus.chains import check_steps
from consensus.errors import ProtocolViolation, require
from consensus.messages import Acknowledgement, Answer, Append, AppendReply, Entry, NodeId, ReadIndexReply, Reason
from consensus.parts import Parts
from consensus.reads import FollowerReads

ACKNOWLEDGEMENTS_MAX = 64


class Following:
    """Following one leader, or nobody yet, in one term.

    `verified`: up to here the log is known to equal the leader's; it only grows, as this leader contradicts itself
    only at the price of a ProtocolViolation. What is certified also equals it (leader completeness).
    `reported`: the height last accepted; `acknowledged`: up to here acknowledgements were sent. `round` is the newest
    heard of this leader. `reads` are asked of it.
    """

    def __init__(self, parts: Parts, leader: NodeId | None, now: int, *, stopping: bool = False) -> None:
        self._parts = parts
        self.leader = leader
        self.heard_tick = now
        self._verified = 0
        self._reported = 0
        self._acknowledged = 0
        self._round = 0
        self._stopping = stopping
        self.reads = FollowerReads(parts)

    def hears_leader(self, now: int) -> bool:
        """Whether a leader was heard so lately that no election is called for (Ongaro, section 4.2.3)."""
        return self.leader is not None and now - self.heard_tick < self._parts.settings.election_ticks_min

    def tick(self, now: int) -> None:
        if self.leader is not None:
            self.reads.tick(self.leader, now)

    def read(self, token: int, now: int) -> None:
        """Ask the leader, which is known, for a linearizable read."""
        assert self.leader is not None
        self.reads.ask(self.leader, token, now)

    def answered(self, reply: ReadIndexReply, now: int) -> None:
        """The leader's answer to a read."""
        assert self.leader is not None
        self.reads.answered(self.leader, reply, now)

    def step(self, message: Append) -> bool:
        """Take an Append of this leader; whether the logs agree where it begins."""
        parts = self._parts
        self._round = max(self._round, message.round)
        parts.commit.learn(message.certificate)
        prev_height, entries = message.prev_height, message.entries
        if prev_height <= parts.commit.height:
            entries = self._beyond_commit(message)
            prev_height = parts.commit.height
        elif parts.log.term_hash(prev_height) != (message.prev_term, message.prev_hash):
            parts.commit.advance()
            self._answer_conflict(message)
            return False
        if parts.log.undurable_bytes > parts.settings.uncommitted_bytes_max:
            entries = ()
        self._check_steps(prev_height, entries)
        self._merge(entries)
        end = prev_height + len(entries)
        self._verified = max(self._verified, end)
        parts.commit.advance()
        if not entries or end <= parts.log.durable_height:
            self._answer_accepted()
        return True

    def _beyond_commit(self, message: Append) -> tuple[Entry, ...]:
        """The entries above the commit. What is at or below it must be what this node has certified."""
        commit_height, prev_height = self._parts.commit.height, message.prev_height
        shared = min(commit_height, prev_height + len(message.entries))
        if shared == prev_height:
            theirs = (message.prev_term, message.prev_hash)
        else:
            entry = message.entries[shared - prev_height - 1]
            theirs = (entry.term, entry.hash)
        own = self._parts.log.term_hash(shared)
        if own is not None and own != theirs:
            raise ProtocolViolation(str(self.leader), f"contradicts the certified block at height {shared}")
        return message.entries[shared - prev_height :]

    def _check_steps(self, prev_height: int, entries: Sequence[Entry]) -> None:
        """Refuse the whole message where the membership would take a step that none may take."""
        if any(entry.configuration is not None for entry in entries):
            check_steps(str(self.leader), self._parts.log.configurations.at(prev_height), entries)

    def _merge(self, entries: Sequence[Entry]) -> None:
        """Append what is new, removing from the first block that differs and from nowhere else."""
        log = self._parts.log
        for index, entry in enumerate(entries):
            own = log.term_hash(entry.height)
            if own is None:
                log.append(entries[index:])
                return
            if own != (entry.term, entry.hash):
                if entry.height <= self._verified or log.last_term == self._parts.term:
                    raise ProtocolViolation(str(self.leader), f"contradicts its own block at height {entry.height}")
                replace_from(self._parts, entries[index:])
                return

    # answers

    def _answer_conflict(self, message: Append) -> None:
        log = self._parts.log
        highest = min(message.prev_height - 1, log.last_height)
        height = log.newest_not_above(highest, message.prev_term, self._parts.commit.height)
        self._send(Answer.CONFLICT, height, rejected_height=message.prev_height, hint_term=log.term(height))

    def _answer_accepted(self) -> None:
        """Accept up to the newest height that is both the leader's and on this disk."""
        commit_height, durable_height = self._parts.commit.height, self._parts.log.durable_height
        height = min(max(self._verified, commit_height), durable_height)
        acknowledgements = self._acknowledgements(height)
        self._reported = max(self._reported, height)
        self._acknowledged = max(self._acknowledged, height)
        self._send(Answer.ACCEPTED, height, acknowledgements=tuple(acknowledgements))

    def _acknowledgements(self, height: int) -> list[Acknowledgement]:
        """One for each block since the last answer, the newest ACKNOWLEDGEMENTS_MAX; else the newest once more.

        The newest commits all below it, so that a lost answer costs nothing but time.
        """
        commit_height = self._parts.commit.height
        since = max(self._acknowledged, commit_height, height - ACKNOWLEDGEMENTS_MAX)
        first = min(since + 1, height) if height > commit_height else height + 1
        signed = (self._parts.acknowledger.sign(at, commit_height) for at in range(first, height + 1))
        return [acknowledgement for acknowledgement in signed if acknowledgement is not None]

    def refuse(self, height: int, reason: Reason) -> None:
        self._send(Answer.REFUSED, height, reason=reason)

    def stop(self) -> None:
        """Tell the leader, now and with every answer, that this node is about to stop."""
        self._stopping = True
        if self.leader is not None:
            self._answer_accepted()

    def persisted(self) -> None:
        """The disk answered: answer the leader for what it was waiting for."""
        durable_height = self._parts.log.durable_height
        if self.leader is not None and min(self._verified, durable_height) > self._reported:
            self._answer_accepted()

    def _send(
        self,
        answer: Answer,
        height: int,
        *,
        rejected_height: int = 0,
        hint_term: int = 0,
        acknowledgements: tuple[Acknowledgement, ...] = (),
        reason: Reason = Reason.NONE,
    ) -> None:
        assert self.leader is not None
        reply = AppendReply(
            self._parts.term,
            answer,
            height,
            rejected_height,
            hint_term,
            acknowledgements,
            reason,
            self._round,
            self._stopping,
            self._parts.caution.may_vote,
        )
        self._parts.outbox.send(self.leader, reply)


def replace_from(parts: Parts, entries: Sequence[Entry]) -> None:
    """Remove the log from the first of `entries` up, and put them there. Nothing committed is ever removed."""
    height = entries[0].height
    require(height > parts.commit.height, "nothing committed is removed")
    parts.log.truncate(height)
    parts.log.append(entries)
