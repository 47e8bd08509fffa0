"""Who can get a record key, and who cannot."""

import pytest

from carequorum.custody import READERS_MAX, RECORD_KEY_BYTES, WRAP_BYTES, unwrap_key, wrap_key
from ledger.errors import Rejection
from ledger.keys import SigningKey, sha256

RECORD_KEY = bytes(range(RECORD_KEY_BYTES))
SEEDS = [sha256(name) for name in (b"author", b"patient", b"stranger")]
AUTHOR, PATIENT, _ = (SigningKey(seed).public for seed in SEEDS)
# A point of order 8 (RFC 7748 and libsodium's own list), and one of order 1.
SMALL_ORDER = ["26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05", "01" + "00" * 31]


def test_each_reader_gets_the_key_and_nobody_else_does() -> None:
    wraps = wrap_key(RECORD_KEY, [AUTHOR, PATIENT])
    assert unwrap_key(wraps, [SEEDS[0]]) == RECORD_KEY
    assert unwrap_key(wraps, [SEEDS[1]]) == RECORD_KEY
    with pytest.raises(Rejection, match="not_a_reader"):
        unwrap_key(wraps, [SEEDS[2]])


def test_a_retired_key_still_opens_what_was_sealed_to_it() -> None:
    wraps = wrap_key(RECORD_KEY, [PATIENT])
    assert unwrap_key(wraps, [SEEDS[2], SEEDS[0], SEEDS[1]]) == RECORD_KEY


def test_boxes_tell_neither_reader_nor_order_nor_key() -> None:
    first, second = wrap_key(RECORD_KEY, [AUTHOR, PATIENT]), wrap_key(RECORD_KEY, [AUTHOR, PATIENT])
    assert first == sorted(first)
    assert not set(first) & set(second)
    assert all(len(wrap) == WRAP_BYTES for wrap in first)
    assert not any(part in wrap for wrap in first for part in (RECORD_KEY, AUTHOR, PATIENT))


def test_a_reader_named_twice_gets_one_box() -> None:
    assert len(wrap_key(RECORD_KEY, [AUTHOR, AUTHOR, PATIENT])) == 2


@pytest.mark.parametrize("count", [0, READERS_MAX + 1])
def test_the_number_of_readers_is_bounded(count: int) -> None:
    readers = [SigningKey(sha256(bytes([number]))).public for number in range(count)]
    with pytest.raises(Rejection, match="bad_readers"):
        wrap_key(RECORD_KEY, readers)


@pytest.mark.parametrize("point", SMALL_ORDER)
def test_nothing_is_wrapped_to_a_small_order_key(point: str) -> None:
    with pytest.raises(Rejection, match="bad_key"):
        wrap_key(RECORD_KEY, [AUTHOR, bytes.fromhex(point)])


def test_an_altered_box_opens_for_nobody() -> None:
    (wrap,) = wrap_key(RECORD_KEY, [PATIENT])
    for place in range(0, WRAP_BYTES, 7):
        altered = bytearray(wrap)
        altered[place] ^= 0x10
        with pytest.raises(Rejection, match="not_a_reader"):
            unwrap_key([bytes(altered)], [SEEDS[1]])
