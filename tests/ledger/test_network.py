"""Votes on organisations and nodes, and what blocks make of them."""

from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.contracts import identity, network
from ledger.contracts.context import read_as
from ledger.contracts.network import (
    NODES_MAX,
    ORGANISATIONS_MAX,
    PROPOSAL_LIFETIME_MS,
    PROPOSALS_OPEN_MAX,
    STEPS_KEPT_FREE,
    Pending,
    Promote,
    Proposal,
    Proposed,
    Remove,
    Withdraw,
    next_change,
    node_record,
    pending_change,
)
from ledger.encoding import encode
from ledger.errors import Rejection
from ledger.execution import admit, execute, genesis_state
from ledger.finality import VOTERS_MAX
from ledger.keys import SigningKey, sha256
from ledger.membership import LEARNERS_MAX, STEPS_MAX, Change, Step, with_learner, with_voter, without
from ledger.node_cert import make_certificate
from ledger.transaction import Transaction
from tests.ledger.founding import (
    GENESIS,
    VOTERS,
    Ledger,
    account_of,
    ballot,
    new_node,
    new_organisation,
    node_key,
    proposal,
    proposal_id,
    registration,
    sign,
    signing_key,
)


def as_north(ledger: Ledger, *actions: network.Propose | network.Vote | identity.Register) -> str:
    return run(ledger, "north-admin", actions)


def as_south(ledger: Ledger, *actions: network.Propose | network.Vote) -> str:
    return run(ledger, "south-admin", actions)


def run(ledger: Ledger, by: str, actions: Sequence[network.Propose | network.Vote | identity.Register]) -> str:
    (code,) = ledger.run(sign(actions, by=by, until=ledger.time_ms + 60_000))
    return code


def entry(ledger: Ledger, name: str) -> Proposal:
    found = read_as(ledger.get, Proposal, network.proposal_path(proposal_id(name)))
    assert found is not None
    return found


def role(ledger: Ledger, node: str) -> str:
    record = node_record(ledger.get, node)
    assert record is not None
    return record.role


PROMOTION = Promote("zone-1")


def with_pending(change: Proposed = PROMOTION) -> Ledger:
    ledger = Ledger()
    assert ledger.pass_vote("p", change) == ["ok", "ok"]
    return ledger


def with_third_organisation() -> Ledger:
    ledger = Ledger()
    assert ledger.pass_vote("east", new_organisation("east")) == ["ok", "ok"]
    return ledger


# Votes.


def test_more_than_half_of_the_organisations_pass_a_proposal() -> None:
    ledger = Ledger()
    assert as_north(ledger, proposal("p", Promote("zone-1"))) == "ok"
    assert entry(ledger, "p").status == "open"
    assert as_north(ledger, ballot("p")) == "ok"
    assert (entry(ledger, "p").status, pending_change(ledger.get)) == ("open", None)
    assert as_south(ledger, ballot("p")) == "ok"
    found = entry(ledger, "p")
    assert (found.status, found.approvals, found.rejections) == ("passed", ["north", "south"], [])
    assert (found.organisation, found.by, found.height) == ("north", account_of("north-admin"), 1)
    assert pending_change(ledger.get) == Pending(
        appended=None,
        format=1,
        height=3,
        key=node_key("zone-1").public,
        kind="promote",
        node="zone-1",
        proposal=proposal_id("p"),
    )


def test_two_of_three_pass_and_two_of_three_reject() -> None:
    ledger = with_third_organisation()
    assert run(ledger, "east-admin", [proposal("p", Promote("zone-1")), ballot("p")]) == "ok"
    assert as_north(ledger, ballot("p", approve=False)) == "ok"
    assert entry(ledger, "p").status == "open"
    # Neither a second time nor the other way.
    assert as_north(ledger, ballot("p", approve=False)) == "already_voted"
    assert as_north(ledger, ballot("p")) == "already_voted"
    assert as_south(ledger, ballot("p")) == "ok"
    assert entry(ledger, "p").status == "passed"

    assert as_north(ledger, proposal("q", Remove("west-1"))) == "ok"
    assert as_north(ledger, ballot("q", approve=False)) == "ok"
    assert as_south(ledger, ballot("q", approve=False)) == "ok"
    found = entry(ledger, "q")
    assert (found.status, found.rejections) == ("rejected", ["north", "south"])
    assert run(ledger, "east-admin", [ballot("q")]) == "proposal_closed"


