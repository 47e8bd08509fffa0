"""Bad input at the provider port of a real node, and as a peer's gossip: its code, and nothing recorded anywhere.

One network of four for the whole module: that it goes on after each refusal is part of what is shown.
"""

import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import msgpack
import msgspec
import pytest
import pytest_asyncio

from ledger.contracts import identity
from ledger.encoding import decode, encode
from ledger.keys import SigningKey, account_id, sha256
from ledger.transaction import (
    BODIES_MAX,
    BODY_BYTES_MAX,
    ENVELOPE_BYTES_MAX,
    TRANSACTION,
    UNTIL_AHEAD_MAX_MS,
    body_reference,
)
from network.port import SharedTransaction
from node.http_types import ITEMS_MAX
from node.metrics import Metrics
from tests.ledger.test_keys import SMALL_ORDER
from tests.node.cluster import Cluster, admin_account, admin_key, hospital, make_genesis
from tests.node.entrance import REQUEST_BYTES_MAX, Entrance, entrance, found_on_disks, nothing_recorded
from tests.node.members import account_of, addition, key_of, register, sign, transact

pytestmark = pytest.mark.asyncio(loop_scope="module")


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def refusals(metrics: Metrics, code: str) -> float:
    """How many transactions this node has refused with this code."""
    return metrics.registry.get_sample_value("carequorum_transactions_refused_total", {"code": code}) or 0.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def port() -> AsyncIterator[Entrance]:
    """Hospital-1's port. Clinicians: ada, eve; rex was revoked, and rita has rotated her key."""
    async with Cluster() as cluster:
        for name in ("ada", "eve", "rex", "rita"):
            await register(cluster, name)
        new = key_of("rita, later")
        proof = identity.possession_proof(new, cluster.genesis.chain_id(), account_of("rita"))
        rotate = identity.Rotate(account_of("rita"), new.public, proof, 1)
        revoke = identity.Revoke(account_of("rex"), 1)
        changes = sign(cluster, admin_key(0), admin_account(0), [rotate, revoke], [], now_ms())
        assert await transact(cluster, hospital(0), changes) == "ok"
        async with entrance(cluster, hospital(1)) as client:
            yield client


@dataclass(frozen=True, slots=True)
class Sent:
    """A signed transaction as it is sent, with the bodies beside it."""

    envelope: bytes
    bodies: list[bytes]


Fields = dict[str, Any]
Make = Callable[[Cluster], Sent]


def good(cluster: Cluster) -> tuple[Fields, bytes]:
    """The fields of an envelope that adds a record by ada, and its body."""
    transaction, body = addition(cluster, "ada", now_ms())
    fields: Fields = msgspec.to_builtins(transaction.envelope, builtin_types=(bytes,))
    return fields, body


def signed(envelope: bytes, key: SigningKey) -> bytes:
    """Whatever bytes, with a signature that verifies."""
    return encode({"body": envelope, "signature": key.sign(TRANSACTION, sha256(envelope))})


def with_fields(change: Callable[[Cluster, Fields], object], key: SigningKey | None = None) -> Make:
    """A good transaction with some fields changed, signed again."""

    def make(cluster: Cluster) -> Sent:
        fields, body = good(cluster)
        change(cluster, fields)
        return Sent(signed(encode(fields), key or key_of("ada")), [body])

    return make


def with_bodies(change: Callable[[bytes], list[bytes]]) -> Make:
    """A good transaction with other bodies beside it."""

    def make(cluster: Cluster) -> Sent:
        fields, body = good(cluster)
        return Sent(signed(encode(fields), key_of("ada")), change(body))

    return make


def with_signature(sign_body: Callable[[bytes], Fields]) -> Make:
    """A good envelope in a wrapper whose other fields are these."""

    def make(cluster: Cluster) -> Sent:
        fields, body = good(cluster)
        envelope = encode(fields)
        return Sent(encode({"body": envelope, **sign_body(envelope)}), [body])

    return make


def with_encoding(spoil: Callable[[Fields], bytes]) -> Make:
    """A good transaction in another encoding of its envelope, under a signature that verifies."""

    def make(cluster: Cluster) -> Sent:
        fields, body = good(cluster)
        spoiled = spoil(fields)
        assert spoiled != encode(fields)
        return Sent(signed(spoiled, key_of("ada")), [body])

    return make


