"""What waits to be sent on one lane to one peer: a bounded queue for each stream, the most urgent first.

| stream | bound | at the bound |
|---|---|---|
| urgent | 1,024 messages | the oldest is dropped: newer votes, heartbeats and replies replace it |
| blocks | 64 messages, 64 MiB | the oldest is dropped: the core repeats what is not acknowledged |
| sync   | 64 messages, 64 MiB | the new one is dropped: whoever asked runs into its timeout |
| gossip | 4,096 messages, `gossip_queue_bytes_max` | the new one is dropped: the next announcement names it again |

A message of which a frame has left is always finished, so a bound may be passed by one message per stream.
"""

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from network.frames import Parcel
from network.messages import MIB, Stream


@dataclass(frozen=True, slots=True)
class Bound:
    messages_max: int
    bytes_max: int
    drop_oldest: bool


BOUNDS = {
    Stream.URGENT: Bound(1_024, 16 * MIB, drop_oldest=True),
    Stream.BLOCKS: Bound(64, 64 * MIB, drop_oldest=True),
    Stream.SYNC: Bound(64, 64 * MIB, drop_oldest=False),
}


def gossip_bound(bytes_max: int) -> Bound:
    return Bound(4_096, bytes_max, drop_oldest=False)


@dataclass(slots=True)
class _Queue:
    """`size_bytes` counts the parcels that wait, not the one being sent, of which `next_frame` is next."""

    bound: Bound
    waiting: deque[Parcel] = field(default_factory=deque)
    size_bytes: int = 0
    leaving: Parcel | None = None
    next_frame: int = 0

    def fits(self, parcel: Parcel) -> bool:
        if not self.waiting:
            return True
        return (
            len(self.waiting) < self.bound.messages_max
            and self.size_bytes + parcel.size_bytes <= self.bound.bytes_max
        )

    def take_oldest(self) -> Parcel:
        parcel = self.waiting.popleft()
        self.size_bytes -= parcel.size_bytes
        return parcel


class Outbox:
    """Filled by anyone on the event loop, emptied by one writer."""

    def __init__(self, bounds: Mapping[Stream, Bound]) -> None:
        self._queues = {stream: _Queue(bounds[stream]) for stream in sorted(bounds)}
        self._wake: asyncio.Future[None] | None = None

    def put(self, parcel: Parcel) -> list[Parcel]:
        """Queue it; the answer is what was dropped for it, perhaps itself."""
        queue = self._queues[parcel.stream]
        dropped = []
        while not queue.fits(parcel):
            if not queue.bound.drop_oldest:
                return [parcel]
            dropped.append(queue.take_oldest())
        queue.waiting.append(parcel)
        queue.size_bytes += parcel.size_bytes
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)
        return dropped

    def pop(self) -> tuple[Parcel, bytes] | None:
        """The next frame to send, with the parcel that it belongs to."""
        for queue in self._queues.values():
            if queue.leaving is None:
                if not queue.waiting:
                    continue
                queue.leaving, queue.next_frame = queue.take_oldest(), 0
            parcel = queue.leaving
            frame = parcel.frames[queue.next_frame]
            queue.next_frame += 1
            if queue.next_frame == len(parcel.frames):
                queue.leaving = None
            return parcel, frame
        return None

    async def filled(self) -> None:
        """Wait until something was put. Only the writer, and only when `pop` said None."""
        self._wake = asyncio.get_running_loop().create_future()
        try:
            await self._wake
        finally:
            self._wake = None

    def clear(self) -> None:
        """Forget everything: the connection it was meant for is gone."""
        for queue in self._queues.values():
            queue.waiting.clear()
            queue.size_bytes, queue.leaving = 0, None