def test_half_is_not_enough_and_half_against_rejects() -> None:
    ledger = Ledger()
    assert as_north(ledger, proposal("p", Promote("zone-1")), ballot("p", approve=False)) == "ok"
    assert entry(ledger, "p").status == "rejected"


def test_only_admins_propose_and_vote_and_once_for_their_organisation() -> None:
    ledger = Ledger()
    assert as_north(ledger, registration("doctor", "clinician"), registration("deputy", "admin")) == "ok"
    assert run(ledger, "doctor", [proposal("p", Promote("zone-1"))]) == "not_admin"
    assert as_north(ledger, proposal("p", Promote("zone-1")), ballot("p")) == "ok"
    assert run(ledger, "doctor", [ballot("p")]) == "not_admin"
    assert run(ledger, "deputy", [ballot("p")]) == "already_voted"
    assert run(ledger, "deputy", [ballot("p", approve=False)]) == "already_voted"
    assert as_north(ledger, proposal("p", Promote("zone-1"))) == "proposal_exists"
    assert as_south(ledger, ballot("q")) == "no_such_proposal"
    assert as_south(ledger, ballot("p")) == "ok"
    assert as_south(ledger, ballot("p")) == "proposal_closed"
    assert as_north(ledger, proposal("p", Promote("zone-1"))) == "proposal_exists"


def test_a_proposal_is_open_for_a_week_of_block_time() -> None:
    for late_ms, code in ((0, "ok"), (1, "proposal_expired")):
        ledger = Ledger()
        assert as_north(ledger, proposal("p", Promote("zone-1")), ballot("p")) == "ok"
        expires = entry(ledger, "p").expires
        assert expires == ledger.time_ms + PROPOSAL_LIFETIME_MS
        vote = sign([ballot("p")], by="south-admin", until=expires + 10)
        assert ledger.run(vote, at_ms=expires + late_ms) == [code]


def test_an_organisation_has_so_many_open_proposals() -> None:
    ledger = Ledger()
    for number in range(PROPOSALS_OPEN_MAX):
        assert as_north(ledger, proposal(f"p{number}", Promote("zone-1"))) == "ok"
    assert as_north(ledger, proposal("more", Promote("zone-1"))) == "too_many_proposals"
    assert as_south(ledger, proposal("theirs", Promote("zone-1"))) == "ok"
    # One that is closed makes room, and so do those that are expired.
    assert as_south(ledger, ballot("p3", approve=False)) == "ok"
    assert as_north(ledger, proposal("more", Promote("zone-1"))) == "ok"
    assert as_north(ledger, proposal("and more", Promote("zone-1"))) == "too_many_proposals"
    newest = entry(ledger, "more").expires
    oldest = entry(ledger, "p0").expires
    at_the_end = sign([proposal("and more", Promote("zone-1"))], by="north-admin", until=oldest)
    assert ledger.run(at_the_end, at_ms=oldest) == ["too_many_proposals"]
    ledger.time_ms = newest
    assert as_north(ledger, proposal("and more", Promote("zone-1"))) == "ok"
    kept = read_as(ledger.get, network.OpenProposals, network.open_path("north"))
    assert kept is not None
    assert [each.proposal for each in kept.proposals] == [proposal_id("and more")]