def with_wrapping(spoil: Callable[[bytes], bytes]) -> Make:
    """A good, well signed transaction in another encoding of its outer map."""

    def make(cluster: Cluster) -> Sent:
        fields, body = good(cluster)
        data = signed(encode(fields), key_of("ada"))
        assert spoil(data) != data
        return Sent(spoil(data), [body])

    return make


def signed_by(name: str, key: SigningKey) -> Make:
    """A record by `name` under this key."""
    change = {"by": account_of(name), "key": key.public}
    return with_fields(lambda cluster, fields: fields.update(change), key)


def with_action(make_action: Callable[[Cluster], Any]) -> Make:
    """A transaction of hospital-0's admin with this action."""

    def make(cluster: Cluster) -> Sent:
        transaction = sign(cluster, admin_key(0), admin_account(0), [make_action(cluster)], [], now_ms())
        return Sent(transaction.data, [])

    return make


def replaced(old: bytes, new: bytes) -> Callable[[Fields], bytes]:
    """The canonical bytes with one piece of them written in another form."""

    def spoil(fields: Fields) -> bytes:
        data = encode(fields)
        assert data.count(old) == 1
        return data.replace(old, new)

    return spoil


def packed(**changes: object) -> Callable[[Fields], bytes]:
    """The fields as the library packs them, some of them of another type."""
    return lambda fields: bytes(msgpack.packb({**fields, **changes}, use_bin_type=True))


def reversed_keys(fields: Fields) -> bytes:
    return bytes(msgpack.packb(dict(sorted(fields.items(), reverse=True)), use_bin_type=True))


def first_key_twice(fields: Fields) -> bytes:
    data = encode(fields)
    first = encode(fields["actions"])
    return bytes([data[0] + 1]) + b"\xa7actions" + first + data[1:]


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def small_key_registered(key: bytes) -> Make:
    return with_action(lambda cluster: identity.Register(key, bytes(64), "clinician"))


def small_key_rotated_to(key: bytes) -> Make:
    return with_action(lambda cluster: identity.Rotate(account_of("ada"), key, bytes(64), 1))


def without_signature(envelope: bytes) -> Fields:
    return {}


SMALL = SMALL_ORDER["order 8"]
LARGE_BODY = {"commitment": sha256(b"large"), "size": BODY_BYTES_MAX + 1}

