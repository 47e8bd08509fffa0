"""RFC 9162 Merkle trees: over a block's transactions and results, and over the history of all blocks.

A leaf's hash is SHA-256(0x00 ‖ data), an inner node's SHA-256(0x01 ‖ left ‖ right), the empty tree's
SHA-256(""). A tree of n > 1 leaves splits at the largest power of two below n (RFC 9162, section 2.1.1).
With five leaves:

    level 3              root
                        /    \\
    level 2         (2,0)     \\
                    /   \\      \\
    level 1     (1,0)   (1,1)   \\
                /  \\    /  \\    |
    level 0     0   1   2   3   4

The history log is kept as its *complete* subtrees, named (level, index): the one over the leaves
[index * 2^level, (index + 1) * 2^level). A complete subtree never changes, so the log only ever gains nodes,
and any root or path of any size up to the newest is found in O(log n) reads.
"""

from collections.abc import Sequence
from typing import Protocol

from ledger.errors import MissingNode
from ledger.keys import sha256, sha256_after

EMPTY_ROOT = sha256()
# Enough for any log that fits the heights we allow (2^53).
PATH_LENGTH_MAX = 64

NodeName = tuple[int, int]


class LogNodes(Protocol):
    """Where the complete subtrees of an append-only log are kept."""

    def get(self, level: int, index: int) -> bytes | None:
        """The 32-byte hash of the complete subtree, or None if it was never stored."""
        ...


leaf_hash = sha256_after(b"\x00")
_node_hash = sha256_after(b"\x01")


def node_hash(left: bytes, right: bytes) -> bytes:
    return _node_hash(left + right)


def root_of(leaves: Sequence[bytes]) -> bytes:
    """The Merkle tree hash of the leaves' data, in order."""
    if not leaves:
        return EMPTY_ROOT
    level = [leaf_hash(leaf) for leaf in leaves]
    while len(level) > 1:
        level = _level_above(level)
    return level[0]


def inclusion_path(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """The siblings from leaf `index` up to the root (RFC 9162, section 2.1.3.1). 0 <= index < len(leaves)."""
    if not 0 <= index < len(leaves):
        raise IndexError(f"no leaf {index} among {len(leaves)}")
    level = [leaf_hash(leaf) for leaf in leaves]
    path = []
    while len(level) > 1:
        sibling = index ^ 1
        if sibling < len(level):
            path.append(level[sibling])
        level = _level_above(level)
        index >>= 1
    return path


def verify_inclusion(leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> bool:
    """Whether the tree of `size` leaves with this root has the data `leaf` at `index` (RFC 9162, 2.1.3.2)."""
    if not 0 <= index < size:
        return False
    position, last = index, size - 1
    digest = leaf_hash(leaf)
    for sibling in path:
        if last == 0:
            return False
        if position & 1 or position == last:
            digest = node_hash(sibling, digest)
            # A right edge has no sibling on the levels where its number is even: pass over them.
            while not position & 1:
                position >>= 1
                last >>= 1
        else:
            digest = node_hash(digest, sibling)
        position >>= 1
        last >>= 1
    return last == 0 and digest == root


def append(size: int, leaf: bytes, nodes: LogNodes) -> list[tuple[NodeName, bytes]]:
    """The complete subtrees that a log of `size` leaves gains when a leaf with the hash `leaf` is appended.

    `leaf` is a `leaf_hash`. Reads and returns as many nodes as `size` ends in one bits, and one more.
    Raises MissingNode.
    """
    level, index, digest = 0, size, leaf
    gained = [((level, index), digest)]
    while index & 1:
        digest = node_hash(_node(nodes, level, index - 1), digest)
        level, index = level + 1, index >> 1
        gained.append(((level, index), digest))
    return gained


def root(size: int, nodes: LogNodes) -> bytes:
    """The root of the first `size` leaves of the log. Raises MissingNode."""
    return _range_root(0, size, nodes) if size else EMPTY_ROOT


def path(index: int, size: int, nodes: LogNodes) -> list[bytes]:
    """The inclusion path of leaf `index` in the first `size` leaves of the log. Raises MissingNode."""
    if not 0 <= index < size:
        raise IndexError(f"no leaf {index} among {size}")
    start, count = 0, size
    downward = []
    while count > 1:
        left = _left_size(count)
        if index < start + left:
            downward.append(_range_root(start + left, count - left, nodes))
            count = left
        else:
            downward.append(_range_root(start, left, nodes))
            start, count = start + left, count - left
    downward.reverse()
    return downward


def _range_root(start: int, count: int, nodes: LogNodes) -> bytes:
    """The hash over the leaves [start, start + count); `start` is a multiple of a power of two >= count."""
    subtrees = []
    while count:
        level = count.bit_length() - 1
        subtrees.append(_node(nodes, level, start >> level))
        start, count = start + (1 << level), count - (1 << level)
    digest = subtrees.pop()
    while subtrees:
        digest = node_hash(subtrees.pop(), digest)
    return digest


def _left_size(count: int) -> int:
    """The largest power of two below `count` (> 1)."""
    return 1 << ((count - 1).bit_length() - 1)


def _level_above(level: list[bytes]) -> list[bytes]:
    """Hash neighbours in pairs; an odd last node moves up as it is, which gives the split of the RFC."""
    above = [_node_hash(left + right) for left, right in zip(level[::2], level[1::2], strict=False)]
    if len(level) & 1:
        above.append(level[-1])
    return above


def _node(nodes: LogNodes, level: int, index: int) -> bytes:
    digest = nodes.get(level, index)
    if digest is None:
        raise MissingNode(f"log node at level {level}, index {index}")
    return digest
