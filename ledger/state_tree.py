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
least two leaves below it; where deletion leaves one, that leaf moves up and the page goes.

    format 1 (1 byte) ‖ leaf slots (16-bit mask) ‖ child slots (16-bit mask)
    ‖ for each slot in use, ascending: a leaf's tree key and value hash (64 bytes), or a child's hash (32)

Slot 0 is the lowest bit of a mask. Numbers are big-endian.
"""

from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta

from ledger.errors import MissingNode, Rejection
from ledger.keys import Hash, tag

EMPTY = bytes(32)
DEPTH_MAX = 256
PAGE_FORMAT = 1

_KEY = tag("state-key")
_LEAF = tag("state-leaf")
_INNER = tag("state-inner")
_SLOTS = 16
_HEADER_BYTES = 5

ReadPage = Callable[[bytes], bytes | None]


class _Leaf(NamedTuple):
    key: bytes
    value: bytes
    hash: bytes


# What stands in a slot: nothing, the only leaf below it, or the hash of a child page.
_Slot = _Leaf | bytes | None
# One change: the tree key, and the leaf that shall stand there or None.
_Change = tuple[bytes, _Leaf | None]


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
    return sha256(_KEY + key.encode("utf-8")).digest()


def root(read_page: ReadPage) -> bytes:
    """The root of the stored tree; EMPTY where nothing is stored."""
    data = read_page(b"")
    return EMPTY if data is None else _fold(_decode_page(data))


def update(read_page: ReadPage, changes: Mapping[str, bytes | None]) -> tuple[bytes, dict[bytes, bytes | None]]:
    """Put values at, or with None delete, state keys. Returns the new root, and what changes among the pages:
    bytes to put, None to delete.

    One pass for the whole batch: a page above several changed keys is read, hashed and written once. A page
    that comes out as it went in is not returned. Raises MissingNode, or Rejection("bad_page").
    """
    ordered: list[_Change] = []
    for key, value in changes.items():
        place = tree_key(key)
        ordered.append((place, None if value is None else _leaf(place, sha256(value).digest())))
    ordered.sort(key=_place)
    pages: dict[bytes, bytes | None] = {}
    slots, before = _read(read_page, b"")
    _change(read_page, b"", slots, ordered, pages)
    if any(slot is not None for slot in slots):
        after = _encode_page(slots)
        if after != before:
            pages[b""] = after
    elif before is not None:
        pages[b""] = None
    return _fold(slots), pages


def prove(read_page: ReadPage, key: str) -> StateProof:
    """The proof of what the stored tree holds at `key`, its value or nothing. Raises as `update`."""
    place = tree_key(key)
    siblings: list[bytes] = []
    for depth in range(DEPTH_MAX // 4):
        path = _nibbles(place, depth)
        slots, before = _read(read_page, path)
        if before is None and depth:
            raise MissingNode(f"state page {path.hex()}")
        terminal = _descend(slots, _nibble(place, depth), siblings)
        if not isinstance(terminal, bytes):
            other = None if terminal is None or terminal.key == place else OtherLeaf(terminal.key, terminal.value)
            return StateProof(other=other, siblings=siblings)
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
        digest = _leaf(place, sha256(value).digest()).hash
    elif other is None:
        digest = EMPTY
    else:
        # That it lies on this key's way is shown by folding along this key's bits.
        if other.key_hash == place:
            return False
        digest = _leaf(other.key_hash, other.value_hash).hash
    bits = int.from_bytes(place, "big")
    for level in range(depth - 1, -1, -1):
        sibling = proof.siblings[level]
        if bits >> (DEPTH_MAX - 1 - level) & 1:
            digest = sha256(_INNER + sibling + digest).digest()
        else:
            digest = sha256(_INNER + digest + sibling).digest()
    return digest == state_root


def _change(
    read_page: ReadPage,
    path: bytes,
    slots: list[_Slot],
    changes: list[_Change],
    pages: dict[bytes, bytes | None],
) -> None:
    """Apply ascending changes, all below the page at `path`, to its slots and to the pages below it."""
    depth = len(path)
    half, shift = depth >> 1, 0 if depth & 1 else 4
    start, end = 0, len(changes)
    while start < end:
        nibble = changes[start][0][half] >> shift & 15
        stop = start + 1
        while stop < end and changes[stop][0][half] >> shift & 15 == nibble:
            stop += 1
        slot = slots[nibble]
        below = path + bytes((nibble,))
        if isinstance(slot, bytes):
            child, before = _read(read_page, below)
            if before is None:
                raise MissingNode(f"state page {below.hex()}")
            slots[nibble] = _settle(read_page, below, child, changes[start:stop], pages, before)
        else:
            leaves = _merge(slot, changes[start:stop])
            if len(leaves) > 1:
                slots[nibble] = _settle(read_page, below, [None] * _SLOTS, leaves, pages, None)
            else:
                slots[nibble] = leaves[0][1] if leaves else None
        start = stop


def _settle(
    read_page: ReadPage,
    path: bytes,
    slots: list[_Slot],
    changes: list[_Change],
    pages: dict[bytes, bytes | None],
    before: bytes | None,
) -> _Slot:
    """Change a page below the first; answer with what its parent's slot becomes."""
    _change(read_page, path, slots, changes, pages)
    used = [slot for slot in slots if slot is not None]
    if not used or (len(used) == 1 and not isinstance(used[0], bytes)):
        pages[path] = None
        return used[0] if used else None
    after = _encode_page(slots)
    if after != before:
        pages[path] = after
    return _fold(slots)


