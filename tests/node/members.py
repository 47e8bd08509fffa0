"""Members of a test cluster: keys from fixed names, and the transactions that they sign."""

import secrets
from collections.abc import Sequence

from ledger.contracts import Action, identity, records
from ledger.keys import SigningKey, account_id, sha256
from ledger.transaction import FORMAT, NONCE_BYTES, Envelope, Transaction, body_reference, sign_transaction
from tests.node.cluster import Cluster, admin_account, admin_key, hospital

VALID_MS = 300_000


def key_of(name: str) -> SigningKey:
    return SigningKey(sha256(b"member", name.encode()))


def account_of(name: str) -> bytes:
    return account_id(key_of(name).public)


def sign(
    cluster: Cluster, key: SigningKey, by: bytes, actions: Sequence[Action], bodies: Sequence[bytes], now_ms: int
) -> Transaction:
    envelope = Envelope(
        actions=list(actions),
        bodies=[body_reference(body) for body in bodies],
        by=by,
        chain=cluster.genesis.chain_id(),
        format=FORMAT,
        key=key.public,
        nonce=secrets.token_bytes(NONCE_BYTES),
        until=now_ms + VALID_MS,
    )
    return sign_transaction(envelope, key)


def registration(cluster: Cluster, name: str, role: identity.Role, hospital_index: int, now_ms: int) -> Transaction:
    """The admin of that hospital registers `name`."""
    key = key_of(name)
    admin = admin_account(hospital_index)
    proof = identity.possession_proof(key, cluster.genesis.chain_id(), admin)
    action = identity.Register(key.public, proof, role)
    return sign(cluster, admin_key(hospital_index), admin, [action], [], now_ms)


def addition(cluster: Cluster, name: str, now_ms: int, size: int = 300) -> tuple[Transaction, bytes]:
    """A record by `name`, and its body, which only looks like a sealed one."""
    body = secrets.token_bytes(size)
    action = records.Add(body=0, record=secrets.token_bytes(32), subject=sha256(b"subject", name.encode()))
    return sign(cluster, key_of(name), account_of(name), [action], [body], now_ms), body


async def transact(
    cluster: Cluster, node_id: str, transaction: Transaction, bodies: Sequence[bytes] = ()
) -> str | None:
    """Submit at one node and wait for its code; None where the node went away or did not commit it in time."""
    node = cluster.members[node_id].node
    if node is None:
        return None
    answer = node.backend.submit([(transaction.data, bodies)])[0]
    if answer.rejection is not None:
        raise answer.rejection
    status = await node.backend.wait(transaction.id, "committed", timeout_s=10.0)
    return status.code


async def register(cluster: Cluster, name: str, role: identity.Role = "clinician", hospital_index: int = 0) -> None:
    """Register `name` at its own hospital and see it executed at every running node."""
    await cluster.led()
    node_id = hospital(hospital_index)
    now_ms = cluster.members[node_id].running.backend.now_ms()
    transaction = registration(cluster, name, role, hospital_index, now_ms)
    assert await transact(cluster, node_id, transaction) == "ok"
    await cluster.until(
        lambda: all(
            member.node is None or member.node.tracker.status(transaction.id).code == "ok"
            for member in cluster.members.values()
        )
    )
