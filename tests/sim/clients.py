"""Clients: they submit transactions, again and again the same bytes to whatever node, until one says committed."""

import random
from collections import Counter
from collections.abc import Callable

from ledger.contracts import network
from ledger.execution import OK
from ledger.transaction import Transaction
from tests.sim.founding import membership_vote, registration, revocation, until
from tests.sim.node import SimNode
from tests.sim.oracle import Oracle

WAITING_MAX = 12
PATIENCE_MS = 120_000


class Clients:
    """`waiting`: submitted and not known to be committed, oldest first."""

    def __init__(
        self,
        chain: bytes,
        chance: random.Random,
        oracle: Oracle,
        counts: Counter[str],
        now_ms: Callable[[], int],
    ) -> None:
        self._now_ms = now_ms
        self.waiting: list[Transaction] = []
        self._chain = chain
        self._chance = chance
        self._oracle = oracle
        self._counts = counts
        self._made = 0
        self._registered: list[int] = []

    def act(self, node: SimNode) -> Transaction | None:
        """One client turns to `node`; what `node` took from it, for gossip."""
        given: list[Transaction] = []
        node.guard(lambda: given.extend(self._turn_to(node)))
        return given[0] if given else None

    def _turn_to(self, node: SimNode) -> list[Transaction]:
        # What was not included in time is given up once no clock can be so far behind.
        over_ms = self._now_ms() - PATIENCE_MS
        self.waiting = [waiting for waiting in self.waiting if waiting.envelope.until >= over_ms]
        dice = self._chance.random()
        if self.waiting and (dice < 0.5 or len(self.waiting) >= WAITING_MAX):
            transaction = self._chance.choice(self.waiting)
            if self._settled(node, transaction):
                return []
            self._counts["resubmission"] += 1
        else:
            transaction = self._make()
            self.waiting.append(transaction)
        return [transaction] if node.admit(transaction, from_peer=False) else []

    def vote(self, change: network.Proposed) -> Transaction:
        """A proposal that passes at once, if it can; submitted like everything else."""
        transaction = membership_vote(self._chain, self._made, until(self._now_ms()), change)
        self._made += 1
        self.waiting.append(transaction)
        return transaction

    def _make(self) -> Transaction:
        number, self._made = self._made, self._made + 1
        if self._registered and self._chance.random() < 0.2:
            registered = self._registered.pop(self._chance.randrange(len(self._registered)))
            return revocation(self._chain, number, until(self._now_ms()), registered)
        self._registered.append(number)
        return registration(self._chain, number, until(self._now_ms()))

    def _settled(self, node: SimNode, transaction: Transaction) -> bool:
        place = node.place_of(transaction.id)
        if place is None:
            return False
        self.waiting.remove(transaction)
        if place.code == OK:
            self._counts["acknowledged"] += 1
            self._oracle.acknowledged(transaction.id, place.height)
        return True
