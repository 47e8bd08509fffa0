"""The check: a sound store passes; one changed, missing or foreign value anywhere is named with its height."""

from pathlib import Path

import msgspec
import pytest

from ledger.block import Block, seal_block
from ledger.encoding import decode, encode
from ledger.keys import sha256
from ledger.transaction import body_commitment, decode_transaction
from storage import schema
from storage.check import BLOCKS, FILES, RECORDS, check_path, check_store
from storage.leveldb import LevelDb
from storage.port import StorageFailure
from storage.report import PROBLEMS_MAX, CheckReport, Problem
from tests.fakes.disk import PowerLossDisk
from tests.ledger.founding import GENESIS, NOW_MS, registration, rotation, sign
from tests.storage.chains import Chain, body_of, certify, doctor, node_key, record

HEAD = schema.state_key("records/subject/" + sha256(b"subject").hex())


def grown() -> PowerLossDisk:
    """Every table has something: 7 blocks, 6 executed (2, 4, 5, 6 certified), height 5 sealed, evidence."""
    disk = PowerLossDisk()
    chain = Chain(disk)
    chain.add(doctor(), certified=False)
    chain.add(record("r"), record("r"))
    chain.add(record("s", "another"), certified=False)
    chain.add()
    chain.add(sign([registration("nurse", "clinician")], by="north-admin"))
    chain.add(record("t"), sign([rotation("nurse", "nurse-2", 1)], by="nurse"))
    chain.persist(chain.seal(record("u")))
    chain.store.put_evidence("vote", "south-1", b"proof")
    return disk


def check(disk: PowerLossDisk) -> CheckReport:
    return check_store(disk, GENESIS, PowerLossDisk(), lambda stage, done, of: None)


def everything(disk: PowerLossDisk) -> list[tuple[bytes, bytes]]:
    return list(disk.range(b"", b"\xff"))


def named(report: CheckReport) -> list[tuple[int | None, str]]:
    return [(problem.height, problem.record) for problem in report.problems]


def test_a_sound_store_passes_and_progress_is_told() -> None:
    told: list[tuple[str, int, int]] = []
    disk = grown()
    assert {key[0] for key, _ in everything(disk)} == set(b"bldrcxtsphumeg"), "every table has something"
    report = check_store(disk, GENESIS, PowerLossDisk(), lambda *step: told.append(step))
    assert report == CheckReport(last_height=7, executed_height=6, transactions=8, bodies=5)
    assert report.ok
    assert told[:-1] == [(BLOCKS, height, 7) for height in range(1, 8)]
    stage, done, of = told[-1]
    assert (stage, done) == (RECORDS, of)


def test_a_store_of_genesis_alone_passes() -> None:
    disk = PowerLossDisk()
    Chain(disk)
    assert check(disk) == CheckReport()


