"""The store: what persists, what executes, what reads see and when, and what a restart finds."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.messages import HardState
from ledger.block import Block, decode_block, seal_block
from ledger.errors import Rejection
from ledger.execution import genesis_state
from ledger.keys import sha256
from ledger.receipt import verify_receipt, verify_state_answer
from ledger.state_tree import update
from ledger.transaction import UNTIL_AHEAD_MAX_MS, body_commitment
from storage import schema
from storage.executed import PENDING_COMMITS_MAX, Divergence
from storage.leveldb import LevelDb
from storage.port import StorageFailure
from storage.store import EVIDENCE_BYTES_MAX, EVIDENCE_MAX, Store
from tests.fakes.disk import PowerLossDisk
from tests.ledger.founding import CHAIN, GENESIS, NOW_MS, VOTERS, make_genesis, registration, sign
from tests.storage.chains import Chain, body_of, certify, doctor, entry_of, node_key, record

HEAD = "records/subject/" + sha256(b"subject").hex()


def record_key(name: str) -> str:
    return "records/record/" + sha256(name.encode()).hex()


@pytest.fixture
def disk() -> PowerLossDisk:
    return PowerLossDisk()


@pytest.fixture
def chain(disk: PowerLossDisk) -> Chain:
    """Height 1 registers the doctor."""
    chain = Chain(disk)
    assert [result.code for result in chain.add(doctor()).results] == ["ok"]
    return chain


class InterruptedDisk(PowerLossDisk):
    """Another thread's turn comes just before a chosen read."""

    def __init__(self) -> None:
        super().__init__()
        self.interrupt(-1, lambda: None)

    def interrupt(self, place: int, turn: Callable[[], None]) -> None:
        self.reads, self._place, self._turn = 0, place, turn

    def get(self, key: bytes) -> bytes | None:
        if self.reads == self._place:
            self._place = -1
            self._turn()
        self.reads += 1
        return super().get(key)


def restarted(disk: PowerLossDisk) -> Store:
    disk.close()
    return Store(disk.open(), GENESIS)


class TestOpening:
    def test_an_empty_database_is_founded_by_genesis(self, disk: PowerLossDisk) -> None:
        store = Store(disk, GENESIS)
        state = genesis_state(GENESIS)
        root, _ = update(lambda path: None, state)
        assert (store.last_height(), store.executed_height, store.sealed_height) == (0, 0, None)
        assert store.term_hash(0) == (0, CHAIN)
        assert store.hard_state() == HardState(0, None)
        assert store.newest_certificate() is None
        assert store.roots(0).state == root
        assert {key: store.get(key) for key in state} == state

    def test_founding_is_durable_at_once(self) -> None:
        disk = PowerLossDisk(only_synced=True)
        Store(disk, GENESIS)
        disk.power_loss()
        assert Store(disk.open(), GENESIS).term_hash(0) == (0, CHAIN)

    def test_another_network_is_refused(self, chain: Chain, disk: PowerLossDisk) -> None:
        with pytest.raises(StorageFailure, match="another network"):
            Store(disk, make_genesis("another"))

    def test_a_database_of_something_else_is_refused(self, disk: PowerLossDisk) -> None:
        disk.write([(b"hello", b"world")], sync=True)
        with pytest.raises(StorageFailure, match="executed height is missing"):
            Store(disk, GENESIS)
        assert disk.get(schema.LOG_KEY) is None

    def test_everything_is_there_after_a_restart(self, chain: Chain, disk: PowerLossDisk) -> None:
        transaction = record("r")
        chain.add(transaction)
        chain.add()
        chain.persist(chain.seal())
        before = chain.store
        store = restarted(disk)
        assert (store.last_height(), store.executed_height, store.sealed_height) == (4, 3, 2)
        assert store.hard_state() == HardState(1, None)
        for height in range(4):
            assert store.roots(height) == before.roots(height)
            assert store.certificate(height) == before.certificate(height)
            assert store.term_hash(height) == before.term_hash(height)
        assert store.entries(1, 4, 1 << 20) == before.entries(1, 4, 1 << 20)
        assert store.get(record_key("r")) == before.get(record_key("r")) is not None
        assert store.receipt(transaction.id) == before.receipt(transaction.id)
        assert store.state_answer(HEAD) == before.state_answer(HEAD)

    def test_leveldb_holds_the_same(self, tmp_path: Path) -> None:
        chain = Chain(LevelDb(tmp_path / "db"))
        transaction = record("r")
        for transactions in ([doctor()], [transaction], []):
            chain.add(*transactions)
        receipt = chain.store.receipt(transaction.id)
        chain.store.close()
        store = Store(LevelDb(tmp_path / "db"), GENESIS)
        assert store.receipt(transaction.id) == receipt
        store.close()


