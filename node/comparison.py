"""Whether this node's disk is the one that it promised with: what others hold from it, compared with what it stored.

A vote, an acknowledgement and a proposed header are promises that the disk must remember. A disk that was emptied or
put back to an earlier state has forgotten some, and a node that voted again on it could undo what was committed. So
whenever two nodes connect, each shows the other the newest of each kind that it holds from it, signed (`Holdings`).
The node shown them compares (`Comparison`):

| what is shown                                                | verdict                                           |
|--------------------------------------------------------------|---------------------------------------------------|
| nothing, or signed since this start                          | compared                                          |
| of a term above the one that the disk knew at this start     | beyond the disk: no vote ever again under this id |
| another vote, or a header, in that term than the disk's vote | beyond the disk                                   |
| acknowledged in that term, and the log was behind it         | beyond the disk                                   |
| acknowledged in an earlier term, and the log was behind it   | compared once the log is as new again             |
| anything else of an earlier term                             | compared                                          |
| what this node never signed                                  | counted; nothing follows                          |

"Behind" as in elections: by the term of the last block, then by the height. An honest log may fall behind what it
once acknowledged for a moment, between two messages of a later leader that replaces it; hence the fifth row.

Each also says up to where it has certified blocks: the core counts it only once this node has come there, so that
the quorum is one of those who vote today. One quorum is enough to vote. But who remembers may answer a moment later
than who does not: so until GRACE of an election timeout is over, the core hears of nobody unless everybody has
compared.

Bounds: of each node the newest of each kind; of this node's own signatures SAID_TERMS_MAX terms, of which the oldest
is forgotten and believed.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import structlog

from consensus.messages import Slot
from consensus.ports import Signer
from ledger.block import block_hash, decode_header, stored_header, verify_header
from ledger.errors import Rejection
from ledger.finality import verify_acknowledgement, verify_vote
from network.port import AcknowledgementShown, HeaderShown, Statements, VoteShown
from storage.promises import FORMAT, Forsworn, HeldVote
from storage.store import Store

SAID_TERMS_MAX = 1_024
# Of the shortest election timeout.
GRACE = 0.5
# Executed heights looked at when a node starts.
RECALLED_HEIGHTS = 64
# Who showed what a certificate shows.
A_CERTIFICATE = "a certificate"
# How a forged statement is counted.
BAD_STATEMENT = "bad_statement"

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Held:
    vote: VoteShown | None = None
    acknowledgement: AcknowledgementShown | None = None
    header_place: tuple[int, int] = (0, 0)
    header: HeaderShown | None = None


class Holdings:
    """The newest verified statements of every other node. `keep_vote` stores a vote newer than those before."""

    def __init__(self, votes: Iterable[HeldVote], keep_vote: Callable[[str, VoteShown], None]) -> None:
        self._keep_vote = keep_vote
        self._held: dict[str, _Held] = {}
        for vote in votes:
            self._of(vote.node).vote = VoteShown(vote.term, vote.candidate, vote.signature)

    def shown_to(self, node: str, certified_height: int) -> Statements:
        """What `node` is shown of its own, by a node that has certified blocks up to `certified_height`."""
        held = self._held.get(node, _Held())
        return Statements(held.vote, held.acknowledgement, held.header, certified_height)

    def vote(self, voter: str, term: int, candidate: str, signature: bytes) -> None:
        held = self._of(voter)
        if held.vote is None or held.vote.term < term:
            held.vote = VoteShown(term, candidate, signature)
            self._keep_vote(voter, held.vote)

    def acknowledgement(self, voter: str, term: int, height: int, block: bytes, signature: bytes) -> None:
        held = self._of(voter)
        newest = held.acknowledgement
        if newest is None or (newest.term, newest.height) < (term, height):
            held.acknowledgement = AcknowledgementShown(term, height, block, signature)

    def header(self, proposer: str, term: int, height: int, header_data: bytes, signature: bytes) -> None:
        held = self._of(proposer)
        if held.header_place < (term, height):
            held.header_place = (term, height)
            held.header = HeaderShown(header_data, signature)

    def _of(self, node: str) -> _Held:
        return self._held.setdefault(node, _Held())


def recall(holdings: Holdings, store: Store) -> None:
    """At start: what the newest blocks and certificates of the log hold.

    Enough: whoever had a part in something certified that these do not show is outvoted by the quorums that they do.
    """
    for height in range(store.last_height(), max(store.executed_height - RECALLED_HEIGHTS, 0), -1):
        if store.term_hash(height - 1) is None:
            # Below it the log is pruned.
            break
        header_data, signature = stored_header(store.block_data(height))
        header = decode_header(header_data)
        holdings.header(header.proposer, header.term, height, header_data, signature)
        certificate = store.certificate(height)
        if certificate is not None:
            for entry in certificate.signatures:
                holdings.acknowledgement(entry.node, certificate.term, height, certificate.hash, entry.signature)


class Log(Protocol):
    """What is asked of the core's log."""

    @property
    def durable_height(self) -> int: ...
    @property
    def commit_height(self) -> int: ...
    def term_hash(self, height: int) -> tuple[int, bytes] | None: ...


