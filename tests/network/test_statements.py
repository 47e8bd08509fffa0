"""What each node holds from another is shown to it when they connect, before anything else is said."""

import pytest

from network.port import AcknowledgementShown, HeaderShown, Statements, VoteShown
from tests.network.peers import SETTINGS, Recorder, member, network

S, H = b"s" * 64, b"h" * 32
OF_B = Statements(VoteShown(3, "a", S), AcknowledgementShown(3, 8, H, S), HeaderShown(b"header" * 2_000, S), 41)
OF_A = Statements(vote=VoteShown(2, "b", S))


@pytest.mark.asyncio
async def test_both_sides_of_a_link_are_shown_what_the_other_holds() -> None:
    """One link is enough for both: a node that came back need not wait until the other dials it again."""
    at_a, at_b = Recorder(held={"b": OF_B}), Recorder(held={"a": OF_A})
    async with (
        network("a", at_a, {"b": member("b")}) as a,
        network("b", at_b, {"a": member("a", a.address)}, settings=SETTINGS),
    ):
        await at_a.until(lambda: at_a.shown)
        await at_b.until(lambda: at_b.shown)
        assert at_a.shown[0] == ("b", OF_A)
        assert at_b.shown[0] == ("a", OF_B)
        assert not at_a.connected


@pytest.mark.asyncio
async def test_nothing_held_is_shown_too() -> None:
    at_a, at_b = Recorder(), Recorder()
    async with network("a", at_a, {"b": member("b")}) as a, network("b", at_b, {"a": member("a", a.address)}):
        await at_a.until(lambda: at_a.shown)
        assert at_a.shown[0] == ("b", Statements())


@pytest.mark.asyncio
async def test_a_node_of_another_chain_shows_nothing_that_is_taken() -> None:
    at_a, at_b = Recorder(), Recorder(held={"a": OF_A})
    async with (
        network("a", at_a, {"b": member("b")}) as a,
        network("b", at_b, {"a": member("a", a.address)}, chain=b"x" * 32),
    ):
        await at_a.until(lambda: at_a.counts["connection wrong_chain"])
        assert not at_a.shown
