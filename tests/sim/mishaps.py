"""What befalls one machine at a time, beyond a crash: an orderly stop, and a disk exchanged for an older one.

A disk that lost what it had promised is survived one at a time, and once the others are there to say so: that is what
the comparison at start is for. So here it is exchanged only while every other voter is up and connected, and holds
what is committed without it.
"""

import random
from typing import TYPE_CHECKING

from tests.sim.node import ELECTION_TICKS_MAX

# For how long the moment is waited for at which a disk may be exchanged.
DOOM_STEPS = 1_200
# Every so many steps a backup is taken of every disk, and later one disk is doomed.
PERIOD_STEPS, BACKUP_STEP, DOOM_STEP = 1_300, 300, 600

if TYPE_CHECKING:
    from tests.sim.simulation import Simulation


class Mishaps:
    """`backups` are copies of disks, taken at some time or other."""

    def __init__(self, run: "Simulation", chance: random.Random) -> None:
        self._run = run
        self._chance = chance
        self._stopping: dict[str, int] = {}
        self._backups: dict[str, dict[bytes, bytes]] = {}
        self._doomed: str | None = None
        self._patience = 0

    def stop(self, name: str) -> None:
        """As by SIGTERM: a leader hands over, for at most an election timeout."""
        node = self._run.nodes.get(name)
        if node is not None and node.failed is None and name not in self._stopping:
            self._run.counts["orderly stop"] += 1
            self._run.counts["orderly stop of a leader"] += node.leads
            self._stopping[name] = ELECTION_TICKS_MAX
            node.stop()

    def tick(self, name: str) -> None:
        left = self._stopping.get(name)
        if left is None:
            return
        self._stopping[name] = left - 1
        if left == 0 or not self._run.nodes[name].leads:
            self._run.close(name)

    def down(self, name: str) -> None:
        self._stopping.pop(name, None)

    def back_up(self, name: str) -> None:
        self._backups[name] = dict(self._run.disks[name].durable)

    def doom(self, name: str) -> None:
        """As soon as the others can bear it, this disk is exchanged."""
        self._doomed, self._patience = name, DOOM_STEPS

    @property
    def is_doomed(self) -> bool:
        return self._doomed is not None

    def settle(self) -> None:
        self._doomed = None

    def strike(self, step: int) -> None:
        """Exchange the doomed disk, if now is the time."""
        if step % PERIOD_STEPS == BACKUP_STEP:
            for each in self._run.names:
                self.back_up(each)
        elif step % PERIOD_STEPS == DOOM_STEP:
            self.doom(self._chance.choice(self._run.names))
        name, run = self._doomed, self._run
        if name is None:
            return
        self._patience -= 1
        if self._patience == 0:
            self._doomed = None
        if name not in run.nodes or not self._bearable(name):
            if self._chance.random() < 0.02:
                self._raise_others(name)
            return
        self._doomed = None
        run.crash(name)
        run.network.forget(name)
        backup = self._backups.get(name)
        restored = backup is not None and self._chance.random() < 0.52
        content = backup if restored and backup is not None else {}
        run.counts["disk restored" if restored else "disk wiped"] += 1
        run.disks[name].replace(content)
        run.watch.exchanged(name, content)
        if run.start(name):
            for other in run.names:
                if other != name:
                    run.links.connect(name, other)
            for sender, receiver, statements in run.network.take_shown(name):
                run.deliver(sender, receiver, statements)

    def _raise_others(self, name: str) -> None:
        """Whoever shall see to it that nothing is lost."""
        run = self._run
        run.network.cut.clear()
        run.paused.clear()
        for other in run.names:
            node = run.nodes.get(other)
            if other != name and (node is None or node.failed is not None):
                if node is not None:
                    run.crash(other)
                run.disks[other].mend()
                run.start(other)

    def _bearable(self, name: str) -> bool:
        run, configuration = self._run, self._run.watch.configuration
        voters = sorted(configuration.voters)
        forsworn = [voter for voter in voters if voter in run.watch.forsworn]
        quiet = not configuration.is_joint and not run.churn.is_under_way and len(run.watch.sides()) == 1
        if name not in voters or not quiet or len(forsworn) + 1 > (len(voters) - 1) // 2 or name in forsworn:
            return False
        for other in voters:
            node = run.nodes.get(other)
            reachable = not any(pair in run.network.cut for pair in ((name, other), (other, name)))
            if node is None or node.failed is not None or other in run.paused or not reachable:
                return False
        return run.watch.is_held_without(name)
