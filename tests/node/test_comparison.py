"""What others hold from a node, compared with its disk: what it must not overlook, what must not count against it."""

from dataclasses import dataclass, field

import pytest

from ledger.block import BLOCK_SIGNATURE, FORMAT, Header, block_hash
from ledger.finality import sign_acknowledgement, sign_vote
from ledger.keys import SigningKey, sha256
from network.port import AcknowledgementShown, HeaderShown, Statements, VoteShown
from node import comparison
from node.comparison import Comparison, Disk, Holdings, Said
from storage.promises import FORMAT as PROMISES_FORMAT
from storage.promises import Forsworn, HeldVote

CHAIN, HASH = sha256(b"chain"), sha256(b"block")
KEY, OTHER_KEY = SigningKey(sha256(b"a")), SigningKey(sha256(b"b"))
# It voted for "b" in term 5; its log ends at height 40, a block of term 4.
DISK = Disk(term=5, vote="b", last_term=4, last_height=40)
EMPTY = Disk(term=0, vote=None, last_term=0, last_height=0)


@dataclass
class Log:
    durable_height: int = DISK.last_height
    commit_height: int = 35
    term: int = DISK.last_term

    def term_hash(self, height: int) -> tuple[int, bytes] | None:
        return (self.term, HASH) if height == self.durable_height else None


@dataclass
class Node:
    """Node "a", started on `disk`, and what followed from what it was shown."""

    disk: Disk = DISK
    log: Log = field(default_factory=Log)
    others: set[str] = field(default_factory=lambda: {"b"})
    compared: list[tuple[str, int]] = field(default_factory=list)
    forsworn: list[Forsworn] = field(default_factory=list)
    counted: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.said = Said(self.disk)
        self.comparison = Comparison(
            CHAIN,
            "a",
            KEY.public,
            self.disk,
            self.said,
            self.log,
            others=lambda: self.others,
            compared=lambda peer, height: self.compared.append((peer, height)),
            forswear=self.forsworn.append,
            count=self.counted.append,
        )

    def shown(self, *statements: object, peer: str = "b") -> str:
        kinds = {VoteShown: "vote", AcknowledgementShown: "acknowledgement", HeaderShown: "header"}
        before = len(self.compared), len(self.forsworn), len(self.counted)
        self.comparison.shown(peer, Statements(**{kinds[type(each)]: each for each in statements}))  # type: ignore[arg-type]
        after = len(self.compared), len(self.forsworn), len(self.counted)
        moved = [
            name for name, old, new in zip(("fine", "beyond", "forged"), before, after, strict=True) if new > old
        ]
        return " ".join(moved) or "later"


def vote(term: int, candidate: str, key: SigningKey = KEY) -> VoteShown:
    return VoteShown(term, candidate, sign_vote(key, CHAIN, term, candidate))


def acknowledgement(term: int, height: int, key: SigningKey = KEY) -> AcknowledgementShown:
    return AcknowledgementShown(term, height, HASH, sign_acknowledgement(key, CHAIN, term, height, HASH))


def header(term: int, key: SigningKey = KEY, proposer: str = "a", chain: bytes = CHAIN) -> HeaderShown:
    data = Header(
        chain=chain,
        change=None,
        configuration=HASH,
        count=0,
        executed_height=1,
        format=FORMAT,
        height=9,
        history_root=HASH,
        parent=HASH,
        proof=None,
        proposer=proposer,
        state_root=HASH,
        term=term,
        time=1,
        tx_root=HASH,
    ).encode()
    return HeaderShown(data, key.sign(BLOCK_SIGNATURE, block_hash(data)))


def test_who_is_shown_nothing_has_compared() -> None:
    assert Node().shown() == Node(EMPTY).shown() == "fine"


@pytest.mark.parametrize(
    "shown",
    [
        vote(5, "b"),
        vote(4, "c"),
        acknowledgement(4, 40),
        acknowledgement(4, 1),
        acknowledgement(3, 60),
        header(4),
    ],
    ids=["its vote", "an earlier vote", "its last block", "a block below", "an earlier term's", "led before"],
)
def test_what_the_disk_knows_or_has_passed(shown: object) -> None:
    node = Node()
    assert node.shown(shown) == "fine"
    assert node.compared == [("b", 0)]


