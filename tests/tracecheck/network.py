"""What must hold between nodes, in whatever order their traces are read."""

import json
from collections import defaultdict
from dataclasses import dataclass, field

from tests.tracecheck import raft
from tests.tracecheck.lines import Block, Certificate, Forbidden, Json, blocks

# What of a message the receiver's shell may leave out, as it could not verify it or not get all of it. Certificates
# and acknowledgements are compared by themselves. Of blocks some may arrive alone, or none: then all that is
# left of an Append is that its sender leads, and where it looks is the receiver's choice.
PARTIAL = {"certificate", "acknowledges", "blocks", "prev"}


def essence(message: Json) -> str:
    """What of a message arrives as it was sent, or not at all."""
    return json.dumps({key: value for key, value in message.items() if key not in PARTIAL}, sort_keys=True)


def chain(message: Json) -> tuple[str, ...]:
    """The hashes of the blocks in a message, after that of the block they follow; empty where there are none."""
    found = blocks(message.get("blocks", []))
    return (found[0].parent, *(block.hash for block in found)) if found else ()


def _within(part: tuple[str, ...], whole: tuple[str, ...]) -> bool:
    if not part:
        return True
    at = whole.index(part[0]) if part[0] in whole else len(whole)
    return whole[at : at + len(part)] == part


@dataclass
class Facts:
    """Gathered from all traces; `judge` compares what could not be compared at once.

    `since`: nodes whose trace is there from its first line, and the term in which it begins; only of later terms can
    it be said what such a node never did.
    """

    since: dict[str, int] = field(default_factory=dict)
    leaders: dict[int, str] = field(default_factory=dict)
    votes: dict[tuple[str, int], str] = field(default_factory=dict)
    blocks: dict[str, Block] = field(default_factory=dict)
    made: dict[tuple[int, int], str] = field(default_factory=dict)
    signed: dict[tuple[str, int], dict[int, str]] = field(default_factory=lambda: defaultdict(dict))
    sent: dict[tuple[str, str, str], set[tuple[str, ...]]] = field(default_factory=lambda: defaultdict(set))
    received: list[tuple[Json, str, str, Json]] = field(default_factory=list)
    heard: list[tuple[Json, str, int, int, str]] = field(default_factory=list)
    certificates: dict[Certificate, tuple[Json, Json | None]] = field(default_factory=dict)
    elected: list[tuple[Json, int, dict[int, str], int]] = field(default_factory=list)
    proofs: list[tuple[Json, str]] = field(default_factory=list)

    def tells_all(self, node: str, term: int) -> bool:
        return node in self.since and term > self.since[node]

    def sends(self, sender: str, receiver: str, message: Json) -> None:
        self.sent[sender, receiver, essence(message)].add(chain(message))

    # each of these is told by one node's replay

    def leads(self, line: Json, term: int, node: str) -> None:
        known = self.leaders.setdefault(term, node)
        if known != node:
            raise Forbidden(line, f"{node} leads term {term}, which {known} leads")

    def votes_for(self, line: Json, voter: str, term: int, candidate: str) -> None:
        known = self.votes.setdefault((voter, term), candidate)
        if known != candidate:
            raise Forbidden(line, f"{voter} votes for {candidate} in term {term}, having voted for {known}")

    def holds(self, line: Json, block: Block) -> None:
        known = self.blocks.setdefault(block.hash, block)
        if known != block:
            raise Forbidden(line, f"two blocks have the hash of {block.height}@{block.term}")
        other = self.made.setdefault((block.height, block.term), block.hash)
        if other != block.hash:
            raise Forbidden(line, f"there are two blocks {block.height}@{block.term}")

    def signs(self, line: Json, voter: str, term: int, height: int, block: str) -> None:
        known = self.signed[voter, height].setdefault(term, block)
        if known != block:
            raise Forbidden(line, f"{voter} acknowledges two blocks at height {height} in term {term}")

    def sees(self, line: Json, certificate: Certificate, configuration: Json | None) -> None:
        """A certificate somewhere; with the configuration at its height, where whoever saw it knows that."""
        _, known = self.certificates.get(certificate, (line, None))
        self.certificates[certificate] = (line, known or configuration)

    # and then

    def judge(self) -> None:
        self._judge_messages()
        committed = self._judge_certificates()
        for line, term, log, last in self.elected:
            for height, (made_in, block) in committed.items():
                if made_in < term and log.get(height, block) != block:
                    raise Forbidden(line, f"the leader of term {term} lacks the block committed at height {height}")
                if made_in < term and height > last:
                    raise Forbidden(line, f"the log of the leader of term {term} ends below the commit {height}")
        certified = {certificate.hash for certificate in self.certificates}
        for line, parent in self.proofs:
            if parent not in certified:
                raise Forbidden(line, "the block below the one that leaves a joint configuration is not certified")

    def _judge_messages(self) -> None:
        for line, sender, receiver, message in self.received:
            got = chain(message)
            sent = self.sent.get((sender, receiver, essence(message)), ())
            if self.tells_all(sender, message["term"]) and not any(_within(got, all_) for all_ in sent):
                raise Forbidden(line, f"{receiver} received what {sender} did not send")
        for line, voter, term, height, block in self.heard:
            if self.tells_all(voter, term) and block not in self.signed[voter, height].values():
                raise Forbidden(line, f"{voter} did not acknowledge that block at height {height}")

    def _judge_certificates(self) -> dict[int, tuple[int, str]]:
        """Committed: height to (term of the certificate, hash), ancestors included as far as blocks are known."""
        committed: dict[int, tuple[int, str]] = {}
        for certificate, (line, configuration) in sorted(self.certificates.items(), key=lambda item: item[0].height):
            if len(set(certificate.signers)) != len(certificate.signers):
                raise Forbidden(line, "a certificate names a signer twice")
            if configuration is not None and not raft.quorum(configuration, certificate.signers):
                raise Forbidden(line, f"the certificate at height {certificate.height} has no quorum")
            if configuration is not None and not set(certificate.signers) <= raft.electorate(configuration):
                raise Forbidden(
                    line, f"the certificate at height {certificate.height} is signed by others than voters"
                )
            for signer in certificate.signers:
                signed = self.signed[signer, certificate.height].get(certificate.term)
                if self.tells_all(signer, certificate.term) and signed != certificate.hash:
                    raise Forbidden(line, f"{signer} did not sign the block certified at height {certificate.height}")
            self._commit(line, certificate, committed)
        return committed

    def _commit(self, line: Json, certificate: Certificate, committed: dict[int, tuple[int, str]]) -> None:
        height, wanted = certificate.height, certificate.hash
        while True:
            known = committed.get(height)
            if known is not None:
                if known[1] != wanted:
                    raise Forbidden(line, f"two blocks are committed at height {height}")
                committed[height] = (min(known[0], certificate.term), wanted)
                return
            committed[height] = (certificate.term, wanted)
            found = self.blocks.get(wanted)
            if found is None:
                return
            if height == certificate.height and (found.height, found.term) != (height, certificate.term):
                raise Forbidden(line, f"a certificate of {height}@{certificate.term} is of another block")
            height, wanted = height - 1, found.parent
            if height <= 0:
                return
