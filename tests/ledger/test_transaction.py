"""What is refused before a transaction is anywhere: forms, signatures, chains, times, bodies."""

from collections.abc import Callable
from typing import Any

import msgpack
import msgspec
import pytest

from ledger.contracts import ACTION_NAMES, HANDLERS, Action
from ledger.contracts.network import Promote, Proposed, Remove, Withdraw
from ledger.encoding import decode, encode
from ledger.errors import Rejection
from ledger.keys import sha256
from ledger.transaction import (
    BODIES_MAX,
    BODY_BYTES_MAX,
    ENVELOPE_BYTES_MAX,
    TRANSACTION,
    UNTIL_AHEAD_MAX_MS,
    Transaction,
    body_commitment,
    body_reference,
    check_bodies,
    check_signature,
    check_time,
    decode_transaction,
    sign_transaction,
)
from tests.ledger.founding import (
    CHAIN,
    NOW_MS,
    addition,
    amendment,
    ballot,
    make_envelope,
    make_genesis,
    new_node,
    new_organisation,
    proposal,
    proposal_id,
    registration,
    revocation,
    rotation,
    sign,
    signing_key,
)

Edit = Callable[[dict[str, Any]], None]


def added() -> Transaction:
    return sign([addition("r")], by="doctor", bodies=[b"sealed"])


def resigned(edit: Edit, transaction: Transaction | None = None) -> bytes:
    """A transaction whose envelope was edited as plain values and then signed properly."""
    envelope = decode(decode((transaction or added()).data, ENVELOPE_BYTES_MAX)["body"], ENVELOPE_BYTES_MAX)
    edit(envelope)
    return signed_bytes(encode(envelope))


def signed_bytes(body: bytes) -> bytes:
    return encode({"body": body, "signature": signing_key("doctor").sign(TRANSACTION, sha256(body))})


def code_of(data: bytes) -> str:
    with pytest.raises(Rejection) as caught:
        decode_transaction(data)
    return caught.value.code


def test_a_signed_transaction_comes_back_as_it_was() -> None:
    transaction = added()
    again = decode_transaction(transaction.data)
    assert again == transaction
    check_signature(again, CHAIN)
    check_bodies(again, [b"sealed"])
    check_time(again.envelope, NOW_MS)


def test_every_action_survives_the_wire() -> None:
    actions: list[Action] = [
        registration("n", "patient"),
        rotation("n", "n-2", 1),
        revocation("n", 2),
        proposal("p", Withdraw(proposal_id("q"))),
        ballot("p", approve=False),
        addition("r"),
        amendment("r", 1, body=1),
    ]
    assert {type(action) for action in actions} == set(HANDLERS)
    assert sign(actions, by="doctor", bodies=[b"x", b"y"]).envelope.actions == actions
    assert {
        "member.register",
        "member.rotate",
        "member.revoke",
        "network.propose",
        "network.vote",
        "record.add",
        "record.amend",
    } == ACTION_NAMES


@pytest.mark.parametrize(
    "change",
    [new_node("n"), new_organisation("east"), Promote("n"), Remove("n"), Withdraw(proposal_id("q"))],
    ids=lambda change: type(change).__name__,
)
def test_every_proposed_change_survives_the_wire(change: Proposed) -> None:
    assert sign([proposal("p", change)], by="north-admin").envelope.actions == [proposal("p", change)]


@pytest.mark.parametrize(
    "address", ["host", "host:0", "host:65536", "host:080", "a b:80", ":80", "h:80\n", "h" * 256 + ":80"]
)
def test_an_address_is_a_host_and_a_port(address: str) -> None:
    with pytest.raises(Rejection, match="bad_structure"):
        sign([proposal("p", msgspec.structs.replace(new_node("n"), address=address))], by="north-admin")


def test_the_id_leaves_the_signature_out_and_the_hash_does_not() -> None:
    transaction = added()
    other = decode_transaction(
        encode({"body": decode(transaction.data, ENVELOPE_BYTES_MAX)["body"], "signature": b"\1" * 64})
    )
    assert other.id == transaction.id
    assert other.hash != transaction.hash
    assert sign([addition("r")], by="doctor", bodies=[b"sealed"]).id != transaction.id  # another nonce


def test_a_key_signs_only_envelopes_that_name_it() -> None:
    with pytest.raises(Rejection, match="wrong_signer"):
        sign_transaction(make_envelope([registration("n", "patient")], by="doctor"), signing_key("other"))