def test_any_changed_value_is_named() -> None:
    """The first, a middle and the last byte of every value in the store, one at a time."""
    disk = grown()
    for key, value in everything(disk):
        for place in {0, len(value) // 2, len(value) - 1}:
            changed = bytearray(value)
            changed[place] ^= 1
            disk.damage(key, bytes(changed))
            report = check(disk)
            assert schema.name_of(key) in [problem.record for problem in report.problems], (
                schema.name_of(key),
                place,
                report.problems,
            )
            disk.damage(key, value)
    assert check(disk).ok


def test_any_missing_value_is_named() -> None:
    """But for evidence, of which nothing else tells."""
    disk = grown()
    for key, value in everything(disk):
        if key[:1] != b"e":
            disk.damage(key, None)
            report = check(disk)
            assert schema.name_of(key) in [problem.record for problem in report.problems], schema.name_of(key)
            disk.damage(key, value)
    assert check(disk).ok


def test_any_added_value_is_named() -> None:
    disk = grown()
    for key in (
        schema.block_key(8),
        schema.link_key(8),
        schema.roots_key(7),
        schema.certificate_key(3),
        schema.results_key(7),
        schema.transaction_key(bytes(32)),
        schema.state_key("identity/account/mallory"),
        schema.page_key(b"\x00\x01\x02"),
        schema.history_key(9, 9),
        schema.undo_key(5),
        schema.body_key(bytes(32)),
        schema.evidence_key(1),
        b"mother",
        b"?",
    ):
        disk.damage(key, b"value")
        assert schema.name_of(key) in [problem.record for problem in check(disk).problems], key
        disk.damage(key, None)
    assert check(disk).ok


@pytest.mark.parametrize(
    ("key", "height"),
    [
        (schema.block_key(2), 2),
        (schema.certificate_key(4), 4),
        (HEAD, 6),
        (schema.page_key(b""), 6),
        (schema.history_key(0, 3), 3),
        (schema.body_key(body_commitment(body_of("s"))), 3),
        (schema.results_key(2), 2),
    ],
)
def test_height_and_record_are_named(key: bytes, height: int) -> None:
    disk = grown()
    value = bytearray(disk.get(key) or b"")
    value[-1] ^= 1
    disk.damage(key, bytes(value))
    assert (height, schema.name_of(key)) in named(check(disk))


def test_one_damaged_value_that_nothing_hangs_on_is_one_problem() -> None:
    disk = grown()
    disk.damage(schema.certificate_key(2), None)
    disk.damage(HEAD, b"\xc0")
    disk.damage(schema.body_key(body_commitment(body_of("s"))), b"another body")
    assert check(disk).problems == [
        Problem(2, "certificate 2", "it is missing"),
        Problem(
            3, schema.name_of(schema.body_key(body_commitment(body_of("s")))), "it does not match its commitment"
        ),
        Problem(6, schema.name_of(HEAD), "it is not what the chain gives"),
    ]


def plant(disk: PowerLossDisk, block: Block, *, term: int | None = None, newest: bytes | None = None) -> None:
    """Put a block at the end of the log as no node would, and a record of that end."""
    header = block.header
    disk.damage(schema.block_key(header.height), block.data)
    link = schema.Link(header.term, block.hash, header.parent)
    disk.damage(schema.link_key(header.height), link.encode())
    end = schema.LogRecord(
        configured=0,
        format=schema.FORMAT,
        hash=block.hash if newest is None else newest,
        height=header.height,
        term=header.term if term is None else term,
        vote=None,
    )
    disk.damage(schema.LOG_KEY, schema.seal(end))


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"chain": bytes(32)}, "another chain"),
        ({"parent": bytes(32)}, "another parent"),
        ({"configuration": bytes(32)}, "another configuration"),
        ({"term": 1}, "its term falls"),
        ({"proposer": "zone-1"}, "no voter"),
        ({"time": NOW_MS}, "not after its parent's"),
        ({"executed_height": 0}, "executed height falls"),
        ({"time": NOW_MS + 1_000}, ""),
    ],
)
def test_a_signed_header_that_breaks_a_rule(changed: dict[str, object], fault: str) -> None:
    disk = PowerLossDisk()
    chain = Chain(disk)
    chain.term = 2
    chain.add(doctor())
    chain.add()
    block = chain.seal()
    header = msgspec.structs.replace(block.header, **changed)
    plant(disk, seal_block(header, [], node_key(header.proposer)))
    problems = check(disk).problems
    assert [problem.record for problem in problems if "record log" not in problem.record] == ["block 3"] * bool(fault)
    assert all(fault in problem.fault for problem in problems[:1])


def test_a_header_signed_by_another_node() -> None:
    disk = PowerLossDisk()
    chain = Chain(disk)
    block = chain.seal()
    plant(disk, seal_block(block.header, [], node_key("south-1")))
    assert [problem.fault for problem in check(disk).problems] == ["the header's signature does not verify"]


def test_a_transaction_that_nobody_signed() -> None:
    disk = PowerLossDisk()
    chain = Chain(disk)
    wire = decode(doctor().data, 1 << 16)
    unsigned = decode_transaction(encode({"body": wire["body"], "signature": bytes(64)}))
    plant(disk, chain.seal(unsigned))
    (problem,) = check(disk).problems
    assert (problem.height, problem.record) == (1, "block 1")
    assert problem.fault.startswith("transaction 0: bad_signature")


def test_the_record_of_the_log_s_end_must_fit_the_log() -> None:
    disk = PowerLossDisk()
    chain = Chain(disk)
    chain.term = 2
    block = chain.seal()
    plant(disk, block, newest=bytes(32))
    assert check(disk).problems == [Problem(1, "record log", "it names another newest block")]
    plant(disk, block, term=1)
    assert check(disk).problems == [Problem(1, "record log", "term 1 is below the newest block's")]
    plant(disk, block)
    assert check(disk).ok


