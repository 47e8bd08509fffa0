"""Commit by certificate: signing acknowledgements, collecting them, and following what they certify."""

from bisect import bisect_left

from consensus.caution import Caution
from consensus.configuration import has_quorum
from consensus.errors import Contradiction, InvariantViolation, require
from consensus.log import Log
from consensus.messages import Acknowledgement, Certificate, NodeId
from consensus.ports import Signer

WAITING_MAX = 64


class Acknowledger:
    """This node's signature under blocks that are on its disk, while their term is its own.

    Invariant: in one term, one block is signed at a height. `_signed` is bounded by what is uncommitted.
    """

    def __init__(self, node_id: NodeId, log: Log, signer: Signer, caution: Caution) -> None:
        self._node_id = node_id
        self._log = log
        self._signer = signer
        self._caution = caution
        self._term = 0
        self._signed: dict[int, bytes] = {}

    def sign(self, height: int, commit_height: int) -> Acknowledgement | None:
        """The acknowledgement of this node's block at `height`; None if it is of an older term or not its to vote on.

        None also while this node may not vote. The block must be durable, and above the commit.
        """
        term = self._log.writes.hard_state.term
        found = self._log.term_hash(height)
        require(commit_height < height <= self._log.durable_height, "only a durable block is signed")
        if found is None:
            raise InvariantViolation("only a block of the log is signed")
        if found[0] != term or self._node_id not in self._log.configurations.at(height).electorate:
            return None
        if not self._caution.may_vote:
            return None
        require(self._log.writes.hard_state_durable, "a term is durable before anything is signed in it")
        if term != self._term:
            self._term = term
            self._signed.clear()
        signed = self._signed.setdefault(height, found[1])
        require(signed == found[1], "one block is acknowledged per height and term")
        return Acknowledgement(height, found[1], self._signer.acknowledge(term, height, found[1]))

    def forget(self, commit_height: int) -> None:
        for height in [height for height in self._signed if height <= commit_height]:
            del self._signed[height]


class Tally:
    """The acknowledgements a leader collects in its term. Bounded by its uncommitted blocks times the voters."""

    def __init__(self, term: int, log: Log) -> None:
        self._term = term
        self._log = log
        self._signatures: dict[int, dict[NodeId, bytes]] = {}

    def add(self, voter: NodeId, acknowledgement: Acknowledgement, commit_height: int) -> Certificate | None:
        """Count one acknowledgement; the block's certificate, if it completes a quorum.

        Counted only for a block of this leader's own term and of its own log (Ongaro, section 3.6.2): an older
        block is committed by one above it.
        """
        height = acknowledgement.height
        if height <= commit_height or self._log.term_hash(height) != (self._term, acknowledgement.hash):
            return None
        configuration = self._log.configurations.at(height)
        if voter not in configuration.electorate:
            return None
        signatures = self._signatures.setdefault(height, {})
        signatures[voter] = acknowledgement.signature
        if not has_quorum(configuration, signatures):
            return None
        return Certificate(self._term, height, acknowledgement.hash, tuple(sorted(signatures.items())))

    def forget(self, commit_height: int) -> None:
        for height in [height for height in self._signatures if height <= commit_height]:
            del self._signatures[height]


class Commit:
    """The newest certificate that this node's log bears out, and those that still wait for the log or the disk.

    `waiting` ascends; beyond WAITING_MAX one is dropped, see `_drop_one`.
    Invariants: `height` never falls; `told_height` <= durable height, and never falls; while it is below `height`,
    the certificate at `height` is in `waiting`.
    """

    def __init__(self, log: Log, certificate: Certificate | None) -> None:
        self._log = log
        self.certificate = certificate
        self.height = certificate.height if certificate else log.base_height
        require(self.height >= log.base_height, "the stored certificate is not below the log's base")
        self._told_height = self.height
        self._waiting: list[Certificate] = []
        if certificate is not None:
            own = log.term_hash(certificate.height)
            require(own == (certificate.term, certificate.hash), "the stored certificate is of the stored log")

    @property
    def known(self) -> Certificate | None:
        """The newest certificate met, whether or not the log reaches it."""
        return self._waiting[-1] if self._waiting else self.certificate

    def learn(self, certificate: Certificate | None) -> None:
        """Take note of a verified certificate. Raises Contradiction where it denies what is already certified."""
        if certificate is None:
            return
        if certificate.height <= self.height:
            self._agree(certificate)
            return
        position = bisect_left(self._waiting, certificate.height, key=lambda waiting: waiting.height)
        if position < len(self._waiting) and self._waiting[position].height == certificate.height:
            known = self._waiting[position]
            if known.hash != certificate.hash:
                raise Contradiction("two certificates at one height", certificate, known.term, known.hash)
            return
        self._waiting.insert(position, certificate)
        if len(self._waiting) > WAITING_MAX:
            self._drop_one(certificate.height)

    def _drop_one(self, learned: int) -> None:
        """The newest that can be spared, so that the oldest still come true. Not to be spared are the newest of all,
        which says how far there is to go, the one just learned, which may end a range of blocks that is about to be
        taken, and the one that `height` stands on, which is to be told.
        """
        for place in reversed(range(len(self._waiting) - 1)):
            if self._waiting[place].height not in (learned, self.height):
                del self._waiting[place]
                return

    def _agree(self, certificate: Certificate) -> None:
        own = self._log.term_hash(certificate.height)
        if own is not None and own[1] != certificate.hash:
            raise Contradiction("a certificate denies a certified block", certificate, *own)

    def advance(self) -> bool:
        """Move to the newest waiting certificate that the log bears out; whether it moved."""
        for certificate in reversed(self._waiting):
            if certificate.height <= self.height:
                return False
            if self._log.term_hash(certificate.height) == (certificate.term, certificate.hash):
                self.certificate, self.height = certificate, certificate.height
                for older in self._waiting:
                    if older.height < self.height:
                        self._agree(older)
                return True
        return False

    def _tellable(self) -> Certificate | None:
        reach = min(self.height, self._log.durable_height)
        newest = None
        for certificate in self._waiting:
            if self._told_height < certificate.height <= reach:
                newest = certificate
        return newest

    @property
    def has_news(self) -> bool:
        return self._tellable() is not None

    def take_news(self) -> Certificate | None:
        """The newest certificate whose block is on this disk and was not told before."""
        newest = self._tellable()
        if newest is not None:
            self._told_height = newest.height
            self._waiting = [waiting for waiting in self._waiting if waiting.height > newest.height]
        return newest
