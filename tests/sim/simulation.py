"""One run: a cluster, one random event after the other, then the liveness phase. The seed decides everything."""

import random
import zlib
from collections import Counter
from collections.abc import Sequence

from ledger.genesis import Genesis
from network.port import BlockRange, FetchFailed, Statements
from node.joining import SnapshotReady
from node.peering import Peering
from storage.port import StorageFailure
from tests.sim.churn import Churn
from tests.sim.clients import Clients
from tests.sim.disk import SimDisk
from tests.sim.drills import Drills
from tests.sim.founding import TIME_MS, found, node_certificate
from tests.sim.links import Links
from tests.sim.medium import Medium
from tests.sim.mishaps import Mishaps
from tests.sim.network import Rates, SimNetwork
from tests.sim.node import ELECTION_TICKS_MAX, TICK_MS, SimNode
from tests.sim.oracle import Oracle
from tests.sim.shelf import SimShelf
from tests.sim.shell import Gossip, Sent
from tests.sim.turns import TIME
from tests.sim.weather import Weather

GOSSIP_SHARE = 0.4
# Clocks go fast, so that within a run what is kept for so long (the window of ids) grows old.
BLOCK_TIME_TICK_MS = 8_000
LIVENESS_TICKS = 10 * ELECTION_TICKS_MAX
ROUNDS_MAX = 60


