"""A certificate is a quorum's word on one block, and nothing else."""

import msgspec
import pytest

from ledger.encoding import convert, encode
from ledger.errors import Rejection
from ledger.finality import (
    CERTIFICATE_BYTES_MAX,
    Certificate,
    NodeId,
    decode_certificate,
    make_certificate,
    quorum,
    sign_acknowledgement,
    sign_vote,
    verify_acknowledgement,
    verify_certificate,
    verify_vote,
)
from ledger.keys import SigningKey

CHAIN, BLOCK = b"c" * 32, b"b" * 32
TERM, HEIGHT = 3, 9
KEYS = {f"n{number}": SigningKey(bytes([number]) * 32) for number in range(6)}
VOTERS = {name: KEYS[name].public for name in ("n0", "n1", "n2", "n3")}


def certify(*signers: str, term: int = TERM, height: int = HEIGHT, block: bytes = BLOCK) -> Certificate:
    return make_certificate(
        term,
        height,
        block,
        [(name, sign_acknowledgement(KEYS[name], CHAIN, term, height, block)) for name in signers],
    )


def refusal(certificate: Certificate, chain: bytes = CHAIN) -> str:
    with pytest.raises(Rejection) as caught:
        verify_certificate(certificate, chain, VOTERS)
    return caught.value.code


def test_a_quorum_is_a_majority() -> None:
    assert [quorum(voters) for voters in range(1, 8)] == [1, 2, 2, 3, 3, 4, 4]
    # Two quorums always share a voter.
    assert all(2 * quorum(voters) > voters for voters in range(1, 65))


@pytest.mark.parametrize("signers", [("n2", "n0", "n1"), ("n0", "n1", "n2", "n3")], ids=len)
def test_a_quorum_certifies_and_survives_encoding(signers: tuple[str, ...]) -> None:
    certificate = decode_certificate(certify(*signers).encode())
    assert certificate == certify(*signers)
    assert [entry.node for entry in certificate.signatures] == sorted(signers)
    verify_certificate(certificate, CHAIN, VOTERS)


def test_less_than_a_quorum_does_not() -> None:
    assert refusal(certify("n0", "n1")) == "bad_certificate"
    assert refusal(certify()) == "bad_certificate"


NEW = {name: KEYS[name].public for name in ("n1", "n2", "n3", "n4", "n5")}


@pytest.mark.parametrize(
    ("signers", "holds"),
    [
        (("n1", "n2", "n3"), True),
        (("n0", "n1", "n2", "n3", "n4", "n5"), True),
        (("n0", "n1", "n2", "n4"), True),
        # A quorum of the one is none of the other.
        (("n0", "n1", "n2"), False),
        (("n3", "n4", "n5"), False),
        (("n0", "n4", "n5"), False),
        ((), False),
    ],
)
def test_while_voters_change_both_have_to_agree(signers: tuple[str, ...], holds: bool) -> None:
    certificate = certify(*signers)
    for voters, old in ((NEW, VOTERS), (VOTERS, NEW)):
        if holds:
            verify_certificate(certificate, CHAIN, voters, old)
        else:
            with pytest.raises(Rejection, match="bad_certificate"):
                verify_certificate(certificate, CHAIN, voters, old)


def test_one_voter_counts_once() -> None:
    twice = certify("n0", "n1", "n1")
    assert refusal(twice) == "bad_certificate"


def test_signers_stand_in_ascending_order() -> None:
    certificate = certify("n0", "n1", "n2")
    swapped = msgspec.structs.replace(certificate, signatures=certificate.signatures[::-1])
    assert refusal(swapped) == "bad_certificate"


def test_only_voters_sign_even_beyond_a_quorum() -> None:
    assert refusal(certify("n0", "n1", "n2", "n4")) == "bad_certificate"


def test_no_signature_is_idle_even_beyond_a_quorum() -> None:
    certificate = certify("n0", "n1", "n2")
    spoilt = msgspec.structs.replace(
        certificate,
        signatures=[*certificate.signatures, msgspec.structs.replace(certificate.signatures[0], node="n3")],
    )
    assert refusal(spoilt) == "bad_certificate"


@pytest.mark.parametrize(("field", "value"), [("term", 4), ("height", 10), ("hash", b"x" * 32)])
def test_it_is_of_one_block_height_and_term(field: str, value: object) -> None:
    changed = msgspec.structs.replace(certify("n0", "n1", "n2"), **{field: value})
    assert refusal(changed) == "bad_certificate"


def test_it_is_of_one_network() -> None:
    assert refusal(certify("n0", "n1", "n2"), chain=b"d" * 32) == "bad_certificate"


def test_an_unknown_format_is_refused() -> None:
    later = msgspec.structs.replace(certify("n0", "n1", "n2"), format=2)
    assert refusal(later) == "unknown_format"
    with pytest.raises(Rejection, match="unknown_format"):
        decode_certificate(encode(later))


def test_an_oversized_certificate_is_refused() -> None:
    with pytest.raises(Rejection, match="too_large"):
        decode_certificate(bytes(CERTIFICATE_BYTES_MAX + 1))


def test_a_vote_is_no_acknowledgement() -> None:
    key = KEYS["n0"]
    vote = sign_vote(key, CHAIN, TERM, "n1")
    assert verify_vote(key.public, CHAIN, TERM, "n1", vote)
    assert not verify_vote(key.public, CHAIN, TERM, "n2", vote)
    assert not verify_vote(key.public, CHAIN, TERM + 1, "n1", vote)
    assert not verify_acknowledgement(key.public, CHAIN, TERM, HEIGHT, BLOCK, vote)
    acknowledgement = sign_acknowledgement(key, CHAIN, TERM, HEIGHT, BLOCK)
    assert verify_acknowledgement(key.public, CHAIN, TERM, HEIGHT, BLOCK, acknowledgement)
    assert not verify_vote(key.public, CHAIN, TERM, "n1", acknowledgement)


@pytest.mark.parametrize("name", ["", "-a", "A", "a_b", "a b", "a\n", "a/b", "é", "a" * 33])
def test_a_node_id_is_plain(name: str) -> None:
    with pytest.raises(Rejection, match="bad_structure"):
        convert(NodeId, name)


def test_ordinary_node_ids() -> None:
    for name in ("a", "0", "st-anna-2", "a" * 32):
        assert convert(NodeId, name) == name
