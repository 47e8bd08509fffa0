"""The simulated network: messages in flight, and everything that can happen to one on its way.

Without a fault each link is first in, first out, and links are served in turn. Time is counted in steps.
"""

import random
from collections import Counter, deque
from dataclasses import dataclass

from network.port import Statements
from tests.sim.shell import Sent

FLYING_MAX = 1_000
KEPT_MAX = 400
DELAY_STEPS_MAX = 400


@dataclass(slots=True)
class Rates:
    """Chances for each message: lost, doubled, delivered out of turn, held back; an old one delivered once more."""

    drop: float = 0.0
    double: float = 0.0
    reorder: float = 0.0
    delay: float = 0.0
    replay: float = 0.0


class SimNetwork:
    """`cut` holds ordered pairs, over which nothing arrives."""

    def __init__(self, chance: random.Random, counts: Counter[str]) -> None:
        self.rates = Rates()
        self.cut: dict[tuple[str, str], None] = {}
        self._chance = chance
        self._counts = counts
        self._flying: deque[tuple[str, str, Sent]] = deque()
        self._held: list[tuple[int, tuple[str, str, Sent]]] = []
        # What was delivered before, to be delivered again long after.
        self._kept: list[tuple[str, str, Sent]] = []
        self._step = 0

    @property
    def quiet(self) -> bool:
        return not self._flying and not self._held

    @property
    def flying(self) -> int:
        return len(self._flying)

    def send(self, sender: str, receiver: str, message: Sent) -> None:
        self._flying.append((sender, receiver, message))
        while len(self._flying) > FLYING_MAX and not isinstance(self._flying[0][2], Statements):
            self._flying.popleft()
            self._counts["lost to a full queue"] += 1

    def show(self, sender: str, receiver: str, statements: Statements) -> None:
        """What a new connection begins with."""
        self._flying.append((sender, receiver, statements))

    def next(self) -> tuple[str, str, Sent] | None:
        """What arrives now, if anything does."""
        chance, rates = self._chance, self.rates
        self._step += 1
        if self._held and self._held[0][0] <= self._step:
            self._flying.append(self._held.pop(0)[1])
        if self._kept and chance.random() < rates.replay:
            self._counts["replay"] += 1
            return chance.choice(self._kept)
        if not self._flying:
            return None
        index = 0
        if chance.random() < rates.reorder:
            index = chance.randrange(len(self._flying))
            self._counts["reorder"] += index > 0
        arriving = self._flying[index]
        del self._flying[index]
        if isinstance(arriving[2], Statements):
            return arriving
        if chance.random() < rates.drop:
            self._counts["drop"] += 1
            return None
        if chance.random() < rates.delay:
            self._counts["delay"] += 1
            self._held.append((self._step + chance.randint(1, DELAY_STEPS_MAX), arriving))
            self._held.sort(key=lambda item: item[0])
            return None
        if chance.random() < rates.double:
            self._counts["duplicate"] += 1
            self._flying.append(arriving)
        if len(self._kept) < KEPT_MAX:
            self._kept.append(arriving)
        else:
            self._kept[chance.randrange(KEPT_MAX)] = arriving
        return arriving

    def forget(self, sender: str) -> None:
        """Nothing that it said before will ever arrive."""
        self._flying = deque(item for item in self._flying if item[0] != sender)
        self._held = [item for item in self._held if item[1][0] != sender]
        self._kept = [item for item in self._kept if item[0] != sender]

    def take_shown(self, name: str) -> list[tuple[str, str, Sent]]:
        """What others show `name`, out of turn."""
        taken = [item for item in self._flying if item[1] == name and isinstance(item[2], Statements)]
        self._flying = deque(item for item in self._flying if item not in taken)
        return taken

    def take_all(self) -> list[tuple[str, str, Sent]]:
        """Everything in flight, in order, for orderly rounds."""
        taken = list(self._flying)
        self._flying.clear()
        return taken

    def release_held(self) -> None:
        self._flying.extend(item for _, item in self._held)
        self._held.clear()
