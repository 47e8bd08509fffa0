"""Messages cut into frames, so that an urgent one waits for one frame at most, and put together again.

A frame is one binary WebSocket message: kind number (1 byte), stream number with MORE set on all but a message's
last frame (1 byte), then a piece of the message. Pieces of one message follow each other in order; pieces of
different streams may alternate. WebSocket's own fragments cannot alternate, hence these.

Worst case held by one connection, for a peer that never ends its messages: one message per stream of its lane.
"""

from dataclasses import dataclass

from ledger.errors import Rejection
from network.messages import KIND_BY_NUMBER, Kind, Lane, Stream, encode, kind_of, stream_of

FRAME_BYTES_MAX = 64 * 1024
HEADER_BYTES = 2
PIECE_BYTES_MAX = FRAME_BYTES_MAX - HEADER_BYTES
MORE = 0x80

STREAMS = {
    Lane.CONTROL: (Stream.URGENT, Stream.BLOCKS, Stream.SYNC),
    Lane.GOSSIP: (Stream.GOSSIP,),
}


@dataclass(frozen=True, slots=True)
class Parcel:
    """A message ready to leave, encoded once for however many peers it goes to."""

    kind: Kind
    stream: Stream
    frames: tuple[bytes, ...]
    size_bytes: int


def pack(message: object) -> Parcel:
    """Encode and cut. ValueError as `messages.encode`."""
    kind = kind_of(message)
    stream = stream_of(kind, message)
    data = encode(message)
    last = bytes((kind.number, stream))
    if len(data) <= PIECE_BYTES_MAX:
        return Parcel(kind, stream, (last + data,), len(data))
    more = bytes((kind.number, stream | MORE))
    view = memoryview(data)
    frames = []
    for start in range(0, len(data), PIECE_BYTES_MAX):
        header = last if start + PIECE_BYTES_MAX >= len(data) else more
        frames.append(b"".join((header, view[start : start + PIECE_BYTES_MAX])))
    return Parcel(kind, stream, tuple(frames), len(data))


class Assembler:
    """The receiving end of one lane. Everything it refuses is the peer's mistake: Rejection."""

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self._streams = frozenset(STREAMS[lane])
        # Unfinished messages: 0 < len(piece) <= kind.bytes_max for each.
        self._unfinished: dict[int, tuple[Kind, bytearray]] = {}

    def feed(self, frame: bytes) -> tuple[Kind, memoryview | bytearray] | None:
        """The message that this frame ends, or None while more of it must come.

        Raises Rejection: bad_frame, unknown_kind, message_too_large.
        """
        if not HEADER_BYTES <= len(frame) <= FRAME_BYTES_MAX:
            raise Rejection("bad_frame", f"{len(frame)} bytes")
        kind = KIND_BY_NUMBER.get(frame[0])
        if kind is None:
            raise Rejection("unknown_kind", f"number {frame[0]}")
        stream = frame[1] & ~MORE
        if kind.lane is not self.lane or stream not in self._streams:
            raise Rejection("bad_frame", f"{kind.name} on stream {stream} of lane {self.lane}")
        piece = memoryview(frame)[HEADER_BYTES:]
        return self._join(kind, stream, piece, more=bool(frame[1] & MORE))

    def _join(
        self, kind: Kind, stream: int, piece: memoryview, *, more: bool
    ) -> tuple[Kind, memoryview | bytearray] | None:
        begun = self._unfinished.get(stream)
        if begun is None and not more:
            return kind, piece
        if begun is None:
            begun = self._unfinished[stream] = (kind, bytearray())
        if begun[0] is not kind or not piece:
            raise Rejection("bad_frame", f"{kind.name} within an unfinished {begun[0].name}")
        if len(begun[1]) + len(piece) > kind.bytes_max:
            raise Rejection("message_too_large", f"{kind.name} beyond {kind.bytes_max} bytes")
        begun[1].extend(piece)
        if more:
            return None
        del self._unfinished[stream]
        return begun
