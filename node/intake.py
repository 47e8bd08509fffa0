"""Consensus messages on their way to the core: signatures checked, blocks inspected and made whole.

The core trusts what `step` gets. So here every vote, acknowledgement and certificate is verified, and an Append
reaches the core only once each of its new blocks passed inspection and has all its bodies. What waits for
bodies waits in a queue of its sender, in order; meanwhile the core hears the leader's heartbeat, without blocks.

Bound: WAITING_MAX Appends a sender, and the rest of one that is partly delivered. Beyond it the newest is dropped;
the leader sends again from what the core has answered.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from consensus.messages import (
    Acknowledgement,
    Append,
    AppendReply,
    Certificate,
    Entry,
    Message,
    Reason,
    VoteReply,
)
from ledger.block import Block, header_of
from ledger.errors import Rejection
from ledger.finality import verify_acknowledgement, verify_certificate, verify_vote
from ledger.genesis import Genesis
from ledger.membership import Configuration
from network.messages import COMMITMENTS_MAX
from network.port import AcknowledgementShown, FetchFailed
from node.certificates import signed
from node.evidence import Witness
from node.inspector import BlockRefusedError, Inspector, Parent
from node.lineage import Lineage
from node.membership import in_effect_at
from node.stages import Stages
from node.tail import Tail
from storage.executed import Divergence

WAITING_MAX = 64
# How long a block waits for gossip to bring its transactions: they left before it, on another connection. What the
# pool has verified by then is neither verified again nor asked for.
GOSSIP_GRACE_S = 0.03
# How long a change of membership waits for its parent to be executed here: the parent's certificate left the leader
# just before it. After that the leader is told, and sends it again; until then it is judged as soon as it can be.
EXECUTION_GRACE_S = 1.0

FetchBodies = Callable[[str, Sequence[bytes]], Awaitable[Mapping[bytes, bytes]]]


class Core(Protocol):
    """What the intake asks of the core, and whom it hands the checked message to."""

    @property
    def term(self) -> int: ...
    @property
    def commit_height(self) -> int: ...
    def term_hash(self, height: int) -> tuple[int, bytes] | None: ...


@dataclass(slots=True)
class _Candidate:
    """The good blocks of an Append, and what is still missing before the core may see them.

    `refused` is the rest of the Append, from its first bad block on, and why it is bad.
    """

    append: Append
    blocks: list[Block]
    missing: list[bytes]
    bodies: dict[bytes, bytes] = field(default_factory=dict)
    refused: tuple[Append, Reason] | None = None

    @property
    def early(self) -> bool:
        """Whether execution has yet to come as far as the first bad block needs to be judged."""
        return self.refused is not None and self.refused[1] is Reason.BEHIND


class BlockChecks:
    """Inspection and completeness of blocks from elsewhere, for Appends and for catch-up alike."""

    def __init__(
        self,
        inspector: Inspector,
        tail: Tail,
        lineage: Lineage,
        *,
        body_at_hand: Callable[[bytes], bytes | None],
        term_hash: Callable[[int], tuple[int, bytes] | None],
        last_height: Callable[[], int],
    ) -> None:
        self._inspector = inspector
        self._tail = tail
        self._lineage = lineage
        self._body_at_hand = body_at_hand
        self._term_hash = term_hash
        self._last_height = last_height

    def inspect(self, entries: Sequence[Entry], *, certified: bool) -> list[Block]:
        """The blocks of `entries` that the log does not hold yet. `entries` follow on a block of the log.

        Raises RefusedAtError for the first that breaks a rule, with the good ones before it.
        """
        fresh: list[Block] = []
        parent: Parent | None = None
        for entry in entries:
            own = self._term_hash(entry.height)
            if own is not None and own[1] == entry.hash and not fresh:
                continue
            if parent is None:
                parent = self._lineage.parent_of(entry.height - 1, entry.parent)
            try:
                block = self._inspector.inspect(entry, parent, certified=certified)
            except BlockRefusedError as error:
                raise RefusedAtError(entry.height, error.reason, str(error), fresh) from None
            parent = parent.child(block.header)
            fresh.append(block)
        return fresh

    def configuration_at(self, height: int) -> Configuration:
        """The one in effect at `height`, or at the end of this node's log."""
        found = self._term_hash(height)
        if found is None:
            height = self._last_height()
            found = self._term_hash(height)
        assert found is not None, "the log holds what is below its end"
        return self._lineage.parent_of(height, found[1]).place.configuration

    def certifiers(self, append: Append, height: int) -> Configuration:
        """Whose certificate a block at `height` needs: by this node's log and, where it connects, by the Append's own
        blocks. Raises Rejection where those change the membership as none may.
        """
        own = self._term_hash(append.prev_height)
        if height <= append.prev_height or own is None or own[1] != append.prev_hash:
            return self.configuration_at(height)
        place = self._lineage.parent_of(append.prev_height, append.prev_hash).place
        return in_effect_at(place, append.entries, height)

    def unknown(self, entries: Sequence[Entry]) -> list[bytes]:
        """The hashes of transactions that the pool does not hold, of blocks that the log does not hold."""
        found: list[bytes] = []
        for entry in entries:
            own = self._term_hash(entry.height)
            if own is None or own[1] != entry.hash:
                found += self._inspector.unknown(entry)
        return found

    def still_unknown(self, hashes: Sequence[bytes]) -> list[bytes]:
        return self._inspector.still_unknown(hashes)

    def missing(self, blocks: Sequence[Block], bodies: dict[bytes, bytes]) -> list[bytes]:
        """Commitments of `blocks` whose bodies are neither in `bodies` nor at hand; those at hand are added to it."""
        absent: list[bytes] = []
        for block in blocks:
            for transaction in block.transactions:
                for reference in transaction.envelope.bodies:
                    if reference.commitment in bodies:
                        continue
                    body = self._body_at_hand(reference.commitment)
                    if body is None:
                        absent.append(reference.commitment)
                    else:
                        bodies[reference.commitment] = body
        return absent

    def hold(self, blocks: Sequence[Block], bodies: Mapping[bytes, bytes]) -> None:
        """Whole blocks, about to be stepped: keep them for the disk and for execution."""
        for block in blocks:
            self._lineage.learn(block)
            own = bodies
            if len(blocks) > 1:
                own = {
                    reference.commitment: bodies[reference.commitment]
                    for transaction in block.transactions
                    for reference in transaction.envelope.bodies
                }
            self._tail.hold(block, own)

    def drop_unlogged(self, blocks: Sequence[Block]) -> None:
        """After a step: forget those that the core did not take."""
        for block in blocks:
            own = self._term_hash(block.header.height)
            if own is None or own[1] != block.hash:
                self._tail.discard(block.hash)


