"""The intake alone, with recorders around it: which signatures reach the core, and how Appends wait for bodies."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest

from consensus.messages import (
    Acknowledgement,
    Answer,
    Append,
    AppendReply,
    Certificate,
    Entry,
    Message,
    PreVote,
    Reason,
    VoteReply,
)
from ledger.block import Block
from ledger.finality import sign_acknowledgement, sign_vote
from ledger.membership import Configuration
from network.messages import COMMITMENTS_MAX
from network.port import FetchFailed
from node.comparison import Holdings
from node.evidence import Witness
from node.intake import WAITING_MAX, BlockChecks, Intake, RefusedAtError, fetch_all
from node.stages import Stages
from storage.executed import Divergence
from tests.fakes.disk import PowerLossDisk
from tests.ledger.founding import CHAIN, GENESIS, VOTERS
from tests.node.tampering import block_of, entry_of, resealed
from tests.storage.chains import Chain, node_key

ME, LEADER, THIRD = VOTERS
LEARNER = "zone-1"


def block_hash(height: int) -> bytes:
    return height.to_bytes(32, "big") if height else CHAIN


def entry(height: int) -> Entry:
    return Entry(height, 1, block_hash(height - 1), block_hash(height), b"block")


def append(first: int, last: int, **changes: Any) -> Append:
    """Entries `first` to `last`; none where `last` is below `first`."""
    entries = tuple(entry(height) for height in range(first, last + 1))
    prev = first - 1
    return replace(Append(1, prev, min(prev, 1), block_hash(prev), entries, None), **changes)


@dataclass
class Core:
    """A log that grows by what is stepped; commit stays at 0 unless set."""

    term: int = 1
    commit_height: int = 0
    last_height: int = 0

    def term_hash(self, height: int) -> tuple[int, bytes] | None:
        return (min(height, 1), block_hash(height)) if height <= self.last_height else None


@dataclass
class Checks:
    """Every block misses the bodies that `absent` names for its height, and is refused at `bad`.

    Its transactions are those that `gossiped` names for its height; the pool holds `pooled` of them.
    """

    absent: dict[int, list[bytes]] = field(default_factory=dict)
    bad: int | None = None
    held: list[int] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)
    log_top: Callable[[], int] = lambda: 0
    gossiped: dict[int, list[bytes]] = field(default_factory=dict)
    pooled: set[bytes] = field(default_factory=set)
    configuration: Configuration = field(default_factory=GENESIS.configuration)
    reason: Reason = Reason.BAD_ROOTS

    def inspect(self, entries: Sequence[Entry], *, certified: bool) -> list[Block]:
        fresh = [cast(Block, one.height) for one in entries]
        heights = [one.height for one in entries]
        if self.bad in heights:
            raise RefusedAtError(self.bad, self.reason, "bad", fresh[: heights.index(self.bad)])
        return fresh

    def configuration_at(self, height: int) -> Configuration:
        return self.configuration

    def certifiers(self, append: Append, height: int) -> Configuration:
        return self.configuration

    def unknown(self, entries: Sequence[Entry]) -> list[bytes]:
        return self.still_unknown([name for one in entries for name in self.gossiped.get(one.height, [])])

    def still_unknown(self, hashes: Sequence[bytes]) -> list[bytes]:
        return [name for name in hashes if name not in self.pooled]

    def missing(self, blocks: Sequence[int], bodies: dict[bytes, bytes]) -> list[bytes]:
        return [name for height in blocks for name in self.absent.get(height, []) if name not in bodies]

    def hold(self, blocks: Sequence[int], bodies: Mapping[bytes, bytes]) -> None:
        assert not self.missing(blocks, dict(bodies))
        self.held += blocks

    def drop_unlogged(self, blocks: Sequence[int]) -> None:
        self.dropped += [height for height in blocks if height > self.log_top()]


class Desk:
    """An intake, what it handed on, and a peer whose bodies come when the test lets them."""

    def __init__(self) -> None:
        self.core = Core()
        self.checks = Checks(log_top=lambda: self.core.last_height)
        self.stepped: list[tuple[str, Message]] = []
        self.refused: list[tuple[str, Append, int, Reason]] = []
        self.counts: list[str] = []
        self.certified: list[int] = []
        self.hinted: list[int] = []
        self.awaited: list[int] = []
        self.bad_once_executed: int | None = None
        self.halted: list[Exception] = []
        self.evidence: list[str] = []
        self.asked: asyncio.Queue[asyncio.Future[Mapping[bytes, bytes]]] = asyncio.Queue()
        self.tasks: list[asyncio.Task[None]] = []
        self.intake = Intake(
            self.core,
            cast(BlockChecks, self.checks),
            Witness(lambda kind, node, proof: self.evidence.append(kind), Holdings((), lambda node, vote: None)),
            GENESIS,
            ME,
            Stages("stage_seconds", "", ()),
            step=self._step,
            refuse=lambda *refusal: self.refused.append(refusal),
            fetch=self._fetch,
            spawn=self._spawn,
            certified=self.certified.append,
            hinted=self.hinted.append,
            key_of=GENESIS.node_keys().get,
            executed=self._executed,
            own=lambda shown: None,
            halt=self.halted.append,
            count=self.counts.append,
        )

    def say(self, message: Message, sender: str = LEADER) -> list[Message]:
        """What the core got because of it."""
        before = len(self.stepped)
        self.intake.on_consensus(sender, message)
        assert all(told == sender for told, _ in self.stepped[before:])
        return [handed for _, handed in self.stepped[before:]]

    def blocks(self) -> list[list[int]]:
        """The heights that the core got, Append by Append."""
        appends = [message for _, message in self.stepped if isinstance(message, Append) and message.entries]
        return [[one.height for one in message.entries] for message in appends]

    async def answer(self, *bodies: bytes | Exception) -> None:
        """The oldest question is answered with these (each its own commitment), or fails."""
        future = await self.asked.get()
        if bodies and isinstance(bodies[0], Exception):
            future.set_exception(bodies[0])
        else:
            future.set_result({body: body for body in bodies if isinstance(body, bytes)})
        for _ in range(3):
            await asyncio.sleep(0)

    def _step(self, sender: str, message: Message) -> None:
        self.stepped.append((sender, message))
        if isinstance(message, Append) and message.entries:
            self.core.last_height = message.entries[-1].height

    async def _executed(self, height: int) -> None:
        assert self.core.last_height >= height, "a block is executed that the core was never given"
        self.awaited.append(height)
        self.checks.bad = self.bad_once_executed

    async def _fetch(self, peer: str, commitments: Sequence[bytes]) -> Mapping[bytes, bytes]:
        assert peer == LEADER
        future: asyncio.Future[Mapping[bytes, bytes]] = asyncio.get_running_loop().create_future()
        self.asked.put_nowait(future)
        return await future

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self.tasks.append(asyncio.create_task(coroutine))


@pytest.fixture
def desk() -> Desk:
    return Desk()


# Signatures.


def certificate(height: int, *voters: str, block: bytes | None = None) -> Certificate:
    block = block_hash(height) if block is None else block
    signatures = tuple((voter, sign_acknowledgement(node_key(voter), CHAIN, 1, height, block)) for voter in voters)
    return Certificate(1, height, block, signatures)


def test_a_vote_counts_under_its_voter_s_signature_for_this_candidate_and_term(desk: Desk) -> None:
    good = VoteReply(4, True, sign_vote(node_key(THIRD), CHAIN, 4, ME))
    assert desk.say(good, THIRD) == [good]
    for bad in (
        replace(good, term=5),
        replace(good, signature=sign_vote(node_key(THIRD), CHAIN, 4, LEADER)),
        replace(good, signature=sign_vote(node_key(LEADER), CHAIN, 4, ME)),
        replace(good, signature=sign_vote(node_key(THIRD), bytes(32), 4, ME)),
        replace(good, signature=b""),
    ):
        assert desk.say(bad, THIRD) == []
    assert desk.counts == ["bad_vote"] * 5


def test_a_refused_vote_and_a_question_need_no_signature(desk: Desk) -> None:
    for message in (VoteReply(4, False, b""), PreVote(4, 0, 0)):
        assert desk.say(message, THIRD) == [message]


def test_acknowledgements_count_one_by_one(desk: Desk) -> None:
    """The bad ones are left out and counted; the rest of the reply is the peer's word about itself."""

    def acknowledge(height: int, signer: str = THIRD, term: int = 1) -> Acknowledgement:
        signature = sign_acknowledgement(node_key(signer), CHAIN, term, height, block_hash(height))
        return Acknowledgement(height, block_hash(height), signature)

    good = (acknowledge(2), acknowledge(3))
    bad = (acknowledge(4, LEADER), acknowledge(5, term=2), replace(acknowledge(6), hash=block_hash(7)))
    reply = AppendReply(1, Answer.ACCEPTED, 6, acknowledgements=(good[0], *bad, good[1]))
    assert desk.say(reply, THIRD) == [replace(reply, acknowledgements=good)]
    assert desk.counts == ["bad_acknowledgement"] * 3
    desk.core.commit_height = 2
    assert desk.say(reply, THIRD) == [replace(reply, acknowledgements=good[1:])]


