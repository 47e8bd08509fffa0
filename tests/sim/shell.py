"""What stands in for the parts of the shell that wait, and what a node finds around it."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from consensus.messages import Append, Certificate, Message, Slot
from ledger.block import Block
from ledger.genesis import Genesis
from ledger.transaction import Transaction
from network.port import BlockRange, Statements
from node.intake import BlockChecks, Intake
from node.maker import BlockMaker
from node.stages import Stage, Stages
from storage.promises import Forsworn

if TYPE_CHECKING:
    from tests.sim.node import SimNode


@dataclass(frozen=True, slots=True)
class Gossip:
    """A transaction on its way to another node's pool."""

    transaction: Transaction


Sent = Message | Gossip | Statements


class Watch(Protocol):
    """Who looks on: everything that a node says or signs, before it takes effect."""

    def seals(self, node: str, block: Block) -> None: ...
    def acknowledges(self, node: str, term: int, height: int, block: bytes) -> None: ...
    def sends(self, node: "SimNode", receiver: str, message: Message) -> None: ...
    def tells(self, node: "SimNode", certificate: Certificate) -> None: ...
    def after(self, node: "SimNode") -> None: ...
    def forswears(self, node: str, why: Forsworn) -> None: ...
    def answered(self, token: int, height: int) -> None: ...
    def unanswered(self, token: int) -> None: ...


class World(Protocol):
    """What a node finds around it."""

    @property
    def seed(self) -> int: ...
    @property
    def genesis(self) -> Genesis: ...
    @property
    def watch(self) -> Watch: ...
    def now_ms(self, name: str) -> int: ...
    def introduced(self, name: str) -> dict[str, bytes]: ...
    def peers(self, name: str) -> list[str]: ...
    def send(self, sender: str, receiver: str, message: Sent) -> None: ...
    def reachable(self, name: str, peer: str) -> "SimNode | None": ...
    def fetch(self, name: str, peer: str, height: int, bytes_max: int) -> BlockRange: ...


class WatchedMaker(BlockMaker):
    """The shell's signer, with the oracle looking over its shoulder."""

    _watch: Watch

    def watched(self, watch: Watch) -> "WatchedMaker":
        self._watch = watch
        return self

    def seal(self, slot: Slot, payload: object) -> tuple[bytes, bytes]:
        sealed: list[Block] = []
        hold, self._sealed = self._sealed, sealed.append
        try:
            answer = super().seal(slot, payload)
        finally:
            self._sealed = hold
        self._watch.seals(self._node_id, sealed[0])
        hold(sealed[0])
        return answer

    def acknowledge(self, term: int, height: int, block_hash: bytes) -> bytes:
        self._watch.acknowledges(self._node_id, term, height, block_hash)
        return super().acknowledge(term, height, block_hash)


class SwiftChecks(BlockChecks):
    """Blocks are whole here: a transaction that gossip has not brought is decoded from the block at once."""

    def unknown(self, entries: Sequence[object]) -> list[bytes]:
        return []


class SwiftIntake(Intake):
    """Nothing is waited for: no body is missing, and the time for execution to come along is always up."""

    def _take(self, sender: str, append: Append) -> None:
        candidate = self._inspect(sender, append)
        if candidate is not None:
            self._deliver(sender, candidate)


class Untimed(Stages):
    """Asks no clock: that alone would cost as much as all the rest."""

    def timed(self, stage: Stage) -> Any:
        return _UNTIMED


_UNTIMED = nullcontext()


async def at_once(height: int) -> None:
    """Nobody here waits for an execution: the next range may come first."""


def never(*_: object) -> Any:
    raise AssertionError("nothing here is fetched or awaited")