@pytest.mark.parametrize("signature", [None, b""])
def test_unsigned(signature: bytes | None) -> None:
    wire = decode(added().data, ENVELOPE_BYTES_MAX)
    assert code_of(encode({"body": wire["body"], "signature": signature})) == "unsigned"
    assert code_of(encode({"body": wire["body"]})) == "unsigned"


def test_a_signature_by_another_key_or_over_another_envelope_does_not_verify() -> None:
    transaction = added()
    body = decode(transaction.data, ENVELOPE_BYTES_MAX)["body"]
    by_another = signing_key("other").sign(TRANSACTION, sha256(body))
    for signature in (by_another, added().signature, bytes(64)):
        forged = decode_transaction(encode({"body": body, "signature": signature}))
        with pytest.raises(Rejection, match="bad_signature"):
            check_signature(forged, CHAIN)


def test_wrong_chain() -> None:
    with pytest.raises(Rejection, match="wrong_chain"):
        check_signature(added(), make_genesis("another").chain_id())


def set_to(**fields: object) -> Edit:
    return lambda envelope: envelope.update(fields)


def without(field: str) -> Edit:
    def edit(envelope: dict[str, Any]) -> None:
        del envelope[field]

    return edit


def in_action(**fields: object) -> Edit:
    return lambda envelope: envelope["actions"][0].update(fields)


@pytest.mark.parametrize(
    ("edit", "code"),
    [
        (set_to(format=2), "unknown_format"),
        (set_to(format=None), "unknown_format"),
        (without("format"), "unknown_format"),
        (set_to(format=True), "bad_structure"),
        (in_action(do="record.burn"), "unknown_action"),
        (in_action(do=[]), "unknown_action"),
        (in_action(do=None), "unknown_action"),
        (set_to(actions=[1]), "unknown_action"),
        (set_to(actions=[]), "bad_structure"),
        (set_to(actions={}), "bad_structure"),
        (set_to(extra=1), "bad_structure"),
        (without("nonce"), "bad_structure"),
        (set_to(nonce=b"short"), "bad_structure"),
        (set_to(by=b"\0" * 31), "bad_structure"),
        (set_to(key="k" * 32), "bad_structure"),
        (set_to(until=-1), "bad_structure"),
        (set_to(until=2**53 + 1), "bad_structure"),
        (set_to(until=True), "bad_structure"),
        (in_action(extra=1), "bad_structure"),
        (in_action(record=b"\0" * 33), "bad_structure"),
        (in_action(body=-1), "bad_structure"),
        (in_action(body=1), "bad_structure"),
        (set_to(bodies=[]), "bad_structure"),
        (set_to(bodies=[{"commitment": b"\0" * 32, "size": 1}] * 2), "bad_structure"),
        (set_to(bodies=[{"commitment": b"\0" * 31, "size": 1}]), "bad_structure"),
        (set_to(bodies=[{"commitment": b"\0" * 32, "size": 0}]), "bad_structure"),
        (set_to(bodies=[{"commitment": b"\0" * 32, "size": BODY_BYTES_MAX + 1}]), "too_large"),
        (set_to(bodies=[{"commitment": b"\0" * 32, "size": 2**53 + 1}]), "bad_structure"),
        (set_to(bodies=[{"commitment": b"\0" * 32, "size": 1}] * (BODIES_MAX + 1)), "bad_structure"),
    ],
)
def test_envelopes_that_do_not_fit(edit: Edit, code: str) -> None:
    assert code_of(resigned(edit)) == code


def test_the_unedited_envelope_fits() -> None:
    transaction = added()
    again = decode_transaction(resigned(lambda envelope: None, transaction))
    assert again.envelope == transaction.envelope
    check_signature(again, CHAIN)


def test_a_body_has_exactly_one_action() -> None:
    with pytest.raises(Rejection, match="bad_structure"):
        sign([addition("a"), addition("b")], by="doctor", bodies=[b"x"])


def test_an_envelope_is_a_map_and_so_is_its_wrapper() -> None:
    assert code_of(signed_bytes(encode([1]))) == "bad_structure"
    assert code_of(encode([1])) == "bad_structure"
    assert code_of(encode({"body": b"", "extra": 1, "signature": b"\1" * 64})) == "bad_structure"
    assert code_of(encode({"body": b"", "signature": b"\1" * 63})) == "bad_structure"


