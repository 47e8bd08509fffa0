"""What happened, in order: the events that follow from an executed block and its results, alike at every node.

    an action that took effect             one event, code "ok"
    a transaction that changed nothing     one event with its code and all its actions

Events are derived, never stored: any height can be read again from its block and results.

An id is height.index.action: the block, the transaction's place in it, the action's place in the transaction, 0 for
a transaction that failed. Ids grow along the chain. A height alone is the id of that block's end, above every event
in it. Every id names a place to go on after, whether or not there is an event of that id.
"""

import re
from dataclasses import dataclass
from typing import assert_never

from ledger.contracts import HANDLERS, Action, identity, network, records
from ledger.contracts.context import BodyReference
from ledger.errors import Rejection
from ledger.execution import OK, TxResult
from ledger.keys import account_id
from ledger.transaction import ACTIONS_MAX, Envelope

# More transactions than a block holds, and more digits than 2**53 has.
_END_INDEX = 10_000
_ID = re.compile(r"(0|[1-9][0-9]{0,15})(?:\.(0|[1-9][0-9]{0,3})\.(0|[1-9][0-9]?))?", re.ASCII)

# The contract that an action belongs to: one module a contract.
_CONTRACTS = {action: action.__module__.rpartition(".")[2] for action in HANDLERS}
CONTRACTS = frozenset(_CONTRACTS.values())


@dataclass(frozen=True, order=True, slots=True)
class EventId:
    """0 <= height, 0 <= index <= 10,000 (that one: the block's end), 0 <= action <= 64 (that one: the transaction's).

    Compares as the chain goes.
    """

    height: int
    index: int
    action: int

    @property
    def ends_block(self) -> bool:
        return self.index == _END_INDEX

    @property
    def ends_transaction(self) -> bool:
        return self.action == ACTIONS_MAX

    def __str__(self) -> str:
        return str(self.height) if self.ends_block else f"{self.height}.{self.index}.{self.action}"


def end_of(height: int) -> EventId:
    """Above every event up to this height."""
    return EventId(height, _END_INDEX, 0)


def end_of_transaction(height: int, index: int) -> EventId:
    """Above every event up to this transaction's."""
    return EventId(height, index, ACTIONS_MAX)


def parse_event_id(text: str) -> EventId:
    """What `str` of an id gives, or Rejection("bad_event_id")."""
    found = _ID.fullmatch(text)
    if found is None:
        raise Rejection("bad_event_id", "an event's id is height.index.action, or a height alone")
    height, index, action = found.groups()
    return end_of(int(height)) if index is None else EventId(int(height), int(index), int(action))


@dataclass(frozen=True, slots=True)
class Event:
    """`time_ms` is the block's. `by` signed; of a transaction that failed it is only who it says it is from.

    `actions` is the one that took effect, or all those of a transaction that failed; `bodies` are those they name.
    """

    id: EventId
    time_ms: int
    transaction: bytes
    by: bytes
    code: str
    actions: tuple[Action, ...]
    bodies: tuple[BodyReference, ...]

    @property
    def contracts(self) -> tuple[str, ...]:
        return tuple(_CONTRACTS[type(action)] for action in self.actions)

    @property
    def accounts(self) -> tuple[bytes, ...]:
        """The accounts that the actions make or change."""
        return tuple(account for action in self.actions for account in _accounts(action))

    @property
    def subjects(self) -> tuple[bytes, ...]:
        """The subjects that the actions write about."""
        return tuple(subject for action in self.actions for subject in _subjects(action))


@dataclass(frozen=True, slots=True)
class Filter:
    """Which events are wanted: those that fit everything that is not None. `member` signed, or is made or changed."""

    contract: str | None = None
    subject: bytes | None = None
    member: bytes | None = None

    def admits(self, event: Event) -> bool:
        return (
            (self.contract is None or self.contract in event.contracts)
            and (self.subject is None or self.subject in event.subjects)
            and (self.member is None or self.member == event.by or self.member in event.accounts)
        )


def events_of(height: int, index: int, time_ms: int, envelope: Envelope, result: TxResult) -> tuple[Event, ...]:
    """The events of transaction `index` of the block at `height`, ids ascending."""
    if result.code != OK:
        happened: list[tuple[Action, ...]] = [tuple(envelope.actions)]
    else:
        happened = [(action,) for action in envelope.actions]
    return tuple(
        Event(
            id=EventId(height, index, place),
            time_ms=time_ms,
            transaction=result.id,
            by=envelope.by,
            code=result.code,
            actions=actions,
            bodies=tuple(envelope.bodies[action.body] for action in actions if hasattr(action, "body")),
        )
        for place, actions in enumerate(happened)
    )


def _accounts(action: Action) -> tuple[bytes, ...]:
    match action:
        case identity.Register():
            return (account_id(action.key),)
        case identity.Rotate() | identity.Revoke():
            return (action.account,)
        case network.Propose() | network.Vote() | records.Add() | records.Amend():
            return ()
        case _:
            assert_never(action)


def _subjects(action: Action) -> tuple[bytes, ...]:
    match action:
        case identity.Register() | identity.Rotate() | identity.Revoke() | network.Propose() | network.Vote():
            return ()
        case records.Add() | records.Amend():
            return (action.subject,)
        case _:
            assert_never(action)
