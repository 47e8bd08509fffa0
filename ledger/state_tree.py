"""The state's root and its proofs: a compact sparse Merkle tree, stored as 16-way pages.

The tree is binary and 256 levels deep in principle. A state key stands at the leaf that the bits of its tree
key, SHA-256 of the tagged key, lead to, most significant first. Three rules give every subtree its hash:

    no leaf in it        EMPTY, 32 zero bytes
    exactly one leaf     that leaf's hash, H(leaf tag ‖ tree key ‖ SHA-256 of the value)
    more                 H(inner tag ‖ left ‖ right)

So the depth is logarithmic, the root depends on the contents alone and never on the order of changes, and a
proof is the siblings down to the one leaf, or the empty place, where a key's bits end. As the leaf commits to
the whole tree key, another key's leaf found there proves absence.

A page holds four levels: sixteen slots, each empty, a leaf (nothing else lies below it), or the hash of a
child page. Its key is the path of nibbles from the root, a byte for each. Every page but the first has at
least two leaves below it; where deletion leaves one, that leaf moves up and the page goes. In memory a page
also keeps the hashes of its four levels, so that a change costs the hashes on its way up and no others.

    format 1 (1 byte) ‖ leaf slots (16-bit mask) ‖ child slots (16-bit mask)
    ‖ for each slot in use, ascending: a leaf's tree key and value hash (64 bytes), or a child's hash (32)

Slot 0 is the lowest bit of a mask. Numbers are big-endian.
"""

import hashlib
import struct
from collections.abc import Callable, Mapping
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from ledger.errors import MissingNode, Rejection
from ledger.keys import HASH_BYTES, Hash, sha256, sha256_after, tag

EMPTY = bytes(HASH_BYTES)
DEPTH_MAX = 256
PAGE_FORMAT = 1

_SLOTS = 16
_NIBBLE = [bytes((number,)) for number in range(_SLOTS)]
_HEADER = struct.Struct(">BHH")
_LEAF_BYTES = 2 * HASH_BYTES

_key_hash = sha256_after(tag("state-key"))
_leaf_hash = sha256_after(tag("state-leaf"))
_inner_hash = sha256_after(tag("state-inner"))
_begin_inner = hashlib.sha256(tag("state-inner")).copy
_value_hash = hashlib.sha256

# What stands in a slot, as a page's bytes hold it: nothing, a leaf (tree key and value hash), or a child's hash.
_Slot = bytes
# One change: the tree key, and the leaf that shall stand there or nothing.
_Change = tuple[bytes, _Slot]


class Page:
    """One page, never changed once made.

    `nodes` are the hashes of its subtrees as a heap: 1 is the page itself, 2k and 2k + 1 lie below k, the slots
    are 16 to 31. Bit k of `crowded` says that more than one leaf lies below node k, bit n of `leaves` that slot n
    holds a leaf.
    """

    __slots__ = ("crowded", "hash", "leaves", "nodes", "slots")

    def __init__(self, slots: list[_Slot], nodes: list[bytes], crowded: int, leaves: int) -> None:
        self.slots: Final = slots
        self.nodes: Final = nodes
        self.hash: Final = nodes[1]
        self.crowded: Final = crowded
        self.leaves: Final = leaves

    def __eq__(self, other: object) -> bool:
        """The slots say everything; the nodes follow."""
        return isinstance(other, Page) and self.slots == other.slots

    def __hash__(self) -> int:
        return hash(self.hash)

    def encode(self) -> bytes:
        # A slot is crowded exactly where it holds a child.
        return _HEADER.pack(PAGE_FORMAT, self.leaves, self.crowded >> _SLOTS) + b"".join(self.slots)


ReadPage = Callable[[bytes], Page | None]