def test_oversized() -> None:
    assert code_of(resigned(set_to(extra=b"\0" * ENVELOPE_BYTES_MAX))) == "too_large"


def repacked(value: object) -> bytes:
    return bytes(msgpack.packb(value))


def _reversed_keys(envelope: dict[str, Any]) -> bytes:
    return repacked(dict(sorted(envelope.items(), reverse=True)))


def _float(envelope: dict[str, Any]) -> bytes:
    return repacked({**envelope, "until": float(envelope["until"])})


def _extension(envelope: dict[str, Any]) -> bytes:
    return repacked({**envelope, "nonce": msgpack.ExtType(1, envelope["nonce"])})


def _timestamp(envelope: dict[str, Any]) -> bytes:
    return repacked({**envelope, "until": msgpack.Timestamp(envelope["until"])})


def _trailing(envelope: dict[str, Any]) -> bytes:
    return repacked(envelope) + b"\xc0"


def _long_form(envelope: dict[str, Any]) -> bytes:
    return repacked(envelope).replace(b"\xa6format\x01", b"\xa6format\xcc\x01")


def _duplicate_key(envelope: dict[str, Any]) -> bytes:
    data = repacked(envelope)
    return bytes([data[0] + 1]) + data[1:].replace(b"\xa6format\x01", b"\xa6format\x01" * 2)


def _deep(envelope: dict[str, Any]) -> bytes:
    nested: object = 1
    for _ in range(20):
        nested = [nested]
    return repacked({**envelope, "actions": nested})


def _truncated(envelope: dict[str, Any]) -> bytes:
    return repacked(envelope)[:-1]


@pytest.mark.parametrize(
    "spoil",
    [
        _reversed_keys,
        _float,
        _extension,
        _timestamp,
        _trailing,
        _long_form,
        _duplicate_key,
        _deep,
        _truncated,
    ],
)
def test_another_encoding_is_refused_inside_the_signature_and_outside(
    spoil: Callable[[dict[str, Any]], bytes],
) -> None:
    envelope = decode(decode(added().data, ENVELOPE_BYTES_MAX)["body"], ENVELOPE_BYTES_MAX)
    spoiled = spoil(envelope)
    assert spoiled != encode(envelope)
    assert code_of(signed_bytes(spoiled)) == "not_canonical"
    assert code_of(spoiled) == "not_canonical"


def test_every_single_bit_of_a_transaction_is_bound() -> None:
    data = added().data
    for bit in range(len(data) * 8):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Rejection):
            check_signature(decode_transaction(bytes(changed)), CHAIN)


@pytest.mark.parametrize(
    ("until", "code"),
    [
        (NOW_MS - 1, "expired"),
        (NOW_MS, None),
        (NOW_MS + UNTIL_AHEAD_MAX_MS, None),
        (NOW_MS + UNTIL_AHEAD_MAX_MS + 1, "until_too_far"),
    ],
)
def test_until_is_a_window_of_block_time(until: int, code: str | None) -> None:
    envelope = sign([registration("n", "patient")], by="doctor", until=until).envelope
    if code is None:
        check_time(envelope, NOW_MS)
    else:
        with pytest.raises(Rejection, match=code):
            check_time(envelope, NOW_MS)


@pytest.mark.parametrize(
    "bodies", [[], [b"sealed", b"more"], [b"sealed", b"one"], [b"two", b"one"], [b"one\0", b"two"]]
)
def test_bodies_are_what_the_envelope_commits_to(bodies: list[bytes]) -> None:
    transaction = sign([addition("a"), addition("b", body=1)], by="doctor", bodies=[b"one", b"two"])
    check_bodies(transaction, [b"one", b"two"])
    with pytest.raises(Rejection, match="body_mismatch"):
        check_bodies(transaction, bodies)


def test_the_size_is_checked_too() -> None:
    envelope = make_envelope([addition("a")], by="doctor", bodies=[b"one"])
    lying = body_reference(b"four")
    assert (lying.commitment, lying.size) == (body_commitment(b"four"), 4)
    envelope.bodies[0] = type(lying)(commitment=body_commitment(b"one"), size=4)
    with pytest.raises(Rejection, match="body_mismatch"):
        check_bodies(sign_transaction(envelope, signing_key("doctor")), [b"one"])