@pytest.mark.parametrize(("sender", "term"), [(LEARNER, 1), (THIRD, 2)], ids=["a learner's", "of another term"])
def test_acknowledgements_that_cannot_count_are_not_verified(desk: Desk, sender: str, term: int) -> None:
    signature = sign_acknowledgement(node_key(sender), CHAIN, term, 1, block_hash(1))
    reply = AppendReply(term, Answer.ACCEPTED, 1, acknowledgements=(Acknowledgement(1, block_hash(1), signature),))
    assert desk.say(reply, sender) == [replace(reply, acknowledgements=())]
    assert desk.counts == []


@pytest.mark.parametrize(
    "bad",
    [
        certificate(3, LEADER),
        certificate(3, LEADER, LEARNER),
        replace(certificate(3, LEADER, THIRD), hash=block_hash(4)),
        replace(certificate(3, LEADER, THIRD), term=2),
        replace(certificate(3, LEADER, THIRD), signatures=certificate(3, LEADER, THIRD).signatures[:1] * 2),
        replace(certificate(3, LEADER, THIRD), signatures=((LEADER, bytes(64)), (THIRD, bytes(64)))),
    ],
    ids=["no quorum", "a learner", "another block", "another term", "one twice", "forged"],
)
def test_an_append_with_a_bad_certificate_is_dropped_whole(desk: Desk, bad: Certificate) -> None:
    desk.core.last_height = 2
    assert desk.say(append(3, 3, certificate=bad)) == []
    assert (desk.counts, desk.certified, desk.refused) == (["bad_certificate"], [], [])