@dataclass(frozen=True, slots=True)
class Disk:
    """What the disk held when this node started: the hard state, and term and height of its last block."""

    term: int
    vote: str | None
    last_term: int
    last_height: int


@dataclass(slots=True)
class _Said:
    """Signed in one term since this start."""

    candidate: str | None = None
    acknowledged_height: int = 0
    led: bool = False


class Verdict(Enum):
    FINE = "fine"
    LATER = "later"
    BEYOND = "beyond"


class Said:
    """What this node signed since it started, by term: none of it can be news to it."""

    def __init__(self, disk: Disk) -> None:
        # Of terms up to this one nothing is known any more but what the disk knew.
        self.forgotten_term = disk.term
        self._terms: OrderedDict[int, _Said] = OrderedDict()

    def voted(self, term: int, candidate: str) -> None:
        self._in(term).candidate = candidate

    def acknowledged(self, term: int, height: int) -> None:
        said = self._in(term)
        said.acknowledged_height = max(said.acknowledged_height, height)

    def proposed(self, term: int) -> None:
        self._in(term).led = True

    def of(self, term: int) -> _Said:
        return self._terms.get(term, _Said())

    def _in(self, term: int) -> _Said:
        if term not in self._terms:
            self._terms[term] = _Said()
            if len(self._terms) > SAID_TERMS_MAX:
                self.forgotten_term = max(self.forgotten_term, self._terms.popitem(last=False)[0])
        return self._terms[term]


class Noting:
    """The core's Signer over another one: what is signed is noted in `said`."""

    def __init__(self, signer: Signer, said: Said) -> None:
        self._signer = signer
        self._said = said

    def seal(self, slot: Slot, payload: object) -> tuple[bytes, bytes]:
        self._said.proposed(slot.term)
        return self._signer.seal(slot, payload)

    def acknowledge(self, term: int, height: int, block: bytes) -> bytes:
        self._said.acknowledged(term, height)
        return self._signer.acknowledge(term, height, block)

    def vote(self, term: int, candidate: str) -> bytes:
        self._said.voted(term, candidate)
        return self._signer.vote(term, candidate)


