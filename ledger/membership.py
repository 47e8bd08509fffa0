"""Who votes and who only follows: a function of the chain, from the block that appends it.

The voters change by one at a time, and through a *joint* configuration: from block c, which carries the change, a
certificate needs a quorum of the old voters and one of the new. Block p leaves the joint configuration and carries
the certificate of its parent, which both quorums signed. That certificate, with the header it is of, is a *step*:
who trusts the old voters learns from it who the new ones are. So the voters of any block follow from genesis and
the steps before it, offline. A change of learners alone is in effect at once and needs no proof, as learners sign
nothing that is counted.

block    header.change   header.proof        in effect
c        the change      -                   joint, or the new learners at once
between  -               -                   joint; seals nothing
p        -               certifies p - 1     the new voters, one step more
"""

from collections.abc import Iterable
from typing import Annotated

import msgspec
from msgspec import Meta

from ledger.encoding import encode
from ledger.errors import Rejection
from ledger.finality import VOTERS_MAX, NodeId, Seal
from ledger.keys import PublicKey, sha256, tag

CONFIGURATION = tag("configuration")
LEARNERS_MAX = 64
# How often the voters may change from genesis on; every receipt carries every step.
STEPS_MAX = 1024

# Node id to the raw key of its certificate.
Voters = Annotated[dict[NodeId, PublicKey], Meta(min_length=1, max_length=VOTERS_MAX)]
Learners = Annotated[list[NodeId], Meta(max_length=LEARNERS_MAX)]


class Change(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What block c carries: the learners (ascending) and voters that there are to be."""

    learners: Learners
    voters: Voters


class Configuration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who votes and who only follows. `old_voters` is set while joint; `steps` counts the changes of voters that
    are complete. `left` are the voters before the newest of them, until the next change of any kind."""

    learners: Learners
    left: Voters | None
    old_voters: Voters | None
    steps: Annotated[int, Meta(ge=0, le=STEPS_MAX)]
    voters: Voters

    @property
    def is_joint(self) -> bool:
        return self.old_voters is not None

    @property
    def signers(self) -> dict[str, bytes]:
        """Every voter, old and new, and its key: who may sign a certificate."""
        return {**(self.old_voters or {}), **self.voters}

    @property
    def proposers(self) -> dict[str, bytes]:
        """Who may have proposed the block above one at which this is in effect.

        Whoever is voted out may hold the block that completes it while too few others do. It then may have to lead
        once more, until that block is certified. It counts for nothing in the certificate.
        """
        return {**(self.left or {}), **self.signers}

    def digest(self) -> bytes:
        """What headers name."""
        return configuration_digest(self.voters, self.old_voters, self.steps)

    def encode(self) -> bytes:
        return encode(self)


class Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """That `voters` follow on the voters before: the seal is of a block of the joint configuration of both."""

    seal: Seal
    voters: Voters


def configuration_digest(voters: dict[str, bytes], old_voters: dict[str, bytes] | None, steps: int) -> bytes:
    """Covers the voters with their keys, and not the learners, so that a change of them needs no proof. `steps`
    tells apart two configurations of the same voters, so that no step can be left out or shown twice."""
    return sha256(CONFIGURATION, encode({"old_voters": old_voters, "steps": steps, "voters": voters}))


def configuration_after(parent: Configuration, change: Change | None, *, leaves: bool) -> Configuration:
    """The configuration in effect at a block, from its parent's and the block's own header.

    `leaves`: the header has a proof. Raises Rejection("bad_change") for what no block may do.
    """
    if leaves:
        _require(change is None and parent.is_joint, "a proof leaves a joint configuration and changes nothing else")
        return Configuration(parent.learners, parent.old_voters, None, parent.steps + 1, parent.voters)
    if change is None:
        return parent
    _require(not parent.is_joint, "nothing changes in a joint configuration")
    _require(change.learners == sorted(set(change.learners)), "learners are ascending and distinct")
    _require(not change.voters.keys() & set(change.learners), "nobody is voter and learner")
    learners, before = set(change.learners), set(parent.learners)
    if change.voters == parent.voters:
        _require(len(learners ^ before) == 1, "one learner is added or removed")
        return Configuration(change.learners, None, None, parent.steps, parent.voters)
    check_one_voter(parent.voters, change.voters)
    _require(parent.steps < STEPS_MAX, f"the voters change at most {STEPS_MAX} times")
    added = change.voters.keys() - parent.voters.keys()
    _require(added <= before and learners == before - added, "a new voter was a learner; nothing else changes")
    return Configuration(change.learners, None, parent.voters, parent.steps, change.voters)


def check_one_voter(old: dict[str, bytes], new: dict[str, bytes]) -> None:
    """Rejection("bad_change") unless one voter is added or removed and the others keep their keys."""
    _require(len(old.keys() ^ new.keys()) == 1, "the voters change by one")
    _require(all(new[node] == old[node] for node in old.keys() & new.keys()), "a voter keeps its key")


def with_learner(configuration: Configuration, node: str) -> Change:
    """The change that adds a learner."""
    return Change(sorted([*configuration.learners, node]), configuration.voters)


def with_voter(configuration: Configuration, node: str, key: bytes) -> Change:
    """The change that promotes a learner."""
    return Change(_without(configuration.learners, node), dict(sorted({**configuration.voters, node: key}.items())))


def without(configuration: Configuration, node: str) -> Change:
    """The change that removes a learner or a voter."""
    voters = {name: key for name, key in configuration.voters.items() if name != node}
    return Change(_without(configuration.learners, node), voters)


def _without(names: Iterable[str], node: str) -> list[str]:
    return [name for name in names if name != node]


def _require(condition: bool, rule: str) -> None:
    if not condition:
        raise Rejection("bad_change", f"the rule that {rule} does not hold")