class RefusedAtError(Exception):
    def __init__(self, height: int, reason: Reason, detail: str, before: list[Block]) -> None:
        super().__init__(detail)
        self.height = height
        self.reason = reason
        self.before = before


async def fetch_all(fetch: FetchBodies, peer: str, commitments: Sequence[bytes], into: dict[bytes, bytes]) -> bool:
    """Whether `peer` gave every body of `commitments`; what it gave is in `into`.

    The network has checked each against its commitment. An answer may be partial; one without progress ends it.
    """
    wanted = list(dict.fromkeys(commitments))
    while wanted:
        try:
            fetched = await fetch(peer, wanted[:COMMITMENTS_MAX])
        except FetchFailed:
            return False
        into.update(fetched)
        left = [commitment for commitment in wanted if commitment not in into]
        if len(left) == len(wanted):
            return False
        wanted = left
    return True


class Intake:
    """`step` hands a checked message to the core, `refuse` a refusal; `spawn` runs a coroutine to its end.

    `certified` hears the height of each new verified certificate; `hinted` that of one which this node cannot verify,
    or whose blocks it cannot judge, with the log it has. `key_of` knows the key of every node that the ledger ever
    named; `executed` waits until a height is executed here; `own` is shown this node's own signatures. `count` hears
    the kind of each bad message, and `halt` stops the node: a certified block contradicts it.
    """

    def __init__(
        self,
        core: Core,
        checks: BlockChecks,
        witness: Witness,
        genesis: Genesis,
        node_id: str,
        stages: Stages,
        *,
        step: Callable[[str, Message], None],
        refuse: Callable[[str, Append, int, Reason], None],
        fetch: FetchBodies,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        certified: Callable[[int], None],
        hinted: Callable[[int], None],
        key_of: Callable[[str], bytes | None],
        executed: Callable[[int], Awaitable[None]],
        own: Callable[[AcknowledgementShown], None],
        halt: Callable[[Exception], None],
        count: Callable[[str], None],
    ) -> None:
        self._core = core
        self._checks = checks
        self._witness = witness
        self._chain = genesis.chain_id()
        self._node_id = node_id
        self._own = own
        self._stages = stages
        self._step = step
        self._refuse = refuse
        self._fetch = fetch
        self._spawn = spawn
        self._certified = certified
        self._hinted = hinted
        self._key_of = key_of
        self._executed = executed
        self._halt = halt
        self._count = count
        self._waiting: dict[str, deque[Append]] = {}
        self._pool_grew = asyncio.Event()

    def pool_grew(self) -> None:
        """Transactions of peers came into the pool."""
        self._pool_grew.set()

    def on_consensus(self, sender: str, message: Message) -> None:
        """A message from an authenticated peer. What does not verify is counted and dropped."""
        with self._stages.timed("inspect"):
            self._take_message(sender, message)

    def _take_message(self, sender: str, message: Message) -> None:
        match message:
            case Append():
                checked = self._with_checked_certificate(message)
                if checked is not None:
                    self._on_append(sender, checked)
            case AppendReply():
                self._step(sender, self._with_checked_acknowledgements(sender, message))
            case VoteReply(granted=True):
                key = self._key_of(sender)
                if key is not None and verify_vote(key, self._chain, message.term, self._node_id, message.signature):
                    self._witness.vote(sender, message.term, self._node_id, message.signature)
                    self._step(sender, message)
                else:
                    self._count("bad_vote")
            case _:
                self._step(sender, message)

    def certificate_holds(self, certificate: Certificate, configuration: Configuration) -> bool:
        """Whether quorums of this configuration signed it; its signatures are also witnessed."""
        try:
            verify_certificate(signed(certificate), self._chain, configuration.voters, configuration.old_voters)
        except Rejection:
            return False
        term, height, block = certificate.term, certificate.height, certificate.hash
        for voter, signature in certificate.signatures:
            if voter == self._node_id:
                self._own(AcknowledgementShown(term, height, block, signature))
            self._witness.acknowledgement(voter, term, height, block, signature)
        return True

    def _with_checked_certificate(self, append: Append) -> Append | None:
        """None for a certificate that no correct leader sends; without one that is known, or cannot be judged here.

        Above the Append's last block, or where it does not connect, one may not hold merely because the voters
        changed in blocks that this node has yet to see.
        """
        certificate = append.certificate
        if certificate is None:
            return append
        if certificate.height <= self._core.commit_height:
            own = self._core.term_hash(certificate.height)
            if own is not None and own[1] == certificate.hash:
                # Known already: not worth a quorum of verifications on every heartbeat.
                return replace(append, certificate=None)
        try:
            holds = self.certificate_holds(certificate, self._checks.certifiers(append, certificate.height))
        except Rejection:
            holds = False
        if not holds:
            if certificate.height <= append.prev_height + len(append.entries) and self._connects(append):
                self._count("bad_certificate")
                return None
            self._hinted(certificate.height)
            return replace(append, certificate=None)
        self._certified(certificate.height)
        return append

    def _with_checked_acknowledgements(self, sender: str, reply: AppendReply) -> AppendReply:
        if not reply.acknowledgements:
            return reply
        good: list[Acknowledgement] = []
        for item in reply.acknowledgements if reply.term == self._core.term else ():
            if item.height <= self._core.commit_height:
                continue
            key = self._checks.configuration_at(item.height).signers.get(sender)
            if key is None:
                # A learner's, or a stranger's: nobody counts it.
                continue
            if verify_acknowledgement(key, self._chain, reply.term, item.height, item.hash, item.signature):
                self._witness.acknowledgement(sender, reply.term, item.height, item.hash, item.signature)
                good.append(item)
            else:
                self._count("bad_acknowledgement")
        return replace(reply, acknowledgements=tuple(good))

    def _on_append(self, sender: str, append: Append) -> None:
        queue = self._waiting.get(sender)
        if queue is None:
            self._take(sender, append)
            return
        # While bodies are fetched nothing is answered but "still here": a conflict now would have the leader send
        # again what waits in the queue, ahead of the bodies.
        if append.entries and len(queue) < WAITING_MAX:
            queue.append(append)
        self._step(sender, self._heartbeat(append))

    def _take(self, sender: str, append: Append) -> None:
        unknown = self._unknown(append)
        candidate = None if unknown else self._inspect(sender, append)
        if unknown or (candidate is not None and (candidate.missing or candidate.early)):
            self._waiting[sender] = deque()
            if not unknown:
                self._step(sender, self._heartbeat(append))
            self._spawn(self._complete(sender, append, unknown))
        elif candidate is not None:
            self._deliver(sender, candidate)

    def _unknown(self, append: Append) -> list[bytes]:
        """The hashes of transactions that gossip has not brought, if this Append is one to act upon."""
        return self._checks.unknown(append.entries) if self._connects(append) else []

    def _connects(self, append: Append) -> bool:
        """Whether it is of no older term, and follows on this node's log."""
        own = self._core.term_hash(append.prev_height)
        return append.term >= self._core.term and own is not None and own[1] == append.prev_hash

    def _inspect(self, sender: str, append: Append) -> _Candidate | None:
        """None where the core, or a refusal, has already had the last word about this Append."""
        if not self._connects(append):
            # Stale, or not connecting: the core answers that from the first lines of the message.
            self._step(sender, replace(append, entries=()))
            return None
        if not _linked(append):
            self._count("bad_append")
            return None
        refused: tuple[Append, Reason] | None = None
        try:
            blocks = self._checks.inspect(append.entries, certified=False)
        except RefusedAtError as error:
            if error.reason is Reason.BAD_ROOTS and _certified(append, error.height):
                self._halt(Divergence(str(error)))
                return None
            if error.reason is Reason.BEHIND and append.certificate is not None:
                if _certified(append, error.height):
                    return self._inspect_certified(append, append.certificate.height)
                self._hinted(append.certificate.height)
            blocks = error.before
            append, rest = _split(append, error.height)
            refused = (rest, error.reason)
        bodies: dict[bytes, bytes] = {}
        return _Candidate(append, blocks, self._checks.missing(blocks, bodies), bodies, refused)

    def _inspect_certified(self, append: Append, height: int) -> _Candidate | None:
        """The blocks up to the certified one at `height`: their voters judged what this node cannot judge yet."""
        append = replace(append, entries=tuple(entry for entry in append.entries if entry.height <= height))
        try:
            blocks = self._checks.inspect(append.entries, certified=True)
        except RefusedAtError as error:
            append, rest = _split(append, error.height)
            return _Candidate(append, error.before, [], {}, (rest, error.reason))
        bodies: dict[bytes, bytes] = {}
        return _Candidate(append, blocks, self._checks.missing(blocks, bodies), bodies)

    async def _complete(self, sender: str, append: Append, unknown: list[bytes]) -> None:
        """Wait for gossip and execution, fetch what is missing from the sender, deliver; then what queued up."""
        queue = self._waiting[sender]
        # Before anything is fetched the core hears the leader's heartbeat.
        told = not unknown
        try:
            while True:
                await self._gossip(unknown)
                with self._stages.timed("inspect"):
                    candidate = self._inspect(sender, append)
                if candidate is not None and candidate.early and not candidate.append.entries:
                    await self._execution(append.prev_height)
                    candidate = self._inspect(sender, append)
                if candidate is not None and candidate.early and candidate.append.entries:
                    # What is good goes first: the block that execution waits for may be among it.
                    assert candidate.refused is not None, "it is early for a block that it refuses"
                    queue.appendleft(candidate.refused[0])
                    candidate.refused = None
                if candidate is not None:
                    if candidate.missing and not told:
                        told = True
                        self._step(sender, self._heartbeat(append))
                    if not await fetch_all(self._fetch, sender, candidate.missing, candidate.bodies):
                        # The leader sends again what the core did not answer for.
                        return
                    self._deliver(sender, candidate)
                if not queue:
                    return
                append = queue.popleft()
                unknown = self._unknown(append)
        finally:
            del self._waiting[sender]

    async def _execution(self, height: int) -> None:
        """Until `height` is executed here, for at most EXECUTION_GRACE_S."""
        with suppress(TimeoutError):
            async with asyncio.timeout(EXECUTION_GRACE_S):
                await self._executed(height)

    async def _gossip(self, unknown: list[bytes]) -> None:
        """Until the pool holds these transactions, for at most GOSSIP_GRACE_S."""
        with suppress(TimeoutError):
            async with asyncio.timeout(GOSSIP_GRACE_S):
                while unknown:
                    self._pool_grew.clear()
                    await self._pool_grew.wait()
                    unknown = self._checks.still_unknown(unknown)

    def _deliver(self, sender: str, candidate: _Candidate) -> None:
        self._checks.hold(candidate.blocks, candidate.bodies)
        self._step(sender, candidate.append)
        self._checks.drop_unlogged(candidate.blocks)
        if candidate.refused is not None:
            rest, reason = candidate.refused
            self._refuse(sender, rest, rest.entries[0].height, reason)

    def _heartbeat(self, append: Append) -> Append:
        """The same leader's word without blocks, at this node's commit height, where every log agrees."""
        height = self._core.commit_height
        found = self._core.term_hash(height)
        assert found is not None, "the log holds what is committed"
        return replace(append, prev_height=height, prev_term=found[0], prev_hash=found[1], entries=())