def _merge(present: _Leaf | None, changes: list[_Change]) -> list[_Change]:
    """The leaves that stand below a slot without a page, once changed; ascending."""
    leaves = [change for change in changes if change[1] is not None]
    if present is not None and all(place != present.key for place, _ in changes):
        leaves.append((present.key, present))
        leaves.sort(key=_place)
    return leaves


def _place(change: _Change) -> bytes:
    return change[0]


def _fold(slots: list[_Slot]) -> bytes:
    """The hash of a page: its sixteen slots, folded up four levels."""
    return _levels(slots)[-1][0][0]


def _levels(slots: list[_Slot]) -> list[tuple[list[bytes], list[bool]]]:
    """A page's subtrees, slots first, root last: their hashes, and whether each has at most one leaf."""
    hashes = [EMPTY if slot is None else slot if isinstance(slot, bytes) else slot.hash for slot in slots]
    single = [not isinstance(slot, bytes) for slot in slots]
    levels = [(hashes, single)]
    while len(hashes) > 1:
        above, single_above = [], []
        for left in range(0, len(hashes), 2):
            a, b = hashes[left], hashes[left + 1]
            # EMPTY is compared by identity: the only one that arises in here, and cheaper.
            if a is EMPTY and single[left + 1]:
                above.append(b)
                single_above.append(True)
            elif b is EMPTY and single[left]:
                above.append(a)
                single_above.append(True)
            else:
                above.append(sha256(_INNER + a + b).digest())
                single_above.append(False)
        hashes, single = above, single_above
        levels.append((hashes, single))
    return levels


def _descend(slots: list[_Slot], nibble: int, siblings: list[bytes]) -> _Slot:
    """Walk the four levels of a page towards `nibble`, adding siblings; answer with what the walk ends at."""
    levels = _levels(slots)
    for level in range(4, 0, -1):
        position = nibble >> level
        if levels[level][1][position]:
            width = 1 << level
            inside = slots[position * width : (position + 1) * width]
            return next((slot for slot in inside if slot is not None), None)
        siblings.append(levels[level - 1][0][(nibble >> level - 1) ^ 1])
    return slots[nibble]


def _leaf(place: bytes, value_hash: bytes) -> _Leaf:
    return _Leaf(place, value_hash, sha256(_LEAF + place + value_hash).digest())


def _nibble(place: bytes, depth: int) -> int:
    return place[depth >> 1] >> (0 if depth & 1 else 4) & 15


def _nibbles(place: bytes, count: int) -> bytes:
    return bytes(_nibble(place, depth) for depth in range(count))


def _read(read_page: ReadPage, path: bytes) -> tuple[list[_Slot], bytes | None]:
    data = read_page(path)
    return ([None] * _SLOTS if data is None else _decode_page(data)), data


def _encode_page(slots: list[_Slot]) -> bytes:
    leaf_mask = child_mask = 0
    parts = [b""]
    for number, slot in enumerate(slots):
        if slot is None:
            continue
        if isinstance(slot, bytes):
            child_mask |= 1 << number
            parts.append(slot)
        else:
            leaf_mask |= 1 << number
            parts.append(slot.key)
            parts.append(slot.value)
    parts[0] = bytes((PAGE_FORMAT, leaf_mask >> 8, leaf_mask & 255, child_mask >> 8, child_mask & 255))
    return b"".join(parts)


def _decode_page(data: bytes) -> list[_Slot]:
    """Raises Rejection("bad_page") unless `data` is exactly what `_encode_page` gives for some slots."""
    if len(data) <= _HEADER_BYTES or data[0] != PAGE_FORMAT:
        raise Rejection("bad_page", "not a state page of a known format")
    leaf_mask, child_mask = data[1] << 8 | data[2], data[3] << 8 | data[4]
    expected = _HEADER_BYTES + 64 * leaf_mask.bit_count() + 32 * child_mask.bit_count()
    if leaf_mask & child_mask or len(data) != expected:
        raise Rejection("bad_page", "masks and length of a state page disagree")
    slots: list[_Slot] = [None] * _SLOTS
    offset = _HEADER_BYTES
    used = leaf_mask | child_mask
    while used:
        bit = used & -used
        if leaf_mask & bit:
            slots[bit.bit_length() - 1] = _leaf(data[offset : offset + 32], data[offset + 32 : offset + 64])
            offset += 64
        else:
            slots[bit.bit_length() - 1] = data[offset : offset + 32]
            offset += 32
        used ^= bit
    return slots