class Simulation:
    """`nodes` holds the running ones; `disks` outlive them. `names` are those that take part: founders, who joined,
    and who was removed but does not know. `digest` tells two runs apart. `sync_ignored`: every disk lies.
    """

    def __init__(self, seed: int, voters: int, learners: int = 0, *, sync_ignored: bool = False) -> None:
        self.seed = seed
        self.chance = random.Random(f"{seed}/{voters}/{learners}")
        self.counts: Counter[str] = Counter()
        self.genesis: Genesis = found(voters, learners)
        self.names = [node.id for node in self.genesis.nodes]
        self.founders = tuple(self.names)
        self.nodes: dict[str, SimNode] = {}
        self.watch = Oracle(self.genesis, self._leader_of)
        self.network = SimNetwork(self.chance, self.counts)
        self.links = Links(self.nodes, self.network, self.chance, self.counts)
        self.disks: dict[str, SimDisk] = {}
        self.shelves: dict[str, SimShelf] = {}
        self.clients = Clients(self.genesis.chain_id(), self.chance, self.watch, self.counts, self._now_ms)
        self.churn = Churn(self, self.chance)
        self.mishaps = Mishaps(self, self.chance)
        self.hung: dict[str, None] = {}
        self.paused: dict[str, None] = {}
        self.clock_offsets_ms: dict[str, int] = {}
        self.steps = 0
        self.digest = 0
        self._sync_ignored = sync_ignored
        self._introduced: dict[str, tuple[str, ...]] = {}
        self._time_ms = TIME_MS
        self._ahead_ms = 0
        self._ticks = 0
        TIME.clock = self
        self._reads = 0
        self.weather = Weather(self)
        for name in self.names:
            self._found(name)
            self.start(name)

    def _found(self, name: str) -> None:
        self.watch.media[name] = Medium()
        self.shelves[name] = SimShelf(self._taken)
        self.disks[name] = SimDisk(lambda batch: self.watch.durable(name, batch), sync_ignored=self._sync_ignored)
        self.clock_offsets_ms[name] = 0

    def _taken(self, height: int, snapshot: bytes) -> None:
        self.counts["snapshot taken"] += 1
        self.watch.snapshot(height, snapshot)

    def join(self, name: str) -> None:
        """A machine for a new node: it knows genesis and the present members, and waits to be let in."""
        self._introduced[name] = tuple(self.members())
        self.names.append(name)
        self._found(name)
        self.start(name)

    def _leader_of(self, term: int) -> SimNode | None:
        leading = [node for node in self.nodes.values() if node.leads and node.core.term == term]
        return leading[0] if leading else None

    # what a node finds around it

    def now_ms(self, name: str) -> int:
        return self._now_ms() + self.clock_offsets_ms[name]

    def _now_ms(self) -> int:
        """By a clock that is right."""
        return self._time_ms + self._ticks * BLOCK_TIME_TICK_MS // len(self.founders)

    def shift_clock(self, name: str, offset_ms: int) -> None:
        self.clock_offsets_ms[name] = offset_ms
        self._ahead_ms = max(self._ahead_ms, offset_ms)

    def monotonic(self) -> float:
        """For what measures time without asking for a clock, in seconds."""
        return self._ticks * TICK_MS / 1000 / len(self.founders)

    def introduced(self, name: str) -> dict[str, bytes]:
        """Whom a joiner is told to trust until the ledger names them: those that take part as it joins."""
        return {peer: node_certificate(peer) for peer in self._introduced.get(name, ())}

    def peers(self, name: str) -> list[str]:
        return [peer for peer in self.names if peer != name]

    def send(self, sender: str, receiver: str, message: Sent) -> None:
        if self.links.reach(sender, receiver):
            self.network.send(sender, receiver, message)
        else:
            self.counts["sent without a connection"] += 1

    def reachable(self, name: str, peer: str) -> SimNode | None:
        """Who answers what `name` asks of `peer`."""
        server = self.nodes.get(peer)
        cut = (name, peer) in self.network.cut or (peer, name) in self.network.cut
        linked = not cut and self.links.pinned(name, peer)
        if server is None or not linked or server.failed is not None or peer in self.paused:
            return None
        return server

    def fetch(self, name: str, peer: str, height: int, bytes_max: int) -> BlockRange:
        """What the peer's side of a fetch answers, at once or not at all."""
        server = self.reachable(name, peer)
        if server is None:
            self.counts["failed fetch"] += 1
            raise FetchFailed(peer, "disconnected")
        self.counts["fetch"] += 1
        try:
            return Peering.serve_blocks(_Serving(server), height, bytes_max)  # type: ignore[arg-type]
        except StorageFailure as failure:
            server.disk_failed(failure)
            raise FetchFailed(peer, "disconnected") from None

    # nodes

    def start(self, name: str) -> bool:
        """Whether it came up: a damaged disk is noticed."""
        self.counts["start"] += 1
        try:
            self.nodes[name] = SimNode(name, self, self.disks[name], self.shelves[name], self.chance)
            self.watch.starts(name, forsworn=self.nodes[name].amnesia is not None)
        except StorageFailure:
            self.counts["damage noticed"] += 1
            self.disks[name].lose_power(self.chance)
            return False
        return True

    def crash(self, name: str) -> None:
        """Power loss: the disk keeps a prefix of what it was given."""
        self.counts["batches lost"] += self.disks[name].lose_power(self.chance)
        self._down(name)

    def close(self, name: str) -> None:
        """An orderly end: what the disk was given, it keeps."""
        if name in self.hung or self.nodes[name].failed is not None:
            self.crash(name)
            return
        self.nodes[name].flush()
        self.disks[name].close()
        self._down(name)

    def _down(self, name: str) -> None:
        self.nodes.pop(name).close()
        self.links.forget(name)
        self.mishaps.down(name)
        self.hung.pop(name, None)
        self.paused.pop(name, None)

    def leader(self) -> str | None:
        """The running leader of the newest term."""
        leading = [node for node in self.nodes.values() if node.leads]
        return max(leading, key=lambda node: node.core.term).name if leading else None

    # one event after the other

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.step()

    def step(self) -> None:
        self.steps += 1
        self.weather.blow()
        self.mishaps.strike(self.steps)
        if not self.nodes:
            return
        dice = self.chance.random()
        pace = self.weather.pace
        name = self.chance.choice(list(self.nodes))
        node = self.nodes[name]
        if dice < pace.deliver:
            self._deliver()
        elif name in self.paused or node.failed is not None:
            self._note("idle", name)
        elif dice < pace.tick:
            self.tick(name)
        elif dice < pace.disk:
            if name not in self.hung:
                node.disk()
                if node.writing and self.chance.random() < 0.5:
                    node.disk()
        elif dice < pace.execute:
            for _ in range(self.chance.randint(1, 4)):
                node.execute()
        elif dice < pace.propose:
            self._propose()
        else:
            self._serve_client(node)
        self._note("after", name, node.core.term, node.core.last_height, node.core.commit_height)

    def _deliver(self) -> None:
        arriving = self.network.next()
        if arriving is not None:
            self.deliver(*arriving)

    def deliver(self, sender: str, receiver: str, message: Sent) -> None:
        node = self.nodes.get(receiver)
        cut = (sender, receiver) in self.network.cut
        if node is None or receiver in self.paused or cut:
            self.counts["lost on a cut link" if cut else "lost at a node that is down"] += 1
            if isinstance(message, Statements):
                self.links.disconnect(sender, receiver)
            return
        self._note(type(message).__name__, sender, receiver)
        node.on_message(sender, message)

    def tick(self, name: str) -> None:
        self._ticks += 1
        node = self.nodes[name]
        node.tick()
        self.mishaps.tick(name)
        if name not in self.nodes:
            return
        if self.chance.random() < 0.3:
            peer = self.chance.choice(self.names)
            if peer != name:
                self.links.connect(name, peer)
        if isinstance(node.failed, SnapshotReady):
            self.take_over(name)

    def take_over(self, name: str) -> None:
        """A store built from a snapshot takes the place of the one in use, unless the power fails first."""
        node = self.nodes[name]
        self.counts["snapshot installed"] += 1
        content = node.background.take_over()
        self.crash(name)
        self.disks[name].replace(content)
        self.watch.installed(name, content)
        self.start(name)

    def _propose(self) -> None:
        leading = [node for node in self.nodes.values() if node.leads and node.name not in self.paused]
        if leading:
            self.chance.choice(leading).propose()

    def _serve_client(self, node: SimNode) -> None:
        dice = self.chance.random()
        if dice < 0.12:
            self.churn.act()
            return
        if dice < 0.22:
            self.ask(node)
            return
        transaction = self.clients.act(node)
        if transaction is not None:
            for peer in self.names:
                if peer != node.name:
                    if self.chance.random() < GOSSIP_SHARE:
                        self.send(node.name, peer, Gossip(transaction))
                    else:
                        self.counts["lost gossip"] += 1

    def ask(self, node: SimNode) -> int:
        """Begin a read there; which one it is."""
        self._reads += 1
        self.counts["read"] += 1
        self.watch.asks(self._reads)
        node.read(self._reads)
        return self._reads

    def _note(self, *facts: object) -> None:
        self.digest = zlib.crc32(repr(facts).encode(), self.digest)

    # the liveness phase

    def end(self, commits_min: int) -> None:
        """A majority is healed and must go on without the rest; then all; then the books are closed."""
        self.mishaps.settle()
        majority = self._majority()
        self.heal(majority)
        self.settle(majority)
        self.heal(self.names)
        self.settle(self.names)
        Drills(self).one()
        self.heal(self.names)
        self.settle(self.names)
        while self.watch.commit_height < commits_min:
            self.settle(self.names)
        self.watch.final()

    def members(self) -> list[str]:
        """Of the newest committed configuration."""
        configuration = self.watch.configuration
        return [name for name in self.names if name in configuration.signers or name in configuration.learners]

    def _majority(self, names: Sequence[str] = ()) -> list[str]:
        """As few as must be able to go on, `names` among them: a quorum of those whose vote counts, by every
        configuration that any log may still bring into effect.
        """
        chosen = list(names)
        for side in self.watch.sides():
            able = [name for name in sorted(side) if name not in self.watch.forsworn]
            self.chance.shuffle(able)
            # One of those chosen may meanwhile have been shown that its disk forgot.
            voices = sum(name in side and name not in self.watch.forsworn for name in chosen)
            missing = len(side) // 2 + 1 - voices
            chosen += [name for name in able if name not in chosen][: max(0, missing)]
        return chosen

    def heal(self, names: list[str]) -> None:
        """These run, are linked with each other, and nothing is wrong with them. The rest stays as it is."""
        self.network.rates = Rates()
        # A block of the future is refused until its time has come; and with it a majority that cannot do without the
        # one node that holds it.
        self._time_ms, self._ahead_ms = self._time_ms + self._ahead_ms, 0
        for pair in list(self.network.cut):
            if pair[0] in names and pair[1] in names:
                del self.network.cut[pair]
        for name in names:
            self.hung.pop(name, None)
            self.paused.pop(name, None)
            self.clock_offsets_ms[name] = 0
            self.disks[name].mend()
            if name in self.nodes and (self.nodes[name].failed is not None or self.nodes[name].core.stopping):
                self.crash(name)
            if name not in self.nodes:
                assert self.start(name), "a mended disk can be read"

    def settle(self, names: list[str], ticks_max: int = LIVENESS_TICKS) -> int:
        """Within `ticks_max` a new block is committed and executed by all of `names`. Returns the ticks it took.

        Where a change of membership, voted for before, comes into effect meanwhile and needs others too, they are
        healed as well, and the time begins anew.
        """
        goal: int | None = None
        tick = 0
        while tick < ticks_max:
            needed = self._majority(names)
            if len(needed) > len(names):
                names, tick = needed, 0
                self.heal(names)
            self.orderly_tick(names)
            tick += 1
            leader = self.leader()
            if leader is not None and leader in names and (goal is None or goal not in self.watch.committed):
                # A refusal of earlier may still be on its way; what it was about is put right by now.
                self.nodes[leader].propose_now()
                goal = self.nodes[leader].core.last_height
            members = self.members()
            if goal is not None and self._all_at([name for name in names if name in members], goal):
                return tick
        raise AssertionError(f"no progress in {ticks_max} ticks: {self.describe()}")

    def orderly_tick(self, names: list[str]) -> None:
        for name in names:
            node = self.nodes[name]
            node.core.mend()
            self.tick(name)
            for peer in names:
                if peer != name:
                    self.links.connect(name, peer)
        for _ in range(ROUNDS_MAX):
            for name in names:
                while self.nodes[name].busy and name not in self.hung:
                    self.nodes[name].disk()
                    self.nodes[name].execute()
            self.network.release_held()
            if self.network.quiet:
                return
            for arriving in self.network.take_all():
                self.deliver(*arriving)

    def _all_at(self, names: list[str], goal: int) -> bool:
        height = self.watch.commit_height
        nodes = [self.nodes[name] for name in names]
        return height >= goal and all(node.store.executed_height == height and not node.busy for node in nodes)

    def describe(self) -> str:
        return "; ".join(
            f"{name}: {node.core.role.value} of {node.core.leader} in term {node.core.term}, last "
            f"{node.core.last_height}, commit {node.core.commit_height}, executed {node.store.executed_height}"
            + (f", failed: {node.failed}" if node.failed else "")
            for name, node in self.nodes.items()
        )


class _Serving:
    """What Peering's side of a fetch needs of its node."""

    def __init__(self, node: SimNode) -> None:
        self._store = node.store
