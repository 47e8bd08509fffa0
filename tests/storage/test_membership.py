"""What changes of voters leave in a store: steps, seals, receipts; and what a check finds of it."""

import msgspec
import pytest

from consensus.messages import HardState
from ledger.block import seal_block
from ledger.contracts import network
from ledger.contracts.network import Promote, Proposed, Remove, next_change, pending_change
from ledger.encoding import encode
from ledger.finality import Certificate
from ledger.keys import sha256
from ledger.membership import Step
from ledger.receipt import verify_receipt, verify_state_answer
from ledger.transaction import Transaction
from storage import schema
from storage.boot import check_newest
from storage.check import check_store
from storage.executed import Divergence
from storage.port import StorageFailure
from storage.report import CheckReport
from storage.store import Store
from tests.fakes.disk import PowerLossDisk
from tests.ledger.founding import GENESIS, VOTERS, ballot, new_node, proposal, sign
from tests.storage.chains import Chain, certify, entry_of, node_key, restarted

FOUR = ("north-1", "south-1", "west-1", "zone-1")


def votes(name: str, change: Proposed) -> tuple[Transaction, Transaction]:
    """Both hospitals want it."""
    return sign([proposal(name, change), ballot(name)], by="north-admin"), sign([ballot(name)], by="south-admin")


def begun(chain: Chain, name: str, change: Proposed) -> Certificate:
    """The vote, and block c. Returns c's certificate, by enough of the old and the new voters."""
    chain.add(*votes(name, change))
    pending = pending_change(chain.store.get)
    assert pending is not None
    signers = FOUR[:3]
    block = chain.reconfigure(change=next_change(chain.store.configuration, pending), voters=signers)
    return certify(block, signers)


def promoted(chain: Chain) -> Transaction:
    """zone-1 votes from here on. Returns a transaction of before."""
    first, second = votes("up", Promote("zone-1"))
    chain.add(first, second)
    pending = pending_change(chain.store.get)
    assert pending is not None
    block = chain.reconfigure(change=next_change(chain.store.configuration, pending), voters=FOUR[:3])
    chain.reconfigure(proof=certify(block, FOUR[:3]), voters=FOUR[:3])
    return first


def test_receipts_carry_the_steps_to_their_seal() -> None:
    chain = Chain(PowerLossDisk().open())
    first = promoted(chain)
    store = chain.store
    assert store.configuration.steps == 1
    verified = verify_receipt(store.receipt(first.id), GENESIS)
    assert (verified.code, verified.seal.certified_height) == ("ok", 3)
    answer = verify_state_answer(store.state_answer(network.node_path("zone-1")), GENESIS)
    assert answer.seal.sealed_height == store.sealed_height == 2
    # Now zone-1's vote counts, and three of four are needed.
    block = chain.seal()
    chain.persist(block)
    store.commit(block, certify(block, FOUR[1:]))
    assert verify_receipt(store.receipt(first.id), GENESIS).seal.certified_height == 4


def test_a_joint_header_seals_nothing() -> None:
    chain = Chain(PowerLossDisk().open())
    chain.add()
    chain.add()
    assert chain.store.sealed_height == 1
    certificate = begun(chain, "up", Promote("zone-1"))
    assert chain.store.sealed_height == 2
    assert chain.store.configuration.is_joint
    # A new leader's own block, under both quorums.
    block = chain.seal()
    chain.persist(block)
    chain.store.commit(block, certify(block, FOUR[:3]))
    assert chain.store.sealed_height == 2
    assert certificate.height == block.header.height - 1
    chain.reconfigure(proof=certify(block, FOUR[:3]), voters=FOUR[:3])
    assert chain.store.sealed_height == block.header.height


def test_a_store_that_was_closed_knows_its_steps() -> None:
    disk = PowerLossDisk()
    chain = Chain(disk.open())
    first = promoted(chain)
    before = chain.store.receipt(first.id)
    store = restarted(disk)
    assert store.receipt(first.id) == before
    assert store.configuration.steps == 1
    assert not store.configuration.is_joint


