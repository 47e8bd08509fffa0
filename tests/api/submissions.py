"""What a trial submits beside what schemathesis makes up: each kind of transaction, and each way to get one wrong.

No schema can say what these are: signed for one network, by one key, for the next minutes.
"""

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from typing import NamedTuple

from ledger.contracts import Action, identity, records
from ledger.encoding import decode, encode
from ledger.keys import SigningKey, sha256
from ledger.transaction import (
    ENVELOPE_BYTES_MAX,
    FORMAT,
    NONCE_BYTES,
    TRANSACTION,
    UNTIL_AHEAD_MAX_MS,
    Envelope,
    body_reference,
    sign_transaction,
)
from tests.api.facts import Facts

VALID_MS = 300_000
SLOW = 40
BODY = b"only looks like a sealed body"
# The eight points of small order are no keys; this is one of them.
SMALL_ORDER = bytes(32)


class Item(NamedTuple):
    envelope: bytes
    bodies: list[bytes]


class Submissions:
    """`next` gives one item or a list of them, every kind in turn."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._chain = facts.genesis.chain_id()
        self._members = facts.members
        self._version = facts.version
        self._again = self._added()
        kinds: tuple[Callable[[], Item | list[Item]], ...] = (*self._good(), *self._bad())
        self.kinds = len(kinds)
        self._kinds: Iterator[Callable[[], Item | list[Item]]] = cycle(kinds)

    def next(self) -> Item | list[Item]:
        return next(self._kinds)()

    def slow(self) -> list[Item]:
        """So many that they cannot all be committed within a millisecond."""
        return [self._added() for _ in range(SLOW)]

    def _good(self) -> tuple[Callable[[], Item | list[Item]], ...]:
        return (
            self._added,
            self._amended,
            lambda: self._signed("admin", [self._registration()]),
            lambda: [self._added(), self._added("stranger"), self._amended()],
            # What changes nothing in its block.
            lambda: self._signed("doctor", [self._registration()]),
            lambda: self._written(records.Amend(0, bytes.fromhex(self._facts.amended), self._subject, 1)),
            lambda: self._written(records.Add(0, bytes.fromhex(self._facts.records[0]), self._subject)),
            lambda: self._again,
        )

    def _bad(self) -> tuple[Callable[[], Item | list[Item]], ...]:
        """One for each code of admission."""
        return (
            lambda: Item(self._resigned(until=0), [BODY]),
            lambda: Item(self._resigned(until=_now_ms() + 2 * UNTIL_AHEAD_MAX_MS), [BODY]),
            lambda: Item(self._resigned(chain=bytes(32)), [BODY]),
            lambda: Item(self._resigned(format=2), [BODY]),
            lambda: Item(self._resigned(actions=[{"do": "member.promote"}]), [BODY]),
            lambda: Item(self._resigned(surprise=1), [BODY]),
            lambda: Item(
                self._resigned(
                    actions=[{"do": "member.register", "key": SMALL_ORDER, "proof": bytes(64), "role": "patient"}],
                    bodies=[],
                ),
                [],
            ),
            lambda: Item(encode({"body": self._parts()["body"]}), [BODY]),
            lambda: Item(encode({**self._parts(), "signature": bytes(64)}), [BODY]),
            lambda: Item(self._added().envelope + b"\0", [BODY]),
            lambda: Item(b"\xc6" + (70_000).to_bytes(4, "big") + bytes(70_000), []),
            lambda: Item(self._added().envelope, [b"another body"]),
            lambda: self._added("stranger"),
            lambda: self._added("gone"),
            lambda: self._added("rotated"),
            lambda: [self._added("gone"), self._added("rotated")],
        )

    @property
    def _subject(self) -> bytes:
        return bytes.fromhex(self._facts.subject)

    def _added(self, name: str = "doctor") -> Item:
        return self._written(records.Add(0, secrets.token_bytes(32), self._subject), name)

    def _amended(self) -> Item:
        """Right where the one before was committed, else stale."""
        self._version += 1
        return self._written(records.Amend(0, bytes.fromhex(self._facts.amended), self._subject, self._version - 1))

    def _written(self, action: records.Add | records.Amend, name: str = "doctor") -> Item:
        return self._signed(name, [action], [BODY])

    def _registration(self) -> identity.Register:
        key = SigningKey(secrets.token_bytes(32))
        proof = identity.possession_proof(key, self._chain, self._members["admin"].account)
        return identity.Register(key.public, proof, "patient")

    def _signed(self, name: str, actions: Sequence[Action], bodies: Sequence[bytes] = ()) -> Item:
        member = self._members[name]
        envelope = Envelope(
            actions=list(actions),
            bodies=[body_reference(body) for body in bodies],
            by=member.account,
            chain=self._chain,
            format=FORMAT,
            key=member.key.public,
            nonce=secrets.token_bytes(NONCE_BYTES),
            until=_now_ms() + VALID_MS,
        )
        return Item(sign_transaction(envelope, member.key).data, list(bodies))

    def _parts(self) -> dict[str, bytes]:
        parts: dict[str, bytes] = decode(self._added().envelope, ENVELOPE_BYTES_MAX)
        return parts

    def _resigned(self, **changes: object) -> bytes:
        """A good transaction with fields of its envelope changed, signed as it then is."""
        body = encode({**decode(self._parts()["body"], ENVELOPE_BYTES_MAX), **changes})
        signature = self._members["doctor"].key.sign(TRANSACTION, sha256(body))
        return encode({"body": body, "signature": signature})


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