class TestLog:
    def test_entries_come_back_as_they_went_in(self, chain: Chain) -> None:
        blocks = []
        for _ in range(3):
            block = chain.seal()
            chain.persist(block)
            blocks.append(entry_of(block))
        store = chain.store
        assert store.last_height() == 4
        assert store.entries(2, 4, 1 << 20) == tuple(blocks)
        assert store.entries(2, 99, 0) == tuple(blocks[:1]), "at least one"
        size = len(blocks[0].data) + len(blocks[1].data)
        assert store.entries(2, 4, size) == tuple(blocks[:2])
        assert store.entries(2, 4, size - 1) == tuple(blocks[:1])
        assert store.entries(5, 9, 1 << 20) == ()
        assert store.entry(4) == blocks[2]
        assert store.entry(5) is None
        assert store.term_hash(4) == (1, blocks[2].hash)
        assert store.term_hash(5) is None
        assert store.block_data(3) == blocks[1].data

    def test_truncation_replaces_the_tail_in_one_batch(self, chain: Chain, disk: PowerLossDisk) -> None:
        old = [chain.seal()]
        chain.persist(old[0])
        old.append(chain.seal())
        chain.persist(old[1])
        first = chain.store.entry(1)
        chain.term = 2
        new = chain.seal(record("r"), parent=first)
        chain.persist(new, truncate_from=2)
        for store in (chain.store, restarted(disk)):
            assert store.last_height() == 2
            assert store.entries(1, 9, 1 << 20)[1:] == (entry_of(new),)
            assert store.term_hash(3) is None
            assert store.hard_state().term == 2
        assert disk.get(schema.block_key(3)) is None

    def test_truncation_alone(self, chain: Chain, disk: PowerLossDisk) -> None:
        chain.persist(chain.seal())
        chain.store.persist(2, (), {}, None)
        assert chain.store.last_height() == 1
        assert restarted(disk).last_height() == 1

    def test_a_vote_survives(self, chain: Chain, disk: PowerLossDisk) -> None:
        chain.store.persist(None, (), {}, HardState(5, "south-1"))
        assert restarted(disk).hard_state() == HardState(5, "south-1")

    def test_bodies_come_with_their_block(self, chain: Chain, disk: PowerLossDisk) -> None:
        commitment = body_commitment(body_of("r"))
        assert chain.store.body(commitment) is None
        chain.persist(chain.seal(record("r")))
        assert restarted(disk).body(commitment) == body_of("r")

    def test_what_the_core_never_asks_for_is_an_assertion(self, chain: Chain) -> None:
        store = chain.store
        low = entry_of(chain.seal())
        chain.term = 3
        high = entry_of(chain.seal())
        above_high = entry_of(chain.seal(parent=high))
        chain.term = 1
        falling = entry_of(chain.seal(parent=high))
        voted = HardState(2, "south-1")
        store.persist(None, (), {}, voted)
        for fault, truncate_from, entries, state in (
            ("a gap", None, [above_high], HardState(3, None)),
            ("another parent", None, [high, entry_of(chain.seal(parent=low))], HardState(3, None)),
            ("a term that falls along the log", None, [high, falling], HardState(3, None)),
            ("a block of a term that is not durable", None, [high], None),
            ("a second vote in one term", None, [], HardState(2, "west-1")),
            ("a vote that is taken back", None, [], HardState(2, None)),
            ("a term that falls", None, [], HardState(1, None)),
            ("truncation of what was executed", 1, [], None),
            ("truncation above the end", 2, [], None),
        ):
            with pytest.raises(AssertionError):
                store.persist(truncate_from, entries, {}, state)
            assert (store.last_height(), store.hard_state()) == (1, voted), fault

    def test_a_failed_write_moves_nothing(self, chain: Chain, disk: PowerLossDisk) -> None:
        disk.fail_next_write = True
        with pytest.raises(StorageFailure):
            chain.persist(chain.seal())
        assert chain.store.last_height() == 1
        with pytest.raises(StorageFailure):
            chain.store.persist(None, (), {}, HardState(7, None))
        assert chain.store.hard_state().term == 1

    def test_a_read_that_a_truncation_overtakes_never_mixes_two_logs(self) -> None:
        """The truncating batch lands at each place between the reader's reads."""
        place, reads = 0, 1
        while place < reads:
            disk = InterruptedDisk()
            chain = Chain(disk)
            for _ in range(4):
                chain.persist(chain.seal())
            old = chain.store.entries(1, 4, 1 << 20)
            chain.term = 2
            new = chain.seal(parent=old[1])
            disk.interrupt(place, partial(chain.persist, new, truncate_from=3))
            assert chain.store.entries(1, 4, 1 << 20) in (old, (*old[:2], entry_of(new)))
            reads = disk.reads
            place += 1
        assert place > 8


