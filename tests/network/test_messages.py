"""The table of messages, their frames, and the queue that they wait in: without sockets."""

import contextlib
import dataclasses
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consensus.messages import (
    Acknowledgement,
    Answer,
    Append,
    AppendReply,
    Certificate,
    Configuration,
    Entry,
    PreVote,
    PreVoteReply,
    ReadIndex,
    ReadIndexReply,
    Reason,
    TimeoutNow,
    Vote,
    VoteReply,
)
from ledger.errors import Rejection
from network import messages
from network.frames import FRAME_BYTES_MAX, MORE, PIECE_BYTES_MAX, STREAMS, Assembler, Parcel, pack
from network.messages import (
    KINDS,
    Announce,
    Blocks,
    Hello,
    Lane,
    Stream,
    decode,
    encode,
    kind_of,
    transaction_batches,
)
from network.outbox import Bound, Outbox
from network.port import SharedTransaction
from tests.network.peers import shared

H, P, S = b"h" * 32, b"p" * 32, b"s" * 64

numbers = st.integers(0, 2**53)
hashes = st.binary(min_size=32, max_size=32)
signatures = st.binary(min_size=64, max_size=64)
names = st.from_regex(r"[a-z0-9][a-z0-9-]{0,31}", fullmatch=True)
certificates = st.builds(
    Certificate, numbers, numbers, hashes, st.lists(st.tuples(names, signatures), max_size=3).map(tuple)
)
configurations = st.builds(
    Configuration,
    st.lists(names, max_size=3).map(tuple),
    st.lists(names, max_size=2).map(tuple),
    st.lists(names, max_size=3).map(tuple),
)
entries = st.builds(Entry, numbers, numbers, hashes, hashes, st.binary(max_size=50), st.none() | configurations)
replies = st.builds(
    AppendReply,
    numbers,
    st.sampled_from(Answer),
    numbers,
    numbers,
    numbers,
    st.lists(st.builds(Acknowledgement, numbers, hashes, st.just(b"") | signatures), max_size=3).map(tuple),
    st.sampled_from(Reason),
    numbers,
    st.booleans(),
)
consensus_messages = st.one_of(
    st.builds(PreVote, numbers, numbers, numbers),
    st.builds(PreVoteReply, numbers, st.booleans()),
    st.builds(Vote, numbers, numbers, numbers, st.booleans()),
    st.builds(VoteReply, numbers, st.booleans(), st.just(b"") | signatures),
    st.builds(
        Append,
        numbers,
        numbers,
        numbers,
        hashes,
        st.lists(entries, max_size=3).map(tuple),
        st.none() | certificates,
        numbers,
    ),
    replies,
    st.builds(TimeoutNow, numbers),
    st.builds(ReadIndex, numbers, numbers),
    st.builds(ReadIndexReply, numbers, numbers, st.none() | numbers),
)


@given(consensus_messages)
@settings(max_examples=150, deadline=None)
def test_every_consensus_message_survives_the_wire(message: Any) -> None:
    assert decode(kind_of(message), encode(message)) == message


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.value], ids=lambda kind: kind.name)
def test_no_field_of_a_consensus_message_is_left_behind(kind: messages.Kind) -> None:
    """A field that the wire did not know would be lost in silence where it has a default."""
    assert kind.value is not None
    assert [field.name for field in dataclasses.fields(kind.value)] == list(kind.shape.__struct_fields__)


@pytest.mark.parametrize(
    ("value", "shape"),
    [
        (Entry, messages.Entry),
        (Certificate, messages.Certificate),
        (Configuration, messages.Configuration),
        (Acknowledgement, messages.Acknowledgement),
    ],
)
def test_nor_one_of_what_it_carries(value: Any, shape: Any) -> None:
    assert [field.name for field in dataclasses.fields(value)] == list(shape.__struct_fields__)


def test_the_table_is_unambiguous() -> None:
    assert len({kind.number for kind in KINDS}) == len(KINDS)
    assert len({kind.name for kind in KINDS}) == len(KINDS)
    assert not set(STREAMS[Lane.CONTROL]) & set(STREAMS[Lane.GOSSIP])
    assert all(kind.stream in STREAMS[kind.lane] for kind in KINDS if kind.lane is not None)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@given(data=st.binary(max_size=200))
