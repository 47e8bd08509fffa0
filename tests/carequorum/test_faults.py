"""Faults of the wires as values: what each command makes of the last, and what is each node's part."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carequorum.devnet import DevnetError, Faults
from carequorum.devnet.faults import Wire, parse_duration_ms, parse_groups, parse_percent

NODES = ["a", "b", "c", "d", "e"]
HOSTS = {node: f"198.18.0.{place}" for place, node in enumerate(NODES, 1)}

groups = st.lists(st.sampled_from(["one", "two", "three", None]), min_size=5, max_size=5)


def assigned(places: list[str | None]) -> list[list[str]]:
    """The groups, each with its nodes; None is nobody's."""
    names = sorted({place for place in places if place is not None})
    return [[node for node, place in zip(NODES, places, strict=True) if place == name] for name in names]


@given(groups)
def test_a_partition_cuts_both_ways_between_groups_and_nothing_else(places: list[str | None]) -> None:
    parts = assigned(places)
    if len(parts) < 2:
        with pytest.raises(DevnetError, match="two groups or more"):
            Faults().partition(parts)
        return
    home = dict(zip(NODES, places, strict=True))
    cuts = set(Faults().partition(parts).cuts)
    for source in NODES:
        for target in NODES:
            apart = None not in (home[source], home[target]) and home[source] != home[target]
            assert ((source, target) in cuts) == apart


def test_a_partition_takes_the_place_of_earlier_cuts_and_leaves_the_rest() -> None:
    faults = Faults().oneway("a", "b").delay("c", 100, 20).loss("d", 5).partition([["a"], ["e"]])
    assert faults.cuts == (("a", "e"), ("e", "a"))
    assert faults.delays_ms == {"c": (100, 20)}
    assert faults.losses_percent == {"d": 5}


def test_one_way_is_dropped_at_the_receiver_only() -> None:
    faults = Faults().oneway("a", "b").oneway("c", "b").oneway("a", "b")
    assert faults.wire("b", HOSTS) == Wire(dropped=(HOSTS["a"], HOSTS["c"]))
    assert faults.wire("a", HOSTS) == faults.wire("c", HOSTS) == Wire()


def test_delay_and_loss_are_the_senders_and_end_with_zero() -> None:
    faults = Faults().delay("a", 100, 20).loss("a", 0.5)
    assert faults.wire("a", HOSTS) == Wire(delay_ms=100, jitter_ms=20, loss_percent=0.5)
    assert faults.wire("a", HOSTS).shapes
    assert not faults.wire("b", HOSTS).shapes
    assert faults.delay("a", 0).loss("a", 0) == Faults()


def test_all_who_are_named_are_known() -> None:
    assert Faults().oneway("a", "b").delay("c", 1).loss("d", 1).nodes() == {"a", "b", "c", "d"}


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: Faults().partition([["a"]]), "two groups or more"),
        (lambda: Faults().partition([["a"], []]), "none of them empty"),
        (lambda: Faults().partition([["a"], ["b", "a"]]), "'a' is named twice"),
        (lambda: Faults().oneway("a", "a"), "no wire to itself"),
        (lambda: Faults().delay("a", 10, 11), "0 <= jitter <= delay"),
        (lambda: Faults().delay("a", 60_001), "<= 60000 ms"),
        (lambda: Faults().delay("a", -1, -1), "0 <= jitter"),
        (lambda: Faults().loss("a", 100.1), "0% to 100%"),
        (lambda: parse_duration_ms("100"), "no duration like"),
        (lambda: parse_duration_ms("1m"), "no duration like"),
        (lambda: parse_duration_ms("0.4ms"), "no whole number of milliseconds"),
        (lambda: parse_percent("5"), "no share like"),
        (lambda: parse_percent("-5%"), "no share like"),
    ],
)
def test_what_makes_no_sense_is_refused(make: object, why: str) -> None:
    assert callable(make)
    with pytest.raises(DevnetError, match=why):
        make()


def test_what_people_type() -> None:
    assert parse_groups(" a,b | c , d ") == [["a", "b"], ["c", "d"]]
    assert parse_groups("a||b") == [["a"], [], ["b"]]
    assert [parse_duration_ms(text) for text in ("100ms", "0.2s", "-10s", "0ms")] == [100, 200, -10_000, 0]
    assert [parse_percent(text) for text in ("5%", "0.25%", "100%")] == [5, 0.25, 100]


def test_what_people_read() -> None:
    assert str(Faults()) == "none"
    faults = Faults().oneway("a", "b").delay("c", 100, 20).loss("d", 5)
    assert str(faults) == "a -x-> b, c delayed 100 ms ± 20 ms, d loses 5%"
    assert str(Faults().partition([["a"], ["b"]]).oneway("c", "a")) == "a <-x-> b, c -x-> a"