def test_one_change_of_nodes_is_pending_at_a_time() -> None:
    ledger = with_pending()
    before = dict(ledger.state)
    assert as_north(ledger, proposal("q", Remove("west-1")), ballot("q")) == "ok"
    assert as_south(ledger, ballot("q")) == "change_pending"
    assert entry(ledger, "q").approvals == ["north"]
    # Organisations do not wait.
    assert ledger.pass_vote("east", new_organisation("east")) == ["ok", "ok"]
    assert ledger.state[network.PENDING_PATH] == before[network.PENDING_PATH]
    ledger.complete()
    assert as_south(ledger, ballot("q")) == "ok"
    assert pending_change(ledger.get) is not None


# What may be proposed.


def crowded(**fields: object) -> Ledger:
    """With the first configuration changed."""
    ledger = Ledger()
    changed = msgspec.structs.replace(ledger.configuration, **fields)
    ledger.state[network.CONFIGURATION_PATH] = encode(changed)
    return ledger


def listed(path: str, count: int) -> Ledger:
    ledger = Ledger()
    ledger.state[path] = encode(network.Ids(1, [f"a{number:04}" for number in range(count)]))
    return ledger


def with_bits_flipped(change: network.AddNode) -> network.AddNode:
    spoilt = bytearray(change.certificate)
    spoilt[-1] ^= 1
    return msgspec.structs.replace(change, certificate=bytes(spoilt))


def with_admin(key: bytes, proof: bytes = bytes(64)) -> network.AddOrganisation:
    return msgspec.structs.replace(new_organisation("east"), admins=[network.NewAdmin(key, proof)])


