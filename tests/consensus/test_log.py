"""The log over its disk: a naive model, and the hazards of truncating what is still on its way."""

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import consensus.log
from consensus.errors import InvariantViolation
from consensus.log import Log
from consensus.messages import Configuration, Entry, HardState, Ready
from consensus.ports import Restored
from tests.consensus.nodes import GENESIS, THREE, Disk, extend, make_block, make_chain


def make_log(disk: Disk, term: int = 9) -> Log:
    return Log(Restored(HardState(term), 0, 0, GENESIS, disk.last_height, None, ((0, THREE),)), disk)


def take(log: Log) -> Ready:
    seq, cut, entries, hard_state = log.writes.take(0)
    return Ready((), seq, cut, entries, hard_state)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 3)),
        st.tuples(st.just("truncate"), st.integers(1, 3)),
        st.tuples(st.sampled_from(["take", "write", "report", "forget"]), st.just(1)),
    ),
    max_size=60,
)


@settings(max_examples=200, deadline=None)
@given(STEPS)
def test_the_log_agrees_with_a_list_whatever_is_on_its_way(steps: list[tuple[str, int]]) -> None:
    disk = Disk(make_chain(1, 1))
    log = make_log(disk)
    model = make_chain(1, 1)
    taken: deque[Ready] = deque()
    unreported = 0
    for number, (step, amount) in enumerate(steps):
        if step == "append":
            longer = extend(model, *[1] * amount, data=b"%d" % number)
            log.append(longer[len(model) :])
            model = longer
        elif step == "truncate" and len(model) >= amount:
            log.truncate(len(model) - amount + 1)
            model = model[:-amount]
        elif step == "take" and log.writes.dirty:
            taken.append(take(log))
        elif step == "write" and taken:
            batch = taken.popleft()
            disk.write(batch)
            unreported = batch.seq
        elif step == "report" and unreported:
            log.writes.persisted(unreported)
        elif step == "forget":
            log.forget_old()
        assert log.last_height == len(model)
        assert 0 <= log.durable_height <= len(model)
        assert [log.entry(height) for height in range(1, len(model) + 1)] == model
        durable = model[: log.durable_height]
        assert [disk.blocks.get(block.height) for block in durable] == durable, (
            "what counts as durable is on the disk"
        )
        if model:
            assert list(log.entries(1, len(model), 10**9)) == model
            assert (log.last_term, log.last_hash) == (model[-1].term, model[-1].hash)


def test_a_batch_overtaken_by_a_truncation_makes_nothing_durable() -> None:
    log = make_log(Disk(make_chain(1)))
    old = extend(make_chain(1), 2, 2)
    log.append(old[1:])
    first = take(log)
    log.truncate(2)
    new = extend(make_chain(1), 3)
    log.append(new[1:])
    second = take(log)
    log.writes.persisted(first.seq)
    assert log.durable_height == 1
    log.writes.persisted(second.seq)
    assert log.durable_height == 2
    assert (second.truncate_from, second.entries) == (2, tuple(new[1:]))


def test_reports_may_come_doubled_and_late_but_not_early() -> None:
    log = make_log(Disk())
    chain = make_chain(1, 1)
    log.append(chain[:1])
    first = take(log)
    log.append(chain[1:])
    second = take(log)
    log.writes.persisted(second.seq)
    log.writes.persisted(first.seq)
    log.writes.persisted(second.seq)
    assert (log.durable_height, log.writes.persisted_seq) == (2, second.seq)
    with pytest.raises(InvariantViolation, match="handed out"):
        log.writes.persisted(second.seq + 1)


def test_memory_keeps_a_bounded_tail_and_everything_not_durable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consensus.log, "RECENT_BLOCKS_MAX", 4)
    disk = Disk()
    log = make_log(disk)
    chain = make_chain(*[1] * 10)
    log.append(chain)
    log.forget_old()
    assert list(log.entries(1, 10, 10**9)) == chain, "nothing is durable: nothing may be forgotten"
    batch = take(log)
    disk.write(batch)
    log.writes.persisted(batch.seq)
    log.forget_old()
    disk.blocks[7] = make_block(7, 1, chain[5].hash, b"only memory knows better")
    del disk.blocks[3]
    assert log.entry(7) == chain[6]
    with pytest.raises(InvariantViolation, match="does not hold height 3"):
        log.term(3)


def test_a_change_of_configuration_comes_and_goes_with_its_block() -> None:
    log = make_log(Disk())
    four = Configuration(("n1", "n2", "n3"), ("n4",))
    first = make_chain(1)[0]
    second = Entry(2, 1, first.hash, b"s" * 32, b"", four)
    log.append([first, second])
    assert log.configurations.current == four
    assert (log.configurations.at(1), log.configurations.at(2)) == (THREE, four)
    log.truncate(2)
    assert log.configurations.current == THREE


@pytest.mark.parametrize(
    "history", [(), ((1, THREE),), ((0, THREE), (0, THREE)), ((0, THREE), (5, THREE), (4, THREE))]
)
def test_a_history_of_configurations_must_cover_the_log(history: tuple[tuple[int, Configuration], ...]) -> None:
    with pytest.raises(InvariantViolation):
        Log(Restored(HardState(), 0, 0, GENESIS, 0, None, history), Disk())


def test_no_configuration_is_invented_below_the_first() -> None:
    log = Log(Restored(HardState(4), 5, 4, b"b" * 32, 5, None, ((3, THREE),)), Disk())
    assert log.configurations.at(4) == THREE
    with pytest.raises(InvariantViolation, match="no configuration"):
        log.configurations.at(2)


def test_the_base_is_known_and_nothing_below_it() -> None:
    log = Log(Restored(HardState(4), 5, 4, b"b" * 32, 5, None, ((3, THREE),)), Disk())
    assert (log.term_hash(5), log.term_hash(4), log.term_hash(6)) == ((4, b"b" * 32), None, None)
    assert log.entry(5) is None
    log.append([make_block(6, 4, b"b" * 32)])
    assert log.entry(6) is not None
    with pytest.raises(InvariantViolation):
        log.truncate(5)


@pytest.mark.parametrize(
    "bad",
    [
        make_block(4, 2, make_chain(1, 2)[1].hash),
        make_block(3, 1, make_chain(1, 2)[1].hash),
        make_block(3, 2, b"x" * 32),
        make_block(3, 10, make_chain(1, 2)[1].hash),
    ],
    ids=["gap", "falling term", "parent", "term above the node's"],
)
def test_the_log_asserts_its_own_links(bad: Entry) -> None:
    log = make_log(Disk(make_chain(1, 2)))
    with pytest.raises(InvariantViolation):
        log.append([bad])


def test_a_term_or_a_vote_is_never_taken_back() -> None:
    writes = make_log(Disk(), term=3).writes
    writes.remember(HardState(3, "n2"))
    for forbidden in (HardState(2, None), HardState(3, "n3"), HardState(3, None)):
        with pytest.raises(InvariantViolation):
            writes.remember(forbidden)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=30).map(sorted), st.integers(0, 7), st.data())
def test_newest_not_above_is_what_a_scan_would_find(terms: list[int], term: int, data: st.DataObject) -> None:
    log = make_log(Disk(make_chain(*terms)))
    height = data.draw(st.integers(0, len(terms)))
    floor = data.draw(st.integers(0, height))
    scan = [at for at in range(floor, height + 1) if log.term(at) <= term]
    assert log.newest_not_above(height, term, floor) == max(scan, default=floor)
