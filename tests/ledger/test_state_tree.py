"""The state tree against its definition: one recursive function over a dictionary."""

from hashlib import sha256

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger import state_tree
from ledger.errors import MissingNode, Rejection
from ledger.state_tree import (
    EMPTY,
    OtherLeaf,
    Page,
    StateProof,
    decode_page,
    prove,
    tree_key,
    update,
    verify_proof,
)

State = dict[str, bytes]
Changes = dict[str, bytes | None]


def close_keys(count: int) -> list[str]:
    """Keys whose places in the tree share long beginnings, so that few of them make deep pages."""
    ordered = sorted((f"key/{number}" for number in range(4_000)), key=tree_key)
    places = [int.from_bytes(tree_key(key), "big") for key in ordered]
    gaps = sorted(range(len(places) - 1), key=lambda index: places[index] ^ places[index + 1])
    chosen = {ordered[index + step] for index in gaps[: count // 2] for step in (0, 1)}
    return sorted(chosen)


KEYS = close_keys(24)
ABSENT = [*close_keys(40)[::3], "elsewhere/1", "elsewhere/2", ""]


def defined_root(state: State) -> bytes:
    leaves = {tree_key(key): sha256(value).digest() for key, value in state.items()}

    def subtree(places: list[bytes], depth: int) -> bytes:
        if not places:
            return bytes(32)
        if len(places) == 1:
            return sha256(b"carequorum/1/state-leaf\0" + places[0] + leaves[places[0]]).digest()
        sides: tuple[list[bytes], list[bytes]] = ([], [])
        for place in places:
            sides[place[depth // 8] >> (7 - depth % 8) & 1].append(place)
        left, right = (subtree(side, depth + 1) for side in sides)
        return sha256(b"carequorum/1/state-inner\0" + left + right).digest()

    return subtree(list(leaves), 0)


class Pages:
    """Stored pages, and how often each was read."""

    def __init__(self) -> None:
        self.stored: dict[bytes, bytes] = {}
        self.reads: list[bytes] = []

    def read(self, path: bytes) -> Page | None:
        self.reads.append(path)
        data = self.stored.get(path)
        return None if data is None else decode_page(data)

    def apply(self, changes: Changes) -> bytes:
        root, pages = update(self.read, changes)
        for path, page in pages.items():
            if page is None:
                del self.stored[path]
            else:
                data = page.encode()
                assert self.stored.get(path) != data
                # What a change leaves in memory is what the stored bytes say.
                again = decode_page(data)
                assert (again.slots, again.nodes) == (page.slots, page.nodes)
                assert (again.crowded, again.leaves) == (page.crowded, page.leaves)
                self.stored[path] = data
        assert state_tree.root(self.read) == root
        return root


def built(state: State) -> Pages:
    pages = Pages()
    pages.apply(dict(state))
    return pages


def test_the_empty_tree() -> None:
    assert state_tree.root(Pages().read) == EMPTY == bytes(32)
    assert update(Pages().read, {}) == (EMPTY, {})
    assert update(Pages().read, {"a": None}) == (EMPTY, {})
    assert verify_proof(EMPTY, "a", None, prove(Pages().read, "a"))


def test_one_leaf_is_the_root() -> None:
    pages = built({"a": b"1"})
    expected = sha256(b"carequorum/1/state-leaf\0" + tree_key("a") + sha256(b"1").digest()).digest()
    assert state_tree.root(pages.read) == expected
    assert prove(pages.read, "a") == StateProof(other=None, siblings=[])


def test_a_tree_key_is_the_tagged_hash() -> None:
    assert tree_key("é") == sha256(b"carequorum/1/state-key\0\xc3\xa9").digest()


def test_a_large_tree_has_the_defined_root() -> None:
    state = {f"records/{number}": b"%d" % number for number in range(1_500)}
    pages = built(state)
    assert state_tree.root(pages.read) == defined_root(state)
    assert max(map(len, pages.stored)) >= 2
    changes: Changes = {f"records/{number}": None for number in range(0, 1_500, 3)}
    changes |= {f"records/{number}": b"new" for number in range(1, 1_700, 3)}
    state = {key: value for key, value in (state | changes).items() if value is not None}
    assert pages.apply(changes) == defined_root(state)
    assert pages.stored == built(state).stored


@settings(max_examples=60, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from(KEYS), st.none() | st.binary(max_size=2), max_size=12), max_size=8))
def test_the_stored_tree_depends_on_the_contents_alone(batches: list[Changes]) -> None:
    pages = Pages()
    state: State = {}
    for batch in batches:
        root = pages.apply(batch)
        state = {key: value for key, value in (state | batch).items() if value is not None}
        assert root == defined_root(state)
        assert pages.stored == built(state).stored


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), st.binary(max_size=2)), st.sampled_from(KEYS + ABSENT))
def test_every_key_is_proven_present_or_absent(state: State, key: str) -> None:
    pages = built(state)
    root = state_tree.root(pages.read)
    proof = prove(pages.read, key)
    held = state.get(key)
    assert verify_proof(root, key, held, proof)
    for lie in {None, b"", b"x", b"other"} - {held}:
        assert not verify_proof(root, key, lie, proof)
    assert not verify_proof(bytes(31) + b"\1", key, held, proof)