def test_a_certificate_of_another_block() -> None:
    disk = PowerLossDisk()
    chain = Chain(disk)
    other = certify(chain.seal(doctor()))
    chain.add()
    disk.damage(schema.certificate_key(1), other.encode())
    assert check(disk).problems == [Problem(1, "certificate 1", "bad_certificate: it certifies another block")]


def test_a_certificate_of_too_few_is_none() -> None:
    disk = PowerLossDisk()
    chain = Chain(disk)
    block = chain.seal(doctor())
    chain.persist(block)
    chain.store.commit(block, certify(block, ["north-1"]))
    assert named(check(disk)) == [(1, "certificate 1")]


def test_a_header_with_roots_that_are_not_derived() -> None:
    """All hashes and signatures hold; only executing again shows it."""
    disk = PowerLossDisk()
    chain = Chain(disk)
    chain.add(doctor())
    block = chain.seal()
    lying = seal_block(
        msgspec.structs.replace(block.header, state_root=bytes(32)), [], node_key(block.header.proposer)
    )
    chain.persist(lying)
    assert check(disk).ok, "a block that has not executed may say what it likes"
    forged = schema.unseal(schema.ExecutedRecord, disk.get(schema.EXECUTED_KEY) or b"", "record")
    forged = msgspec.structs.replace(forged, height=2, hash=lying.hash)
    disk.damage(schema.EXECUTED_KEY, schema.seal(forged))
    problems = check(disk).problems
    assert "other roots of height 1" in problems[0].fault
    assert (problems[0].height, problems[0].record) == (2, "block 2")


def test_a_damaged_block_is_one_problem_and_the_rest_is_still_checked() -> None:
    disk = grown()
    disk.damage(schema.block_key(4), b"\xc0")
    disk.damage(schema.body_key(body_commitment(body_of("u"))), b"another body")
    disk.damage(schema.roots_key(2), bytes(80))
    found = named(check(disk))
    assert (4, "block 4") in found
    assert (4, "state") in found
    assert (2, "roots 2") in found
    assert (7, schema.name_of(schema.body_key(body_commitment(body_of("u"))))) in found
    assert all(height in (2, 4, 7) for height, _ in found)


def test_bodies_of_truncated_blocks_are_counted_and_no_fault() -> None:
    disk = PowerLossDisk()
    chain = Chain(disk)
    chain.add(doctor())
    first = chain.store.entry(1)
    chain.persist(chain.seal(record("dropped")))
    chain.term = 2
    chain.persist(chain.seal(record("kept"), parent=first), truncate_from=2)
    report = check(disk)
    assert report.ok
    assert (report.bodies, report.unreferenced_bodies) == (1, 1)


def test_problems_are_bounded_and_counted() -> None:
    disk = grown()
    for number in range(PROBLEMS_MAX + 5):
        disk.damage(b"?%d" % number, b"")
    report = check(disk)
    assert (len(report.problems), report.problems_beyond) == (PROBLEMS_MAX, 5)


def test_an_unreadable_value_is_a_problem_like_another(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = grown()
    get = disk.get

    def unreadable(key: bytes) -> bytes | None:
        if key == HEAD:
            raise StorageFailure("checksum mismatch in 000005.ldb")
        return get(key)

    monkeypatch.setattr(disk, "get", unreadable)
    assert check(disk).problems == [Problem(6, schema.name_of(HEAD), "checksum mismatch in 000005.ldb")]


def test_a_folder(tmp_path: Path) -> None:
    chain = Chain(LevelDb(tmp_path / "db"))
    chain.add(doctor())
    chain.add(record("r"))
    chain.store.close()
    told: list[str] = []
    report = check_path(tmp_path / "db", GENESIS, lambda stage, done, of: told.append(stage))
    assert report.ok
    assert (report.last_height, report.executed_height, report.transactions, report.bodies) == (2, 2, 2, 1)
    assert list(dict.fromkeys(told)) == [FILES, BLOCKS, RECORDS]
    with pytest.raises(StorageFailure, match="holds no database"):
        check_path(tmp_path / "none", GENESIS, lambda stage, done, of: None)
