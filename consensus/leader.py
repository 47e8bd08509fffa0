"""The leader: it alone makes blocks, replicates its log, and turns a quorum's acknowledgements into a certificate."""

from collections import deque

from consensus.commit import Tally
from consensus.configuration import after_joint, can_block, has_quorum, joint_step
from consensus.errors import InvariantViolation, ProtocolViolation, require
from consensus.membership import TOO_MUCH_UNCOMMITTED, TRANSFER_UNDER_WAY, Departures, why_not_yet
from consensus.messages import (
    Answer,
    Append,
    AppendReply,
    Certificate,
    Configuration,
    Entry,
    NodeId,
    Reason,
    Slot,
    TimeoutNow,
)
from consensus.parts import Parts
from consensus.progress import FollowerView, Progress, State
from consensus.reads import LeaderReads
from consensus.transfer import Transfer, best_successor, may_succeed

UNCOMMITTED_BLOCKS_MAX = 1024


class Leadership:
    """One term of leading. The log is only ever appended to here (leader append-only).

    `_progress` has every other member, and the removed ones until their `_departures` are over.
    `_proposed`: (height, data bytes, tick) of this term's uncommitted blocks, ascending.
    `_refusers`: voter to the height it last refused and has not accepted since, and why; ascending by time.
    """

    def __init__(self, parts: Parts, now: int) -> None:
        writes = parts.log.writes
        require(writes.hard_state.vote == parts.settings.node_id, "a leader voted for itself")
        require(writes.hard_state_durable, "a leader's own vote is durable")
        self._parts = parts
        self._tally = Tally(parts.term, parts.log)
        self._proposed: deque[tuple[int, int, int]] = deque()
        self._refusers: dict[NodeId, tuple[int, Reason]] = {}
        self._acknowledged = parts.commit.height
        self._beat_tick = now
        self.reads = LeaderReads(parts)
        self._transfer: Transfer | None = None
        self._departures = Departures()
        self._progress: dict[NodeId, Progress] = {}
        configurations = parts.log.configurations
        if configurations.newest_height > parts.commit.height:
            # Whoever the newest block removes may not have heard of it from the leader before.
            self._follow(configurations.previous.members, now)
        self._refresh_members(now)

    def _follow(self, members: tuple[NodeId, ...], now: int) -> None:
        for member in members:
            if member != self._parts.settings.node_id and member not in self._progress:
                height = self._parts.log.last_height
                self._progress[member] = Progress(next=height + 1, heard_tick=now, moved_tick=now)

    def _refresh_members(self, now: int) -> None:
        """Take up whom the configuration names; let go, in time, whom it names no longer."""
        configurations = self._parts.log.configurations
        self._follow(configurations.current.members, now)
        for member in self._progress:
            if member in configurations.current.members:
                self._departures.cancel(member)
            else:
                self._departures.begin(member, configurations.newest_height)
                self._refusers.pop(member, None)

    def followers(self, now: int) -> tuple[FollowerView, ...]:
        return tuple(
            FollowerView(
                member,
                progress.match,
                progress.state,
                now - progress.heard_tick,
                heard=progress.heard,
                stopping=progress.stopping,
                binding=progress.binding,
            )
            for member, progress in self._progress.items()
        )

    # blocks

    @property
    def can_propose(self) -> bool:
        """Whether a block of transactions may be appended: neither while the membership is joint nor during a
        transfer, not by a removed leader, and not beyond what may be uncommitted.
        """
        current = self._parts.log.configurations.current
        wanted = self._parts.settings.node_id in current.voters and not current.joint
        return wanted and self._transfer is None and self._has_room

    @property
    def _has_room(self) -> bool:
        """Whether what is uncommitted is below the byte limit and below UNCOMMITTED_BLOCKS_MAX blocks."""
        uncommitted_bytes = sum(size for _, size, _ in self._proposed)
        return (
            uncommitted_bytes < self._parts.settings.uncommitted_bytes_max
            and len(self._proposed) < UNCOMMITTED_BLOCKS_MAX
        )

    def append(
        self,
        payload: object,
        now: int,
        *,
        configuration: Configuration | None = None,
        proof: Certificate | None = None,
    ) -> int:
        """Seal a block on top of the log and send it on: the only place that gives height, term and parent.

        `configuration` is what the block brings, if any; `proof` is set where that leaves a joint configuration.
        """
        log, term = self._parts.log, self._parts.term
        height, parent = log.last_height + 1, log.last_hash
        in_effect = configuration or log.configurations.current
        change = configuration is not None and proof is None
        data, block = self._parts.signer.seal(Slot(height, term, parent, in_effect, change, proof), payload)
        require(log.last_hash == parent, "sealing a block does not change the log")
        log.append((Entry(height, term, parent, block, data, configuration),))
        self._proposed.append((height, len(data), now))
        if configuration is not None:
            self._refresh_members(now)
        for member in self._progress:
            self._replicate(member, now)
        return height

    # membership

    def why_no_change(self, target: Configuration, now: int) -> str:
        """Why the change to `target` may not be appended now (consensus.membership), or an empty string."""
        if self._transfer is not None:
            return TRANSFER_UNDER_WAY
        why = why_not_yet(self._parts, target, self.followers(now))
        return why or ("" if self._has_room else TOO_MUCH_UNCOMMITTED)

    def change(self, target: Configuration, payload: object, now: int) -> int:
        """Append the change to `target`, which nothing speaks against: at once, or joint first if voters differ."""
        return self.append(payload, now, configuration=joint_step(self._parts.log.configurations.current, target))

    def _leave_joint(self, now: int) -> None:
        """Once the top of the log is a certified block of this term, leave the joint configuration on top of it."""
        log, certificate = self._parts.log, self._parts.commit.certificate
        current = log.configurations.current
        if not current.joint or self._transfer is not None or certificate is None:
            return
        if (certificate.term, certificate.height) == (self._parts.term, log.last_height):
            require(certificate.hash == log.last_hash, "the proof certifies the parent")
            self.append(None, now, configuration=after_joint(current), proof=certificate)

    @property
    def removed(self) -> bool:
        """Whether a certified block has removed this node from the voters: it is to hand over and follow."""
        configurations = self._parts.log.configurations
        gone = self._parts.settings.node_id not in configurations.current.electorate
        return gone and configurations.newest_height <= self._parts.commit.height

    def _let_go(self, now: int) -> None:
        told_height = {
            member: progress.next - 1 if progress.state is State.REPLICATE else progress.match
            for member, progress in self._progress.items()
        }
        for member in self._departures.over(self._parts, told_height, now):
            del self._progress[member]

    # transfer

    @property
    def transferring(self) -> bool:
        return self._transfer is not None

    def transfer(self, target: NodeId | None, now: int) -> bool:
        """Begin to hand over to `target`, or to the best voter; False if there is none, or an attempt goes on."""
        settings, configuration = self._parts.settings, self._parts.log.configurations.current
        views = [view for view in self.followers(now) if target in (None, view.node_id)]
        chosen = best_successor(views, configuration, settings.election_ticks_min)
        if chosen is None or self._transfer is not None:
            return False
        self._transfer = Transfer(chosen, now + settings.election_ticks_max)
        if not self._urge():
            self._replicate(chosen, now)
        return True

    def _urge(self) -> bool:
        """Tell the target to campaign, once a heartbeat, if it holds this whole log."""
        transfer = self._transfer
        if transfer is None or self._progress[transfer.target].match < self._parts.log.last_height:
            return False
        if not transfer.told:
            transfer.told = True
            self._parts.outbox.send(transfer.target, TimeoutNow(self._parts.term))
        return True

    def _check_transfer(self, now: int) -> None:
        """Give up an attempt that took too long, or whose target may not succeed any more."""
        transfer = self._transfer
        if transfer is None:
            return
        configuration = self._parts.log.configurations.current
        view = next(view for view in self.followers(now) if view.node_id == transfer.target)
        patience_ticks = self._parts.settings.election_ticks_max
        if now >= transfer.deadline or not may_succeed(view, configuration, patience_ticks):
            self._transfer = None
            self._leave_joint(now)

    def hand_over(self, now: int) -> None:
        """Leaving for good: tell the best voter to campaign, without waiting for anything."""
        settings, configuration = self._parts.settings, self._parts.log.configurations.current
        chosen = best_successor(self.followers(now), configuration, settings.election_ticks_max)
        if chosen is not None:
            self._parts.outbox.send(chosen, TimeoutNow(self._parts.term))

    # sending

    def _replicate(self, member: NodeId, now: int) -> bool:
        """Send what the follower's window has room for; whether anything was sent.

        A follower below the log's base, or far below the certificate, fetches for itself.
        """
        progress, log, settings = self._progress[member], self._parts.log, self._parts.settings
        sent = False
        while progress.next <= log.last_height and progress.may_send(
            settings.inflight_messages_max, settings.inflight_bytes_max
        ):
            below = progress.next - 1
            if below < log.base_height or self._parts.commit.height - below > settings.replicate_gap_blocks:
                break
            entries = log.entries(progress.next, log.last_height, settings.append_bytes_max)
            self._send(member, below, entries)
            progress.sent(entries[-1].height, sum(len(entry.data) for entry in entries), now)
            sent = True
        return sent

    def _beat(self, member: NodeId, now: int) -> None:
        patience_ticks = 2 * self._parts.settings.heartbeat_ticks
        height = self._progress[member].heartbeat_height(now, patience_ticks)
        self._send(member, max(height, self._parts.log.base_height), ())

    def _send(self, member: NodeId, prev_height: int, entries: tuple[Entry, ...]) -> None:
        found = self._parts.log.term_hash(prev_height)
        if found is None:
            raise InvariantViolation("a leader has what it names")
        term, certificate = self._parts.term, self._parts.commit.certificate
        message = Append(term, prev_height, *found, entries, certificate, self.reads.round)
        self._parts.outbox.send(member, message)

    def tell_commit(self, now: int) -> None:
        """The commit moved: forget what it settles, and let every follower know at once."""
        height = self._parts.commit.height
        self._tally.forget(height)
        while self._proposed and self._proposed[0][0] <= height:
            self._proposed.popleft()
        self._leave_joint(now)
        for member in self._progress:
            if not self._replicate(member, now):
                self._beat(member, now)
        self._let_go(now)
        self._begin_round(now)

    # reads

    def read(self, asker: NodeId | None, token: int, now: int) -> None:
        """A linearizable read of this node (`asker` None) or of a member; only members are served."""
        self.reads.ask(asker, token, now)
        self._begin_round(now)

    def _begin_round(self, now: int) -> None:
        """Answer what has its echoes, as whom it takes may have changed without any answer; then begin what waits."""
        self.reads.echoed(self._has_echo)
        while self.reads.must_begin:
            self.reads.begin()
            for member in self._parts.log.configurations.current.electorate:
                if member in self._progress:
                    self._beat(member, now)
            self.reads.echoed(self._has_echo)

    def _has_echo(self, begun: int) -> bool:
        """Whether a quorum, this node included, was in this term after that round began (consensus.reads)."""
        echoed = {member for member, progress in self._progress.items() if progress.round >= begun}
        return has_quorum(self._parts.log.configurations.current, {*echoed, self._parts.settings.node_id})

    # time

    def tick(self, now: int) -> str:
        """Heartbeats, and what has waited too long. Returns why this node must step down, or an empty string."""
        self._check_transfer(now)
        self.reads.expire(now)
        self._let_go(now)
        if now - self._beat_tick >= self._parts.settings.heartbeat_ticks:
            self._beat_tick = now
            if self.reads.may_begin:
                self.reads.begin()
            for member in self._progress:
                if not self._replicate(member, now):
                    self._beat(member, now)
            self._begin_round(now)
            if self._transfer is not None:
                self._transfer.told = False
                self._urge()
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
        if reply.round > self.reads.round:
            raise ProtocolViolation(sender, "echoes a round that its leader has not begun")
        progress.heard_tick, progress.heard, progress.stopping = now, True, reply.stopping
        progress.binding = reply.binding
        if reply.binding:
            progress.round = max(progress.round, reply.round)
        self._begin_round(now)
        if reply.answer is Answer.REFUSED:
            self._on_refused(sender, progress, reply.height, reply.reason)
            return False
        if reply.answer is Answer.CONFLICT:
            self._on_conflict(sender, progress, reply, now)
            return False
        return self._on_accepted(sender, progress, reply, now)

    def _on_accepted(self, sender: NodeId, progress: Progress, reply: AppendReply, now: int) -> bool:
        progress.accepted(reply.height, now, self.reads.round)
        if sender in self._refusers and self._refusers[sender][0] <= reply.height:
            del self._refusers[sender]
        commit = self._parts.commit
        for acknowledgement in reply.acknowledgements:
            commit.learn(self._tally.add(sender, acknowledgement, commit.height))
        moved = commit.advance()
        if not moved:
            self._replicate(sender, now)
        if self._transfer is not None and self._transfer.target == sender:
            self._urge()
        return moved

    def _on_conflict(self, sender: NodeId, progress: Progress, reply: AppendReply, now: int) -> None:
        rejected = reply.rejected_height
        if progress.is_loss(rejected, reply.round):
            progress.lost()
        elif progress.is_stale_conflict(rejected):
            if rejected <= progress.match:
                # Overtaken on its way, or a disk that lost what it held: with the next round it is clear which.
                self.reads.round = max(self.reads.round, progress.match_round + 1)
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

    def _on_refused(self, sender: NodeId, progress: Progress, height: int, reason: Reason) -> None:
        """The follower keeps what precedes the block. Heartbeats go on, and each brings one more try."""
        if height <= max(progress.match, self._parts.commit.height):
            return
        progress.probe(min(progress.next, height))
        progress.probing = True
        if reason is not Reason.BEHIND and sender in self._parts.log.configurations.current.electorate:
            self._refusers.pop(sender, None)
            self._refusers[sender] = (height, reason)

    @property
    def refused_by_quorum(self) -> bool:
        """Whether so many refuse that no quorum is left without them: this node cannot commit its block.

        It still votes, so that one of those who refuse can lead.
        """
        return can_block(self._parts.log.configurations.current, self._refusers)

    @property
    def refused_for(self) -> Reason:
        """Why, as the newest refusal that stands says; NONE where none does."""
        return next((reason for _, reason in reversed(self._refusers.values())), Reason.NONE)