def test_a_certificate_above_all_blocks_that_does_not_hold_is_left_out_and_told_to_catch_up(desk: Desk) -> None:
    """Its voters may have come in blocks that are yet to come. Nobody moves on it."""
    message = append(1, 1, certificate=certificate(3, "stranger", LEADER))
    assert desk.say(message) == [replace(message, certificate=None)]
    assert (desk.counts, desk.certified, desk.hinted) == ([], [], [3])


def joint(*, old: Sequence[str], new: Sequence[str]) -> Configuration:
    voters, old_voters = ({node: node_key(node).public for node in nodes} for nodes in (new, old))
    return Configuration(learners=[], left=None, old_voters=old_voters, steps=0, voters=voters)


@pytest.mark.parametrize(
    ("signers", "holds"),
    [
        ((ME, LEADER), False),
        ((LEADER, THIRD), False),
        ((LEADER, THIRD, "fourth"), True),
        ((ME, LEADER, THIRD), True),
        ((ME, LEADER, THIRD, "fifth"), False),
    ],
    ids=["the old voters'", "two of four", "both", "both, without the new one", "a stranger's beside both"],
)
def test_in_a_joint_configuration_a_certificate_needs_both_quorums(
    desk: Desk, signers: Sequence[str], holds: bool
) -> None:
    desk.checks.configuration = joint(old=sorted([ME, LEADER, THIRD]), new=sorted([ME, LEADER, THIRD, "fourth"]))
    message = append(1, 3, certificate=certificate(3, *sorted(signers)))
    assert desk.say(message) == ([message] if holds else [])


def test_a_good_certificate_reaches_the_core_and_catch_up(desk: Desk) -> None:
    message = append(1, 1, certificate=certificate(3, LEADER, THIRD))
    assert desk.say(message) == [message]
    assert desk.certified == [3]


def test_a_certificate_that_is_known_is_not_verified_again(desk: Desk) -> None:
    """What names the block committed here says nothing new, whoever signed it; another block is another matter."""
    desk.core.last_height = desk.core.commit_height = 3
    heartbeat = append(4, 3, certificate=replace(certificate(3, LEADER, THIRD), signatures=()))
    assert desk.say(heartbeat) == [replace(heartbeat, certificate=None)]
    assert desk.counts == []
    other = replace(heartbeat, certificate=certificate(3, LEADER, THIRD, block=bytes(32)))
    assert desk.say(other) == [other]


def test_the_signatures_of_certificates_are_witnessed(desk: Desk) -> None:
    """Two certificates of one height share a voter: it is proved to have contradicted itself."""
    desk.say(append(1, 0, certificate=certificate(3, LEADER, THIRD)))
    assert desk.evidence == []
    desk.say(append(1, 0, certificate=certificate(3, ME, THIRD, block=bytes(32))))
    assert desk.evidence == ["acknowledgement"]


# Blocks.


