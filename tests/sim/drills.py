"""After the storm, one thing at a time: what a healthy cluster does about it is not only safe, it is prompt and calm.

| drill         | what happens                                | what must follow                                    |
|---------------|---------------------------------------------|-----------------------------------------------------|
| quiet         | nothing                                     | same leader, same term; every read is answered      |
| follower away | one follower hears nothing, then comes back | same leader, same term                              |
| leader away   | the leader is cut off                       | it steps down, another leads and commits            |
| disk hangs    | the leader's disk syncs nothing             | it steps down, another leads and commits            |
| unheard       | the leader sends, and hears nothing         | it steps down, another leads and commits            |
| hand over     | a transfer                                  | another leads soon, in the next term, and commits   |
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.sim.node import ELECTION_TICKS_MAX

if TYPE_CHECKING:
    from tests.sim.simulation import Simulation

AWAY_TICKS = 3 * ELECTION_TICKS_MAX
CALM_TICKS = 2 * ELECTION_TICKS_MAX
# A leader notices within one election timeout that it lacks a quorum; whoever follows it is elected within three.
STEP_DOWN_TICKS = 2 * ELECTION_TICKS_MAX
SUCCESSION_TICKS = 5 * ELECTION_TICKS_MAX


class Drills:
    """Upon a settled cluster: all members run, and all is executed everywhere."""

    def __init__(self, run: "Simulation") -> None:
        self._run = run

    def one(self) -> None:
        """One of them, by the seed. Where too few could elect another, only what disturbs nobody."""
        run = self._run
        voters = [name for name in run.watch.configuration.voters if name not in run.watch.forsworn]
        drills: list[Callable[[str], None]] = [self._quiet]
        spare = len(voters) - 1 >= len(run.watch.configuration.voters) // 2 + 1
        if spare:
            drills += [self._follower_away, self._leader_away, self._disk_hangs, self._unheard, self._hand_over]
        leader = run.leader()
        assert leader is not None, "a settled cluster has a leader"
        drill = run.chance.choice(drills)
        run.counts[f"drill: {drill.__name__.strip('_').replace('_', ' ')}"] += 1
        drill(leader)

    def _quiet(self, leader: str) -> None:
        reads = [self._run.ask(self._run.nodes[name]) for name in self._run.members()]
        self._stays(leader, CALM_TICKS)
        assert not any(self._run.watch.is_open(read) for read in reads), "in calm every read is answered"

    def _follower_away(self, leader: str) -> None:
        away = self._run.chance.choice([name for name in self._run.members() if name != leader])
        self._cut(away)
        self._stays(leader, AWAY_TICKS)
        self._run.network.cut.clear()
        self._stays(leader, CALM_TICKS)

    def _leader_away(self, leader: str) -> None:
        self._cut(leader)
        self._succeeds(leader)

    def _disk_hangs(self, leader: str) -> None:
        self._run.hung[leader] = None
        self._succeeds(leader)

    def _unheard(self, leader: str) -> None:
        for other in self._run.names:
            if other != leader:
                self._run.network.cut[other, leader] = None
        self._succeeds(leader)

    def _hand_over(self, leader: str) -> None:
        run, term = self._run, self._run.nodes[leader].core.term
        run.nodes[leader].transfer(None)
        for _ in range(ELECTION_TICKS_MAX):
            run.orderly_tick(run.names)
            if run.leader() not in (None, leader):
                break
        assert run.leader() not in (None, leader), "a transfer between healthy nodes succeeds"
        assert run.nodes[leader].core.term == term + 1, "a transfer takes one term"

    def _stays(self, leader: str, ticks: int) -> None:
        run = self._run
        term = run.nodes[leader].core.term
        for _ in range(ticks):
            run.orderly_tick(run.names)
            core = run.nodes[leader].core
            if leader not in run.watch.configuration.voters:
                # A vote of before the drill.
                return
            assert run.nodes[leader].leads, f"a healthy leader keeps leading, but: {core.step_down_reason}"
            assert core.term == term, "nobody disturbs a healthy leader"

    def _succeeds(self, leader: str) -> None:
        run = self._run
        others = [name for name in run.members() if name != leader]
        run.settle(others, SUCCESSION_TICKS)
        cut, voters = run.network.cut, run.watch.configuration.voters
        reached = any((leader, name) not in cut and (name, leader) not in cut for name in voters if name != leader)
        if leader not in run.hung and reached:
            # A vote of before the drill left too few without it, so it was healed.
            return
        for _ in range(STEP_DOWN_TICKS):
            run.orderly_tick(others)
            run.tick(leader)
        assert not run.nodes[leader].leads, "a leader without a quorum, or without a disk, steps down"

    def _cut(self, name: str) -> None:
        for other in self._run.names:
            if other != name:
                self._run.network.cut[name, other] = None
                self._run.network.cut[other, name] = None
