"""Replays: the same bytes again, the same envelope under another signature, and a leader that includes one twice."""

import asyncio
import hashlib
import secrets
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from nacl.bindings import crypto_core_ed25519_scalar_reduce, crypto_scalarmult_ed25519_base_noclamp

from ledger.encoding import decode, encode
from ledger.keys import sha256
from ledger.receipt import verify_receipt
from ledger.transaction import ENVELOPE_BYTES_MAX, TRANSACTION, Transaction, check_signature, decode_transaction
from tests.node.cluster import Cluster, hospital
from tests.node.entrance import Entrance, at_rest, committed_since, entrance, newcomer, nothing_recorded
from tests.node.members import addition, register

pytestmark = pytest.mark.asyncio(loop_scope="module")

GROUP_ORDER = 2**252 + 27742317777372353535851937790883648493
ADMIN_SEED = sha256(b"admin", bytes([0]))


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def port() -> AsyncIterator[Entrance]:
    async with Cluster() as cluster:
        await register(cluster, "ada")
        async with entrance(cluster, hospital(1)) as client:
            yield client


def resigned(transaction: Transaction, seed: bytes) -> Transaction:
    """The same envelope under another valid signature: Ed25519 with a nonce of chance (RFC 8032, section 5.1.6)."""
    body = decode(transaction.data, ENVELOPE_BYTES_MAX)["body"]
    message = TRANSACTION + sha256(body)
    expanded = bytearray(hashlib.sha512(seed).digest()[:32])
    expanded[0] &= 248
    expanded[31] = expanded[31] & 127 | 64
    nonce = crypto_core_ed25519_scalar_reduce(secrets.token_bytes(64))
    point = crypto_scalarmult_ed25519_base_noclamp(nonce)
    challenge = hashlib.sha512(point + transaction.envelope.key + message).digest()
    product = int.from_bytes(challenge, "little") * int.from_bytes(expanded, "little")
    scalar = (int.from_bytes(nonce, "little") + product) % GROUP_ORDER
    twin = decode_transaction(encode({"body": body, "signature": point + scalar.to_bytes(32, "little")}))
    check_signature(twin, transaction.envelope.chain)
    assert twin.id == transaction.id
    assert twin.hash != transaction.hash
    return twin


async def included(port: Entrance, height: int) -> list[bytes]:
    """Ids in the blocks above `height`, the same at every node."""
    cluster = port.cluster
    await cluster.until(lambda: at_rest(cluster))
    found = [committed_since(cluster, member, height) for member in cluster.members.values()]
    assert all(each == found[0] for each in found)
    return found[0]


async def executed_height(port: Entrance) -> int:
    await port.cluster.until(lambda: at_rest(port.cluster))
    return port.cluster.members[port.node_id].running.backend.heights().executed


async def test_the_same_bytes_many_times_are_one_inclusion(port: Entrance) -> None:
    """At once, at every node, and again after the commit: the same answer each time."""
    before = await executed_height(port)
    transaction, body = addition(port.cluster, "ada", now_ms())
    async with entrance(port.cluster, hospital(2)) as other:
        results = await asyncio.gather(
            *(each.submit(transaction, [body]) for each in (port, other) for _ in range(5))
        )
        results += [await each.submit(transaction, [body]) for each in (port, other)]
    places = {(result["id"], result["code"], result["height"], result["index"]) for result in results}
    assert len(places) == 1
    assert results[0]["code"] == "ok"
    assert await included(port, before) == [transaction.id]


async def test_what_was_committed_is_answered_and_not_recorded_again(port: Entrance) -> None:
    transaction, body = addition(port.cluster, "ada", now_ms())
    first = await port.submit(transaction, [body])
    async with nothing_recorded(port):
        again = await port.submit(transaction, [body], wait="accepted")
    assert (again["height"], again["index"], again["code"]) == (first["height"], first["index"], "ok")


async def test_another_signature_is_the_same_transaction(port: Entrance) -> None:
    """Also one that does not verify: the id is known, and nothing of the new bytes is kept."""
    transaction = newcomer(port.cluster, now_ms())
    first = await port.submit(transaction)
    body = decode(transaction.data, ENVELOPE_BYTES_MAX)["body"]
    forged = decode_transaction(encode({"body": body, "signature": bytes(63) + b"\x01"}))
    for twin in (resigned(transaction, ADMIN_SEED), forged):
        async with nothing_recorded(port):
            again = await port.submit(twin, wait="accepted")
        assert (again["id"], again["height"]) == (first["id"], first["height"])


async def test_two_signatures_at_once_are_one_inclusion(port: Entrance) -> None:
    before = await executed_height(port)
    transaction = newcomer(port.cluster, now_ms())
    twin = resigned(transaction, ADMIN_SEED)
    first, second = await asyncio.gather(port.submit(transaction), port.submit(twin))
    assert (first["id"], first["height"], first["code"]) == (second["id"], second["height"], "ok")
    assert await included(port, before) == [transaction.id]


@pytest.mark.parametrize("again", ["in a later block", "in a later block, resigned", "in the same block, resigned"])
async def test_a_leader_that_includes_it_again_changes_nothing(port: Entrance, again: str) -> None:
    """Its result is `duplicate` at every node; the first inclusion keeps its place and its receipt."""
    cluster = port.cluster
    before = await executed_height(port)
    transaction = newcomer(cluster, now_ms())
    twin = transaction if again == "in a later block" else resigned(transaction, ADMIN_SEED)
    leader = cluster.leader()
    assert leader is not None
    driver = cluster.members[leader].running.driver
    if again == "in the same block, resigned":
        assert driver.propose([transaction, twin])
        assert await included(port, before) == [transaction.id, twin.id]
    else:
        await port.submit(transaction)
        assert await included(port, before) == [transaction.id]
    roots = {member.store.roots(before + 1).state for member in cluster.members.values() if member.store}
    if again != "in the same block, resigned":
        assert driver.propose([twin])
        assert await included(port, before) == [transaction.id, twin.id]
    for member in cluster.members.values():
        store = member.store
        assert store is not None
        results = [
            (result.code, result.envelope)
            for height in range(before + 1, store.executed_height + 1)
            for result in store.results(height)
        ]
        assert results == [("ok", transaction.hash), ("duplicate", twin.hash)]
        assert {store.roots(store.executed_height).state} == roots
        receipt = verify_receipt(store.receipt(transaction.id), cluster.genesis)
        assert (receipt.code, receipt.height) == ("ok", before + 1)


async def test_a_block_with_the_same_signed_bytes_twice_is_refused(port: Entrance) -> None:
    """Followers refuse it as malformed, and the leader that made it is replaced."""
    cluster = port.cluster
    before = await executed_height(port)
    leader = cluster.leader()
    assert leader is not None
    transaction = newcomer(cluster, now_ms())
    assert cluster.members[leader].running.driver.propose([transaction, transaction])
    await cluster.until(lambda: cluster.leader() not in (None, leader))
    assert cluster.members[leader].running.driver.core.barred
    assert await included(port, before) == []
    assert (await port.submit(transaction))["code"] == "ok"
    assert await included(port, before) == [transaction.id]