@settings(max_examples=40, deadline=None)
def test_noise_is_a_message_or_a_rejection(kind: messages.Kind, data: bytes) -> None:
    with contextlib.suppress(Rejection):
        assert type(decode(kind, data)) is (kind.value or kind.shape)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("head", [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"])
def test_a_length_that_no_memory_holds_is_refused(kind: messages.Kind, head: bytes) -> None:
    for prefix in (b"", b"\x91", b"\x92", b"\x92\x01", b"\x93\x01", b"\x96\x01\x01\x01\xc4\x20" + H):
        with pytest.raises(Rejection, match="bad_message"):
            decode(kind, prefix + head)


@pytest.mark.parametrize(
    "message",
    [
        messages.Append(1, 1, 1, b"short", (), None, 0),
        messages.Append(-1, 1, 1, H, (), None, 0),
        messages.Append(2**53 + 1, 1, 1, H, (), None, 0),
        messages.Append(1, 1, 1, H, (), messages.Certificate(1, 1, H, (("A!", S),)), 0),
        messages.Append(1, 1, 1, H, (), messages.Certificate(1, 1, H, (("a", b"s"),)), 0),
        messages.Append(1, 1, 1, H, (messages.Entry(1, 1, P, b"", b"", None),), None, 0),
        messages.Append(1, 1, 1, H, (), messages.Certificate(1, 1, H, tuple((f"n{i}", S) for i in range(65))), 0),
    ],
    ids=["short hash", "negative", "too high", "node id", "signature", "entry hash", "65 signatures"],
)
def test_the_wire_bounds_what_the_core_need_not(message: messages.Append) -> None:
    kind = kind_of(Append(1, 0, 0, P, (), None))
    with pytest.raises(Rejection, match="bad_message"):
        decode(kind, msgspec.msgpack.encode(message))


def test_a_message_beyond_its_row_is_our_own_mistake() -> None:
    with pytest.raises(ValueError, match="hello of"):
        encode(Hello(1, b"c" * 40_000, "a"))
    with pytest.raises(Rejection, match="message_too_large"):
        decode(kind_of(Hello(1, H, "a")), b"\x93" + bytes(40_000))


def test_a_rejection_never_quotes_what_came() -> None:
    secret = msgspec.msgpack.encode(["Jane Roe", "Jane Roe"])
    with pytest.raises(Rejection) as caught:
        decode(kind_of(Announce([])), secret)
    assert "Jane" not in str(caught.value)


sizes = st.integers(0, 700)


@given(st.lists(st.tuples(sizes, st.lists(sizes, max_size=3)), max_size=40))
@settings(max_examples=60, deadline=None)
def test_batches_keep_every_transaction_in_order_within_their_bounds(shapes: list[tuple[int, list[int]]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(messages, "BATCH_BYTES_MAX", 1_000)
        patch.setattr(messages, "BATCH_TRANSACTIONS_MAX", 5)
        given_in = [SharedTransaction(bytes(size), [bytes(body) for body in bodies]) for size, bodies in shapes]
        batches = list(transaction_batches(given_in))
        assert [(item.envelope, item.bodies) for batch in batches for item in batch.items] == given_in
        for batch in batches:
            total = sum(len(item.envelope) + sum(map(len, item.bodies)) for item in batch.items)
            assert len(batch.items) == 1 or (total <= 1_000 and len(batch.items) <= 5)


def large(count: int) -> Parcel:
    """A message of several frames on the sync stream."""
    return pack(Blocks(count, [bytes([count]) * 40_000] * 5, b"certificate", 0))


def test_frames_of_different_streams_may_alternate() -> None:
    block = pack(Append(1, 1, 1, P, (Entry(2, 1, P, H, bytes(150_000)),), None))
    answer = large(7)
    urgent = pack(PreVote(1, 2, 3))
    assembler = Assembler(Lane.CONTROL)
    order = [block.frames[0], answer.frames[0], urgent.frames[0], answer.frames[1], block.frames[1]]
    order += [block.frames[2], *answer.frames[2:]]
    done = [decode(*message) for frame in order if (message := assembler.feed(frame)) is not None]
    assert [type(message).__name__ for message in done] == ["PreVote", "Append", "Blocks"]
    assert done[2].blocks == [b"\x07" * 40_000] * 5


@given(st.integers(0, 3 * PIECE_BYTES_MAX + 2))
@settings(max_examples=30, deadline=None)
def test_a_message_of_any_size_comes_back_from_bounded_frames(size: int) -> None:
    sent = Blocks(1, [bytes(size)], b"c", 0)
    parcel = pack(sent)
    assert all(len(frame) <= FRAME_BYTES_MAX for frame in parcel.frames)
    assembler = Assembler(Lane.CONTROL)
    *begun, last = [assembler.feed(frame) for frame in parcel.frames]
    assert begun == [None] * len(begun)
    assert last is not None
    assert decode(*last) == sent


def test_pieces_of_two_messages_do_not_mix() -> None:
    assembler = Assembler(Lane.CONTROL)
    assembler.feed(large(1).frames[0])
    with pytest.raises(Rejection, match="bad_frame"):
        assembler.feed(bytes((kind_of(messages.GetBodies(1, [])).number, Stream.SYNC)) + b"\x92")


def test_an_empty_piece_does_not_keep_a_message_open() -> None:
    with pytest.raises(Rejection, match="bad_frame"):
        Assembler(Lane.CONTROL).feed(bytes((20, Stream.BLOCKS | MORE)))


def test_pieces_stop_at_the_bound_of_their_kind() -> None:
    assembler = Assembler(Lane.CONTROL)
    kind = kind_of(AppendReply(1, Answer.ACCEPTED, 1))
    piece = bytes((kind.number, Stream.URGENT | MORE)) + bytes(PIECE_BYTES_MAX)
    for _ in range(kind.bytes_max // PIECE_BYTES_MAX):
        assert assembler.feed(piece) is None
    with pytest.raises(Rejection, match="message_too_large"):
        assembler.feed(piece)


def box(**bounds: Bound) -> Outbox:
    return Outbox({Stream[name]: bound for name, bound in bounds.items()})


def drain(outbox: Outbox) -> list[bytes]:
    frames = []
    while (item := outbox.pop()) is not None:
        frames.append(item[1])
    return frames


def test_the_urgent_leaves_before_the_rest_of_a_message_under_way() -> None:
    outbox = box(URGENT=Bound(9, 9_999, drop_oldest=True), SYNC=Bound(9, 999_999, drop_oldest=False))
    answer, urgent = large(1), pack(PreVote(1, 2, 3))
    assert outbox.put(answer) == []
    first = outbox.pop()
    assert first == (answer, answer.frames[0])
    assert outbox.put(urgent) == []
    assert drain(outbox) == [urgent.frames[0], *answer.frames[1:]]


def test_at_the_bound_the_oldest_or_the_newest_is_dropped_as_its_stream_says() -> None:
    votes = [pack(PreVote(term, 0, 0)) for term in range(4)]
    outbox = box(URGENT=Bound(2, 9_999, drop_oldest=True))
    assert [outbox.put(vote) for vote in votes] == [[], [], [votes[0]], [votes[1]]]
    assert drain(outbox) == [votes[2].frames[0], votes[3].frames[0]]
    answers = [large(number) for number in range(3)]
    outbox = box(SYNC=Bound(9, 2 * answers[0].size_bytes, drop_oldest=False))
    assert [outbox.put(answer) for answer in answers] == [[], [], [answers[2]]]
    assert drain(outbox) == [*answers[0].frames, *answers[1].frames]
    assert outbox.put(answers[2]) == []


def test_a_message_larger_than_its_queue_passes_when_it_is_alone() -> None:
    outbox = box(SYNC=Bound(9, 10, drop_oldest=False))
    answer = large(1)
    assert outbox.put(answer) == []
    assert outbox.put(answer) == [answer]


def test_a_lost_connection_takes_along_what_was_under_way() -> None:
    outbox = box(SYNC=Bound(9, 999_999, drop_oldest=False))
    outbox.put(large(1))
    outbox.put(large(2))
    outbox.pop()
    outbox.clear()
    assert outbox.pop() is None
    outbox.put(large(3))
    assert drain(outbox) == list(large(3).frames)


def test_a_shared_transaction_is_what_it_was() -> None:
    transaction = shared(7)
    (batch,) = transaction_batches([transaction])
    parcel = pack(batch)
    message = Assembler(Lane.GOSSIP).feed(parcel.frames[0])
    assert message is not None
    assert [(item.envelope, item.bodies) for item in decode(*message).items] == [transaction]


def test_the_table_in_the_documentation_is_this_one() -> None:
    text = (Path(messages.__file__).parents[1] / "docs" / "network.md").read_text()
    rows = re.findall(r"^\| (\d+) \| (\w+) \| (\w+) \| (\w+) \| (\d+) \|$", text, flags=re.MULTILINE)
    assert rows == [
        (
            str(kind.number),
            kind.name,
            kind.lane.name.lower() if kind.lane else "both",
            kind.stream.name.lower(),
            str(kind.bytes_max),
        )
        for kind in KINDS
    ]