class Comparison:
    """`compared(peer, height)`, the height up to which the peer has certified blocks, and `forswear(why)` are told to
    the core, the latter also to the disk; `count` hears of a forgery.

    `disk` is what was there at start, `said` what was signed since; `others` are those whose votes count, without
    this node.
    """

    def __init__(
        self,
        chain: bytes,
        node_id: str,
        public_key: bytes,
        disk: Disk,
        said: Said,
        log: Log,
        *,
        others: Callable[[], AbstractSet[str]],
        compared: Callable[[str, int], None],
        forswear: Callable[[Forsworn], None],
        count: Callable[[str], None],
    ) -> None:
        self._chain = chain
        self._node_id = node_id
        self._public_key = public_key
        self._disk = disk
        self._said = said
        self._log = log
        self._others = others
        self._compared = compared
        self._forswear = forswear
        self._count = count
        # What a peer showed and the log does not reach yet, and up to where that peer had certified blocks.
        self._waiting: dict[str, tuple[tuple[int, int], int]] = {}
        # Who showed nothing that was forgotten, and up to where it had certified blocks then.
        self._fine: dict[str, int] = {}
        self._grace_over = False

    def shown(self, peer: str, statements: Statements) -> None:
        """A peer shows what it holds from this node."""
        try:
            verdicts = [
                self._judge_vote(peer, statements.vote),
                self._judge_acknowledgement(peer, statements.acknowledgement),
                self._judge_header(peer, statements.header),
            ]
        except Rejection as rejection:
            _log.warning("statement refused", peer=peer, reason=rejection.code, detail=rejection.detail)
            self._count(BAD_STATEMENT)
            return
        if Verdict.BEYOND in verdicts:
            return
        if Verdict.LATER in verdicts:
            assert statements.acknowledgement is not None, "only an acknowledgement can wait"
            place = (statements.acknowledgement.term, statements.acknowledgement.height)
            self._waiting[peer] = (place, statements.certified_height)
            self.log_moved()
            return
        self._waiting.pop(peer, None)
        self._fine[peer] = statements.certified_height
        self.tell()

    def end_grace(self) -> None:
        """Whoever has not answered by now is not waited for."""
        self._grace_over = True
        self.tell()

    def tell(self) -> None:
        """Tell the core who compared; again when others' votes begin to count."""
        if self._grace_over or self._fine.keys() >= self._others():
            for peer, certified_height in sorted(self._fine.items()):
                self._compared(peer, certified_height)

    def certified(self, shown: AcknowledgementShown) -> None:
        """A verified certificate holds this node's own signature. No honest log falls behind what is certified."""
        if self._judge_verified_acknowledgement(A_CERTIFICATE, shown) is Verdict.LATER:
            self._beyond(A_CERTIFICATE, "acknowledgement", shown.term, shown.height, shown.hash, shown.signature)

    def log_moved(self) -> None:
        """The log or the commit height moved: some of what waits may be borne out."""
        if not self._waiting:
            return
        log = self._log
        height = log.durable_height
        found = log.term_hash(height)
        newest = (found[0] if found is not None else 0, height)
        for peer, (place, certified_height) in list(self._waiting.items()):
            borne_out = place <= newest or place[1] <= log.commit_height
            # Telling of one may lead back here, for the others.
            if borne_out and self._waiting.pop(peer, None) is not None:
                self._fine[peer] = certified_height
                self.tell()

    def _judge_vote(self, peer: str, vote: VoteShown | None) -> Verdict:
        if vote is None:
            return Verdict.FINE
        if not verify_vote(self._public_key, self._chain, vote.term, vote.candidate, vote.signature):
            raise Rejection(BAD_STATEMENT, "a vote that this node never signed")
        known = self._said.of(vote.term).candidate == vote.candidate or (
            vote.term == self._disk.term and self._disk.vote == vote.candidate
        )
        if known or vote.term < self._disk.term or self._is_forgotten(vote.term):
            return Verdict.FINE
        return self._beyond(peer, "vote", vote.term, 0, vote.candidate.encode(), vote.signature)

    def _judge_acknowledgement(self, peer: str, shown: AcknowledgementShown | None) -> Verdict:
        if shown is None:
            return Verdict.FINE
        if not verify_acknowledgement(
            self._public_key, self._chain, shown.term, shown.height, shown.hash, shown.signature
        ):
            raise Rejection(BAD_STATEMENT, "an acknowledgement that this node never signed")
        return self._judge_verified_acknowledgement(peer, shown)

    def _judge_verified_acknowledgement(self, peer: str, shown: AcknowledgementShown) -> Verdict:
        """A term has one leader and one block at a height, so that term and height say which block it is."""
        place, disk = (shown.term, shown.height), self._disk
        known = shown.height <= self._said.of(shown.term).acknowledged_height
        if known or place <= (disk.last_term, disk.last_height) or self._is_forgotten(shown.term):
            return Verdict.FINE
        if shown.term < disk.term:
            return Verdict.LATER
        return self._beyond(peer, "acknowledgement", shown.term, shown.height, shown.hash, shown.signature)

    def _judge_header(self, peer: str, shown: HeaderShown | None) -> Verdict:
        """Who proposed in a term had voted for itself in it."""
        if shown is None:
            return Verdict.FINE
        if not verify_header(block_hash(shown.header), shown.signature, self._public_key):
            raise Rejection(BAD_STATEMENT, "a header that this node never signed")
        header = decode_header(shown.header)
        if header.proposer != self._node_id or header.chain != self._chain:
            raise Rejection(BAD_STATEMENT, "a header of another node or chain")
        known = self._said.of(header.term).led or (
            header.term == self._disk.term and self._disk.vote == self._node_id
        )
        if known or header.term < self._disk.term or self._is_forgotten(header.term):
            return Verdict.FINE
        return self._beyond(peer, "header", header.term, header.height, shown.header, shown.signature)

    def _is_forgotten(self, term: int) -> bool:
        return self._disk.term < term <= self._said.forgotten_term

    def _beyond(self, peer: str, kind: str, term: int, height: int, content: bytes, signature: bytes) -> Verdict:
        self._forswear(
            Forsworn(
                content=content,
                format=FORMAT,
                height=height,
                kind=kind,
                shown_by=peer,
                signature=signature,
                term=term,
            )
        )
        return Verdict.BEYOND
