"""What comes through between nodes: the measurement on wires that nobody broke, and what is made of it."""

import asyncio
import os
from collections.abc import Mapping

import pytest

from carequorum.devnet import commands
from tests.testnets.wires import End, Pair, Through, WiresError, cut, lost_share, measure, round_trip_ms, segments

CAME = Through(50, 50, 1.0)


def measured(**changes: Through) -> Mapping[Pair, Through]:
    """Between a, b and c; "ab" is from a to b."""
    pairs = {(one, other): CAME for one in "abc" for other in "abc" if one != other}
    return pairs | {(name[0], name[1]): through for name, through in changes.items()}


def test_what_is_cut_one_way_is_cut_one_way() -> None:
    assert cut(measured()) == set()
    assert cut(measured(ab=Through(50, 0, None), ca=Through(50, 1, 2.0))) == {("a", "b")}


def test_the_share_of_datagrams_that_are_lost() -> None:
    assert lost_share(measured()) == 0
    assert lost_share(measured(ab=Through(50, 20, 1.0))) == pytest.approx(30 / 300)


def test_a_round_trip_is_there_and_back() -> None:
    slow = measured(ab=Through(50, 50, 200.0), ac=Through(50, 50, 210.0))
    assert round_trip_ms(slow, [("a", "b"), ("a", "c")]) == pytest.approx(206.0)
    assert round_trip_ms(slow, [("b", "c")]) == pytest.approx(2.0)
    with pytest.raises(WiresError, match="from b to a"):
        round_trip_ms(measured(ab=Through(50, 0, None)), [("b", "a")])


@pytest.fixture
def with_namespaces() -> None:
    if os.geteuid() != 0 or commands.missing() is not None:
        pytest.skip("network namespaces cannot be had")


@pytest.mark.usefixtures("with_namespaces")
def test_datagrams_come_through_where_nothing_is_broken() -> None:
    ends = [End(node, f"127.0.0.{number}", os.getpid()) for number, node in enumerate("abc", 1)]
    found = asyncio.run(measure(ends, count=5))
    assert {pair: through.came for pair, through in found.items()} == dict.fromkeys(measured(), 5)
    assert 0 <= round_trip_ms(found, found) < 1_000
    sent, again = segments(ends[:1])
    assert sent >= again >= 0


@pytest.mark.usefixtures("with_namespaces")
def test_who_has_no_such_address_cannot_be_measured() -> None:
    with pytest.raises(WiresError, match="could not be measured"):
        asyncio.run(measure([End("a", "192.0.2.1", os.getpid())], count=1))
