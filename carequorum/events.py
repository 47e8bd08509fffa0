"""Follow what happens on the ledger: one stream over whichever node serves it, without gap or repeat.

An event has the same id at every node, and ids grow along the chain. So the id of the last event is all that it takes
to go on elsewhere; and an event whose id does not grow is a node's mistake, upon which another node is asked.

Events are the word of the node that serves them. `Client.block` and receipts prove what they say.
"""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta

from carequorum.transport import Authorise, Node, NodeFailed, Pauses, Refused, Transport, Unreachable
from carequorum.views import Hex32, decode_view
from ledger.contracts.context import BodyReference
from ledger.errors import Rejection
from ledger.events import EventId, parse_event_id

EVENT_STREAM = "text/event-stream"
# The largest envelope, all of it in hex, and what is around it.
MESSAGE_BYTES_MAX = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Event:
    """An action that took effect (`code` "ok"), or a transaction that changed nothing, by the rule that `code` names.

    `time` is the block's, in ms. `by` signed; of a failed transaction it is only who it says it is from. `accounts`
    are those that the actions make or change. `actions` has the one that took effect, or all those that failed, as
    nodes show them: "do" names the action, byte strings are hex. `bodies` are those that the actions name.
    """

    id: EventId
    time: int
    transaction: bytes
    by: bytes
    code: str
    accounts: tuple[bytes, ...]
    actions: tuple[dict[str, Any], ...]
    bodies: tuple[BodyReference, ...]


class _Body(msgspec.Struct, frozen=True):
    commitment: Hex32
    size: int


class _View(msgspec.Struct, frozen=True):
    id: str
    time: int
    transaction: Hex32
    by: Hex32
    code: Annotated[str, Meta(min_length=1)]
    accounts: list[Hex32]
    actions: list[dict[str, Any]]
    bodies: list[_Body]


class _Message(NamedTuple):
    """One message of the stream; `name` and `data` are empty where only the place is told."""

    id: EventId
    name: bytes
    data: bytes


@dataclass(slots=True)
class Following:
    """One stream: `target` is its path and query; all up to `after` has come (None: from wherever it begins).

    `heard`: the node that is being asked has sent something that makes sense.
    """

    transport: Transport
    target: str
    after: EventId | None
    authorise: Authorise | None
    heard: bool = False

    async def events(self) -> AsyncGenerator[Event, None]:
        """The events, for ever.

        Raises Refused when every node refuses the stream itself; when none has served it for `stream_timeout_s`,
        what the last of them said, or Unreachable.
        """
        settings = self.transport.settings
        pauses = Pauses(settings)
        served_s = time.monotonic()
        refused = 0
        async for node in self.transport.rounds(pauses):
            self.heard = False
            refusal: Rejection | None = None
            try:
                async with aclosing(self._from(node)) as events:
                    async for event in events:
                        yield event
            except NodeFailed as error:
                refusal = Unreachable("unreachable", str(error))
            except Rejection as error:
                refusal = error
                pauses.heed(error)
                refused += not (isinstance(error, Refused) and error.temporary)
            if self.heard:
                pauses.reset()
                served_s = time.monotonic()
                refused = 0
            late = time.monotonic() - served_s > settings.stream_timeout_s
            if refusal is not None and (late or refused >= len(self.transport.nodes)):
                raise refusal

    async def _from(self, node: Node) -> AsyncGenerator[Event, None]:
        """The events that one node sends until it ends the stream. Raises Refused or NodeFailed."""
        headers = {"Accept": EVENT_STREAM}
        if self.after is not None:
            headers["Last-Event-ID"] = str(self.after)
        if self.authorise is not None:
            headers["Authorization"] = await self.authorise(node, self.target)
        rest = b""
        async with aclosing(self.transport.chunks(node, self.target, headers)) as chunks:
            async for chunk in chunks:
                *messages, rest = (rest + chunk).split(b"\n\n")
                try:
                    if len(rest) > MESSAGE_BYTES_MAX:
                        raise Rejection("bad_answer", "a message without end")
                    for message in messages:
                        event = self._next(_parse(message))
                        if event is not None:
                            yield event
                except Rejection as error:
                    self.transport.avoid(node)
                    raise NodeFailed(node.url, str(error), sent=True) from None
        # It said that it ends, or not even that: others are more likely to serve.
        self.transport.avoid(node)

    def _next(self, message: _Message) -> Event | None:
        """The event that a message brings, if it brings one. Raises Rejection unless the stream moves on."""
        before = self.after
        brings = message.name in (b"action", b"failed")
        if before is not None and (message.id < before or (brings and message.id == before)):
            raise Rejection("bad_answer", f"event {message.id} comes after {before}")
        event = _event(message) if brings else None
        self.after = message.id
        self.heard = True
        return event


def _parse(block: bytes) -> _Message:
    """One block of lines. Every one that a node sends has an id. Raises Rejection."""
    fields: dict[bytes, bytes] = {}
    for line in block.split(b"\n"):
        name, _, value = line.partition(b":")
        fields[name] = value.removeprefix(b" ")
    try:
        event_id = parse_event_id(fields.get(b"id", b"").decode("ascii"))
    except UnicodeError:
        raise Rejection("bad_answer", "an id that is none") from None
    return _Message(event_id, fields.get(b"event", b""), fields.get(b"data", b""))


def _event(message: _Message) -> Event:
    view = decode_view(_View, message.data)
    if view.id != str(message.id):
        raise Rejection("bad_answer", f"event {message.id} calls itself otherwise")
    return Event(
        id=message.id,
        time=view.time,
        transaction=bytes.fromhex(view.transaction),
        by=bytes.fromhex(view.by),
        code=view.code,
        accounts=tuple(bytes.fromhex(account) for account in view.accounts),
        actions=tuple(view.actions),
        bodies=tuple(BodyReference(bytes.fromhex(body.commitment), body.size) for body in view.bodies),
    )
