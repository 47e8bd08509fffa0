"""The leader: it alone makes blocks, replicates its log, and turns a quorum's acknowledgements into a certificate."""

from collections import deque

from consensus.commit import Tally
from consensus.configuration import has_quorum, quorum
from consensus.errors import InvariantViolation, ProtocolViolation, require
from consensus.messages import Answer, Append, AppendReply, Entry, NodeId
from consensus.parts import Parts
from consensus.progress import FollowerView, Progress, State

UNCOMMITTED_BLOCKS_MAX = 1024


class Leadership:
    """One term of leading. The log is only ever appended to here (leader append-only).

    `_proposed`: (height, data bytes, tick) of this term's uncommitted blocks, ascending.
    `_refusers`: voter to the height it last refused and has not accepted since.
    """

    def __init__(self, parts: Parts, now: int) -> None:
        writes = parts.log.writes
        require(writes.hard_state.vote == parts.settings.node_id, "a leader voted for itself")
        require(writes.hard_state_durable, "a leader's own vote is durable")
        self._parts = parts
        self._tally = Tally(parts.term, parts.log)
        self._proposed: deque[tuple[int, int, int]] = deque()
        self._refusers: dict[NodeId, int] = {}
        self._acknowledged = parts.commit.height
        self._beat_tick = now
        self._progress = {
            member: Progress(next=parts.log.last_height + 1, heard_tick=now, moved_tick=now)
            for member in self._others()
        }

    def _others(self) -> list[NodeId]:
        configuration = self._parts.log.configurations.current
        members = (*configuration.voters, *configuration.learners)
        return [member for member in members if member != self._parts.settings.node_id]

    def followers(self, now: int) -> tuple[FollowerView, ...]:
        return tuple(
            FollowerView(member, progress.match, progress.state, now - progress.heard_tick)
            for member, progress in self._progress.items()
        )

    # blocks

    @property
    def can_propose(self) -> bool:
        """Whether what is uncommitted leaves room: below the byte limit and below UNCOMMITTED_BLOCKS_MAX blocks."""
        uncommitted_bytes = sum(size for _, size, _ in self._proposed)
        return (
            uncommitted_bytes < self._parts.settings.uncommitted_bytes_max
            and len(self._proposed) < UNCOMMITTED_BLOCKS_MAX
        )

    def append(self, payload: object, now: int) -> int:
        """Seal a block on top of the log and send it on: the only place that gives height, term and parent."""
        log, term = self._parts.log, self._parts.term
        height, parent = log.last_height + 1, log.last_hash
        data, block = self._parts.signer.seal(height, term, parent, payload)
        require(log.last_hash == parent, "sealing a block does not change the log")
        log.append((Entry(height, term, parent, block, data),))
        self._proposed.append((height, len(data), now))
        for member in self._progress:
            self._replicate(member, now)
        return height

    # sending

    def _replicate(self, member: NodeId, now: int) -> bool:
        """Send what the follower's window has room for; whether anything was sent."""
        progress, log, settings = self._progress[member], self._parts.log, self._parts.settings
        sent = False
        while progress.next <= log.last_height and progress.may_send(settings.inflight_messages_max):
            if self._parts.commit.height - (progress.next - 1) > settings.replicate_gap_blocks:
                break
            entries = log.entries(progress.next, log.last_height, settings.append_bytes_max)
            self._send(member, progress.next - 1, entries)
            progress.sent(entries[-1].height, now)
            sent = True
        return sent

    def _beat(self, member: NodeId, now: int) -> None:
        patience_ticks = 2 * self._parts.settings.heartbeat_ticks
        self._send(member, self._progress[member].heartbeat_height(now, patience_ticks), ())

    def _send(self, member: NodeId, prev_height: int, entries: tuple[Entry, ...]) -> None:
        found = self._parts.log.term_hash(prev_height)
        if found is None:
            raise InvariantViolation("a leader has what it names")
        term, certificate = self._parts.term, self._parts.commit.certificate
        self._parts.outbox.send(member, Append(term, prev_height, *found, entries, certificate))

    def tell_commit(self, now: int) -> None:
        """The commit moved: forget what it settles, and let every follower know at once."""
        height = self._parts.commit.height
        self._tally.forget(height)
        while self._proposed and self._proposed[0][0] <= height:
            self._proposed.popleft()
        for member in self._progress:
            if not self._replicate(member, now):
                self._beat(member, now)

    # time

    def tick(self, now: int) -> str:
        """Heartbeats. Returns why this node must step down, or an empty string."""
        if now - self._beat_tick >= self._parts.settings.heartbeat_ticks:
            self._beat_tick = now
            for member in self._progress:
                if not self._replicate(member, now):
                    self._beat(member, now)
        return self._why_step_down(now)

    def _why_step_down(self, now: int) -> str:
        patience_ticks = self._parts.settings.election_ticks_max
        if self._parts.log.writes.oldest_age_ticks(now) > patience_ticks:
            return "its own disk does not answer"
        if self._proposed and now - self._proposed[0][2] > patience_ticks:
            return "a block of its term finds no quorum"
        heard = {self._parts.settings.node_id}
        heard |= {m for m, progress in self._progress.items() if now - progress.heard_tick <= patience_ticks}
        if not has_quorum(self._parts.log.configurations.current, heard):
            return "it hears no quorum"
        return ""

    # answers

    def persisted(self) -> bool:
        """This node's own disk answered: acknowledge its own blocks like any voter. Whether the commit moved."""
        log, commit = self._parts.log, self._parts.commit
        first = max(self._acknowledged, commit.height) + 1
        for height in range(first, log.durable_height + 1):
            own = self._parts.acknowledger.sign(height, commit.height)
            if own is not None:
                commit.learn(self._tally.add(self._parts.settings.node_id, own, commit.height))
        self._acknowledged = max(self._acknowledged, log.durable_height)
        return commit.advance()

    def step(self, sender: NodeId, reply: AppendReply, now: int) -> bool:
        """An answer in this term; whether the commit moved."""
        progress = self._progress.get(sender)
        if progress is None:
            return False
        if max(reply.height, reply.rejected_height) > self._parts.log.last_height:
            raise ProtocolViolation(sender, "answers for a height that its leader does not have")
        progress.heard_tick = now
        if reply.answer is Answer.REFUSED:
            self._on_refused(sender, progress, reply.height)
            return False
        if reply.answer is Answer.CONFLICT:
            self._on_conflict(sender, progress, reply, now)
            return False
        return self._on_accepted(sender, progress, reply, now)

    def _on_accepted(self, sender: NodeId, progress: Progress, reply: AppendReply, now: int) -> bool:
        progress.accepted(reply.height, now)
        if self._refusers.get(sender, reply.height + 1) <= reply.height:
            del self._refusers[sender]
        commit = self._parts.commit
        for acknowledgement in reply.acknowledgements:
            commit.learn(self._tally.add(sender, acknowledgement, commit.height))
        moved = commit.advance()
        if not moved:
            self._replicate(sender, now)
        return moved

    def _on_conflict(self, sender: NodeId, progress: Progress, reply: AppendReply, now: int) -> None:
        rejected = reply.rejected_height
        if progress.is_stale_conflict(rejected):
            return
        if progress.state is State.REPLICATE:
            # Something sent was lost; up to `match` the logs are known to agree.
            progress.probe(progress.match + 1)
            self._replicate(sender, now)
            return
        log = self._parts.log
        floor = max(progress.match, log.base_height)
        guess = log.newest_not_above(min(reply.height, rejected - 1), reply.hint_term, floor)
        progress.probe(min(guess + 1, rejected))
        self._beat(sender, now)

    def _on_refused(self, sender: NodeId, progress: Progress, height: int) -> None:
        """The follower keeps what precedes the block. Heartbeats go on, and each brings one more try."""
        if height <= max(progress.match, self._parts.commit.height):
            return
        progress.probe(min(progress.next, height))
        progress.probing = True
        if sender in self._parts.log.configurations.current.voters:
            self._refusers[sender] = height

    @property
    def refused_by_quorum(self) -> bool:
        """Whether a quorum of other voters refuses: enough to elect one of themselves without this node's vote.

        With fewer, standing aside could leave nobody who can be elected, so this node may try again.
        """
        return len(self._refusers) >= quorum(len(self._parts.log.configurations.current.voters))