MANY = {f"v{number:03}": SigningKey(bytes([number]) * 32).public for number in range(VOTERS_MAX)}
REFUSED: dict[str, tuple[Ledger, Proposed, str]] = {
    "an organisation twice": (Ledger(), new_organisation("south"), "organisation_exists"),
    "too many organisations": (
        listed(network.ORGANISATIONS_PATH, ORGANISATIONS_MAX),
        new_organisation("east"),
        "too_many_organisations",
    ),
    "an admin key of small order": (Ledger(), with_admin(bytes(32)), "bad_key"),
    "an admin key in use": (Ledger(), with_admin(signing_key("south-admin").public), "key_in_use"),
    "one admin key twice": (Ledger(), new_organisation("east", "a", "a"), "key_in_use"),
    "an admin key without proof": (Ledger(), with_admin(signing_key("a").public), "bad_proof"),
    "a proof made out to another": (Ledger(), new_organisation("east", proposer="south-admin"), "bad_proof"),
    "a node twice": (Ledger(), new_node("west-1"), "node_exists"),
    "a node of nobody": (Ledger(), new_node("north-2", organisation="west"), "no_such_organisation"),
    "no certificate": (
        Ledger(),
        msgspec.structs.replace(new_node("north-2"), certificate=b"x"),
        "bad_certificate",
    ),
    "a changed certificate": (Ledger(), with_bits_flipped(new_node("north-2")), "bad_certificate"),
    "another node's certificate": (
        Ledger(),
        msgspec.structs.replace(new_node("north-2"), certificate=new_node("north-3").certificate),
        "bad_certificate",
    ),
    "too many nodes": (listed(network.NODES_PATH, NODES_MAX), new_node("north-2"), "too_many_nodes"),
    "too many learners": (
        crowded(learners=[f"l{number:03}" for number in range(LEARNERS_MAX)]),
        new_node("north-2"),
        "too_many_learners",
    ),
    "an unknown node promoted": (Ledger(), Promote("north-9"), "no_such_node"),
    "a voter promoted": (Ledger(), Promote("west-1"), "not_a_learner"),
    "too many voters": (crowded(voters=MANY), Promote("zone-1"), "too_many_voters"),
    "a promotion too often": (crowded(steps=STEPS_MAX - STEPS_KEPT_FREE), Promote("zone-1"), "too_many_steps"),
    "an unknown node removed": (Ledger(), Remove("north-9"), "no_such_node"),
    "a pending node removed": (with_pending(new_node("north-2")), Remove("north-2"), "not_a_member"),
    "a pending node promoted": (with_pending(new_node("north-2")), Promote("north-2"), "not_a_learner"),
    "the last voter removed": (
        crowded(voters={"west-1": node_key("west-1").public}),
        Remove("west-1"),
        "last_voter",
    ),
    "a removal too often": (crowded(steps=STEPS_MAX - STEPS_KEPT_FREE), Remove("west-1"), "too_many_steps"),
    "nothing withdrawn": (Ledger(), Withdraw(proposal_id("p")), "nothing_pending"),
    "another's withdrawn": (with_pending(), Withdraw(proposal_id("q")), "nothing_pending"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_done_is_not_proposed(name: str) -> None:
    ledger, change, code = REFUSED[name]
    before = dict(ledger.state)
    assert as_north(ledger, proposal("new", change)) == code
    assert ledger.state == before


def test_a_pool_refuses_a_key_that_no_account_may_have() -> None:
    ledger = Ledger()
    bad = sign([proposal("p", with_admin(bytes(32)))], by="north-admin")
    with pytest.raises(Rejection, match="bad_key"):
        admit(bad, ledger.get, ledger.time_ms)
    admit(sign([proposal("p", new_organisation("east"))], by="north-admin"), ledger.get, ledger.time_ms)


def test_a_learner_leaves_however_often_the_voters_changed() -> None:
    ledger = crowded(steps=STEPS_MAX)
    assert as_north(ledger, proposal("p", Remove("zone-1"))) == "ok"


def test_a_vote_does_not_pass_what_can_no_longer_be_done() -> None:
    ledger = Ledger()
    for name in ("p", "q"):
        assert as_north(ledger, proposal(name, new_organisation("east")), ballot(name)) == "ok"
    assert as_south(ledger, ballot("p")) == "ok"
    assert as_south(ledger, ballot("q")) == "organisation_exists"
    assert entry(ledger, "q").status == "open"


def test_a_node_key_serves_one_node() -> None:
    ledger = with_pending(new_node("north-2"))
    certificate = make_certificate(sha256(b"node", b"north-2"), "north-3")
    change = msgspec.structs.replace(new_node("north-3"), certificate=certificate)
    assert as_north(ledger, proposal("q", change)) == "key_in_use"
    assert ledger.pass_vote("w", Withdraw(proposal_id("p"))) == ["ok", "ok"]
    assert as_north(ledger, proposal("q", change)) == "key_in_use"


# What passes.


def test_a_new_organisation_is_there_at_once_and_has_a_vote() -> None:
    ledger = Ledger()
    assert ledger.pass_vote("east", new_organisation("east", "ea", "eb")) == ["ok", "ok"]
    found = read_as(ledger.get, identity.Organisation, identity.organisation_path("east"))
    assert found is not None
    assert (found.name, found.kind) == ("East", "hospital")
    assert found.admins == sorted([account_of("ea"), account_of("eb")])
    assert run(ledger, "ea", [registration("nurse", "clinician", "ea")]) == "ok"
    # Two of three now.
    assert run(ledger, "eb", [proposal("p", Promote("zone-1")), ballot("p")]) == "ok"
    assert as_north(ledger, ballot("p")) == "ok"
    assert entry(ledger, "p").status == "passed"


def test_a_node_comes_follows_votes_and_leaves_for_ever() -> None:
    ledger = with_pending(new_node("north-2"))
    assert (role(ledger, "north-2"), ledger.configuration.learners) == ("pending", ["zone-1"])
    assert ledger.complete() == []
    assert role(ledger, "north-2") == "learner"
    assert pending_change(ledger.get) is None
    assert ledger.configuration.learners == ["north-2", "zone-1"]
    assert list(ledger.configuration.voters) == list(VOTERS)

    assert ledger.pass_vote("up", Promote("north-2")) == ["ok", "ok"]
    (first,) = ledger.complete()
    assert role(ledger, "north-2") == "voter"
    configuration = ledger.configuration
    assert configuration.learners == ["zone-1"]
    assert list(configuration.voters) == ["north-1", "north-2", "south-1", "west-1"]
    assert (configuration.steps, configuration.old_voters) == (1, None)

    assert ledger.pass_vote("down", Remove("north-2")) == ["ok", "ok"]
    (second,) = ledger.complete()
    assert (role(ledger, "north-2"), ledger.configuration.steps) == ("removed", 2)
    assert list(ledger.configuration.voters) == list(VOTERS)
    assert network.steps(ledger.get, 2) == [
        Step(first, configuration.voters),
        Step(second, ledger.configuration.voters),
    ]
    assert "north-2" in network.node_records(ledger.get)
    # Neither id nor key come back.
    assert as_north(ledger, proposal("again", new_node("north-2"))) == "node_exists"
    assert as_north(ledger, proposal("gone", Remove("north-2"))) == "not_a_member"
    assert as_north(ledger, proposal("up again", Promote("north-2"))) == "not_a_learner"


def test_a_learner_is_removed_by_one_block() -> None:
    ledger = with_pending(Remove("zone-1"))
    assert ledger.complete() == []
    assert (role(ledger, "zone-1"), ledger.configuration.learners) == ("removed", [])


def test_while_joint_roles_wait_and_the_change_cannot_be_withdrawn() -> None:
    ledger = with_pending()
    pending = pending_change(ledger.get)
    assert pending is not None
    ledger.block([], reconfiguration=next_change(ledger.configuration, pending))
    assert ledger.configuration.is_joint
    assert role(ledger, "zone-1") == "learner"
    assert pending_change(ledger.get) == msgspec.structs.replace(pending, appended=ledger.height)
    assert as_north(ledger, proposal("w", Withdraw(proposal_id("p")))) == "change_appended"
    with pytest.raises(Rejection, match="bad_change"):
        next_change(ledger.configuration, pending)


def test_a_withdrawn_change_is_gone_and_so_is_its_node() -> None:
    ledger = with_pending(new_node("north-2"))
    assert ledger.pass_vote("w", Withdraw(proposal_id("p"))) == ["ok", "ok"]
    assert pending_change(ledger.get) is None
    assert role(ledger, "north-2") == "removed"
    assert ledger.configuration == GENESIS.configuration()
    assert as_north(ledger, proposal("again", new_node("north-2"))) == "node_exists"

    assert ledger.pass_vote("up", Promote("zone-1")) == ["ok", "ok"]
    assert ledger.pass_vote("w2", Withdraw(proposal_id("up"))) == ["ok", "ok"]
    assert (role(ledger, "zone-1"), pending_change(ledger.get)) == ("learner", None)


def test_a_withdrawal_that_comes_after_the_block_was_made_comes_too_late() -> None:
    ledger = with_pending(new_node("north-2"))
    pending = pending_change(ledger.get)
    assert pending is not None
    change = next_change(ledger.configuration, pending)
    # Executed before the block with the change, which the leader had appended already.
    assert ledger.pass_vote("w", Withdraw(proposal_id("p"))) == ["ok", "ok"]
    assert ledger.pass_vote("next", Promote("zone-1")) == ["ok", "ok"]
    ledger.block([], reconfiguration=change)
    assert role(ledger, "north-2") == "learner"
    waiting = pending_change(ledger.get)
    assert waiting is not None
    assert (waiting.node, waiting.appended) == ("zone-1", None)


def test_a_change_of_voters_that_was_withdrawn_too_late_leaves_the_next_vote_alone() -> None:
    ledger = with_pending()
    late = Ledger()
    late.state = dict(ledger.state)
    (seal,) = late.complete()
    assert ledger.pass_vote("w", Withdraw(proposal_id("p"))) == ["ok", "ok"]
    assert ledger.pass_vote("next", new_node("north-2")) == ["ok", "ok"]
    waiting = pending_change(ledger.get)
    ledger.block([], reconfiguration=with_voter(ledger.configuration, "zone-1", node_key("zone-1").public))
    ledger.block([], reconfiguration=seal)
    assert (role(ledger, "zone-1"), ledger.configuration.steps) == ("voter", 1)
    assert waiting is not None
    assert pending_change(ledger.get) == waiting


def test_the_transactions_of_a_block_see_its_configuration() -> None:
    ledger = with_pending()
    pending = pending_change(ledger.get)
    assert pending is not None
    change = next_change(ledger.configuration, pending)
    outcome = ledger.block(
        [sign([proposal("w", Withdraw(proposal_id("p")))], by="north-admin")], reconfiguration=change
    )
    assert [result.code for result in outcome.results] == ["change_appended"]


@pytest.mark.parametrize(
    "change",
    [
        with_learner(GENESIS.configuration(), "zone-1"),
        without(GENESIS.configuration(), "nobody"),
        Change(["zone-1"], {**GENESIS.configuration().voters, "x-1": bytes(32)}),
    ],
    ids=["learner twice", "nothing", "voter from nowhere"],
)
def test_a_block_cannot_do_just_anything(change: Change) -> None:
    ledger = Ledger()
    with pytest.raises(Rejection, match="bad_change"):
        ledger.block([], reconfiguration=change)


def test_nobody_of_this_id_is_known_but_the_header_decides() -> None:
    ledger = Ledger()
    ledger.block([], reconfiguration=with_learner(ledger.configuration, "ghost-1"))
    assert ledger.configuration.learners == ["ghost-1", "zone-1"]
    assert node_record(ledger.get, "ghost-1") is None


# Same inputs, same state.

CHANGES: list[Proposed] = [
    new_node("north-2"),
    new_node("south-2", port=30_001),
    new_organisation("east"),
    Promote("zone-1"),
    Promote("north-2"),
    Remove("zone-1"),
    Remove("west-1"),
    Remove("north-2"),
]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.sampled_from(CHANGES), st.booleans(), st.booleans()), max_size=8))
def test_whatever_is_voted_state_and_configuration_agree(plan: list[tuple[Proposed, bool, bool]]) -> None:
    one, other = Ledger(), Ledger()
    for number, (change, approve, completes) in enumerate(plan):
        name = f"p{number}"
        transactions = [
            sign([proposal(name, change), ballot(name)], by="north-admin"),
            sign([ballot(name, approve=approve)], by="south-admin"),
        ]
        assert one.run(*transactions) == other.run(*transactions)
        if completes and pending_change(one.get) is not None:
            one.complete()
            other.complete()
    # The order in which a state was put together makes no difference to what comes out of it.
    shuffled = Ledger()
    shuffled.state = dict(sorted(one.state.items(), reverse=True))
    probe: list[Transaction] = [sign([proposal("probe", Promote("zone-1"))], by="north-admin")]
    assert execute(one.time_ms + 1, one.height + 1, probe, one) == execute(
        one.time_ms + 1, one.height + 1, probe, shuffled
    )
    assert one.state == other.state
    configuration = one.configuration
    roles = {node: record.role for node, record in network.node_records(one.get).items()}
    assert [node for node, each in roles.items() if each == "voter"] == list(configuration.voters)
    assert [node for node, each in roles.items() if each == "learner"] == configuration.learners
    waiting = pending_change(one.get)
    joining = [waiting.node] if waiting is not None and waiting.kind == "add_node" else []
    assert [node for node, each in roles.items() if each == "pending"] == joining
    assert len(network.steps(one.get, configuration.steps)) == configuration.steps


def test_genesis_says_who_is_who() -> None:
    state = genesis_state(GENESIS)
    records = network.node_records(state.get)
    assert list(records) == [node.id for node in GENESIS.nodes]
    assert {node: record.key for node, record in records.items()} == GENESIS.node_keys()
    assert network.current_configuration(state.get) == GENESIS.configuration()
    assert pending_change(state.get) is None
