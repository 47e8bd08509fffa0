"""What the leader does with a voted change, and what it says while it waits."""

from dataclasses import dataclass, field
from typing import Any, cast

import msgspec
import pytest

from consensus import membership
from consensus.messages import Configuration as Members
from consensus.messages import Reason, Role
from consensus.progress import FollowerView, State
from ledger.contracts.network import FORMAT, Pending
from ledger.keys import sha256
from ledger.membership import Configuration, with_voter, without
from node.changes import WAITS_FOR, Changes
from node.inspector import BlockRefusedError
from node.roster import Roster
from storage.store import Store
from tests.ledger.founding import GENESIS, VOTERS, node_key

START = GENESIS.configuration()
LEARNER = "zone-1"
STEADY_S = 1.0
PROMOTION = Pending(None, FORMAT, 5, node_key(LEARNER).public, "promote", LEARNER, sha256(b"p"))
TARGET = Members((*VOTERS, LEARNER), ())


@dataclass
class Core:
    role: Role = Role.LEADER
    leader: str | None = VOTERS[0]
    last_height: int = 9
    why: str = ""

    def followers(self) -> list[FollowerView]:
        return [FollowerView(LEARNER, 4, State.REPLICATE, 0, heard=True, stopping=False)]

    def why_no_change(self, target: Members) -> str:
        return self.why


@dataclass
class Desk:
    """A leader whose log is executed to its end, a promotion that was voted at height 5 and is sealed."""

    core: Core = field(default_factory=Core)
    executed_height: int = 9
    sealed_height: int | None = 8
    configuration: Configuration = START
    pending: Pending | None = PROMOTION
    proposed: list[Members] = field(default_factory=list)
    now_s: float = 100.0

    def __post_init__(self) -> None:
        self.changes = Changes(cast(Store, self), cast(Roster, self), steady_s=STEADY_S, now_s=lambda: self.now_s)
        self.changes.attach(self)

    def propose_change(self, target: Members) -> bool:
        self.proposed.append(target)
        return True

    def settle(self) -> None:
        """The learner stays close for as long as it must."""
        self.changes.consider()
        self.now_s += STEADY_S


def test_a_promotion_is_appended_once_the_learner_stayed_close() -> None:
    desk = Desk()
    desk.changes.consider()
    assert desk.changes.waits_for == f"{LEARNER} to stay close to the newest block for a moment"
    assert (desk.changes.due, desk.proposed) == (False, [])
    desk.now_s += STEADY_S / 2
    desk.core.why = membership.LEARNER_BEHIND
    desk.changes.consider()
    desk.core.why = ""
    desk.settle()
    assert (desk.changes.due, desk.changes.waits_for, desk.proposed) == (True, "", [])
    desk.changes.consider()
    assert desk.proposed == [TARGET]


def test_a_removal_needs_nobody_to_stay_close() -> None:
    desk = Desk()
    assert desk.pending is not None
    desk.pending = replace_pending(desk.pending, kind="remove", node=VOTERS[2])
    desk.changes.consider()
    assert desk.proposed == [Members(VOTERS[:2], (LEARNER,))]


def replace_pending(pending: Pending, **changes: Any) -> Pending:
    return msgspec.structs.replace(pending, **changes)


def test_it_is_appended_on_an_executed_log_alone_and_holds_other_blocks_back() -> None:
    """So that every follower can judge it by the state at its parent."""
    desk = Desk()
    desk.settle()
    desk.executed_height = 8
    desk.changes.consider()
    assert (desk.changes.due, desk.proposed) == (True, [])


@pytest.mark.parametrize("why", WAITS_FOR)
def test_what_the_core_waits_for_is_said_in_words(why: str) -> None:
    desk = Desk(Core(why=why))
    desk.settle()
    said = desk.changes.waits_for
    assert said == WAITS_FOR[why].format(node=LEARNER)
    assert (desk.changes.due, desk.proposed) == (False, [])


def test_every_reason_of_the_core_has_its_words() -> None:
    reasons = {value for name, value in vars(membership).items() if name.isupper() and isinstance(value, str)}
    assert reasons == {*WAITS_FOR, membership.LEARNER_BEHIND}


@pytest.mark.parametrize(
    ("desk", "said"),
    [
        (Desk(pending=None), ""),
        (Desk(Core(role=Role.FOLLOWER)), f"the leader, {VOTERS[0]}"),
        (Desk(Core(role=Role.CANDIDATE, leader=None)), "a leader, which nobody is now"),
        (Desk(sealed_height=4), "the vote at height 5 to be sealed"),
        (Desk(sealed_height=None), "the vote at height 5 to be sealed"),
        (Desk(Core(why=membership.LEARNER_BEHIND)), f"{LEARNER} to catch up: it is 5 blocks behind"),
        (
            Desk(Core(why=membership.LEARNER_MAY_NOT_VOTE, last_height=90), executed_height=90),
            f"{LEARNER} to catch up: it is 86 blocks behind",
        ),
    ],
    ids=["nothing", "another leads", "nobody leads", "not sealed", "nothing is sealed", "behind", "far behind"],
)
def test_what_it_waits_for(desk: Desk, said: str) -> None:
    desk.settle()
    assert desk.changes.waits_for == said
    assert (desk.changes.due, desk.proposed) == (False, [])


def test_what_is_begun_and_not_complete() -> None:
    desk = Desk()
    assert desk.pending is not None
    desk.pending = replace_pending(desk.pending, appended=7)
    desk.settle()
    assert desk.changes.waits_for == "certificates by the old and the new voters, since block 7"
    assert desk.proposed == []


def test_a_follower_judges_a_change_by_the_vote_at_its_parent_and_by_no_other() -> None:
    desk = Desk()
    assert desk.changes.voted(9, START) == with_voter(START, LEARNER, node_key(LEARNER).public)
    for height in (8, 10):
        with pytest.raises(BlockRefusedError) as caught:
            desk.changes.voted(height, START)
        assert caught.value.reason is Reason.BEHIND
    assert desk.changes.voted(9, replace_learners(START)) is None
    desk.pending = None
    assert desk.changes.voted(9, START) is None


def replace_learners(configuration: Configuration) -> Configuration:
    """Where the learner is none any more, its promotion is no step."""
    return msgspec.structs.replace(configuration, learners=without(configuration, LEARNER).learners)