def test_the_keys_at_hand_make_deep_pages() -> None:
    assert max(map(len, built(dict.fromkeys(KEYS, b"")).stored)) >= 4


def test_deleting_everything_leaves_nothing() -> None:
    pages = built(dict.fromkeys(KEYS, b"value"))
    assert pages.apply(dict.fromkeys(KEYS)) == EMPTY
    assert pages.stored == {}


def test_what_does_not_change_is_not_written() -> None:
    state = {f"records/{number}": b"%d" % number for number in range(500)}
    pages = built(state)
    root = state_tree.root(pages.read)
    assert update(pages.read, {"records/7": b"7", "records/9": b"9"}) == (root, {})
    assert update(pages.read, dict.fromkeys(ABSENT)) == (root, {})


def test_a_batch_reads_and_writes_each_page_once_and_only_on_its_way() -> None:
    pages = built({f"records/{number}": b"%d" % number for number in range(2_000)})
    pages.reads.clear()
    changes: Changes = {f"records/{number}": b"new" for number in range(100)}
    _, written = update(pages.read, changes)
    assert len(pages.reads) == len(set(pages.reads))
    assert set(written) <= set(pages.reads)
    on_the_way = {
        bytes(int(nibble, 16) for nibble in tree_key(key).hex()[:depth]) for key in changes for depth in range(8)
    }
    assert set(pages.reads) <= on_the_way


def test_absence_is_not_proven_by_a_leaf_from_elsewhere() -> None:
    """A present key must not be hidden behind another key's genuine leaf and path."""
    state = {f"records/{number}": b"%d" % number for number in range(50)}
    pages = built(state)
    root = state_tree.root(pages.read)
    hidden = "records/7"
    for key, value in state.items():
        path = prove(pages.read, key)
        stolen = StateProof(OtherLeaf(tree_key(key), sha256(value).digest()), path.siblings)
        assert not verify_proof(root, hidden, None, stolen)


def test_presence_takes_no_other_leaf() -> None:
    pages = built({"a": b"1", "b": b"2"})
    root = state_tree.root(pages.read)
    proof = prove(pages.read, "a")
    assert verify_proof(root, "a", b"1", proof)
    idle = OtherLeaf(tree_key("b"), sha256(b"2").digest())
    assert not verify_proof(root, "a", b"1", msgspec.structs.replace(proof, other=idle))


def test_a_proof_is_no_longer_than_the_tree_is_deep() -> None:
    endless = StateProof(other=None, siblings=[bytes(32)] * 257)
    assert not verify_proof(EMPTY, "a", None, endless)


def test_a_lost_page_is_named() -> None:
    pages = built(dict.fromkeys(KEYS, b""))
    path = max(pages.stored, key=len)
    key = next(key for key in KEYS if tree_key(key).hex().startswith("".join(f"{n:x}" for n in path)))
    del pages.stored[path]
    with pytest.raises(MissingNode, match=path.hex()):
        prove(pages.read, key)
    with pytest.raises(MissingNode, match=path.hex()):
        update(pages.read, {key: b"new"})


@pytest.mark.parametrize(
    "page",
    [
        b"",
        b"\x01\x00\x00\x00\x00",
        b"\x02\x00\x01\x00\x00" + bytes(64),
        b"\x01\x00\x01\x00\x00" + bytes(63),
        b"\x01\x00\x01\x00\x00" + bytes(65),
        b"\x01\x00\x01\x00\x01" + bytes(96),
        b"\x01\x00\x00\x80\x00" + bytes(31),
    ],
    ids=["empty", "no slots", "format", "short leaf", "long", "leaf and child", "short child"],
)
def test_a_malformed_page_is_refused(page: bytes) -> None:
    with pytest.raises(Rejection, match="bad_page"):
        decode_page(page)


def test_a_page_that_its_parent_does_not_name_is_refused() -> None:
    pages = built(dict.fromkeys(KEYS, b""))
    path = max(pages.stored, key=len)
    key = next(key for key in KEYS if tree_key(key).hex().startswith("".join(f"{n:x}" for n in path)))
    other = built(dict.fromkeys(KEYS, b"other")).stored[path]
    pages.stored[path] = other
    with pytest.raises(Rejection, match="bad_page"):
        prove(pages.read, key)
    with pytest.raises(Rejection, match="bad_page"):
        update(pages.read, {key: b"new"})


def test_a_change_leaves_the_page_it_began_with_as_it_was() -> None:
    pages = built({f"records/{number}": b"%d" % number for number in range(100)})
    held = {path: decode_page(data) for path, data in pages.stored.items()}
    root = state_tree.root(held.get)
    update(held.get, {f"records/{number}": None if number % 2 else b"new" for number in range(150)})
    assert state_tree.root(held.get) == root
    assert {path: page.encode() for path, page in held.items()} == pages.stored