def _certified(append: Append, height: int) -> bool:
    """Whether the (verified) certificate of the Append covers its block at `height`, itself or through those above.

    Hash and parent are taken from the blocks' own bytes: those beside them are only the sender's word, and a made-up
    link to a certified hash must stop nobody.
    """
    if append.certificate is None:
        return False
    for entry in append.entries[height - append.prev_height - 1 :]:
        try:
            header, own_hash = header_of(entry.data)
        except Rejection:
            return False
        if (own_hash, header.parent) != (entry.hash, entry.parent):
            return False
        if own_hash == append.certificate.hash:
            return True
    return False


def _split(append: Append, height: int) -> tuple[Append, Append]:
    """The Append up to below `height`, and the rest of it as an Append of its own."""
    cut = height - append.prev_height - 1
    good, rest = append.entries[:cut], append.entries[cut:]
    if not good:
        return replace(append, entries=()), append
    last = good[-1]
    return (
        replace(append, entries=good),
        replace(append, prev_height=last.height, prev_term=last.term, prev_hash=last.hash, entries=rest),
    )


def _linked(append: Append) -> bool:
    """Whether the entries follow on `prev` one by one, by height and by hash."""
    height, parent = append.prev_height, append.prev_hash
    for entry in append.entries:
        if entry.height != height + 1 or entry.parent != parent:
            return False
        height, parent = entry.height, entry.hash
    return True
