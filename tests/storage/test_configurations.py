"""The configurations beside the log: they come and go with their blocks, and none may be missing."""

from typing import Any

import msgspec
import pytest

from consensus.messages import Configuration as Members
from consensus.messages import Entry, HardState
from ledger.block import Block, seal_block
from ledger.finality import make_certificate, sign_acknowledgement
from ledger.membership import Configuration, configuration_after, with_learner, with_voter, without
from storage import schema
from storage.check import check_store
from storage.configurations import configuration_of, in_effect, load, members_of
from storage.port import StorageFailure
from tests.fakes.disk import PowerLossDisk
from tests.ledger.founding import CHAIN, GENESIS, VOTERS
from tests.storage.chains import Chain, node_key, restarted

START = GENESIS.configuration()
PROMOTION = with_voter(START, "zone-1", node_key("zone-1").public)
JOINT = configuration_after(START, PROMOTION, leaves=False)
AFTER = configuration_after(JOINT, None, leaves=True)


class Growing:
    """A chain of one store, of which blocks may change the membership."""

    def __init__(self) -> None:
        self.disk = PowerLossDisk()
        self.chain = Chain(self.disk)
        self.entries: list[Entry] = []
        self.configuration = START

    def add(self, *, truncate_from: int | None = None, **changes: Any) -> Block:
        """Into the log, not executed."""
        if truncate_from is not None:
            del self.entries[truncate_from - 1 :]
            self.configuration = in_effect(self.chain.store.configurations(), truncate_from - 1)
        parent = self.entries[-1] if self.entries else None
        block = self.chain.seal(parent=parent, executed=0)
        after = configuration_of(self.configuration, msgspec.structs.replace(block.header, **changes))
        header = msgspec.structs.replace(block.header, configuration=after.digest(), **changes)
        block = seal_block(header, [], node_key(VOTERS[0]))
        members = members_of(after) if after is not self.configuration else None
        entry = Entry(header.height, header.term, header.parent, block.hash, block.data, members)
        self.chain.store.persist(truncate_from, [entry], {}, HardState(self.chain.term, None))
        self.entries.append(entry)
        self.configuration = after
        return block

    def proof(self) -> bytes:
        last = self.entries[-1]
        signatures = [
            (node, sign_acknowledgement(node_key(node), CHAIN, last.term, last.height, last.hash)) for node in VOTERS
        ]
        return make_certificate(last.term, last.height, last.hash, signatures).encode()

    def found(self) -> list[tuple[int, Configuration]]:
        return list(self.chain.store.configurations())


@pytest.fixture
def growing() -> Growing:
    return Growing()


def test_they_follow_the_log_and_outlive_a_restart(growing: Growing) -> None:
    growing.add()
    growing.add(change=PROMOTION)
    growing.add()
    growing.add(proof=growing.proof())
    expected = [(0, START), (2, JOINT), (4, AFTER)]
    assert growing.found() == expected
    assert [entry.configuration for entry in growing.chain.store.entries(1, 4, 1 << 20)] == [
        None,
        members_of(JOINT),
        None,
        members_of(AFTER),
    ]
    assert list(restarted(growing.disk).configurations()) == expected


def test_they_go_with_their_blocks(growing: Growing) -> None:
    growing.add()
    growing.add(change=PROMOTION)
    growing.add(proof=growing.proof())
    growing.chain.term = 2
    growing.add(truncate_from=3)
    assert growing.found() == [(0, START), (2, JOINT)]
    growing.add(truncate_from=2, change=with_learner(START, "newcomer"))
    assert [height for height, _ in growing.found()] == [0, 2]
    assert growing.found()[-1][1].learners == ["newcomer", "zone-1"]
    growing.add(truncate_from=2)
    assert growing.found() == [(0, START)]
    assert list(restarted(growing.disk).configurations()) == [(0, START)]


@pytest.mark.parametrize(
    ("height", "expected"), [(0, START), (1, START), (2, JOINT), (3, JOINT), (4, AFTER), (9, AFTER)]
)
def test_which_is_in_effect(height: int, expected: Configuration) -> None:
    assert in_effect(((0, START), (2, JOINT), (4, AFTER)), height) == expected


def test_an_entry_that_says_another_configuration_than_its_header_is_not_stored(growing: Growing) -> None:
    growing.add()
    block = growing.chain.seal(parent=growing.entries[-1], executed=0)
    header = msgspec.structs.replace(block.header, change=PROMOTION, configuration=JOINT.digest())
    block = seal_block(header, [], node_key(VOTERS[0]))
    entry = Entry(2, 1, header.parent, block.hash, block.data, Members(VOTERS, ("zone-1",)))
    with pytest.raises(StorageFailure, match="another configuration"):
        growing.chain.store.persist(None, [entry], {}, None)
    assert growing.found() == [(0, START)]


@pytest.mark.parametrize("damage", ["missing", "changed"])
@pytest.mark.parametrize("height", [0, 2])
def test_a_record_that_is_not_what_was_written_stops_the_start_and_is_named_by_the_check(
    growing: Growing, height: int, damage: str
) -> None:
    growing.add()
    growing.add(change=without(START, VOTERS[2]))
    key = schema.configuration_key(height)
    value = growing.disk.get(key)
    assert value is not None
    growing.disk.damage(key, None if damage == "missing" else value[:-1] + bytes([value[-1] ^ 1]))
    with pytest.raises(StorageFailure, match=f"configuration {height}"):
        load(growing.disk, 2)
    report = check_store(growing.disk, GENESIS, PowerLossDisk(), lambda *_: None)
    assert schema.name_of(key) in [problem.record for problem in report.problems]


def test_a_record_that_no_other_leads_to_is_a_stranger(growing: Growing) -> None:
    growing.add()
    value = growing.disk.get(schema.configuration_key(0))
    growing.disk.damage(schema.configuration_key(1), value)
    report = check_store(growing.disk, GENESIS, PowerLossDisk(), lambda *_: None)
    assert [problem.record for problem in report.problems] == ["configuration 1"]