@pytest.mark.parametrize(
    ("shown", "kind", "height"),
    [
        (vote(6, "b"), "vote", 0),
        (vote(5, "c"), "vote", 0),
        (acknowledgement(6, 30), "acknowledgement", 30),
        (acknowledgement(5, 41), "acknowledgement", 41),
        (header(6), "header", 9),
        (header(5), "header", 9),
    ],
    ids=["vote above", "another vote", "acknowledged above", "log behind", "led above", "led for another"],
)
def test_what_the_disk_has_forgotten(shown: object, kind: str, height: int) -> None:
    node = Node()
    assert node.shown(shown, peer="c") == "beyond"
    assert node.compared == []
    (why,) = node.forsworn
    assert (why.kind, why.shown_by, why.height, why.format) == (kind, "c", height, PROMISES_FORMAT)


@pytest.mark.parametrize("shown", [vote(1, "b"), acknowledgement(1, 1), header(1)])
def test_an_emptied_disk_has_forgotten_everything(shown: object) -> None:
    assert Node(EMPTY).shown(shown) == "beyond"


def test_one_forgotten_statement_among_known_ones_is_enough() -> None:
    assert Node().shown(vote(5, "b"), acknowledgement(5, 41), header(4)) == "beyond"


@pytest.mark.parametrize(
    "shown",
    [
        vote(6, "b", OTHER_KEY),
        acknowledgement(6, 50, OTHER_KEY),
        header(6, OTHER_KEY),
        header(6, proposer="b"),
        header(6, chain=HASH),
        VoteShown(6, "b", bytes(64)),
        HeaderShown(b"no header", KEY.sign(BLOCK_SIGNATURE, block_hash(b"no header"))),
    ],
    ids=["vote", "acknowledgement", "header", "another's header", "another chain", "zeros", "no header"],
)
def test_a_forged_statement_is_counted_and_changes_nothing(shown: object) -> None:
    node = Node()
    assert node.shown(shown) == "forged"
    assert node.counted == ["bad_statement"]


def test_what_was_signed_since_the_start_is_no_news() -> None:
    node = Node()
    node.said.voted(7, "c")
    node.said.acknowledged(7, 60)
    node.said.acknowledged(7, 55)
    node.said.proposed(8)
    assert node.shown(vote(7, "c"), acknowledgement(7, 60), header(8)) == "fine"
    assert node.shown(vote(7, "b")) == "beyond"
    assert node.shown(acknowledgement(7, 61)) == "beyond"
    assert node.shown(header(7)) == "beyond"


def test_an_earlier_life_is_not_hidden_by_what_this_one_learned() -> None:
    """An emptied node that follows the leader's term must still notice what it had signed in that term."""
    node = Node(EMPTY, Log(durable_height=90, term=6, commit_height=90))
    assert node.shown(vote(6, "c")) == "beyond"
    assert node.shown(acknowledgement(6, 80)) == "beyond"


class TestAnEarlierAcknowledgementAboveTheLog:
    """Acknowledged in term 4, and since then a leader of term 5 may have begun to replace it: no verdict yet."""

    def test_it_waits_until_the_log_is_as_new(self) -> None:
        node = Node()
        assert node.shown(acknowledgement(4, 41)) == "later"
        node.log.durable_height = 41
        node.comparison.log_moved()
        assert node.compared == [("b", 0)]
        node.comparison.log_moved()
        assert node.compared == [("b", 0)]

    def test_or_until_it_is_certified_that_high(self) -> None:
        node = Node()
        assert node.shown(acknowledgement(4, 41)) == "later"
        node.log.commit_height = 41
        node.comparison.log_moved()
        assert node.compared == [("b", 0)]

    def test_or_until_a_later_term_s_block_is_there(self) -> None:
        node = Node()
        assert node.shown(acknowledgement(4, 45)) == "later"
        node.log.term = 5
        node.comparison.log_moved()
        assert node.compared == [("b", 0)]

    def test_each_peer_waits_for_what_it_showed(self) -> None:
        node = Node()
        assert node.shown(acknowledgement(4, 41), peer="b") == "later"
        assert node.shown(acknowledgement(4, 50), peer="c") == "later"
        node.log.durable_height = 45
        node.comparison.log_moved()
        assert node.compared == [("b", 0)]

    def test_unless_a_certificate_shows_it(self) -> None:
        """Nothing replaces what is certified: an honest log still holds it."""
        node = Node()
        node.comparison.certified(acknowledgement(4, 41))
        assert [why.shown_by for why in node.forsworn] == [comparison.A_CERTIFICATE]


