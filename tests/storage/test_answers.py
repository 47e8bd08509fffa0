"""What the store answers: places of transactions, certificates, receipts, proofs at the sealed height, evidence."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.errors import Rejection
from ledger.receipt import verify_receipt, verify_state_answer
from ledger.transaction import UNTIL_AHEAD_MAX_MS
from storage import schema
from storage.port import StorageFailure
from storage.store import EVIDENCE_BYTES_MAX, EVIDENCE_MAX, Store
from tests.fakes.disk import PowerLossDisk
from tests.ledger.founding import GENESIS, NOW_MS, registration, sign
from tests.storage.chains import HEAD, Chain, certify, doctor, record, record_key, restarted


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

    def test_the_first_that_settled_counts(self, chain: Chain) -> None:
        """Long after, when the window of ids has passed, a replay is `expired`: the status stays what it
        was.
        """
        transaction = record("r")
        chain.add(transaction)
        late = NOW_MS + 2 * UNTIL_AHEAD_MAX_MS
        assert [result.code for result in chain.add(transaction, time_ms=late).results] == ["expired"]
        assert chain.store.tx_status(transaction.id) == schema.Place(2, 0, "ok")
        assert chain.store.included_at_ms(transaction.id) == NOW_MS + 1

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