def test_what_does_not_connect_is_the_core_s_to_answer(desk: Desk) -> None:
    """It answers from the first lines of the message: nothing is decoded or fetched for it."""
    for message in (append(3, 4), append(1, 1, prev_hash=bytes(31) + b"\x01"), append(1, 1, term=0)):
        assert desk.say(message) == [replace(message, entries=())]
    assert desk.checks.held == []


def test_entries_that_do_not_follow_on_each_other_are_dropped(desk: Desk) -> None:
    message = append(1, 3)
    for broken in (message.entries[:1] + message.entries[2:], (replace(entry(1), parent=bytes(32)),)):
        assert desk.say(replace(message, entries=broken)) == []
    assert desk.counts == ["bad_append"] * 2


def test_a_refused_block_leaves_the_good_ones_before_it(desk: Desk) -> None:
    desk.checks.bad = 3
    message = append(1, 4)
    assert desk.say(message) == [replace(message, entries=message.entries[:2])]
    assert desk.checks.held == [1, 2]
    ((sender, rest, height, reason),) = desk.refused
    assert (sender, height, reason) == (LEADER, 3, Reason.BAD_ROOTS)
    assert rest == replace(append(3, 4), prev_term=1)


@pytest.mark.parametrize("still_bad", [None, 3], ids=["executed in time", "not executed"])
@pytest.mark.asyncio
async def test_a_change_of_membership_waits_for_its_parent_to_be_executed_here(
    desk: Desk, still_bad: int | None
) -> None:
    """The parent, and what is below it, at once: else it would wait for itself. Then the change is judged; if that
    takes too long, the leader is told to come again.
    """
    desk.checks.bad, desk.checks.reason, desk.bad_once_executed = 3, Reason.BEHIND, still_bad
    message = append(1, 4)
    assert desk.say(message) == [replace(message, entries=())]
    await asyncio.gather(*desk.tasks)
    assert desk.awaited == [2]
    assert desk.blocks() == ([[1, 2], [3, 4]] if still_bad is None else [[1, 2]])
    assert [(height, reason) for _, _, height, reason in desk.refused] == (
        [] if still_bad is None else [(3, Reason.BEHIND)]
    )


def test_a_refused_first_block_is_a_heartbeat_and_a_refusal(desk: Desk) -> None:
    desk.checks.bad = 1
    message = append(1, 2)
    assert desk.say(message) == [replace(message, entries=())]
    assert desk.refused == [(LEADER, message, 1, Reason.BAD_ROOTS)]


def real_append(*, certified: int) -> Append:
    """Two blocks that link by their bytes, with the certificate of one of them."""
    chain = Chain(PowerLossDisk())
    first = entry_of(chain.seal())
    second = entry_of(chain.seal(parent=first))
    named = {1: first, 2: second}[certified]
    proof = certificate(named.height, LEADER, THIRD, block=named.hash)
    return Append(1, 0, 0, CHAIN, (first, second), proof)


@pytest.mark.parametrize("certified", [1, 2], ids=["itself", "through the one above"])
def test_bad_roots_under_a_certificate_stop_the_node(desk: Desk, certified: int) -> None:
    """A quorum has committed what this node cannot follow: nothing reaches the core, and nobody is refused."""
    desk.checks.bad = 1
    assert desk.say(real_append(certified=certified)) == []
    assert [type(fault) for fault in desk.halted] == [Divergence]
    assert desk.refused == []


def without_certificate(message: Append) -> Append:
    return replace(message, certificate=None)


def with_other_bytes(message: Append) -> Append:
    """The certified hash is only said, beside a block that does not have it."""
    first, second = message.entries
    return replace(message, entries=(first, replace(second, data=first.data)))


def with_no_bytes(message: Append) -> Append:
    first, second = message.entries
    return replace(message, entries=(first, replace(second, data=b"")))


def with_another_below(message: Append) -> Append:
    """The certified block is there, and only said to follow the bad one."""
    other = entry_of(resealed(block_of(message.entries[0]), node_key(LEADER), time=1))
    return replace(message, entries=(other, replace(message.entries[1], parent=other.hash)))


@pytest.mark.parametrize(
    "change", [without_certificate, with_other_bytes, with_no_bytes, with_another_below], ids=lambda one: one.__name__
)
def test_bad_roots_that_are_only_said_to_be_certified_are_refused(
    desk: Desk, change: Callable[[Append], Append]
) -> None:
    desk.checks.bad = 1
    message = change(real_append(certified=2))
    desk.say(message)
    assert desk.halted == []
    assert desk.refused == [(LEADER, message, 1, Reason.BAD_ROOTS)]


def heartbeat_of(message: Append) -> Append:
    return replace(message, prev_height=0, prev_term=0, prev_hash=CHAIN, entries=())


