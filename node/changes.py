"""From a vote to a block: the leader appends the pending change of membership once it is safe, or says why it waits.

    vote passed -> network/pending -> its block sealed -> the core agrees -> the log executed to its end -> block c
    joint: nothing but the core's own blocks -> certificate by old and new voters -> block p -> pending is gone

While only the last condition before c is missing, the proposer holds back (`due`), so that c stands on a state that
every follower can judge it by: that of its parent.
"""

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from consensus import membership
from consensus.messages import Configuration as Members
from consensus.messages import NodeId, Reason, Role
from consensus.progress import FollowerView
from ledger.contracts import network
from ledger.errors import Rejection
from ledger.membership import Change, Configuration
from node.inspector import BlockRefusedError
from node.roster import Roster
from storage.store import Store

# What each reason of the core's means to whoever waits.
WAITS_FOR = {
    membership.NOT_LEADER: "a leader",
    membership.TRANSFER_UNDER_WAY: "another node to lead, which is under way",
    membership.NO_OWN_BLOCK: "the first block of the new leader to be certified",
    membership.CHANGE_UNDER_WAY: "the change that the log holds to be complete",
    membership.NOT_ONE_STEP: "a vote that withdraws it: it is no step from the present configuration",
    membership.LEARNER_UNREACHABLE: "{node} to answer: it was not heard for an election timeout",
    membership.LEARNER_MAY_NOT_VOTE: (
        "{node} to compare with the others after its start; if it says amnesia, vote it out, and in under a new id"
    ),
    membership.TOO_FEW_ANSWER: (
        "more voters to answer: with those who do, neither this change nor anything after it could be committed"
    ),
    membership.TOO_MUCH_UNCOMMITTED: "blocks to be certified: too many are not",
}


# Whoever is further behind than this has yet to catch up, whatever else it has yet to do.
FAR_BLOCKS = 16


class Core(Protocol):
    @property
    def role(self) -> Role: ...
    @property
    def leader(self) -> NodeId | None: ...
    @property
    def last_height(self) -> int: ...
    def followers(self) -> Sequence[FollowerView]: ...
    def why_no_change(self, target: Members) -> str: ...


class Log(Protocol):
    """The driver: the core, and how to have it append a change."""

    @property
    def core(self) -> Core: ...
    def propose_change(self, target: Members) -> bool: ...


class Changes:
    """`log` is known only once the core is made, which needs `next_change` first.

    A learner must have been close for `steady_s` before it is promoted. What it has on its disk is known here, not
    how far it has executed; and one that has just caught up still has a hundred blocks to execute before it can judge
    the change, for which every commit would wait.
    """

    def __init__(
        self, store: Store, roster: Roster, *, steady_s: float = 0.0, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._roster = roster
        self._steady_s = steady_s
        self._now_s = now_s
        # Since when nothing else is in the way of the promotion that is pending.
        self._close_since_s: float | None = None
        self._log: Log | None = None

    def attach(self, log: Log) -> None:
        self._log = log

    def next_change(self, configuration: Configuration) -> Change:
        """What is to be appended, for the block that does it."""
        pending = self._roster.pending
        assert pending is not None, "the leader appends what is pending"
        return network.next_change(configuration, pending)

    def voted(self, height: int, configuration: Configuration) -> Change | None:
        """What the state after `height` asks of the block above it, or BlockRefusedError(BEHIND) before that height
        was executed here."""
        if self._store.executed_height != height:
            raise BlockRefusedError(Reason.BEHIND, f"height {height} is not executed here yet")
        pending = self._roster.pending
        if pending is None or pending.appended is not None:
            return None
        try:
            return network.next_change(configuration, pending)
        except Rejection:
            return None

    @property
    def due(self) -> bool:
        """Whether the change waits for nothing but the end of the log to be executed."""
        return self._roster.pending is not None and not self.waits_for

    @property
    def waits_for(self) -> str:
        """Why the pending change is not appended, or not complete, in words for people; empty if there is none, or
        nothing is in its way.
        """
        pending, why = self._roster.pending, self._obstacle()
        if pending is None or why or pending.kind != "promote" or self._is_steady():
            return why
        return f"{pending.node} to stay close to the newest block for a moment"

    def consider(self) -> None:
        """Something moved: append what is due."""
        if self._roster.pending is None or self._obstacle():
            self._close_since_s = None
        elif self._close_since_s is None:
            self._close_since_s = self._now_s()
        if self.due and self._core.last_height == self._store.executed_height:
            assert self._log is not None
            self._log.propose_change(self._target())

    def _is_steady(self) -> bool:
        return self._close_since_s is not None and self._now_s() - self._close_since_s >= self._steady_s

    def _obstacle(self) -> str:
        """What is in the way now, in words."""
        pending, core = self._roster.pending, self._core
        if pending is None:
            return ""
        if pending.appended is not None:
            return f"certificates by the old and the new voters, since block {pending.appended}"
        if core.role is not Role.LEADER:
            return "a leader, which nobody is now" if core.leader is None else f"the leader, {core.leader}"
        sealed = self._store.sealed_height
        if sealed is None or sealed < pending.height:
            return f"the vote at height {pending.height} to be sealed"
        try:
            target = self._target()
        except Rejection as error:
            return f"another configuration: {error.detail}"
        why = core.why_no_change(target)
        return self._in_words(why) if why else ""

    @property
    def _core(self) -> Core:
        assert self._log is not None, "it was attached"
        return self._log.core

    def _target(self) -> Members:
        """Whom the change leads to; the core goes there through a joint configuration, where the voters change."""
        change = self.next_change(self._store.configuration)
        return Members(tuple(sorted(change.voters)), tuple(change.learners))

    def _in_words(self, why: str) -> str:
        """The core's reason, with what a person needs to see whether anything must be done."""
        pending = self._roster.pending
        node = "" if pending is None else pending.node
        match = next((view.match for view in self._core.followers() if view.node_id == node), 0)
        behind = max(self._core.last_height - match, 0)
        # Nor does it vote before it holds what the others showed it.
        if why == membership.LEARNER_BEHIND or (why == membership.LEARNER_MAY_NOT_VOTE and behind > FAR_BLOCKS):
            return f"{node} to catch up: it is {behind} blocks behind"
        return WAITS_FOR.get(why, why).format(node=node)
