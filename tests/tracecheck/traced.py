"""A core that keeps its own trace, for shells that have none."""

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from consensus.core import RaftCore
from consensus.errors import ProtocolViolation
from consensus.messages import Append, CertifiedBlocks, Configuration, Message, NodeId, Ready, Reason
from consensus.ports import CoreSettings, LogReader, Restored, Signer
from node.trace import Json, Tracer


class TracedCore(RaftCore):
    """As RaftCore. What it wants done is taken out of it after each input, one line, and waits here for the shell."""

    def __init__(
        self,
        settings: CoreSettings,
        restored: Restored,
        reader: LogReader,
        signer: Signer,
        write: Callable[[Json], None],
    ) -> None:
        super().__init__(settings, restored, reader, signer)
        self._tracer = Tracer(settings.node_id, restored, write)
        self._taken: deque[Ready] = deque()
        self._drain()

    def _drain(self, fault: str = "") -> None:
        while super().has_ready():
            ready = super().ready()
            self._tracer.left(ready)
            self._taken.append(ready)
        self._tracer.end(self, fault)

    def _traced(self, action: Callable[[], Any], kind: str, **given: object) -> Any:
        self._tracer.begin(kind, **given)
        fault = ""
        try:
            return action()
        except ProtocolViolation as violation:
            fault = violation.detail
            raise
        finally:
            self._drain(fault)

    def has_ready(self) -> bool:
        return bool(self._taken)

    def ready(self) -> Ready:
        return self._taken.popleft()

    def tick(self) -> None:
        self._traced(super().tick, "tick")

    def step(self, sender: NodeId, message: Message) -> None:
        self._traced(partial(super().step, sender, message), "message", from_=sender, message=message)

    def refuse(self, sender: NodeId, append: Append, height: int, reason: Reason) -> None:
        given = {"from_": sender, "message": append, "height": height, "reason": reason.value}
        self._traced(partial(super().refuse, sender, append, height, reason), "refuse", **given)

    def step_certified(self, sender: NodeId, blocks: CertifiedBlocks) -> bool:
        taken: bool = self._traced(
            partial(super().step_certified, sender, blocks), "certified", from_=sender, blocks=blocks
        )
        return taken

    def propose(self, payload: object) -> int | None:
        height: int | None = self._traced(partial(super().propose, payload), "propose")
        return height

    def propose_change(self, target: Configuration, payload: object = None) -> int | None:
        height: int | None = self._traced(partial(super().propose_change, target, payload), "change", target=target)
        return height

    def transfer(self, target: NodeId | None = None) -> bool:
        begun: bool = self._traced(partial(super().transfer, target), "transfer", target=target)
        return begun

    def stop(self) -> None:
        self._traced(super().stop, "stop")

    def read(self, token: int) -> None:
        self._traced(partial(super().read, token), "read", token=token)

    def compared(self, peer: NodeId, height: int) -> None:
        self._traced(partial(super().compared, peer, height), "compared", peer=peer, height=height)

    def forswear(self) -> None:
        self._traced(super().forswear, "forswear")

    def persisted(self, seq: int) -> None:
        self._traced(partial(super().persisted, seq), "persisted", seq=seq)

    def disk_failed(self) -> None:
        self._traced(super().disk_failed, "disk_failed")
        self._taken.clear()

    def mend(self) -> None:
        self._traced(super().mend, "mend")