@pytest.mark.asyncio
async def test_a_block_waits_for_its_bodies_and_what_follows_waits_for_the_block(desk: Desk) -> None:
    """Meanwhile the core hears the leader, without blocks."""
    desk.checks.absent = {1: [b"one"], 3: [b"three"]}
    for height in range(1, 5):
        assert desk.say(append(height, height)) == [heartbeat_of(append(height, height))]
    beat = append(1, 0)
    assert desk.say(beat) == [beat]
    assert desk.blocks() == []
    await desk.answer(b"one")
    assert desk.blocks() == [[1], [2]]
    await desk.answer(b"three")
    assert desk.blocks() == [[1], [2], [3], [4]]
    await asyncio.gather(*desk.tasks)
    assert desk.checks.held == [1, 2, 3, 4]
    assert desk.say(append(5, 5)) == [append(5, 5)]


@pytest.mark.asyncio
async def test_what_fails_to_come_is_forgotten_with_what_waited(desk: Desk) -> None:
    """The leader sends again what the core did not answer for; then everything is asked for anew."""
    desk.checks.absent = {1: [b"one"]}
    desk.say(append(1, 1))
    desk.say(append(2, 2))
    await desk.answer(FetchFailed(LEADER, "timed_out"))
    await asyncio.gather(*desk.tasks)
    assert desk.blocks() == []
    desk.say(append(1, 2))
    await desk.answer(b"one")
    assert desk.blocks() == [[1, 2]]


@pytest.mark.asyncio
async def test_appends_that_wait_are_bounded(desk: Desk) -> None:
    """The newest is dropped: what came first links to the log."""
    desk.checks.absent = {1: [b"one"]}
    for height in range(1, WAITING_MAX + 5):
        desk.say(append(height, height))
    await desk.answer(b"one")
    await asyncio.gather(*desk.tasks)
    assert desk.blocks() == [[height] for height in range(1, WAITING_MAX + 2)]


@pytest.mark.asyncio
async def test_a_refused_block_behind_one_that_waited(desk: Desk) -> None:
    desk.checks.absent, desk.checks.bad = {1: [b"one"]}, 2
    desk.say(append(1, 2))
    assert desk.refused == []
    await desk.answer(b"one")
    assert desk.blocks() == [[1]]
    assert [refusal[2] for refusal in desk.refused] == [2]


# Fetching.


class Peer:
    """Gives at most `most` bodies an answer, of those that it has."""

    def __init__(self, has: Sequence[bytes], most: int) -> None:
        self.has, self.most = frozenset(has), most
        self.asked: list[int] = []

    async def fetch(self, peer: str, commitments: Sequence[bytes]) -> Mapping[bytes, bytes]:
        self.asked.append(len(commitments))
        return {name: name for name in [name for name in commitments if name in self.has][: self.most]}


def names(count: int) -> list[bytes]:
    return [number.to_bytes(4, "big") for number in range(count)]


@pytest.mark.asyncio
async def test_a_partial_answer_is_followed_by_another_question() -> None:
    peer, into = Peer(names(5), most=2), dict[bytes, bytes]()
    assert await fetch_all(peer.fetch, LEADER, [*names(5), *names(2)], into)
    assert (peer.asked, list(into)) == ([5, 3, 1], names(5))


@pytest.mark.asyncio
async def test_an_answer_without_progress_ends_it() -> None:
    peer, into = Peer(names(3), most=2), dict[bytes, bytes]()
    assert not await fetch_all(peer.fetch, LEADER, names(4), into)
    assert (peer.asked, list(into)) == ([4, 2, 1], names(3))


@pytest.mark.asyncio
async def test_no_question_is_longer_than_the_bound() -> None:
    peer, into = Peer(names(COMMITMENTS_MAX + 1), most=1 << 20), dict[bytes, bytes]()
    assert await fetch_all(peer.fetch, LEADER, names(COMMITMENTS_MAX + 1), into)
    assert peer.asked == [COMMITMENTS_MAX, 1]


@pytest.mark.asyncio
async def test_while_bodies_are_fetched_no_append_is_answered_with_a_conflict(desk: Desk) -> None:
    """A heartbeat behind everything sent would be one, and have the leader send all of it again."""
    desk.checks.absent = {1: [b"body"]}
    desk.say(append(1, 1))
    for late in (append(2, 2), append(3, 2), append(2, 2)):
        handed = desk.say(late)
        assert [(one.prev_height, one.entries) for one in handed if isinstance(one, Append)] == [(0, ())]
    await desk.answer(b"body")
    assert desk.blocks() == [[1], [2], [2]]
