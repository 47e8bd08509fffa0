"""The log on disk: what persists, what a truncation leaves, what a restart refuses."""

from collections.abc import Callable, Sequence
from functools import partial

import msgspec
import pytest

from consensus.messages import HardState
from ledger.transaction import body_commitment
from storage import schema
from storage.port import StorageFailure, Write
from tests.fakes.disk import PowerLossDisk
from tests.storage.chains import Chain, InterruptedDisk, body_of, entry_of, record, restarted


class SlowDisk(PowerLossDisk):
    """Another thread's turn comes just before and just after each write has happened."""

    meanwhile: Callable[[], None] | None = None

    def write(self, batch: Sequence[Write], *, sync: bool) -> None:
        for act in (self.meanwhile, lambda: super(SlowDisk, self).write(batch, sync=sync), self.meanwhile):
            if act is not None:
                act()


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

    def test_truncation_of_what_was_never_written(self, chain: Chain, disk: PowerLossDisk) -> None:
        """Two Ready lists in one batch: the first appended 2 and 3, the second put another 3."""
        second = entry_of(chain.seal())
        third = entry_of(chain.seal(parent=second))
        chain.store.persist(3, [second, third], {}, None)
        assert chain.store.entries(2, 3, 1 << 20) == (second, third)
        assert restarted(disk).last_height() == 3

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
            ("truncation of genesis", 0, [], None),
        ):
            with pytest.raises(AssertionError):
                store.persist(truncate_from, entries, {}, state)
            assert (store.last_height(), store.hard_state()) == (1, voted), fault

    def test_a_failed_write_moves_nothing(self, chain: Chain, disk: PowerLossDisk) -> None:
        entry = entry_of(chain.seal())
        disk.fail_next_write = True
        for _ in range(2):
            with pytest.raises(StorageFailure):
                chain.store.persist(None, [entry], {}, HardState(7, None))
            assert (chain.store.last_height(), chain.store.hard_state().term) == (1, 1)

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

    def test_what_a_truncation_deletes_is_gone_while_it_is_written(self) -> None:
        """The writer thread is inside its write; the loop's thread reads."""
        disk = SlowDisk()
        chain = Chain(disk)
        for _ in range(4):
            chain.persist(chain.seal())
        old = chain.store.entries(1, 4, 1 << 20)
        chain.term = 2
        found: list[object] = []

        def look() -> None:
            store = chain.store
            found.extend([store.last_height(), store.term_hash(3), store.entries(1, 4, 1 << 20)])

        new = chain.seal(parent=old[1])
        disk.meanwhile = look
        chain.persist(new, truncate_from=3)
        assert found == [2, None, old[:2]] * 2
        assert chain.store.last_height() == 3


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

    def test_a_log_of_another_chain_than_the_executed_one(self, chain: Chain, disk: PowerLossDisk) -> None:
        record = schema.unseal(schema.ExecutedRecord, disk.get(schema.EXECUTED_KEY) or b"", "record")
        disk.damage(schema.EXECUTED_KEY, schema.seal(msgspec.structs.replace(record, hash=bytes(32))))
        with pytest.raises(StorageFailure, match="differ at height 1"):
            restarted(disk)

    def test_a_term_below_the_newest_block_s_is_amnesia(self, chain: Chain, disk: PowerLossDisk) -> None:
        """The whole network restarting with term 0 would elect, and overwrite what was committed."""
        chain.term = 5
        block = chain.seal()
        chain.persist(block)
        forgotten = schema.LogRecord(configured=0, format=schema.FORMAT, hash=block.hash, height=2, term=4, vote=None)
        disk.damage(schema.LOG_KEY, schema.seal(forgotten))
        with pytest.raises(StorageFailure, match="below the newest block"):
            restarted(disk)
