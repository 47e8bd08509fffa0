"""Whoever runs the network: votes nodes in and out, one change after the other, by what some node shows of its state.

A node that comes back after its removal, or after its disk was lost, comes under a new id. The first nodes do not all
leave: whoever joins asks them.
"""

import random
from functools import partial
from typing import TYPE_CHECKING

from ledger.contracts import network
from tests.sim.founding import joining, node_name

if TYPE_CHECKING:
    from tests.sim.node import SimNode
    from tests.sim.simulation import Simulation

MEMBERS_MAX = 8
FOUNDERS_MIN = 1


class Churn:
    """`act` is called now and then; at most one vote is under way."""

    def __init__(self, run: "Simulation", chance: random.Random) -> None:
        self._run = run
        self._chance = chance
        self._made = len(run.names)
        self._under_way: bytes | None = None

    @property
    def is_under_way(self) -> bool:
        """Whether a vote, or what it decided, is not done with yet."""
        pending = [node.roster.pending for node in self._run.nodes.values()]
        return self._under_way is not None or any(one is not None for one in pending)

    def act(self) -> None:
        """Look at the node that is furthest; vote for something that is possible there."""
        up = [node for node in self._run.nodes.values() if node.failed is None and not node.removed]
        if not up:
            return
        node = max(up, key=lambda each: each.store.executed_height)
        if self._under_way is not None:
            given_up = all(waiting.id != self._under_way for waiting in self._run.clients.waiting)
            if node.place_of(self._under_way) is None and not given_up:
                return
            self._under_way = None
        if self._run.mishaps.is_doomed:
            return
        pending = node.roster.pending
        if pending is not None:
            if self._chance.random() < 0.04:
                self._vote("withdrawal", network.Withdraw(pending.proposal))
            return
        self._next(node)

    def _next(self, node: "SimNode") -> None:
        chance, configuration = self._chance, node.store.configuration
        voters, learners = sorted(configuration.voters), list(configuration.learners)
        forsworn = [voter for voter in voters if voter in self._run.watch.forsworn]
        able = len(voters) - len(forsworn)
        dice = chance.random()
        if len(voters) > 2 and forsworn and dice < 0.7:
            self._remove(chance.choice(forsworn), configuration.voters)
        elif learners and dice < 0.5 and able + 1 >= (len(voters) + 1) // 2 + 1:
            self._vote("promotion", network.Promote(chance.choice(learners)))
        elif len(voters) + len(learners) < MEMBERS_MAX and dice < 0.65:
            self._made += 1
            name = node_name(self._made)
            self._run.join(name)
            self._vote("addition", joining(name, self._made))
        elif learners and dice < 0.75:
            self._remove(chance.choice(learners), configuration.voters)
        elif len(voters) > 2 and able - 1 >= (len(voters) - 1) // 2 + 1:
            leader = self._run.leader()
            down = [voter for voter in voters if voter not in self._run.nodes]
            target = chance.choice(voters)
            if leader in voters and dice < 0.9:
                target = leader
            elif down and dice < 0.95:
                target = chance.choice(down)
            self._remove(target, configuration.voters)

    def _remove(self, name: str, voters: "dict[str, bytes]") -> None:
        founders = [voter for voter in voters if voter in self._run.founders and voter != name]
        if len(founders) >= FOUNDERS_MIN:
            kind = "removal of the leader" if name == self._run.leader() else "removal"
            self._vote(kind, network.Remove(name))

    def _vote(self, kind: str, change: network.Proposed) -> None:
        self._run.counts[kind] += 1
        transaction = self._run.clients.vote(change)
        self._under_way = transaction.id
        for node in self._run.nodes.values():
            node.guard(partial(node.admit, transaction, from_peer=False))