class TestBoot:
    """What the chain says must exist is looked for by its key; nothing shortens the log silently."""

    @pytest.mark.parametrize(
        ("key", "fault"),
        [
            (schema.LOG_KEY, "log's end is missing"),
            (schema.EXECUTED_KEY, "executed height is missing"),
            (schema.link_key(1), "link 1 is missing"),
            (schema.link_key(4), "link 4 is missing"),
            (schema.block_key(4), "block 4 is missing"),
            (schema.block_key(3), "block 3 is missing"),
            (schema.certificate_key(3), "certificate 3 is missing"),
            (schema.roots_key(3), "roots 3 is missing"),
            (schema.undo_key(3), "undo 3 is missing"),
            (schema.page_key(b""), "state tree does not give its root"),
            (schema.history_key(2, 0), "level 2, index 0"),
        ],
    )
    def test_a_missing_record_is_named(self, chain: Chain, disk: PowerLossDisk, key: bytes, fault: str) -> None:
        chain.add(record("r"))
        chain.add()
        chain.persist(chain.seal())
        disk.damage(key, None)
        with pytest.raises(StorageFailure, match=fault):
            restarted(disk)

    @pytest.mark.parametrize(
        "key",
        [
            schema.LOG_KEY,
            schema.EXECUTED_KEY,
            schema.link_key(1),
            schema.link_key(4),
            schema.block_key(4),
            schema.roots_key(3),
            schema.undo_key(3),
            schema.certificate_key(3),
            schema.block_key(3),
            schema.page_key(b""),
            schema.history_key(2, 0),
        ],
    )
    def test_a_changed_byte_is_found(self, chain: Chain, disk: PowerLossDisk, key: bytes) -> None:
        chain.add(record("r"))
        chain.add(record("s"))
        chain.persist(chain.seal())
        value = bytearray(disk.get(key) or b"")
        value[len(value) // 2] ^= 1
        disk.damage(key, bytes(value))
        with pytest.raises(StorageFailure):
            restarted(disk)

    def test_a_term_below_the_newest_block_s_is_amnesia(self, chain: Chain, disk: PowerLossDisk) -> None:
        """The whole network restarting with term 0 would elect, and overwrite what was committed."""
        chain.term = 5
        block = chain.seal()
        chain.persist(block)
        forgotten = schema.LogRecord(format=1, hash=block.hash, height=2, term=4, vote=None)
        disk.damage(schema.LOG_KEY, schema.seal(forgotten))
        with pytest.raises(StorageFailure, match="below the newest block"):
            restarted(disk)


class TestExecution:
    def test_nothing_changes_before_apply(self, chain: Chain) -> None:
        transaction = record("r")
        block = chain.seal(transaction)
        chain.persist(block)
        store = chain.store
        commit = store.derive(block, certify(block))
        assert store.executed_height == 1
        assert store.get(record_key("r")) is None
        assert store.tx_status(transaction.id) is None
        assert store.derive(block, certify(block)) == commit

    def test_everything_changes_at_apply_wherever_the_write_is(self, chain: Chain) -> None:
        transaction = record("r")
        block = chain.seal(transaction)
        chain.persist(block)
        store = chain.store
        commit = store.derive(block, certify(block))

        def answers() -> tuple[object, ...]:
            return (
                store.executed_height,
                store.sealed_height,
                store.get(record_key("r")),
                store.state_at_sealed(record_key("r")),
                store.tx_status(transaction.id),
                store.roots(2),
                store.results(2),
                store.certificate(2),
                store.state_answer(HEAD),
            )

        store.apply(commit)
        applied = answers()
        assert applied[:2] == (2, 1)
        assert applied[2] is not None
        assert applied[3] is None
        store.write(commit)
        assert answers() == applied
        store.written(commit)
        assert answers() == applied
        assert store.pending_commits == 0

    def test_a_later_block_s_change_outlives_an_earlier_write(self, chain: Chain) -> None:
        """Two applied blocks change one key; when the first is written the second's value must still be
        read.
        """
        store = chain.store
        commits = []
        for name in ("r", "s"):
            block = chain.seal(record(name))
            chain.persist(block)
            commit = store.derive(block, None)
            store.apply(commit)
            commits.append(commit)
        newest = store.get(HEAD)
        for commit in commits:
            store.write(commit)
            store.written(commit)
            assert store.get(HEAD) == newest

    def test_a_write_between_any_two_reads_changes_no_answer(self) -> None:
        """What the writer thread may do to the loop's reads, at each place where it may."""
        place, reads = 0, 1
        while place < reads:
            disk = InterruptedDisk()
            chain = Chain(disk)
            sent = doctor()
            chain.add(sent)
            for name in "abc":
                chain.add(record(name, "another"))
            block = chain.seal(record("r"))
            chain.persist(block)
            commit = chain.store.derive(block, certify(block))
            chain.store.apply(commit)
            expected = self.answers(chain.store, sent.id)
            disk.interrupt(place, partial(chain.store.write, commit))
            assert self.answers(chain.store, sent.id) == expected
            reads = disk.reads
            place += 1
        assert place > 10

    def answers(self, store: Store, sent: bytes) -> tuple[object, ...]:
        return (
            store.state_answer(HEAD),
            store.state_answer(record_key("a")),
            store.state_at_sealed(record_key("r")),
            store.get(record_key("r")),
            store.tx_status(sent),
            store.included_at_ms(sent),
            store.receipt(sent),
            store.roots(3),
            store.results(3),
            store.certificate_at_or_below(4),
        )

    def test_applied_commits_are_bounded(self, chain: Chain) -> None:
        store = chain.store
        for number in range(PENDING_COMMITS_MAX + 1):
            block = chain.seal()
            chain.persist(block)
            commit = store.derive(block, None)
            if number < PENDING_COMMITS_MAX:
                store.apply(commit)
        with pytest.raises(AssertionError, match="waits for the writer"):
            store.apply(commit)

    def test_only_durable_blocks_execute_and_only_in_order(self, chain: Chain) -> None:
        store = chain.store
        block = chain.seal()
        with pytest.raises(AssertionError, match="durable"):
            store.derive(block, None)
        chain.persist(block)
        following = chain.seal()
        chain.persist(following)
        with pytest.raises(AssertionError, match="order"):
            store.derive(following, None)
        with pytest.raises(AssertionError, match="own"):
            store.derive(block, certify(following))
        commit = store.derive(block, None)
        store.apply(commit)
        with pytest.raises(AssertionError, match="order"):
            store.apply(commit)
        with pytest.raises(AssertionError, match="written"):
            store.written(commit)
        store.write(commit)
        with pytest.raises(AssertionError, match="order"):
            store.write(commit)

    def test_a_committed_header_with_other_roots_stops_the_node(self, chain: Chain) -> None:
        other = Chain(PowerLossDisk())
        block = other.seal(doctor())
        other.persist(block)
        other.store.commit(block, None)
        foreign = other.seal()  # carries the roots of a height 1 that is not this chain's
        chain.persist(_on_top(chain, foreign))
        with pytest.raises(Divergence, match="other roots of height 1"):
            chain.store.derive(_on_top(chain, foreign), None)

    def test_lost_commits_execute_again_to_the_same(self) -> None:
        """Blocks are synced, commits are not: after a power loss execution goes on from where it was
        durable.
        """
        disk = PowerLossDisk(only_synced=True)
        chain = Chain(disk)
        for transactions in ([doctor()], [record("r")], [record("s")]):
            chain.add(*transactions)
        roots, answer = chain.store.roots(3), chain.store.state_answer(HEAD)
        assert disk.power_loss() == 1
        store = Store(disk.open(), GENESIS)
        assert (store.last_height(), store.executed_height) == (3, 2)
        block = decode_block(store.block_data(3), 1 << 20)
        store.commit(block, certify(block))
        assert store.roots(3) == roots
        assert store.state_answer(HEAD) == answer

    @settings(deadline=None, max_examples=15)
    @given(st.integers(0, 10_000))
    def test_any_power_loss_leaves_a_store_that_opens_with_all_that_was_synced(self, seed: int) -> None:
        disk = PowerLossDisk(seed)
        chain = Chain(disk)
        chain.add(doctor())
        for name in "abcde":
            chain.add(record(name))
        chain.persist(chain.seal())
        disk.power_loss()
        store = Store(disk.open(), GENESIS)
        assert store.last_height() == 7
        assert 5 <= store.executed_height <= 6
        assert store.get(record_key("abcde"[store.executed_height - 2])) is not None

    def test_with_syncs_ignored_what_was_persisted_is_lost(self) -> None:
        disk = PowerLossDisk(only_synced=True, sync_ignored=True)
        chain = Chain(disk)
        chain.add(doctor())
        disk.power_loss()
        assert Store(disk.open(), GENESIS).last_height() == 0


def _on_top(chain: Chain, foreign: Block) -> Block:
    """The foreign header's roots under this chain's newest block."""
    found = chain.store.term_hash(foreign.header.height - 1)
    assert found is not None
    header = msgspec.structs.replace(foreign.header, parent=found[1])
    return seal_block(header, [], node_key(VOTERS[0]))


class TestTransactions:
    def test_where_one_was_included(self, chain: Chain) -> None:
        good, bad = record("r"), record("r")
        chain.add(good, bad)
        store = chain.store
        assert store.tx_status(good.id) == schema.Place(2, 0, "ok")
        assert store.tx_status(bad.id) == schema.Place(2, 1, "record_exists")
        assert store.included_at_ms(good.id) == store.roots(2).time_ms == NOW_MS + 1
        assert [result.code for result in store.results(2)] == ["ok", "record_exists"]
        assert store.tx_status(bytes(32)) is None
        assert store.included_at_ms(bytes(32)) is None

    def test_a_duplicate_leaves_the_first_inclusion(self, chain: Chain) -> None:
        transaction = record("r")
        chain.add(transaction)
        assert [result.code for result in chain.add(transaction).results] == ["duplicate"]
        assert chain.store.tx_status(transaction.id) == schema.Place(2, 0, "ok")

    def test_one_that_came_too_early_is_not_settled(self, chain: Chain) -> None:
        until = NOW_MS + 1 + UNTIL_AHEAD_MAX_MS + 1
        transaction = sign([registration("nurse", "clinician")], by="north-admin", until=until)
        codes = [chain.add(transaction).results[0].code, chain.store.tx_status(transaction.id)]
        assert codes == ["until_too_far", None]
        assert chain.add(transaction).results[0].code == "ok"
        assert chain.store.tx_status(transaction.id) == schema.Place(3, 0, "ok")


class TestSeal:
    def test_it_follows_the_newest_certified_header(self, chain: Chain) -> None:
        store = chain.store
        assert store.sealed_height == 0
        chain.add(certified=False)
        assert (store.executed_height, store.sealed_height) == (2, 0)
        chain.add(executed=1)
        assert (store.executed_height, store.sealed_height) == (3, 1)
        assert store.sealed is not None
        assert store.sealed.header_height == 3

    def test_it_never_goes_back(self, chain: Chain) -> None:
        """A new leader may have executed less than the one before it."""
        chain.add()
        assert chain.store.sealed_height == 1
        chain.add(executed=0)
        assert chain.store.sealed_height == 1
        assert chain.store.sealed is not None
        assert chain.store.sealed.header_height == 2

    def test_certificates_are_found_from_any_height(self, chain: Chain) -> None:
        chain.add(certified=False)
        third = chain.add()
        chain.add(certified=False)
        store = chain.store
        found = [store.certificate_at_or_below(height) for height in range(5)]
        assert [item.height if item else None for item in found] == [None, 1, 1, 3, 3]
        assert store.newest_certificate() == store.certificate(3) == certify(third.block)
        assert store.certificate(2) is None

    def test_nothing_is_proved_before_the_first(self, disk: PowerLossDisk) -> None:
        chain = Chain(disk)
        transaction = doctor()
        chain.add(transaction, certified=False)
        store = chain.store
        with pytest.raises(Rejection, match="not_sealed"):
            store.receipt(transaction.id)
        with pytest.raises(Rejection, match="not_sealed"):
            store.state_answer(HEAD)
        with pytest.raises(Rejection, match="not_sealed"):
            store.state_at_sealed(HEAD)

    def test_receipts_verify_with_genesis_alone(self, chain: Chain) -> None:
        sent = [record(f"r{number}") for number in range(5)]
        chain.add(*sent)
        with pytest.raises(Rejection) as refused:
            chain.store.receipt(sent[0].id)
        assert refused.value.code == "not_sealed"
        chain.add()
        chain.add(executed=2)
        for index, transaction in enumerate(sent):
            verified = verify_receipt(chain.store.receipt(transaction.id), GENESIS)
            assert (verified.id, verified.code, verified.height, verified.index) == (transaction.id, "ok", 2, index)
            assert verified.seal.sealed_height == 2
        with pytest.raises(Rejection) as refused:
            chain.store.receipt(bytes(32))
        assert refused.value.code == "unknown_transaction"

    @settings(deadline=None, max_examples=12)
    @given(st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.booleans()), min_size=1, max_size=12))
    def test_the_sealed_state_is_the_state_that_was(self, steps: list[tuple[bool, int, bool]]) -> None:
        """Whatever is certified, however far the headers lag, across restarts: answers are those of the
        past.
        """
        disk = PowerLossDisk()
        chain = Chain(disk)
        keys = [HEAD, *(record_key(f"{number}") for number in range(len(steps)))]
        past = {0: [chain.store.get(key) for key in keys]}
        chain.add(doctor())
        past[1] = [chain.store.get(key) for key in keys]
        for number, (certified, lag, restart) in enumerate(steps):
            executed = max(chain.store.executed_height - lag, 0)
            chain.add(record(f"{number}"), certified=certified, executed=executed)
            past[number + 2] = [chain.store.get(key) for key in keys]
            if restart:
                disk.close()
                chain.store = Store(disk.open(), GENESIS)
            sealed = chain.store.sealed_height
            assert sealed is not None
            assert [chain.store.state_at_sealed(key) for key in keys] == past[sealed]
            for key, value in zip(keys, past[sealed], strict=True):
                verified = verify_state_answer(chain.store.state_answer(key), GENESIS)
                assert (verified.value, verified.seal.sealed_height) == (value, sealed)