def test_a_leader_removes_itself() -> None:
    disk = PowerLossDisk()
    chain = Chain(disk)
    certificate = begun(chain, "out", Remove("north-1"))
    # It proposes the block that it is not part of any more; the two that remain certify it.
    last = chain.reconfigure(proof=certificate, voters=VOTERS[1:])
    assert last.header.proposer == "north-1"
    record = network.node_record(chain.store.get, "north-1")
    assert record is not None
    assert record.role == "removed"
    verify_state_answer(chain.store.state_answer(network.CONFIGURATION_PATH), GENESIS)
    # It may have to lead once more to get that block certified.
    block = chain.seal(proposer="north-1")
    chain.persist(block)
    chain.store.commit(block, certify(block, VOTERS[1:]))
    verify_state_answer(chain.store.state_answer(network.CONFIGURATION_PATH), GENESIS)
    assert check(disk).ok


def test_learners_change_nothing_that_a_receipt_shows() -> None:
    chain = Chain(PowerLossDisk().open())
    first, second = votes("in", new_node("north-2"))
    chain.add(first, second)
    pending = pending_change(chain.store.get)
    assert pending is not None
    chain.reconfigure(change=next_change(chain.store.configuration, pending), voters=VOTERS[:2])
    assert chain.store.sealed_height == 1
    assert chain.store.configuration.learners == ["north-2", "zone-1"]
    verify_receipt(chain.store.receipt(first.id), GENESIS)
    assert pending_change(chain.store.get) is None


def test_a_header_of_another_configuration_stops_the_node() -> None:
    chain = Chain(PowerLossDisk().open())
    promoted(chain)
    # What a node would make that had not heard of the change.
    header = msgspec.structs.replace(chain.seal().header, configuration=GENESIS.configuration().digest())
    block = seal_block(header, [], node_key(header.proposer))
    chain.store.persist(None, [entry_of(block)], {}, HardState(chain.term, None))
    with pytest.raises(Divergence, match="another configuration"):
        chain.store.derive(block, None)


def test_steps_that_are_changed_on_disk_do_not_open() -> None:
    disk = PowerLossDisk()
    chain = Chain(disk.open())
    promoted(chain)
    step = network.steps(chain.store.get, 1)[0]
    changed = {**step.voters, "zone-1": sha256(b"another")}
    disk.close()
    kv = disk.open()
    kv.write([(schema.state_key(network.step_path(0)), encode(Step(step.seal, changed)))], sync=True)
    with pytest.raises(StorageFailure):
        Store(kv, GENESIS)


def check(disk: PowerLossDisk) -> CheckReport:
    return check_store(disk, GENESIS, PowerLossDisk(), lambda stage, done, of: None)


def test_a_check_derives_all_of_it_again() -> None:
    disk = PowerLossDisk()
    chain = Chain(disk)
    promoted(chain)
    # Learners come and a leader goes; three of four, then two of three certify.
    block = chain.seal(*votes("in", new_node("north-2")))
    chain.persist(block)
    chain.store.commit(block, certify(block, FOUR[:3]))
    pending = pending_change(chain.store.get)
    assert pending is not None
    chain.reconfigure(change=next_change(chain.store.configuration, pending), voters=FOUR[:3])
    assert check(disk) == CheckReport(last_height=5, executed_height=5, transactions=4, bodies=0)
    assert check_newest(disk, GENESIS) == 5

    spoilt = schema.configuration_key(2)
    disk.write([(spoilt, None)], sync=True)
    assert any(problem.record == schema.name_of(spoilt) for problem in check(disk).problems)


def test_a_certificate_by_the_voters_before_is_none() -> None:
    disk = PowerLossDisk()
    chain = Chain(disk)
    promoted(chain)
    block = chain.seal()
    chain.persist(block)
    # Two of the three that there were, and of the four that there are.
    chain.store.commit(block, certify(block, VOTERS[:2]))
    assert [problem.height for problem in check(disk).problems][:1] == [4]
