"""What a proposer writes into its headers: executed height and time never fall, whatever this node lost."""

import pytest

from consensus.messages import Configuration, Slot
from ledger.block import Header, header_of
from ledger.keys import SigningKey, sha256
from ledger.membership import with_learner
from node.inspector import Parent, Roots
from node.maker import BlockMaker, Head
from node.membership import Place
from tests.node.cluster import hospital, make_genesis, node_seed

PARENT_HASH = sha256(b"parent")
CONFIGURATION = make_genesis(1).configuration()
PARENT = Parent(
    time_ms=5_000,
    executed_height=7,
    roots=Roots(sha256(b"history of 7"), sha256(b"state of 7")),
    place=Place(3, CONFIGURATION),
    digest=CONFIGURATION.digest(),
)


def sealed_header(head: Head, now_ms: int) -> Header:
    maker = BlockMaker(
        make_genesis(1),
        hospital(0),
        SigningKey(node_seed(0)),
        parent_of=lambda height, block_hash: {(9, PARENT_HASH): PARENT}[height, block_hash],
        next_change=lambda configuration: with_learner(configuration, "hospital-8"),
        head=lambda: head,
        now_ms=lambda: now_ms,
        sealed=lambda block: None,
    )
    data, _ = maker.seal(Slot(10, 3, PARENT_HASH, Configuration((hospital(0),))), None)
    return header_of(data)[0]


@pytest.mark.parametrize("executed_height", [7, 8, 9])
def test_a_header_states_what_its_maker_executed(executed_height: int) -> None:
    own = Roots(sha256(b"own history"), sha256(b"own state"))
    header = sealed_header(Head(executed_height, own), now_ms=6_000)
    assert (header.executed_height, header.history_root, header.state_root) == (
        executed_height,
        own.history,
        own.state,
    )


def test_a_maker_that_executed_less_than_the_parent_states_repeats_the_parent() -> None:
    """As after a restart that lost the last results: followers would refuse a block whose executed height falls."""
    header = sealed_header(Head(5, Roots(sha256(b"history of 5"), sha256(b"state of 5"))), now_ms=6_000)
    assert (header.executed_height, header.history_root, header.state_root) == (
        7,
        PARENT.roots.history,
        PARENT.roots.state,
    )


@pytest.mark.parametrize(("now_ms", "time_ms"), [(6_000, 6_000), (5_001, 5_001), (5_000, 5_001), (0, 5_001)])
def test_block_time_never_falls(now_ms: int, time_ms: int) -> None:
    assert sealed_header(Head(7, PARENT.roots), now_ms).time == time_ms
