"""Ed25519 as libsodium has it: the edge cases that libraries disagree on are refused here."""

import pytest
from nacl.bindings import crypto_core_ed25519_add

from ledger.keys import SigningKey, account_id, is_valid_key, sha256, tag, verify

GROUP_ORDER = 2**252 + 27742317777372353535851937790883648493
FIELD = 2**255 - 19
PURPOSE = tag("test")
ORDER_EIGHT = bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05")
SMALL_ORDER = {
    "zero": bytes(32),
    "identity": (1).to_bytes(32, "little"),
    "order 2": (FIELD - 1).to_bytes(32, "little"),
    "order 8": ORDER_EIGHT,
    "order 8, inverse": ORDER_EIGHT[:31] + bytes([ORDER_EIGHT[31] | 0x80]),
    "other order 8": bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"),
    "zero, not reduced": FIELD.to_bytes(32, "little"),
    "identity, not reduced": (FIELD + 1).to_bytes(32, "little"),
}


@pytest.fixture
def key() -> SigningKey:
    return SigningKey(bytes(range(32)))


def test_rfc_8032_vector() -> None:
    key = SigningKey(bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"))
    assert key.public.hex() == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    assert key.sign(b"", b"").hex() == (
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
        "d25bf5f0595bbe24655141438e7a100b"
    )


def test_a_signature_is_for_one_purpose_digest_and_key(key: SigningKey) -> None:
    digest = sha256(b"message")
    signature = key.sign(PURPOSE, digest)
    assert verify(key.public, PURPOSE, digest, signature)
    assert not verify(key.public, tag("other"), digest, signature)
    assert not verify(key.public, PURPOSE, sha256(b"another"), signature)
    assert not verify(SigningKey(bytes(32)).public, PURPOSE, digest, signature)


def test_no_single_bit_of_a_signature_is_free(key: SigningKey) -> None:
    signature = key.sign(PURPOSE, b"digest")
    for bit in range(512):
        mutated = bytearray(signature)
        mutated[bit // 8] ^= 1 << bit % 8
        assert not verify(key.public, PURPOSE, b"digest", bytes(mutated))


def test_a_signature_has_no_second_form(key: SigningKey) -> None:
    signature = key.sign(PURPOSE, b"digest")
    scalar = int.from_bytes(signature[32:], "little") + GROUP_ORDER
    assert not verify(key.public, PURPOSE, b"digest", signature[:32] + scalar.to_bytes(32, "little"))


@pytest.mark.parametrize("length", [0, 63, 65, 128])
def test_wrong_lengths_do_not_verify(key: SigningKey, length: int) -> None:
    signature = (key.sign(PURPOSE, b"digest") * 2)[:length]
    assert not verify(key.public, PURPOSE, b"digest", signature)
    assert not verify(key.public[:31], PURPOSE, b"digest", key.sign(PURPOSE, b"digest"))


@pytest.mark.parametrize("point", SMALL_ORDER.values(), ids=SMALL_ORDER)
def test_a_small_order_key_is_refused_and_signs_nothing(point: bytes) -> None:
    assert not is_valid_key(point)
    # For the identity as key, R = identity and s = 0 satisfy the bare equation for every message.
    identity = (1).to_bytes(32, "little")
    assert not verify(point, PURPOSE, b"digest", identity + bytes(32))
    assert not verify(point, PURPOSE, b"digest", point + bytes(32))


def test_a_key_outside_the_prime_order_subgroup_is_refused(key: SigningKey) -> None:
    mixed = crypto_core_ed25519_add(key.public, ORDER_EIGHT)
    assert is_valid_key(key.public)
    assert not is_valid_key(mixed)


@pytest.mark.parametrize("data", [b"", bytes(31), bytes(33), b"\x02" + bytes(31)], ids=len)
def test_what_is_no_point_is_refused(data: bytes) -> None:
    assert not is_valid_key(data)


def test_the_seed_does_not_show(key: SigningKey) -> None:
    assert bytes(range(32)).hex() not in repr(key)
    assert key.public.hex() in repr(key)


def test_no_tag_begins_another() -> None:
    assert not tag("transaction-id").startswith(tag("transaction"))


def test_an_account_is_the_tagged_hash_of_its_first_key(key: SigningKey) -> None:
    assert account_id(key.public) == sha256(b"carequorum/1/account\0" + key.public)