def test_a_certificate_of_what_the_log_held_or_this_start_signed_says_nothing() -> None:
    node = Node()
    node.said.acknowledged(6, 60)
    for term, height in ((4, 40), (3, 70), (6, 60), (6, 50)):
        node.comparison.certified(acknowledgement(term, height))
    assert node.forsworn == []


def test_the_memory_of_what_was_signed_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "SAID_TERMS_MAX", 2)
    node = Node()
    for term in (6, 7, 8):
        node.said.voted(term, "c")
    assert node.shown(vote(6, "c")) == node.shown(vote(8, "c")) == "fine"
    # Forgotten, so believed; what the disk knew at the start and what is still known are not.
    assert node.shown(vote(6, "b")) == "fine"
    assert node.shown(vote(5, "c")) == node.shown(vote(7, "b")) == node.shown(vote(9, "c")) == "beyond"


def test_it_counts_from_where_the_peer_has_certified_blocks() -> None:
    node = Node()
    node.comparison.shown("b", Statements(certified_height=44))
    node.comparison.shown("b", Statements(acknowledgement=acknowledgement(4, 41), certified_height=46))
    assert node.compared == [("b", 44)]
    node.log.durable_height = 41
    node.comparison.log_moved()
    assert node.compared == [("b", 44), ("b", 46)], "as it said when it connected again"


class TestWhoIsWaitedFor:
    """Who remembers may answer later than who does not."""

    def test_everybody_is_at_first(self) -> None:
        node = Node(others={"b", "c"})
        assert node.shown(peer="b") == "later"
        assert node.shown(peer="c") == "fine"
        assert node.compared == [("b", 0), ("c", 0)]

    def test_until_the_grace_is_over(self) -> None:
        node = Node(others={"b", "c"})
        node.shown(peer="b")
        assert node.compared == []
        node.comparison.end_grace()
        assert node.compared == [("b", 0)]
        assert node.shown(peer="c") == "fine"

    def test_who_has_no_vote_is_not(self) -> None:
        node = Node(others={"b"})
        assert node.shown(peer="d") == "later"
        assert node.shown(peer="b") == "fine"

    def test_whose_vote_begins_to_count_is_told_then(self) -> None:
        node = Node(others={"b"})
        node.shown(peer="b")
        node.shown(peer="d")
        before = len(node.compared)
        node.others = {"b", "d"}
        node.comparison.tell()
        assert node.compared[before:] == [("b", 0), ("d", 0)]

    def test_one_that_shows_what_was_forgotten_ends_it(self) -> None:
        node = Node(others={"b", "c"})
        node.shown(peer="b")
        assert node.shown(vote(9, "c"), peer="c") == "beyond"
        assert node.compared == []


class TestHoldings:
    def holdings(self, *votes: HeldVote) -> tuple[Holdings, list[tuple[str, VoteShown]]]:
        kept: list[tuple[str, VoteShown]] = []
        return Holdings(votes, lambda node, vote: kept.append((node, vote))), kept

    def test_the_newest_of_each_kind_is_shown_to_whom_it_is_of(self) -> None:
        holdings, kept = self.holdings()
        for term in (3, 5, 4):
            holdings.vote("b", term, "a", b"v%d" % term)
        for term, height in ((3, 9), (4, 2), (4, 7), (4, 5)):
            holdings.acknowledgement("b", term, height, HASH, b"a%d" % height)
            holdings.header("b", term, height, b"h%d" % height, b"s")
        assert holdings.shown_to("b", 41) == Statements(
            VoteShown(5, "a", b"v5"), AcknowledgementShown(4, 7, HASH, b"a7"), HeaderShown(b"h7", b"s"), 41
        )
        assert holdings.shown_to("c", 41) == Statements(certified_height=41)
        assert [vote.term for _, vote in kept] == [3, 5]

    def test_stored_votes_are_held_after_a_restart(self) -> None:
        holdings, kept = self.holdings(HeldVote("a", PROMISES_FORMAT, "b", b"v", 4))
        holdings.vote("b", 3, "a", b"older")
        assert holdings.shown_to("b", 41).vote == VoteShown(4, "a", b"v")
        assert kept == []
