"""The store: opening, execution, and when each read sees what."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.messages import HardState
from ledger.block import Block, decode_block, seal_block
from ledger.execution import genesis_state
from ledger.state_tree import update
from storage import schema
from storage.executed import PENDING_COMMITS_MAX, Divergence
from storage.leveldb import LevelDb
from storage.port import StorageFailure
from storage.store import Store
from tests.fakes.disk import PowerLossDisk
from tests.ledger.founding import CHAIN, GENESIS, VOTERS, make_genesis
from tests.storage.chains import (
    HEAD,
    Chain,
    InterruptedDisk,
    certify,
    doctor,
    node_key,
    record,
    record_key,
    restarted,
)


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
        assert disk.open().get(schema.EXECUTED_KEY) is not None

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

    def test_what_was_deleted_put_and_deleted_again_stays_deleted_while_it_is_written(self, chain: Chain) -> None:
        """One write for the first, while the later ones still wait: the disk lags, the answers never do."""
        store, key = chain.store, schema.state_key("network/pending")
        commits = []
        for value in (None, b"\x01", None):
            block = chain.seal()
            chain.persist(block)
            commit = store.derive(block, None)
            commits.append(replace(commit, changes=commit.changes | {key: value}))
            store.apply(commits[-1])
        assert store.get("network/pending") is None
        for commit in commits:
            store.write(commit)
            store.written(commit)
            assert store.get("network/pending") is None

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
        """Commits are written behind the answers: after a power loss execution goes on from what was written."""
        disk = PowerLossDisk(only_synced=True)
        chain = Chain(disk)
        for transactions in ([doctor()], [record("r")]):
            chain.add(*transactions)
        last = chain.seal(record("s"))
        chain.persist(last)
        chain.store.apply(chain.store.derive(last, certify(last)))
        roots, answer = chain.store.roots(3), chain.store.state_answer(HEAD)
        assert disk.power_loss() == 0
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
        assert store.executed_height == 6
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
