"""RFC 9162 trees, against the definition in the RFC and against published roots."""

from collections.abc import Sequence
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger import merkle
from ledger.errors import MissingNode

# The eight leaves and the roots of their first n that accompany the reference implementation of RFC 6962,
# whose tree is that of RFC 9162.
LEAVES = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def numbered(count: int) -> list[bytes]:
    return [b"leaf %d" % number for number in range(count)]


def defined_root(leaves: Sequence[bytes]) -> bytes:
    """MTH of RFC 9162, section 2.1.1, word for word."""
    if not leaves:
        return sha256(b"").digest()
    if len(leaves) == 1:
        return sha256(b"\0" + leaves[0]).digest()
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return sha256(b"\1" + defined_root(leaves[:split]) + defined_root(leaves[split:])).digest()


def defined_path(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """PATH of RFC 9162, section 2.1.3.1, word for word."""
    if len(leaves) == 1:
        return []
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    if index < split:
        return [*defined_path(leaves[:split], index), defined_root(leaves[split:])]
    return [*defined_path(leaves[split:], index - split), defined_root(leaves[:split])]


class Nodes:
    """A log's nodes in memory; counts how often it is asked."""

    def __init__(self) -> None:
        self.stored: dict[tuple[int, int], bytes] = {}
        self.reads = 0

    def get(self, level: int, index: int) -> bytes | None:
        self.reads += 1
        return self.stored.get((level, index))


def log_of(leaves: Sequence[bytes]) -> Nodes:
    nodes = Nodes()
    for size, leaf in enumerate(leaves):
        for name, digest in merkle.append(size, merkle.leaf_hash(leaf), nodes):
            assert name not in nodes.stored
            nodes.stored[name] = digest
    return nodes


@pytest.mark.parametrize("size", range(9))
def test_published_roots(size: int) -> None:
    assert merkle.root_of(LEAVES[:size]).hex() == ROOTS[size]


def test_roots_and_paths_are_the_defined_ones_at_every_size() -> None:
    for size in range(40):
        leaves = numbered(size)
        root = merkle.root_of(leaves)
        assert root == defined_root(leaves)
        for index in range(size):
            path = merkle.inclusion_path(leaves, index)
            assert path == defined_path(leaves, index)
            assert merkle.verify_inclusion(leaves[index], index, size, path, root)


def test_a_path_proves_its_own_leaf_and_place_only() -> None:
    for size in range(1, 20):
        leaves = numbered(size)
        root = merkle.root_of(leaves)
        for index in range(size):
            path = merkle.inclusion_path(leaves, index)
            proven = [
                (leaf, place)
                for leaf in leaves
                for place in range(-1, size + 2)
                if merkle.verify_inclusion(leaf, place, size, path, root)
            ]
            assert proven == [(leaves[index], index)]


def test_a_longer_shorter_or_changed_path_proves_nothing() -> None:
    for size in range(1, 20):
        leaves = numbered(size)
        root = merkle.root_of(leaves)
        for index, leaf in enumerate(leaves):
            path = merkle.inclusion_path(leaves, index)
            others = [[*path, bytes(32)], [bytes(32), *path], [*path, root]]
            for position in range(len(path)):
                others.append(path[:position] + path[position + 1 :])
                others.append([*path[:position], bytes(32), *path[position + 1 :]])
            for other in others:
                assert not merkle.verify_inclusion(leaf, index, size, other, root)
            assert not merkle.verify_inclusion(leaf, index, size, path, bytes(32))


def test_an_inner_node_is_no_leaf() -> None:
    left, right = merkle.leaf_hash(b"a"), merkle.leaf_hash(b"b")
    root = merkle.root_of([b"a", b"b"])
    assert not merkle.verify_inclusion(left + right, 0, 1, [], root)
    assert merkle.root_of([left + right]) != root


def test_no_path_outside_the_tree() -> None:
    nodes = log_of(numbered(3))
    for index in (-1, 3):
        with pytest.raises(IndexError):
            merkle.inclusion_path(numbered(3), index)
        with pytest.raises(IndexError):
            merkle.path(index, 3, nodes)


def test_the_log_has_every_earlier_root_and_path() -> None:
    leaves = numbered(70)
    nodes = log_of(leaves)
    for size in range(71):
        assert merkle.root(size, nodes) == merkle.root_of(leaves[:size])
        for index in range(0, size, 3):
            assert merkle.path(index, size, nodes) == merkle.inclusion_path(leaves[:size], index)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.binary(max_size=8), min_size=1, max_size=200), st.data())
def test_any_leaf_of_any_log_is_proven(leaves: list[bytes], data: st.DataObject) -> None:
    nodes = log_of(leaves)
    size = data.draw(st.integers(1, len(leaves)))
    index = data.draw(st.integers(0, size - 1))
    path = merkle.path(index, size, nodes)
    assert merkle.verify_inclusion(leaves[index], index, size, path, merkle.root(size, nodes))


def test_the_log_reads_few_nodes() -> None:
    size = 1_000
    nodes = log_of(numbered(size))
    # An append reads as many as its size ends in one bits: less than one on average.
    assert nodes.reads < size
    for index in (0, 499, 511, 512, size - 1):
        nodes.reads = 0
        merkle.path(index, size, nodes)
        assert nodes.reads <= 2 * size.bit_length()
    nodes.reads = 0
    merkle.root(size, nodes)
    assert nodes.reads == size.bit_count()


def test_a_lost_node_is_named() -> None:
    nodes = log_of(numbered(6))
    del nodes.stored[2, 0]
    with pytest.raises(MissingNode, match="level 2, index 0"):
        merkle.root(6, nodes)
    with pytest.raises(MissingNode, match="level 2, index 0"):
        merkle.path(5, 6, nodes)
    with pytest.raises(MissingNode, match="level 0, index 6"):
        merkle.append(7, bytes(32), nodes)