BAD: dict[str, tuple[Make, str]] = {
    "unsigned": (with_signature(without_signature), "unsigned"),
    "unsigned, empty": (with_signature(lambda envelope: {"signature": b""}), "unsigned"),
    "wrong signer": (signed_by("ada", key_of("eve")), "wrong_signer"),
    "wrong signer, signed by another key": (
        with_signature(lambda envelope: {"signature": key_of("eve").sign(TRANSACTION, sha256(envelope))}),
        "bad_signature",
    ),
    "wrong signer, signed for another purpose": (
        with_signature(lambda envelope: {"signature": key_of("ada").sign(b"", sha256(envelope))}),
        "bad_signature",
    ),
    "wrong chain": (
        with_fields(lambda cluster, fields: fields.update(chain=make_genesis(3).chain_id())),
        "wrong_chain",
    ),
    "expired": (with_fields(lambda cluster, fields: fields.update(until=now_ms() - 1)), "expired"),
    "until too far": (
        with_fields(lambda cluster, fields: fields.update(until=now_ms() + UNTIL_AHEAD_MAX_MS + 60_000)),
        "until_too_far",
    ),
    "oversized envelope": (
        with_fields(lambda cluster, fields: fields.update(nonce=bytes(ENVELOPE_BYTES_MAX))),
        "too_large",
    ),
    "oversized body": (with_fields(lambda cluster, fields: fields.update(bodies=[LARGE_BODY])), "too_large"),
    "key order": (with_encoding(reversed_keys), "not_canonical"),
    "key order, outside": (
        with_wrapping(lambda data: bytes(msgpack.packb(dict(reversed(decode(data, 65_536).items()))))),
        "not_canonical",
    ),
    "long form of a map": (with_encoding(replaced(b"\x88\xa7actions", b"\xde\x00\x08\xa7actions")), "not_canonical"),
    "long form of a map, outside": (with_wrapping(lambda data: b"\xdf\x00\x00\x00\x02" + data[1:]), "not_canonical"),
    "long form of a list": (with_encoding(replaced(b"actions\x91", b"actions\xdc\x00\x01")), "not_canonical"),
    "long form of text": (with_encoding(replaced(b"\xa6format", b"\xd9\x06format")), "not_canonical"),
    "long form of bytes": (with_encoding(replaced(b"nonce\xc4\x10", b"nonce\xc5\x00\x10")), "not_canonical"),
    "long form of a number": (with_encoding(replaced(b"format\x01", b"format\xcc\x01")), "not_canonical"),
    "signed form of a number": (with_encoding(replaced(b"format\x01", b"format\xd0\x01")), "not_canonical"),
    "duplicate key": (with_encoding(first_key_twice), "not_canonical"),
    "duplicate key, outside": (
        with_wrapping(lambda data: b"\x83\xa4body\xc0" + data[1:]),
        "not_canonical",
    ),
    "float": (with_encoding(packed(until=1.0)), "not_canonical"),
    "float, not a number": (with_encoding(packed(until=float("nan"))), "not_canonical"),
    "float, of four bytes": (with_encoding(replaced(b"format\x01", b"format\xca\x3f\x80\x00\x00")), "not_canonical"),
    "extension type": (with_encoding(packed(nonce=msgpack.ExtType(5, bytes(16)))), "not_canonical"),
    "extension type, a time": (with_encoding(packed(until=msgpack.Timestamp(1, 0))), "not_canonical"),
    "extension type, outside": (
        with_wrapping(lambda data: bytes(msgpack.packb(msgpack.ExtType(5, data)))),
        "not_canonical",
    ),
    "trailing byte": (with_encoding(lambda fields: encode(fields) + b"\xc0"), "not_canonical"),
    "trailing byte, outside": (with_wrapping(lambda data: data + b"\x00"), "not_canonical"),
    "cut short": (with_encoding(lambda fields: encode(fields)[:-1]), "not_canonical"),
    "cut short, outside": (with_wrapping(lambda data: data[:-1]), "not_canonical"),
    "depth": (with_encoding(packed(actions=nested(20))), "not_canonical"),
    "depth beyond every stack": (with_wrapping(lambda data: b"\x91" * 60_000 + b"\xc0"), "not_canonical"),
    "text that is not UTF-8": (with_encoding(replaced(b"\xa6format", b"\xa6form\xff\xfe")), "not_canonical"),
    "a key that is no text": (with_encoding(replaced(b"\xa6format", b"\xc4\x06format")), "not_canonical"),
    "unknown action": (
        with_fields(lambda cluster, fields: fields["actions"][0].update(do="record.burn")),
        "unknown_action",
    ),
    "unknown format": (with_fields(lambda cluster, fields: fields.update(format=2)), "unknown_format"),
    "unknown field": (with_fields(lambda cluster, fields: fields.update(fee=1)), "bad_structure"),
    "too many bodies": (
        with_fields(lambda cluster, fields: fields.update(bodies=fields["bodies"] * (BODIES_MAX + 1))),
        "bad_structure",
    ),
    "unregistered": (signed_by("stranger", key_of("stranger")), "unregistered"),
    "revoked": (signed_by("rex", key_of("rex")), "revoked"),
    "a key rotated out": (signed_by("rita", key_of("rita")), "wrong_signer"),
    "body not matching its commitment": (with_bodies(lambda body: [bytes(len(body))]), "body_mismatch"),
    "body of another size": (with_bodies(lambda body: [body + b"\x00"]), "body_mismatch"),
    "body that lies about its size": (
        with_fields(lambda cluster, fields: fields["bodies"][0].update(size=fields["bodies"][0]["size"] + 1)),
        "body_mismatch",
    ),
    "missing body": (with_bodies(lambda body: []), "body_mismatch"),
    "one body more": (with_bodies(lambda body: [body, body]), "body_mismatch"),
    "body that no action names": (
        with_fields(lambda cluster, fields: fields["bodies"].append(fields["bodies"][0])),
        "bad_structure",
    ),
    "small-order key of a member": (
        with_fields(lambda cluster, fields: fields.update(key=SMALL)),
        "wrong_signer",
    ),
    "small-order key of nobody": (
        with_fields(lambda cluster, fields: fields.update(by=account_id(SMALL), key=SMALL)),
        "unregistered",
    ),
    "small-order key, registered": (small_key_registered(SMALL), "bad_key"),
    "small-order key, the identity, registered": (small_key_registered(SMALL_ORDER["identity"]), "bad_key"),
    "small-order key, not reduced, registered": (small_key_registered(SMALL_ORDER["zero, not reduced"]), "bad_key"),
    "small-order key, rotated to": (small_key_rotated_to(SMALL), "bad_key"),
    "no point at all, registered": (small_key_registered(b"\x02" + bytes(31)), "bad_key"),
}


