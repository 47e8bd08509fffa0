"""What one node's disk holds for good, read out of the batches as they reach it: the oracle's eyes.

Nothing here asks the node's own code what it believes; only the formats of records are shared (storage.schema).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from consensus.messages import HardState
from storage import schema
from storage.base import BASE_KEY, BaseRecord
from storage.port import Write
from storage.schema import Link, LogRecord, Roots


@dataclass(slots=True)
class Changes:
    """What one batch did. `removed`: heights whose block went, and its hash."""

    removed: dict[int, bytes] = field(default_factory=dict)
    linked: list[int] = field(default_factory=list)
    rooted: list[int] = field(default_factory=list)
    settled: dict[int, bytes] = field(default_factory=dict)
    certified: list[bytes] = field(default_factory=list)
    hard_state_moved: bool = False
    pruned: bool = False


class Medium:
    """`links` by height, `hard_state`, `roots` by executed height. Empty until a store is founded on it."""

    def __init__(self) -> None:
        self.links: dict[int, Link] = {}
        self.roots: dict[int, Roots] = {}
        self.hard_state = HardState()
        self.last_height = 0
        # Below it the log is pruned: it was executed here, and proved.
        self.base_height = 0
        self._end_data = b""

    def term_hash(self, height: int) -> tuple[int, bytes] | None:
        link = self.links.get(height)
        return None if link is None else (link.term, link.hash)

    def hash_at(self, height: int) -> bytes | None:
        link = self.links.get(height)
        return None if link is None else link.hash

    def reload(self, content: Mapping[bytes, bytes]) -> None:
        """The disk was exchanged."""
        self.__init__()  # type: ignore[misc]
        self.apply(list(content.items()))

    def apply(self, batch: Sequence[Write]) -> Changes:
        changes = Changes()
        for key, value in batch:
            table = key[:1]
            if table == b"l":
                self._link(int.from_bytes(key[1:], "big"), value, changes)
            elif table == b"r" and value is not None:
                height = int.from_bytes(key[1:], "big")
                self.roots[height] = schema.decode_roots(value, height)
                changes.rooted.append(height)
            elif table == b"x" and value is not None:
                changes.settled[int.from_bytes(key[1:], "big")] = value
            elif table == b"c" and value is not None:
                changes.certified.append(value)
            elif key == BASE_KEY and value is not None:
                height = schema.unseal(BaseRecord, value, "record of the base").height
                changes.pruned, self.base_height = height > self.base_height, height
            elif key == schema.LOG_KEY and value is not None and value != self._end_data:
                self._end_data = value
                end = schema.unseal(LogRecord, value, "record of the log's end")
                self.last_height = end.height
                before, self.hard_state = self.hard_state, HardState(end.term, end.vote)
                changes.hard_state_moved = before != self.hard_state
        changes.removed = {
            height: block for height, block in changes.removed.items() if self.hash_at(height) != block
        }
        return changes

    def _link(self, height: int, value: bytes | None, changes: Changes) -> None:
        before = self.links.get(height)
        if before is not None:
            changes.removed.setdefault(height, before.hash)
        if value is None:
            self.links.pop(height, None)
        else:
            self.links[height] = schema.decode_link(value, height)
            changes.linked.append(height)
