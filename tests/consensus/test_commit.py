"""Certificates that wait: which are kept, whatever order they come in, and that the last of them is told."""

from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from consensus.commit import WAITING_MAX, Commit
from consensus.log import Log
from consensus.messages import Certificate
from tests.consensus.nodes import certify, make_chain

CHAIN = make_chain(*[1] * (3 * WAITING_MAX))
CERTIFICATES = {entry.height: certify(entry, "n1", "n2") for entry in CHAIN}


class Shelf:
    """As much of a log as Commit looks at: the chain up to `last`, on the disk up to `durable_height`."""

    base_height = 0

    def __init__(self) -> None:
        self.last = 0
        self.durable_height = 0

    def term_hash(self, height: int) -> tuple[int, bytes] | None:
        return (1, CHAIN[height - 1].hash) if 1 <= height <= self.last else None


def waiting(commit: Commit) -> list[Certificate]:
    return commit._waiting


def assert_sound(commit: Commit, shelf: Shelf, told: int) -> None:
    heights = [certificate.height for certificate in waiting(commit)]
    assert heights == sorted(set(heights))
    assert len(heights) <= WAITING_MAX
    assert told <= shelf.durable_height
    assert told == commit.height or commit.height in heights


heights = st.integers(1, len(CHAIN))
# Certificates mostly come in bulk, far ahead of the blocks: what a node hears that was paused.
steps = st.one_of(
    st.tuples(st.just("learn"), heights),
    st.tuples(st.just("hear all up to"), heights),
    st.tuples(st.just("hold"), heights),
    st.tuples(st.just("sync"), st.just(0)),
    st.tuples(st.just("tell"), st.just(0)),
)


@given(st.lists(steps, max_size=40))
def test_what_is_learned_last_and_what_the_height_stands_on_are_kept(doings: list[tuple[str, int]]) -> None:
    shelf = Shelf()
    commit = Commit(cast(Log, shelf), None)
    told, heard = 0, 0
    for what, height in doings:
        if what in ("learn", "hear all up to"):
            for each in [height] if what == "learn" else range(1, height + 1):
                commit.learn(CERTIFICATES[each])
                heard = max(heard, each)
                assert each <= commit.height or CERTIFICATES[each] in waiting(commit)
        elif what == "hold":
            shelf.last = max(shelf.last, height)
        elif what == "sync":
            shelf.durable_height = shelf.last
        commit.advance()
        if what == "tell" and (news := commit.take_news()) is not None:
            assert told < news.height <= shelf.durable_height
            told = news.height
        assert_sound(commit, shelf, told)
        assert commit.known is None or commit.known.height == heard
    # Once all blocks are here and on the disk, the newest that was heard of is told.
    shelf.last = shelf.durable_height = len(CHAIN)
    while commit.advance():
        pass
    news = commit.take_news()
    assert max(told, news.height if news else 0) == commit.height == heard


def test_more_wait_than_there_is_room_for_while_the_disk_is_behind() -> None:
    """The one that the height stands on is the newest but one when another comes just below the newest."""
    shelf = Shelf()
    commit = Commit(cast(Log, shelf), None)
    for height in [*range(1, WAITING_MAX), 3 * WAITING_MAX - 1]:
        commit.learn(CERTIFICATES[height])
    shelf.last = WAITING_MAX + 20
    commit.learn(CERTIFICATES[WAITING_MAX + 20])
    assert commit.advance()
    commit.learn(CERTIFICATES[WAITING_MAX + 40])
    shelf.durable_height = shelf.last
    news = commit.take_news()
    assert news == CERTIFICATES[WAITING_MAX + 20]
