"""A whole cluster in one process, driven by one seed: any interleaving, any loss, checked after every step.

faults       messages dropped, doubled, reordered, delayed; one-way cuts; crashes that lose what was not
             written, and keep some that was written but not reported; slow, hung and failing disks; pauses and
             tick bursts; refusals; forgotten certificates; changes of membership, transfers, compactions
checks       see Oracle: nothing here is read from a core that could be read from a disk
two phases   `run` breaks things and checks safety; `settle` heals everything and demands progress
"""

import random
from collections import Counter
from collections.abc import Callable

from consensus.configuration import after_joint, has_quorum, is_one_step, joint_step
from consensus.errors import ProtocolViolation
from consensus.messages import (
    Answer,
    Append,
    AppendReply,
    Certificate,
    CertifiedBlocks,
    Configuration,
    Message,
    NodeId,
    PreVote,
    PreVoteReply,
    ReadIndexReply,
    ReadState,
    Reason,
    Role,
    Slot,
    Vote,
    VoteReply,
)
from consensus.ports import CoreSettings
from tests.consensus.nodes import Disk, Node, PlainSigner, acknowledgement

FLYING_MAX = 400
FETCH_BLOCKS_MAX = 12
REPLICATE_GAP_BLOCKS = 6
ELECTION_TICKS_MAX = 20


class Oracle:
    """What must never happen, remembered for the whole run, crashes included."""

    def __init__(self, founding: Configuration, disks: dict[NodeId, Disk]) -> None:
        self.founding = founding
        self.disks = disks
        self.leaders: dict[int, NodeId] = {}
        self.blocks: dict[tuple[int, int], bytes] = {}
        self.votes: dict[tuple[NodeId, int], NodeId] = {}
        self.acknowledged: dict[tuple[NodeId, int, int], bytes] = {}
        self.committed: dict[int, bytes] = {}
        self.certified: set[bytes] = set()
        self.reads: dict[tuple[NodeId, int], int] = {}

    def configuration_at(self, block: bytes, height: int) -> Configuration:
        """In effect at that block, by the disks alone."""
        disk = next(disk for name, disk in self.disks.items() if self._hash_at(name, height) == block)
        changes = [disk.blocks[at].configuration for at in range(1, height + 1)]
        return next((change for change in reversed(changes) if change is not None), self.founding)

    def sealed(self, height: int, term: int, block: bytes) -> None:
        assert self.blocks.setdefault((height, term), block) == block, "one block a height and term"

    def voted(self, voter: NodeId, term: int, candidate: NodeId) -> None:
        assert self.votes.setdefault((voter, term), candidate) == candidate, "one vote a node and term"

    def acknowledges(self, voter: NodeId, term: int, height: int, block: bytes) -> None:
        disk = self.disks[voter]
        assert disk.term_hash(height) == (term, block), "a block is acknowledged once it is on the disk"
        assert disk.hard_state.term == term, "a block is acknowledged in its own term only"
        assert self.acknowledged.setdefault((voter, term, height), block) == block, "one block a height and term"

    def leads(self, node: Node) -> None:
        term, node_id = node.core.term, node.node_id
        if self.leaders.get(term) == node_id:
            return
        latest = [configuration for _, configuration in node.core.configurations()][-2:]
        assert any(node_id in configuration.electorate for configuration in latest), "a voter leads"
        assert term not in self.leaders, "one leader a term"
        self.leaders[term] = node_id
        assert node.disk.hard_state.term == term, "a leader's term is on its disk"
        for height, block in self.committed.items():
            held = node.core.term_hash(height) or (0, b"")
            assert held[1] == block or height < node.core.base_height, "a leader holds everything committed"

    def certificate(self, certificate: Certificate) -> None:
        """Every certificate on its way is checked once: signatures, and copies on a quorum of disks."""
        if certificate.hash in self.certified:
            return
        self.certified.add(certificate.hash)
        term, height, block = certificate.term, certificate.height, certificate.hash
        signers = {voter for voter, _ in certificate.signatures}
        configuration = self.configuration_at(block, height)
        assert signers <= set(configuration.electorate), "voters signed"
        assert len(signers) == len(certificate.signatures), "each signed once"
        assert has_quorum(configuration, signers), "a quorum signed"
        for voter, signature in certificate.signatures:
            assert signature == acknowledgement(voter, term, height, block), "each signature is of this block"
        copies = [name for name in self.disks if self.disks[name].term_hash(height) == (term, block)]
        assert has_quorum(configuration, copies), "a certified block is on a quorum of disks"
        self._commit_ancestors(certificate)

    def _commit_ancestors(self, certificate: Certificate) -> None:
        holder = next(name for name in self.disks if self._hash_at(name, certificate.height) == certificate.hash)
        disk = self.disks[holder]
        below = certificate.height
        while below > 0 and below not in self.committed:
            below -= 1
        for height in range(below, certificate.height + 1):
            if height:
                block = disk.blocks[height].hash
                assert self.committed.setdefault(height, block) == block, "one block a height, for ever"

    def writes(self, node_id: NodeId, before: dict[int, bytes]) -> None:
        """After a write that removed blocks: each committed one is still on a quorum of disks.

        A copy outside that quorum may go: its holder can hear a deposed leader before it hears of the commit.
        """
        for height, block in before.items():
            if self.committed.get(height) == block and self._hash_at(node_id, height) != block:
                copies = [name for name in self.disks if self._hash_at(name, height) == block]
                configuration = self.configuration_at(block, height)
                assert has_quorum(configuration, copies), "a committed block stays on a quorum of disks"

    def _hash_at(self, node_id: NodeId, height: int) -> bytes | None:
        entry = self.disks[node_id].blocks.get(height)
        return entry.hash if entry else None

    def tells(self, node: Node, certificate: Certificate) -> None:
        found = node.disk.term_hash(certificate.height)
        assert found == (certificate.term, certificate.hash), "what is told committed is on this disk"
        assert self.committed.get(certificate.height) == certificate.hash, "what is told committed is certified"

    def asks(self, node_id: NodeId, token: int) -> None:
        self.reads[node_id, token] = max(self.committed, default=0)

    def answers(self, node_id: NodeId, state: ReadState) -> None:
        floor = self.reads.pop((node_id, state.token))
        assert state.height is None or state.height >= floor, "a read sees what was committed before it"

    def sends(self, node: Node, receiver: NodeId, message: Message) -> None:
        hard_state = node.disk.hard_state
        match message:
            case PreVote():
                assert message.term == hard_state.term + 1, "a question about the next term"
                return
            case PreVoteReply():
                assert message.granted or message.term <= hard_state.term, "a term is durable before it is spoken"
                return
            case Vote():
                assert hard_state.vote == node.node_id, "a candidate's own vote is durable"
                self.voted(node.node_id, message.term, node.node_id)
            case VoteReply() if message.granted:
                assert (hard_state.term, hard_state.vote) == (message.term, receiver), "a vote is durable"
                self.voted(node.node_id, message.term, receiver)
            case AppendReply() if message.answer is Answer.ACCEPTED:
                assert message.height <= node.disk.last_height, "what is accepted is on the disk"
            case Append() if message.certificate is not None:
                self.certificate(message.certificate)
            case ReadIndexReply():
                return
        assert message.term <= hard_state.term, "a term is durable before it is spoken"


