"""Who contradicted themselves: two signed statements of one node that an honest node never makes both.

The witness remembers, for each statement's subject, the first version it saw, and hands every contradicting second
one to the store, both signatures included, so that anyone can check. Memory is bounded: the oldest subjects are
forgotten first, which loses only evidence about the distant past.
"""

from collections import OrderedDict
from collections.abc import Callable

from ledger.block import Block
from ledger.encoding import encode
from node.comparison import Holdings

REMEMBERED_MAX = 20_000

Subject = tuple[str, str, int, int]


class Witness:
    """`keep(kind, node, proof)` stores a proof: canonical {first, height, kind, node, second, term}. `holdings` hold
    the newest statements, to show them to whom they are of.
    """

    def __init__(self, keep: Callable[[str, str, bytes], None], holdings: Holdings) -> None:
        self._keep = keep
        self._holdings = holdings
        self._seen: OrderedDict[Subject, tuple[bytes, bytes]] = OrderedDict()
        self._told: set[Subject] = set()

    def block(self, block: Block) -> None:
        """A block whose header is verified."""
        header = block.header
        self._holdings.header(header.proposer, header.term, header.height, block.header_data, block.signature)
        self.header(header.proposer, header.term, header.height, block.hash, block.signature)

    def header(self, proposer: str, term: int, height: int, block: bytes, signature: bytes) -> None:
        """A verified header: one proposer seals one block a height and term."""
        self._saw(("header", proposer, term, height), block, signature)

    def acknowledgement(self, voter: str, term: int, height: int, block: bytes, signature: bytes) -> None:
        """A verified acknowledgement: one voter acknowledges one block a height and term."""
        self._holdings.acknowledgement(voter, term, height, block, signature)
        self._saw(("acknowledgement", voter, term, height), block, signature)

    def vote(self, voter: str, term: int, candidate: str, signature: bytes) -> None:
        """A verified vote: one voter votes for one candidate a term."""
        self._holdings.vote(voter, term, candidate, signature)
        self._saw(("vote", voter, term, 0), candidate.encode(), signature)

    def _saw(self, subject: Subject, statement: bytes, signature: bytes) -> None:
        first = self._seen.get(subject)
        if first is None:
            self._seen[subject] = (statement, signature)
            if len(self._seen) > REMEMBERED_MAX:
                forgotten, _ = self._seen.popitem(last=False)
                self._told.discard(forgotten)
        elif first[0] != statement and subject not in self._told:
            self._told.add(subject)
            kind, node, term, height = subject
            proof = {
                "first": {"signature": first[1], "statement": first[0]},
                "height": height,
                "kind": kind,
                "node": node,
                "second": {"signature": signature, "statement": statement},
                "term": term,
            }
            self._keep(kind, node, encode(proof))