# One row for each code.
GOSSIPED = {code: name for name, (_, code) in reversed(BAD.items())}


@pytest.mark.parametrize("name", BAD)
async def test_bad_input_is_refused_at_the_port(port: Entrance, name: str) -> None:
    make, code = BAD[name]
    sent = make(port.cluster)
    async with nothing_recorded(port):
        assert await port.refusal({"envelope": sent.envelope, "bodies": sent.bodies}) == code


@pytest.mark.parametrize("code", GOSSIPED)
async def test_bad_input_is_refused_from_a_peer(port: Entrance, code: str) -> None:
    """A peer's word counts no more than a client's: the same code, counted."""
    make, _ = BAD[GOSSIPED[code]]
    sent = make(port.cluster)
    node = port.cluster.members[hospital(2)].running
    before = refusals(node.metrics, code)
    async with nothing_recorded(port):
        node.peering.on_transactions(hospital(3), [SharedTransaction(sent.envelope, sent.bodies)])
        assert refusals(node.metrics, code) == before + 1


async def test_no_disk_holds_a_byte_of_what_was_refused(port: Entrance) -> None:
    """All rows once more, in one list; the search finds what was accepted, so it would find them."""
    cluster = port.cluster
    transaction, body = addition(cluster, "ada", now_ms())
    bad = [make(cluster) for make, _ in BAD.values()]
    traces = [part for sent in bad for part in (sent.envelope, *sent.bodies) if part != bytes(len(part))]
    items = [{"envelope": sent.envelope, "bodies": sent.bodies} for sent in bad]
    _, _, answer = await port.post([*items, {"envelope": transaction.data, "bodies": [body]}], wait="committed")
    assert [result["code"] for result in answer["results"]] == [*(code for _, code in BAD.values()), "ok"]
    async with nothing_recorded(port):
        assert found_on_disks(cluster, [transaction.data, body]) == [transaction.data, body]
        assert found_on_disks(cluster, traces) == []


async def test_the_transaction_that_these_were_made_from_is_accepted(port: Entrance) -> None:
    """Each row above differs from this one in one thing only."""
    fields, body = good(port.cluster)
    envelope = signed(encode(fields), key_of("ada"))
    _, _, answer = await port.post({"envelope": envelope, "bodies": [body]}, wait="committed")
    assert answer["results"][0]["code"] == "ok"


async def test_an_oversized_body_is_refused_although_its_commitment_holds(port: Entrance) -> None:
    body = bytes(BODY_BYTES_MAX + 1)
    fields, _ = good(port.cluster)
    fields["bodies"] = [msgspec.to_builtins(body_reference(body), builtin_types=(bytes,))]
    envelope = signed(encode(fields), key_of("ada"))
    async with nothing_recorded(port):
        assert await port.refusal({"envelope": envelope, "bodies": [body]}) == "too_large"


async def test_bodies_that_are_too_large_together_are_refused(port: Entrance) -> None:
    fields, _ = good(port.cluster)
    action = fields["actions"][0]
    fields["actions"] = [{**action, "body": index, "record": sha256(bytes([index]))} for index in range(9)]
    fields["bodies"] = [{"commitment": sha256(bytes([index])), "size": BODY_BYTES_MAX} for index in range(9)]
    envelope = signed(encode(fields), key_of("ada"))
    async with nothing_recorded(port):
        assert await port.refusal({"envelope": envelope, "bodies": []}) == "too_large"


async def test_an_oversized_request_is_refused(port: Entrance) -> None:
    async with nothing_recorded(port):
        assert await port.refusal(bytes(REQUEST_BYTES_MAX + 1)) == "too_large"


@pytest.mark.parametrize(
    "content",
    [b"", b"\xc1", {"envelope": "text"}, {"envelope": b"", "more": 1}, [], [{"envelope": b""}] * (ITEMS_MAX + 1)],
    ids=["nothing", "no MessagePack", "text for bytes", "unknown field", "an empty list", "a list too long"],
)
async def test_a_malformed_request_is_refused(port: Entrance, content: Any) -> None:
    async with nothing_recorded(port):
        assert await port.refusal(content) == "bad_request"
