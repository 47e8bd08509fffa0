"""What must never happen, checked as it happens: against what the disks of all nodes hold for good, whether the node
runs or not, and never against what a core says of itself.

| promise                                  | where it is checked                                                   |
|------------------------------------------|-----------------------------------------------------------------------|
| one leader a term                        | `_leads`, and the proposer of every block                             |
| log matching, by hash                    | `_links`: one block a height and term, each on the block below it     |
| leader completeness                      | `_leads`: whoever leads holds every committed block                   |
| committed[height] = hash, for ever       | `_commit`; `_gone`: such a block stays on a quorum of disks           |
| commit only on a quorum of disks         | `certificate`: its signatures, and copies when it is first seen       |
| one vote a node and term, over restarts  | `_voted`, of hard states and of what is sent                          |
| durable before spoken of                 | `sends`, `acknowledges`                                               |
| executed only what is committed          | `_rooted`                                                             |
| equal roots and results at equal heights | `_rooted`, `_settled`                                                 |
| acknowledged once, and for ever          | `_settled`, `acknowledged`, `final`                                   |
| linearizable reads                       | `reads`, `answered`                                                   |
| honest nodes keep their vote             | `forswears`                                                           |

Who votes at a block is derived here from the headers below it (`ledger.membership`), not asked of any core; while the
configuration is joint, every quorum is one of the old voters and one of the new.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from consensus.messages import (
    Answer,
    Append,
    AppendReply,
    Certificate,
    Message,
    PreVote,
    PreVoteReply,
    Role,
    Vote,
    VoteReply,
)
from ledger.block import Block
from ledger.encoding import decode
from ledger.execution import OK, decode_result
from ledger.finality import decode_certificate, quorum, verify_certificate
from ledger.genesis import Genesis
from ledger.membership import Configuration, configuration_after
from ledger.state_tree import EMPTY
from node.certificates import plain, signed
from storage.port import Write
from storage.promises import Forsworn
from tests.sim.medium import Changes, Medium

if TYPE_CHECKING:
    from tests.sim.node import SimNode

Key = TypeVar("Key")
Value = TypeVar("Value")


def _forget(said: dict[Key, Value], gone: Callable[[Key], bool]) -> None:
    for key in [key for key in said if gone(key)]:
        del said[key]


def require(holds: bool, promise: str) -> None:
    if not holds:
        raise Violation(promise)


class Violation(AssertionError):  # noqa: N818 - what happened
    """A promise was broken; the message says which."""


class Oracle:
    """Remembers the whole run, crashes included. `media` by node, of all that ever were.

    `leader_of(term)` is the running node that leads that term, if it does now.
    """

    def __init__(self, genesis: Genesis, leader_of: Callable[[int], "SimNode | None"]) -> None:
        self._chain = genesis.chain_id()
        self._leader_of = leader_of
        self.media: dict[str, Medium] = {}
        # What a disk held when it was exchanged for another, older one.
        self._lost: dict[str, list[dict[int, bytes]]] = {}
        self.forsworn: dict[str, None] = {}
        self.committed: dict[int, bytes] = {0: self._chain}
        self.commit_height = 0
        # What every node must find: (history root, state root, time) by executed height; results likewise.
        self.roots: dict[int, tuple[bytes, bytes, int]] = {}
        self.results: dict[int, bytes] = {}
        self.done: dict[bytes, int] = {}
        self.acknowledgements: dict[bytes, int] = {}
        self.reads = 0
        self.prunings = 0
        self._configurations: dict[bytes, Configuration] = {self._chain: genesis.configuration()}
        self._floor = 0
        self._read_floors: dict[int, int] = {}
        self._leaders: dict[int, str] = {}
        self._blocks: dict[tuple[int, int], bytes] = {}
        self._proposers: dict[int, str] = {}
        self._votes: dict[tuple[str, int], str] = {}
        # Votes of disks that have been exchanged since: whom they elected, they elected.
        self._given: dict[tuple[str, int], str] = {}
        self._candidacies: dict[tuple[str, int], tuple[int, int]] = {}
        self._acknowledged: dict[tuple[str, int, int], bytes] = {}
        self._certified: dict[bytes, None] = {}
        self._told: dict[str, int] = {}
        self._snapshots: dict[int, bytes] = {}

    @property
    def elections(self) -> int:
        return len(self._leaders)

    # disks

    def durable(self, name: str, batch: Sequence[Write]) -> None:
        """A batch reached the disk of `name` for good."""
        medium = self.media[name]
        term = medium.hard_state.term
        changes = medium.apply(batch)
        if changes.hard_state_moved:
            state = medium.hard_state
            require(state.term >= term, "a durable term never falls")
            if state.vote is not None:
                self._voted(name, state.term, state.vote)
        self._links(medium, changes)
        self.prunings += changes.pruned
        if changes.removed:
            self._gone(name, changes.removed)
        for data in changes.certified:
            self.certificate(plain(decode_certificate(data)))
        for height in changes.rooted:
            self._rooted(medium, height)
        for height, data in changes.settled.items():
            self._settled(height, data)

    def _links(self, medium: Medium, changes: Changes) -> None:
        for height in changes.linked:
            link = medium.links[height]
            known = self._blocks.setdefault((height, link.term), link.hash)
            require(known == link.hash, "one block a height and term")
            below = medium.links.get(height - 1)
            if below is not None:
                require(link.parent == below.hash, "a block stands on its parent")
                require(link.term >= below.term, "terms never fall along a log")
            require(link.term <= medium.hard_state.term, "no block is of a later term than its disk")
        if changes.linked or changes.removed:
            require(medium.last_height in medium.links, "the log's end is in the log")

    def _gone(self, name: str, removed: dict[int, bytes]) -> None:
        """A copy outside the quorum may go: its holder can hear a deposed leader before it hears of the commit."""
        base_height = self.media[name].base_height
        for height, block in removed.items():
            if height > base_height and self.committed.get(height) == block:
                kept = self._everywhere(self.configuration, partial(self._once_on_disk, height, block))
                require(kept, f"{name} removes what is committed")

    def _rooted(self, medium: Medium, height: int) -> None:
        roots = medium.roots[height]
        held = medium.hash_at(height)
        below = held is None and height < medium.base_height
        committed = held is not None and held == self.committed.get(height)
        require(below or committed, "only what is committed is executed")
        if roots.state == EMPTY and height:
            # Below a snapshot no header carried it.
            return
        found = (roots.history, roots.state, roots.time_ms)
        require(self.roots.setdefault(height, found) == found, "equal roots at equal heights")

    def _settled(self, height: int, data: bytes) -> None:
        known = self.results.get(height)
        if known is not None:
            require(known == data, "equal results at equal heights")
            return
        self.results[height] = data
        items = decode(data, 1 << 26)
        assert isinstance(items, list)
        for item in items:
            result = decode_result(item)
            if result.code == OK:
                require(self.done.setdefault(result.id, height) == height, "a transaction is done once")

    @property
    def configuration(self) -> Configuration:
        """The one in effect at the newest committed block."""
        return self._configurations[self.committed[self.commit_height]]

    def sides(self) -> list[Mapping[str, bytes]]:
        """The voters, and the old ones, of every configuration that is in effect or may yet be."""
        found = {self.committed[self.commit_height]: None}
        for medium in self.media.values():
            above = range(self.commit_height + 1, medium.last_height + 1)
            found.update((medium.links[height].hash, None) for height in above)
        configurations = [self._configurations[block] for block in found]
        return [side for each in configurations for side in (each.voters, each.old_voters) if side]

    def _everywhere(self, configuration: Configuration, holds: Callable[[str], bool]) -> bool:
        """Whether `holds` is so of a majority of the voters, and while joint of the old voters too."""
        sides = [configuration.voters, configuration.old_voters or configuration.voters]
        return all(sum(map(holds, side)) >= quorum(len(side)) for side in sides)

    def _on_disk(self, height: int, block: bytes, node: str) -> bool:
        medium = self.media.get(node)
        return medium is not None and (medium.hash_at(height) == block or medium.base_height >= height)

    def _once_on_disk(self, height: int, block: bytes, node: str) -> bool:
        return self._on_disk(height, block, node) or any(
            held.get(height) == block for held in self._lost.get(node, ())
        )

    # what nodes say

    def seals(self, node: str, block: Block) -> None:
        header = block.header
        require(header.proposer == node, "a block names its maker")
        require(self._proposers.setdefault(header.term, node) == node, "one proposer a term")
        parent = self._configurations[header.parent]
        configuration = configuration_after(parent, header.change, leaves=header.proof is not None)
        self._configurations[block.hash] = configuration
        require(node in parent.proposers, "a voter proposes")
        known = self._blocks.setdefault((header.height, header.term), block.hash)
        require(known == block.hash, "one block a height and term")

    def acknowledges(self, node: str, term: int, height: int, block: bytes) -> None:
        medium = self.media[node]
        require(medium.term_hash(height) == (term, block), "what is acknowledged is on the disk, and of its own term")
        require(medium.hard_state.term == term, "only the present term is acknowledged in")
        require(node not in self.forsworn, "who has forgotten something acknowledges nothing")
        require(self._acknowledged.setdefault((node, term, height), block) == block, "one acknowledgement")

    def sends(self, node: "SimNode", receiver: str, message: Message) -> None:
        medium = self.media[node.name]
        state = medium.hard_state
        match message:
            case PreVote():
                require(message.term == state.term + 1, "a question about the next term")
                return
            case PreVoteReply() if message.granted:
                return
            case Vote():
                require((state.term, state.vote) == (message.term, node.name), "a candidate's own vote is durable")
                claimed = (message.last_term, message.last_height)
                require(self._end(medium) >= claimed, "a candidate claims what is on its disk")
                self._candidacies[node.name, message.term] = claimed
            case VoteReply() if message.granted:
                require((state.term, state.vote) == (message.term, receiver), "a vote is durable before it is given")
                self._voted(node.name, message.term, receiver)
                require(node.name not in self.forsworn, "who has forgotten something votes no more")
                claimed, own = self._candidacies.get((receiver, message.term), (0, -1)), self._end(medium)
                # Where it was held until the disk answered, the elected may have sent blocks since.
                newer = own[0] == message.term
                require(newer or claimed >= own, "a vote answers a candidate with no older log")
            case AppendReply() if message.answer is Answer.ACCEPTED:
                require(message.height <= medium.last_height, "what is accepted is on the disk")
                self._accepts(node.name, receiver, message)
            case Append():
                require(self._leaders.get(message.term) == node.name, "a leader was elected")
                if message.certificate is not None:
                    self.certificate(message.certificate)
        require(message.term <= state.term, "a term is durable before it is spoken of")

    def _end(self, medium: Medium) -> tuple[int, int]:
        return medium.links[medium.last_height].term, medium.last_height

    def _accepts(self, follower: str, leader: str, reply: AppendReply) -> None:
        """What is accepted is the leader's: its log only grows, and its blocks are known by their term."""
        leading = self._leader_of(reply.term)
        if leading is not None:
            own = leading.core.term_hash(reply.height)
            held = self.media[follower].term_hash(reply.height)
            require(own is None or own == held, "what is accepted is the leader's")
        for item in reply.acknowledgements:
            require(self._blocks.get((item.height, reply.term)) == item.hash, "what is signed is the leader's")

    def _voted(self, voter: str, term: int, candidate: str) -> None:
        require(self._votes.setdefault((voter, term), candidate) == candidate, "one vote a node and term")

    def after(self, node: "SimNode") -> None:
        """Whatever a node just did: if it leads, it may; what it holds committed, is."""
        core = node.core
        if core.role is Role.LEADER and self._leaders.get(core.term) != node.name:
            self._leads(node)
        if core.certificate is not None and core.commit_height != self._told.get(node.name):
            self.certificate(core.certificate)
            require(core.commit_height == core.certificate.height, "the commit stands at a certificate")
            self._told[node.name] = core.commit_height

    def _leads(self, node: "SimNode") -> None:
        core, name = node.core, node.name
        require(core.term not in self._leaders, "one leader a term")
        self._leaders[core.term] = name
        state = self.media[name].hard_state
        require((state.term, state.vote) == (core.term, name), "a leader's term and vote are durable")
        require(name not in self.forsworn, "who has forgotten something leads no more")
        last = core.term_hash(core.last_height)
        require(last is not None and last[0] == core.term, "a leader begins with a block of its own term")
        below = core.term_hash(core.last_height - 1)
        assert below is not None, "a leader knows its log"
        # Its first block may itself end the joint configuration that it was elected by.
        configuration = self._configurations[below[1]]
        require(name in configuration.proposers, "a voter leads")
        granted = self._everywhere(
            configuration,
            lambda voter: name in (self._votes.get((voter, core.term)), self._given.get((voter, core.term))),
        )
        require(granted, "a quorum of disks voted for the leader")
        for height in range(self.commit_height, core.base_height, -1):
            held = core.term_hash(height)
            require(held is not None and held[1] == self.committed[height], "a leader holds what is committed")

    def tells(self, node: "SimNode", certificate: Certificate) -> None:
        self.certificate(certificate)
        found = self.media[node.name].term_hash(certificate.height)
        require(found == (certificate.term, certificate.hash), "what is told committed is on this disk")

    def certificate(self, certificate: Certificate) -> None:
        """Every certificate is checked when it is first seen, wherever that is."""
        if certificate.hash in self._certified:
            return
        self._certified[certificate.hash] = None
        term, height, block = certificate.term, certificate.height, certificate.hash
        require(self._blocks.get((height, term)) == block, "a certified block was sealed in that term")
        configuration = self._configurations[block]
        verify_certificate(signed(certificate), self._chain, configuration.voters, configuration.old_voters)
        copied = self._everywhere(configuration, partial(self._on_disk, height, block))
        require(copied, "a certified block is on a quorum of disks")
        self._commit(height, block)

    def _commit(self, height: int, block: bytes) -> None:
        holder = next(medium for medium in self.media.values() if medium.hash_at(height) == block)
        for at in range(min(height, self.commit_height), height + 1):
            found = holder.hash_at(at)
            if found is not None or at > self.commit_height:
                assert found is not None, "a log has no holes"
                require(self.committed.setdefault(at, found) == found, "one block a height, for ever")
        self.commit_height = max(self.commit_height, height)

    # disks that are exchanged

    def installed(self, name: str, content: Mapping[bytes, bytes]) -> None:
        """A store built from a snapshot took the place of the old one: no promise is forgotten."""
        medium = self.media[name]
        state, end = medium.hard_state, medium.links[medium.last_height].term
        medium.reload(content)
        require(medium.hard_state.term >= state.term, "a snapshot brings no older term")
        if medium.hard_state.term == state.term:
            require(medium.hard_state.vote == state.vote, "a snapshot changes no vote")
        require(medium.links[medium.last_height].term >= end, "a snapshot brings no older log")
        for height in medium.links:
            if height <= self.commit_height and height > medium.base_height:
                require(medium.hash_at(height) == self.committed[height], "a snapshot is of the one chain")
        for height in medium.roots:
            self._rooted(medium, height)

    def snapshot(self, height: int, name: bytes) -> None:
        require(self._snapshots.setdefault(height, name) == name, "one snapshot at a height, on every node")

    def is_held_without(self, name: str) -> bool:
        """Whether what is committed would survive this disk."""
        holds = partial(self._on_disk, self.commit_height, self.committed[self.commit_height])
        return self._everywhere(self.configuration, lambda voter: voter != name and holds(voter))

    def exchanged(self, name: str, content: Mapping[bytes, bytes]) -> None:
        """The disk of `name` is another one now: what it had promised, it may not know."""
        medium = self.media[name]
        self._lost.setdefault(name, []).append({height: link.hash for height, link in medium.links.items()})
        medium.reload(content)
        term = medium.hard_state.term
        # What it said since, and nobody holds, was never said: no vote of it counts any more, no block of it is left.
        self._given.update((at, vote) for at, vote in self._votes.items() if at[0] == name)
        _forget(self._votes, lambda at: at[0] == name and at[1] >= term)
        _forget(self._acknowledged, lambda at: at[0] == name and at[1] >= term)
        kept = {link.term for each in self.media.values() for link in each.links.values()}
        led = [each for each, leader in self._leaders.items() if leader == name and each > term and each not in kept]
        _forget(self._leaders, lambda each: each in led)
        _forget(self._proposers, lambda each: each in led)
        _forget(self._blocks, lambda place: place[1] in led)

    def starts(self, name: str, *, forsworn: bool) -> None:
        """What it had not yet written when the power failed it has to be shown again."""
        if not forsworn:
            self.forsworn.pop(name, None)

    def forswears(self, name: str, why: Forsworn) -> None:
        require(name in self._lost, f"an honest disk has forgotten nothing: {why.kind} of term {why.term}")
        self.forsworn[name] = None

    # clients

    def acknowledged(self, tx_id: bytes, height: int) -> None:
        """A client was told that this transaction is committed at `height`."""
        require(height in self.committed, "what is acknowledged is committed")
        require(self.acknowledgements.setdefault(tx_id, height) == height, "acknowledged at one height")
        self._floor = max(self._floor, height)

    def asks(self, token: int) -> None:
        """A client begins a read: it must see all that anybody was told of before."""
        self._read_floors[token] = self._floor

    def answered(self, token: int, height: int) -> None:
        """It reads the state after `height`."""
        require(height >= self._read_floors.pop(token), "a read shows everything that was known before it")
        require(height in self.committed, "only what is committed is read")
        self._floor = max(self._floor, height)
        self.reads += 1

    def is_open(self, token: int) -> bool:
        """Whether the read has neither an answer nor been told that there is none."""
        return token in self._read_floors

    def unanswered(self, token: int) -> None:
        del self._read_floors[token]

    def final(self) -> None:
        """At the end, with every committed block executed somewhere and written."""
        for tx_id, height in self.acknowledgements.items():
            require(self.done.get(tx_id) == height, "what was acknowledged is in the one chain, once")
