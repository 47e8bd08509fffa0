"""What goes wrong, and when: a run is a chain of spells, each with faults of its own."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.sim.network import Rates

if TYPE_CHECKING:
    from tests.sim.node import SimNode
    from tests.sim.simulation import Simulation


# How often a new spell begins with all that is broken mended.
CLEARING = 0.5


@dataclass(frozen=True, slots=True)
class Pace:
    """Upper ends, in [0, 1], of the dice for each kind of event; what is above `propose` is a client's turn."""

    deliver: float = 0.50
    tick: float = 0.66
    disk: float = 0.87
    execute: float = 0.94
    propose: float = 0.96


class Weather:
    """`blow` is called before each event."""

    def __init__(self, run: "Simulation") -> None:
        self.pace = Pace()
        self._run = run
        self._chance = run.chance
        self._left = 0
        self._fault_rate = 0.0
        self._repair_rate = 0.0
        self._plan: Callable[[int], None] | None = None
        self._age = 0

    def blow(self) -> None:
        if self._left == 0:
            self._begin_spell()
        self._left -= 1
        self._age += 1
        if self._plan is not None:
            self._plan(self._age)
        if self._chance.random() < self._fault_rate:
            self._fault()
        if self._chance.random() < self._repair_rate or not self._run.nodes:
            self._repair()

    def _begin_spell(self) -> None:
        chance = self._chance
        self._left, self._age = chance.randint(300, 1_500), 0
        self._fault_rate = chance.choice((0.0, 0.001, 0.003, 0.008))
        if chance.random() < CLEARING:
            self._clear()
        self._repair_rate = max(0.006, 3 * self._fault_rate)
        rough = chance.choice((0.002, 0.02, 0.08))
        self._run.network.rates = Rates(
            drop=rough,
            double=rough,
            reorder=chance.choice((0.0, 0.1, 0.5)),
            delay=chance.choice((0.0, 0.01, 0.05)),
            replay=chance.choice((0.0, 0.005, 0.03)),
        )
        slow = chance.choice((0.0, 0.0, 0.06))
        self.pace = Pace(disk=0.87 - 2 * slow)
        plans = (None, None, None, self._figure_eight, self._minority_leader, self._leave_behind)
        self._plan = chance.choice(plans)

    def _clear(self) -> None:
        """The storm is over: all that is down comes up."""
        run = self._run
        run.network.cut.clear()
        run.hung.clear()
        run.paused.clear()
        for name in run.names:
            self._start(name)

    def _start(self, name: str) -> None:
        run = self._run
        node = run.nodes.get(name)
        if node is None or node.failed is not None:
            run.disks[name].mend()
            if node is not None:
                run.crash(name)
            run.start(name)

    # single faults

    def _fault(self) -> None:
        run, chance = self._run, self._chance
        name = chance.choice(run.names)
        faults: tuple[tuple[float, Callable[[str], None]], ...] = (
            (0.22, self._crash),
            (0.03, self._crash_all),
            (0.15, self._cut_one_way),
            (0.13, self._isolate),
            (0.08, self._split),
            (0.10, self._hang),
            (0.08, self._fail_disk),
            (0.10, self._transfer),
            (0.10, self._stop),
            (0.06, self._exchange),
            (0.05, self._damage),
            (0.08, self._pause),
            (0.06, self._burst),
            (0.04, self._shift_clock),
        )
        dice = chance.random() * sum(weight for weight, _ in faults)
        for weight, fault in faults:
            dice -= weight
            if dice < 0:
                fault(name)
                return

    def _crash(self, name: str) -> None:
        if name in self._run.nodes:
            self._run.counts["crash"] += 1
            self._run.crash(name)

    def _crash_all(self, name: str) -> None:
        self._run.counts["crash of all"] += 1
        for up in list(self._run.nodes):
            self._run.crash(up)

    def _cut_one_way(self, name: str) -> None:
        other = self._chance.choice(self._run.names)
        if other != name:
            self._run.counts["one-way cut"] += 1
            self._run.network.cut[name, other] = None

    def _isolate(self, name: str) -> None:
        self._run.counts["isolation"] += 1
        self._separate([name])

    def _split(self, name: str) -> None:
        if len(self._run.names) < 2:
            return
        self._run.counts["split"] += 1
        names = list(self._run.names)
        self._chance.shuffle(names)
        self._separate(names[: self._chance.randint(1, len(names) - 1)])

    def _separate(self, side: list[str]) -> None:
        for one in side:
            for other in self._run.names:
                if other not in side:
                    self._run.network.cut[one, other] = None
                    self._run.network.cut[other, one] = None

    def _hang(self, name: str) -> None:
        self._run.counts["hung disk"] += 1
        self._run.hung[name] = None

    def _fail_disk(self, name: str) -> None:
        node = self._run.nodes.get(name)
        if node is None:
            return
        if node.failed is None and (node.writing or self._busy(node)):
            self._run.counts["failed sync"] += 1
            node.fail_sync()
        else:
            self._run.counts["failing disk"] += 1
            self._run.disks[name].fail_writes = True

    def _busy(self, node: "SimNode") -> bool:
        """Half of the time, have it write something that can fail."""
        if self._chance.random() < 0.5:
            node.disk()
        return node.writing

    def _transfer(self, name: str) -> None:
        leader = self._run.leader()
        if leader is not None and leader not in self._run.paused:
            self._run.counts["transfer"] += 1
            self._run.nodes[leader].transfer(name if self._chance.random() < 0.5 and name != leader else None)

    def _stop(self, name: str) -> None:
        leader = self._run.leader()
        self._run.mishaps.stop(leader if leader is not None and self._chance.random() < 0.5 else name)

    def _exchange(self, name: str) -> None:
        if self._chance.random() < 0.4:
            for each in self._run.names:
                self._run.mishaps.back_up(each)
        else:
            self._run.mishaps.doom(name)

    def _damage(self, name: str) -> None:
        keys = list(self._run.disks[name].durable)
        if keys:
            self._run.counts["flipped record"] += 1
            newest = keys[-40:] if self._chance.random() < 0.5 else keys
            self._run.disks[name].damage(self._chance.choice(newest))

    def _pause(self, name: str) -> None:
        self._run.counts["pause"] += 1
        self._run.paused[name] = None

    def _burst(self, name: str) -> None:
        if name in self._run.nodes and name not in self._run.paused:
            self._run.counts["tick burst"] += 1
            for _ in range(25):
                if name in self._run.nodes:
                    self._run.tick(name)

    def _shift_clock(self, name: str) -> None:
        self._run.counts["clock jump"] += 1
        self._run.shift_clock(name, self._chance.choice((-20_000, 5_000, 25_000, 60_000)))

    # repairs

    def _repair(self) -> None:
        run, chance = self._run, self._chance
        dice = chance.random()
        if dice < 0.45:
            down = [name for name in run.names if name not in run.nodes or run.nodes[name].failed is not None]
            if down:
                self._start(chance.choice(down))
        elif dice < 0.65:
            run.network.cut.clear()
        elif dice < 0.8:
            run.hung.clear()
        elif dice < 0.95:
            run.paused.clear()
        else:
            run.clock_offsets_ms = dict.fromkeys(run.names, 0)

    # directed weather

    def _figure_eight(self, age: int) -> None:
        """Leaders that reach a minority and die at once, so that tails of old terms stand on few disks for long."""
        run, chance = self._run, self._chance
        if age % 120 == 1:
            leader = run.leader()
            if leader is None:
                run.network.cut.clear()
                for name in run.names:
                    if name not in run.nodes and chance.random() < 0.6:
                        self._start(name)
                return
            run.counts["leader with a minority"] += 1
            others = [name for name in run.names if name != leader]
            kept = chance.sample(others, max(0, (len(run.names) - 1) // 2 - chance.randint(0, 1)))
            for other in others:
                if other not in kept:
                    run.network.cut[leader, other] = None
            run.nodes[leader].propose_now()
        elif age % 120 == 60:
            leader = run.leader()
            if leader is not None and chance.random() < 0.7:
                run.counts["leader dies early"] += 1
                run.crash(leader)
            run.network.cut.clear()

    def _minority_leader(self, age: int) -> None:
        """A leader that is cut off with a minority, and goes on proposing into the void."""
        run = self._run
        leader = run.leader()
        if age == 1 and leader is not None:
            run.counts["leader cut off"] += 1
            others = [name for name in run.names if name != leader]
            kept = self._chance.randint(0, max(0, (len(others) - 1) // 2))
            self._separate([leader, *self._chance.sample(others, kept)])
        elif age % 15 == 0:
            for node in list(run.nodes.values()):
                if node.leads and self._chance.random() < 0.5:
                    node.propose_now()
        elif age == 150:
            run.network.cut.clear()

    def _leave_behind(self, age: int) -> None:
        """One node hears nothing until it is far behind."""
        if age == 1:
            self._run.counts["left behind"] += 1
            self._separate([self._chance.choice(self._run.names)])