class WatchedSigner(PlainSigner):
    def __init__(self, node_id: NodeId, oracle: Oracle) -> None:
        super().__init__(node_id)
        self._oracle = oracle

    def seal(self, slot: Slot, payload: object) -> tuple[bytes, bytes]:
        data, block = super().seal(slot, payload)
        self._oracle.sealed(slot.height, slot.term, block)
        return data, block

    def acknowledge(self, term: int, height: int, block: bytes) -> bytes:
        self._oracle.acknowledges(self.node_id, term, height, block)
        return super().acknowledge(term, height, block)


class Cluster:
    """`nodes` holds the running ones; `disks` outlive them."""

    def __init__(
        self, seed: int, voters: int, learners: int = 0, disk: Callable[[], Disk] = Disk, outsiders: int = 0
    ) -> None:
        self.random = random.Random(seed)
        names = tuple(f"n{number}" for number in range(1, voters + learners + outsiders + 1))
        self.configuration = Configuration(names[:voters], names[voters : voters + learners])
        self.removed: set[NodeId] = set()
        self.stood: dict[NodeId, tuple[int, int]] = {}
        self.churn = outsiders > 0
        self.names = names
        self.disks = {name: disk() for name in names}
        self.oracle = Oracle(self.configuration, self.disks)
        self.nodes: dict[NodeId, Node] = {}
        self.flying: list[tuple[NodeId, NodeId, Message]] = []
        self.cut: set[tuple[NodeId, NodeId]] = set()
        self.hung: set[NodeId] = set()
        self.paused: set[NodeId] = set()
        self.failed: set[NodeId] = set()
        self.counts: Counter[str] = Counter()
        self._payload = 0
        self._seed = seed
        # Each seed has its own weather: calm runs go far, rough ones go astray.
        self._fault_rate = self.random.choice((0.002, 0.006, 0.012, 0.02))
        self._loss_rate = self.random.choice((0.002, 0.02, 0.08))
        self._disorder_rate = self.random.choice((0.0, 0.1, 0.5))
        self._persist_rate = self.random.choice((0.05, 0.15, 0.25))
        for name in names:
            self.start(name)

    # nodes

    def start(self, name: NodeId) -> None:
        settings = CoreSettings(
            name,
            election_ticks_min=10,
            election_ticks_max=ELECTION_TICKS_MAX,
            heartbeat_ticks=2,
            seed=self._seed + self.counts["crash"],
            inflight_messages_max=4,
            append_bytes_max=60,
            uncommitted_bytes_max=240,
            replicate_gap_blocks=REPLICATE_GAP_BLOCKS,
        )
        signer = WatchedSigner(name, self.oracle)
        self.nodes[name] = Node(name, self.configuration, self.disks[name], settings, signer)
        self._drain(name)

    def crash(self, name: NodeId) -> None:
        """Power loss: some of what was handed to the disk is there, in order, though nobody was told."""
        node = self.nodes.pop(name)
        node.pump()
        for _ in range(self.random.randint(0, len(node.pending))):
            self._write(node)
        if self.random.random() < 0.5:
            node.disk.certificate = None
        self.hung.discard(name)
        self.paused.discard(name)
        self.failed.discard(name)
        self.oracle.reads = {asked: floor for asked, floor in self.oracle.reads.items() if asked[0] != name}
        self.counts["crash"] += 1

    def _write(self, node: Node) -> int:
        before = {height: entry.hash for height, entry in node.disk.blocks.items()}
        batch = node.pending.popleft()
        node.disk.write(batch)
        if batch.truncate_from is not None:
            self.counts["truncate"] += 1
            self.oracle.writes(node.node_id, before)
        return batch.seq

    def persist(self, name: NodeId, batches: int) -> None:
        node = self.nodes[name]
        seq = 0
        for _ in range(min(batches, len(node.pending))):
            seq = self._write(node)
        if seq:
            node.core.persisted(seq)
            if self.random.random() < 0.1:
                node.core.persisted(seq)
            self._drain(name)

    def _drain(self, name: NodeId) -> None:
        """Carry out what the core wants, checking every word of it."""
        node = self.nodes[name]
        node.pump()
        if node.core.role is Role.LEADER:
            self.oracle.leads(node)
        for receiver, message in node.sent:
            self.oracle.sends(node, receiver, message)
            self.flying.append((name, receiver, message))
        node.sent.clear()
        for certificate in node.committed:
            self.oracle.certificate(certificate)
            self.oracle.tells(node, certificate)
            assert node.disk.certificate is None or certificate.height > node.disk.certificate.height
            node.disk.certificate = certificate
            self.counts["commit"] += 1
        node.committed.clear()
        for state in node.reads:
            self.oracle.answers(name, state)
            self.counts["read" if state.height is not None else "read failed"] += 1
        node.reads.clear()
        while len(self.flying) > FLYING_MAX:
            self.flying.pop(self.random.randrange(len(self.flying)))

    # inputs

    def deliver(self, index: int, *, refuse: float = 0.0) -> None:
        sender, receiver, message = self.flying.pop(index)
        node = self.nodes.get(receiver)
        if node is None or (sender, receiver) in self.cut or receiver in self.paused:
            self.counts["lost"] += 1
            return
        try:
            if isinstance(message, Append) and message.entries and self.random.random() < refuse:
                entry = self.random.choice(message.entries)
                self.counts["refuse"] += 1
                node.core.refuse(sender, message, entry.height, Reason.BAD_TIME)
            else:
                node.core.step(sender, message)
        except ProtocolViolation as violation:
            raise AssertionError(f"every node here is correct, yet: {violation}") from violation
        self._check_reply(sender, message)
        self._drain(receiver)

    def _check_reply(self, sender: NodeId, message: Message) -> None:
        """What a follower accepts is its leader's, as long as neither has moved on."""
        if not isinstance(message, AppendReply) or message.answer is not Answer.ACCEPTED:
            return
        leader = self.nodes.get(self.oracle.leaders.get(message.term, ""))
        terms = {message.term, self.disks[sender].hard_state.term}
        if leader is None or leader.core.role is not Role.LEADER or terms != {leader.core.term}:
            return
        if message.height:
            follower = self.disks[sender].term_hash(message.height)
            if message.height < leader.core.base_height:
                return
            assert leader.core.term_hash(message.height) == follower, "what is accepted is the leader's"

    def tick(self, name: NodeId) -> None:
        if name not in self.paused:
            self.nodes[name].core.tick()
            self._drain(name)
            self.fetch(name)

    def propose(self, name: NodeId) -> int | None:
        self._payload += 1
        height = self.nodes[name].core.propose(b"payload %d" % self._payload)
        self._drain(name)
        return height

    def read(self, name: NodeId) -> None:
        if name not in self.failed:
            self._payload += 1
            self.oracle.asks(name, self._payload)
            self.nodes[name].core.read(self._payload)
            self._drain(name)

    def compact(self, name: NodeId) -> None:
        core = self.nodes[name].core
        highest = min(core.commit_height, core.durable_height)
        if highest > core.base_height:
            core.compact(self.random.randint(core.base_height, highest))
            self.counts["compact"] += 1

    def change(self, name: NodeId) -> None:
        """Some one step of the membership, if this node leads and may take it. A removed node never comes back."""
        core = self.nodes[name].core
        before = core.configuration
        moved = self.random.choice([other for other in self.names if other not in self.removed] or [name])
        voters, learners = set(before.voters), set(before.learners)
        if moved in voters:
            voters.discard(moved)
        elif moved in learners:
            learners.discard(moved)
            voters |= {moved} if self.random.random() < 0.8 else set()
        else:
            learners.add(moved)
        target = Configuration(tuple(sorted(voters)), tuple(sorted(learners)))
        if core.propose_change(target) is not None:
            assert is_one_step(before, joint_step(before, target))
            assert before.joint is False
            assert after_joint(core.configuration) == target
            if moved not in core.configuration.voters and moved not in learners:
                self.removed.add(moved)
            self.counts["change"] += 1
            self._drain(name)

    def fetch(self, name: NodeId) -> None:
        """Catch-up, as the shell does it: a node asks any other for what a certificate far above its commit proves.

        Also for a little, once its commit has stood below that for an election timeout.
        """
        node = self.nodes[name]
        known = node.core.known_certificate
        gap = known.height - node.core.commit_height if known else 0
        stood_at, stood_ticks = self.stood.get(name, (0, 0))
        stands = gap > 0 and node.core.commit_height == stood_at
        self.stood[name] = (node.core.commit_height, stood_ticks + 1 if stands else 0)
        if gap <= REPLICATE_GAP_BLOCKS // 2 and self.stood[name][1] <= ELECTION_TICKS_MAX:
            return
        other = self.random.choice([other for other in self.names if other != name])
        if other not in self.nodes or (other, name) in self.cut or (name, other) in self.cut:
            return
        certificate, disk = self.disks[other].certificate, self.disks[other]
        if certificate is None or certificate.height <= node.core.commit_height:
            return
        first = node.core.commit_height + 1
        if certificate.height - first >= FETCH_BLOCKS_MAX and self.random.random() < 0.5:
            first = max(1, first - 2)
        entries = tuple(disk.blocks[height] for height in range(first, certificate.height + 1))
        taken = node.core.step_certified(other, CertifiedBlocks(entries, certificate))
        assert taken or node.pending or name in self.failed, "what continues the commit connects"
        self.counts["fetch"] += 1
        self._drain(name)

    # phases

    def leader(self) -> NodeId | None:
        """The leader of the newest term, if one runs."""
        leading = [node for node in self.nodes.values() if node.core.role is Role.LEADER]
        return max(leading, key=lambda node: node.core.term).node_id if leading else None

    def run(self, steps: int) -> None:
        """Everything goes wrong, one random event after the other."""
        for _ in range(steps):
            self._event(self.random.random())

    def _event(self, dice: float) -> None:
        chance = self.random
        if chance.random() < self._fault_rate:
            self._fault(chance.random())
        up = list(self.nodes)
        if chance.random() < self._fault_rate * 2 or not up:
            self._repair(chance.random())
        elif dice < 0.05:
            leading = [name for name in up if self.nodes[name].core.role is Role.LEADER]
            self._ask(chance.choice(leading or up), chance.choice(up), chance.random())
        elif dice < 0.05 + self._persist_rate:
            name = chance.choice(up)
            if name not in self.hung:
                self.persist(name, chance.randint(1, 3))
        elif dice < 0.75 and self.flying:
            if chance.random() < self._loss_rate:
                self.flying.pop(chance.randrange(len(self.flying)))
                self.counts["drop"] += 1
            elif chance.random() < self._loss_rate:
                self.flying.append(chance.choice(self.flying))
                self.counts["double"] += 1
            else:
                reorder = chance.random() < self._disorder_rate
                self.counts["reorder"] += reorder
                self.deliver(chance.randrange(len(self.flying)) if reorder else 0, refuse=0.005)
        else:
            name = chance.choice(up)
            burst = chance.random() < 0.005
            self.counts["tick burst"] += burst
            for _ in range(25 if burst else 1):
                self.tick(name)

    def _ask(self, leader: NodeId, anyone: NodeId, dice: float) -> None:
        if dice < 0.6:
            self.propose(leader)
        elif dice < 0.8:
            self.read(anyone)
        elif dice < 0.85:
            self.counts["transfer"] += self.nodes[leader].core.transfer()
            self._drain(leader)
        elif dice < 0.9:
            self.compact(anyone)
        elif self.churn:
            self.change(leader)

    def _fault(self, dice: float) -> None:
        name = self.random.choice(self.names)
        other = self.random.choice([other for other in self.names if other != name] or [name])
        if dice < 0.35 and name in self.nodes:
            self.crash(name)
        elif dice < 0.5:
            self.cut.add((name, other))
            self.counts["one-way cut"] += 1
        elif dice < 0.7:
            self.cut |= {pair for both in self.names if both != name for pair in ((name, both), (both, name))}
            self.counts["isolate"] += 1
        elif dice < 0.85:
            self.hung.add(name)
            self.counts["hang"] += 1
        elif dice < 0.95:
            self.paused.add(name)
            self.counts["pause"] += 1
        elif name in self.nodes:
            self.nodes[name].core.disk_failed()
            self.nodes[name].pending.clear()
            self.failed.add(name)
            self.counts["disk failure"] += 1

    def _repair(self, dice: float) -> None:
        down = [name for name in self.names if name not in self.nodes or name in self.failed]
        if dice < 0.4 and down:
            name = self.random.choice(down)
            if name in self.nodes:
                self.crash(name)
            self.start(name)
        elif dice < 0.6:
            self.cut.clear()
        elif dice < 0.8:
            self.hung.clear()
        elif dice < 0.95:
            self.paused.clear()
        else:
            self._mend()

    def _mend(self) -> None:
        for name, node in self.nodes.items():
            node.core.mend()
            self._drain(name)

    def settle(self, ticks: int) -> int:
        """Heal everything; within `ticks` a new block must be committed on every node. Returns the ticks it took."""
        self.cut.clear()
        self.hung.clear()
        self.paused.clear()
        for name in self.names:
            if name in self.failed:
                self.crash(name)
            if name not in self.nodes:
                self.start(name)
        goal: int | None = None
        for tick in range(ticks):
            # A refusal of earlier may still be on its way; what it was about is put right by now.
            self._mend()
            self.pass_time(1)
            leader = self.leader()
            if leader is not None and (goal is None or goal not in self.oracle.committed):
                goal = self.propose(leader) or goal
            if goal in self.oracle.committed and self._all_at(max(self.oracle.committed)):
                return tick
        raise AssertionError(f"no progress in {ticks} ticks: {self.describe()}")

    def pass_time(self, ticks: int) -> None:
        """Orderly ticks: after each, all that is under way arrives and every disk that does not hang answers."""
        for _ in range(ticks):
            for name in list(self.nodes):
                self.tick(name)
            self._exchange()

    def _exchange(self) -> None:
        """Deliver and persist until all is quiet, or a bound that no healthy cluster needs is reached."""
        for _ in range(60):
            for name in self.nodes:
                if name not in self.hung:
                    self.persist(name, len(self.nodes[name].pending))
            if not self.flying:
                return
            for _ in range(len(self.flying)):
                self.deliver(0)

    def _all_at(self, height: int) -> bool:
        leader = self.leader()
        members = self.nodes[leader].core.configuration.members if leader else self.names
        nodes = [self.nodes[name] for name in members]
        return all(node.core.commit_height == height and not node.pending for node in nodes)

    def describe(self) -> str:
        return "; ".join(
            f"{name}: {node.core.role.value} of {node.core.leader} in term {node.core.term}, "
            f"last {node.core.last_height}, commit {node.core.commit_height}"
            for name, node in self.nodes.items()
        )
