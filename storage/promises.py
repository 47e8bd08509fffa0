"""Promises on disk: the newest vote held from each other node, and that this node may have broken its own.

A vote is held to be shown to its voter when they connect: a voter whose disk went back to an earlier state learns of
it so. Acknowledgements need no table: those that count stand in the certificates.
"""

import msgspec

from ledger.keys import Signature
from storage import schema
from storage.port import KeyValue, Write
from storage.schema import require

FORMAT = 1
# Nodes whose votes are held. At the bound the vote of a further node is not kept.
VOTES_MAX = 1_024


class HeldVote(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`node` voted for `candidate` in `term`, and signed it."""

    candidate: str
    format: int
    node: str
    signature: Signature
    term: int


class Forsworn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What this node had signed and its disk did not know: a statement of `kind`, its content, who showed it."""

    content: bytes
    format: int
    height: int
    kind: str
    shown_by: str
    signature: Signature
    term: int


class Promises:
    """Writes are one record each and belong to the writer thread; reads answer as of the last write."""

    def __init__(self, kv: KeyValue) -> None:
        """Raises StorageFailure for damage."""
        self._kv = kv
        self._forsworn = self._read_forsworn()
        self._votes: dict[str, HeldVote] = {}
        for key, value in kv.range(schema.VOTES_BEGIN, schema.VOTES_END):
            vote = decode_vote(key, value)
            self._votes[vote.node] = vote

    @property
    def forsworn(self) -> Forsworn | None:
        """Why this node votes no more; None while it may."""
        return self._forsworn

    def votes(self) -> tuple[HeldVote, ...]:
        """The newest of each node."""
        return tuple(self._votes.values())

    def keep_vote(self, node: str, term: int, candidate: str, signature: bytes) -> None:
        """Keep it in the place of an older one. Not synced: whatever is written next takes it to the disk."""
        held = self._votes.get(node)
        if (held is None and len(self._votes) >= VOTES_MAX) or (held is not None and held.term >= term):
            return
        vote = HeldVote(candidate=candidate, format=FORMAT, node=node, signature=signature, term=term)
        self._kv.write([(schema.vote_key(node), schema.seal(vote))], sync=False)
        self._votes[node] = vote

    def forswear(self, forsworn: Forsworn) -> None:
        """Keep for ever that this node must not vote; synced. The first reason stays."""
        if self._forsworn is None:
            self._kv.write([(schema.FORSWORN_KEY, schema.seal(forsworn))], sync=True)
            self._forsworn = forsworn

    def records(self) -> list[Write]:
        """All of it, for another database that takes this one's place."""
        votes = [(schema.vote_key(vote.node), schema.seal(vote)) for vote in self._votes.values()]
        latch = [] if self._forsworn is None else [(schema.FORSWORN_KEY, schema.seal(self._forsworn))]
        return [*votes, *latch]

    def _read_forsworn(self) -> Forsworn | None:
        data = self._kv.get(schema.FORSWORN_KEY)
        return None if data is None else decode_forsworn(data)


def decode_vote(key: bytes, data: bytes) -> HeldVote:
    """Raises StorageFailure."""
    name = schema.name_of(key)
    vote = schema.unseal(HeldVote, data, name)
    require(vote.format == FORMAT and schema.vote_key(vote.node) == key, f"the stored {name} is of another kind")
    return vote


def decode_forsworn(data: bytes) -> Forsworn:
    """Raises StorageFailure."""
    forsworn = schema.unseal(Forsworn, data, schema.name_of(schema.FORSWORN_KEY))
    require(forsworn.format == FORMAT, f"the record of forsworn votes has format {forsworn.format}, which is unknown")
    return forsworn