class TestEvidence:
    def test_it_is_kept_once_and_durably(self) -> None:
        disk = PowerLossDisk(only_synced=True)
        store = Store(disk, GENESIS)
        assert store.put_evidence("vote", "south-1", b"proof")
        assert not store.put_evidence("vote", "south-1", b"proof")
        assert store.put_evidence("vote", "west-1", b"proof")
        disk.power_loss()
        kept = Store(disk.open(), GENESIS).evidence()
        assert [tuple(item) for item in kept] == [("vote", "south-1", b"proof"), ("vote", "west-1", b"proof")]

    def test_it_is_bounded(self, disk: PowerLossDisk) -> None:
        store = Store(disk, GENESIS)
        assert not store.put_evidence("vote", "south-1", bytes(EVIDENCE_BYTES_MAX + 1))
        for number in range(EVIDENCE_MAX):
            assert store.put_evidence("vote", "south-1", b"%d" % number)
        assert not store.put_evidence("vote", "south-1", b"one too many")
        assert len(store.evidence()) == EVIDENCE_MAX

    def test_a_changed_one_is_found(self, disk: PowerLossDisk) -> None:
        Store(disk, GENESIS).put_evidence("vote", "south-1", b"proof")
        data = disk.get(schema.evidence_key(0))
        assert data is not None
        disk.damage(schema.evidence_key(0), data.replace(b"proof", b"prooF"))
        with pytest.raises(StorageFailure, match="evidence 0"):
            restarted(disk)