class OtherLeaf(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The leaf of another key, met where the key in question would be."""

    key_hash: Hash
    value_hash: Hash


class StateProof(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The siblings from the root downwards. `other` is None unless absence is shown by another key's leaf."""

    other: OtherLeaf | None
    siblings: Annotated[list[Hash], Meta(max_length=DEPTH_MAX)]


def tree_key(key: str) -> bytes:
    """The 32 bytes whose bits are the key's place in the tree."""
    return _key_hash(key.encode("utf-8"))


def decode_page(data: bytes) -> Page:
    """Raises Rejection("bad_page") unless `data` is exactly what `Page.encode` gives for some slots."""
    if len(data) <= _HEADER.size or data[0] != PAGE_FORMAT:
        raise Rejection("bad_page", "not a state page of a known format")
    _, leaf_mask, child_mask = _HEADER.unpack_from(data)
    expected = _HEADER.size + _LEAF_BYTES * leaf_mask.bit_count() + HASH_BYTES * child_mask.bit_count()
    if leaf_mask & child_mask or len(data) != expected:
        raise Rejection("bad_page", "masks and length of a state page disagree")
    slots: list[tuple[int, _Slot]] = []
    offset = _HEADER.size
    for number in range(_SLOTS):
        if (leaf_mask | child_mask) >> number & 1:
            end = offset + (_LEAF_BYTES if leaf_mask >> number & 1 else HASH_BYTES)
            slots.append((number, data[offset:end]))
            offset = end
    return _page(_NO_PAGE, slots)


def root(read_page: ReadPage) -> bytes:
    """The root of the stored tree; EMPTY where nothing is stored."""
    page = read_page(b"")
    return EMPTY if page is None else page.hash


def update(read_page: ReadPage, changes: Mapping[str, bytes | None]) -> tuple[bytes, dict[bytes, Page | None]]:
    """Put values at, or with None delete, state keys. Returns the new root, and what changes among the pages:
    the page to put, None to delete.

    One pass for the whole batch: a page above several changed keys is read, hashed and written once. A page
    that comes out as it went in is not returned. Raises MissingNode, or Rejection("bad_page").
    """
    ordered: list[_Change] = []
    for key, value in changes.items():
        place = _key_hash(key.encode())
        ordered.append((place, b"" if value is None else place + _value_hash(value).digest()))
    ordered.sort()
    pages: dict[bytes, Page | None] = {}
    before = read_page(b"")
    after = _changed(read_page, b"", before or _NO_PAGE, ordered, pages)
    if not any(after.slots):
        after = _NO_PAGE
        if before is not None:
            pages[b""] = None
    elif after is not before:
        pages[b""] = after
    return after.hash, pages


def prove(read_page: ReadPage, key: str) -> StateProof:
    """The proof of what the stored tree holds at `key`, its value or nothing. Raises as `update`."""
    place = tree_key(key)
    siblings: list[bytes] = []
    page = read_page(b"") or _NO_PAGE
    for depth in range(DEPTH_MAX // 4):
        terminal = _descend(page, _nibble(place, depth), siblings)
        if len(terminal) != HASH_BYTES:
            other = None
            if terminal and terminal[:HASH_BYTES] != place:
                other = OtherLeaf(terminal[:HASH_BYTES], terminal[HASH_BYTES:])
            return StateProof(other=other, siblings=siblings)
        page = _child(read_page, _nibbles(place, depth + 1), terminal)
    raise MissingNode(f"state pages end below {place.hex()}")


def verify_proof(state_root: bytes, key: str, value: bytes | None, proof: StateProof) -> bool:
    """Whether the state with this root holds `value` at `key`, or with None holds nothing there."""
    place = tree_key(key)
    depth = len(proof.siblings)
    if depth > DEPTH_MAX:
        return False
    other = proof.other
    if value is not None:
        if other is not None:
            return False
        digest = _leaf_hash(place + sha256(value))
    elif other is None:
        digest = EMPTY
    else:
        # That it lies on this key's way is shown by folding along this key's bits.
        if other.key_hash == place:
            return False
        digest = _leaf_hash(other.key_hash + other.value_hash)
    bits = int.from_bytes(place, "big")
    for level in range(depth - 1, -1, -1):
        sibling = proof.siblings[level]
        is_right = bits >> (DEPTH_MAX - 1 - level) & 1
        digest = _inner_hash(sibling + digest if is_right else digest + sibling)
    return digest == state_root


def _changed(
    read_page: ReadPage,
    path: bytes,
    page: Page,
    changes: list[_Change],
    pages: dict[bytes, Page | None],
) -> Page:
    """The page at `path` after ascending changes, all below it; what changes below it goes into `pages`."""
    depth = len(path)
    half, shift = depth >> 1, 0 if depth & 1 else 4
    touched: list[tuple[int, _Slot]] = []
    start, end = 0, len(changes)
    while start < end:
        place, after = changes[start]
        number = place[half] >> shift & 15
        stop = start + 1
        while stop < end and changes[stop][0][half] >> shift & 15 == number:
            stop += 1
        before = page.slots[number]
        if len(before) == HASH_BYTES:
            below = path + _NIBBLE[number]
            child = _child(read_page, below, before)
            after = _settled(below, child, _changed(read_page, below, child, changes[start:stop], pages), pages)
        elif before or stop - start > 1:
            leaves = _merge(before, changes[start:stop])
            after = leaves[0][1] if leaves else b""
            if len(leaves) > 1:
                below = path + _NIBBLE[number]
                after = _settled(below, _NO_PAGE, _changed(read_page, below, _NO_PAGE, leaves, pages), pages)
        if after != before:
            touched.append((number, after))
        start = stop
    return _page(page, touched) if touched else page


def _child(read_page: ReadPage, path: bytes, digest: bytes) -> Page:
    """The page at `path`, which is the one that its parent names by its hash."""
    child = read_page(path)
    if child is None:
        raise MissingNode(f"state page {path.hex()}")
    if child.hash != digest:
        raise Rejection("bad_page", f"state page {path.hex()} is not the one that its parent names")
    return child


def _settled(path: bytes, before: Page, after: Page, pages: dict[bytes, Page | None]) -> _Slot:
    """Note how a page below the first changed; answer with what its parent's slot becomes."""
    if not after.crowded & 2:
        # One leaf is left, or none: it moves up, and the page goes.
        pages[path] = None
        return b"".join(after.slots)
    if after is not before:
        pages[path] = after
    return after.hash


def _merge(present: _Slot, changes: list[_Change]) -> list[_Change]:
    """The leaves that stand below a slot without a page, once changed; ascending."""
    leaves = [change for change in changes if change[1]]
    key = present[:HASH_BYTES]
    if present and all(place != key for place, _ in changes):
        leaves.append((key, present))
        leaves.sort()
    return leaves


def _page(before: Page, touched: list[tuple[int, _Slot]]) -> Page:
    """The page `before` with other slots where it is `touched`, ascending."""
    slots, nodes, crowded, leaves = before.slots.copy(), before.nodes.copy(), before.crowded, before.leaves
    ahead = len(touched)
    for number, slot in touched:
        node = _SLOTS + number
        # Up to the page's own node, or to one that the next touched slot will pass too.
        ahead -= 1
        stop = node >> (number ^ touched[-ahead][0]).bit_length() if ahead else 0
        if len(slots[number]) == HASH_BYTES == len(slot):
            # A child stays a child: whatever lies above it stays crowded.
            slots[number] = nodes[node] = slot
            while (node := node >> 1) != stop:
                hasher = _begin_inner()
                hasher.update(nodes[2 * node] + nodes[2 * node + 1])
                nodes[node] = hasher.digest()
            continue
        slots[number] = slot
        if len(slot) == HASH_BYTES:
            nodes[node] = slot
            crowded |= 1 << node
            leaves &= ~(1 << number)
        elif slot:
            nodes[node] = _leaf_hash(slot)
            crowded &= ~(1 << node)
            leaves |= 1 << number
        else:
            nodes[node] = EMPTY
            crowded &= ~(1 << node)
            leaves &= ~(1 << number)
        while (node := node >> 1) != stop:
            left, right = nodes[2 * node], nodes[2 * node + 1]
            # EMPTY is compared by identity: the only one that arises in here, and cheaper.
            if left is EMPTY and not crowded >> 2 * node + 1 & 1:
                nodes[node] = right
                crowded &= ~(1 << node)
            elif right is EMPTY and not crowded >> 2 * node & 1:
                nodes[node] = left
                crowded &= ~(1 << node)
            else:
                # `_inner_hash`, spelt out: nearly all hashes are made here and above.
                hasher = _begin_inner()
                hasher.update(left + right)
                nodes[node] = hasher.digest()
                crowded |= 1 << node
    return Page(slots, nodes, crowded, leaves)


def _descend(page: Page, number: int, siblings: list[bytes]) -> _Slot:
    """Walk the four levels of a page towards a slot, adding siblings; answer with what the walk ends at."""
    node, nodes = 1, page.nodes
    for level in (3, 2, 1, 0):
        if not page.crowded >> node & 1:
            # At most one leaf lies below: all that its slots hold together.
            first = (node << level + 1) - _SLOTS
            return b"".join(page.slots[first : first + (2 << level)])
        node = 2 * node + (number >> level & 1)
        siblings.append(nodes[node ^ 1])
    return page.slots[number]


def _nibble(place: bytes, depth: int) -> int:
    return place[depth >> 1] >> (0 if depth & 1 else 4) & 15


def _nibbles(place: bytes, count: int) -> bytes:
    return bytes(_nibble(place, depth) for depth in range(count))


_NO_PAGE = Page([b""] * _SLOTS, [EMPTY] * (2 * _SLOTS), crowded=0, leaves=0)
