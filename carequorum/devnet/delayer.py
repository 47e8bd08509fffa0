"""`python -m carequorum.devnet.delayer --queue 7 --delay-ms 100 --jitter-ms 20`: holds packets back.

For kernels without netem. A rule of iptables hands the packets of this network namespace to a queue (`NFQUEUE`,
with `--queue-bypass`), the kernel tells this process of each one by netlink, and lets it go on when this process
says so: `delay_ms` later, give or take `jitter_ms`, each packet for itself. As with netem, jitter therefore may let
one packet overtake another. The packets stay in the kernel; at most HELD_MAX of them wait, and any more are
dropped, as a full queue of netem does. On SIGTERM all that wait go on at once; if this process is killed they are
lost; after either, packets pass undelayed.

Raw netlink (linux/netfilter/nfnetlink_queue.h): every Python package for it needs a C toolchain to install. Only
the standard library is used, so that it starts in no time and stays small.
"""

import argparse
import errno
import heapq
import os
import re
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from secrets import SystemRandom

# What netem is given as its limit, too (see `wire`).
HELD_MAX = 10_000
# How often it looks whether it is still wanted.
ASK_S = 5.0

# linux/netlink.h, linux/netfilter/nfnetlink.h, nfnetlink_queue.h
_NETLINK_NETFILTER = 12
_SO_RCVBUFFORCE = 33
_NLM_F_REQUEST, _NLM_F_ACK = 1, 4
_NLMSG_ERROR = 2
_QUEUE = 3 << 8  # the subsystem, in the upper half of a message's type
_PACKET, _VERDICT, _CONFIG, _VERDICT_BATCH = _QUEUE, _QUEUE | 1, _QUEUE | 2, _QUEUE | 3
_CFG_CMD, _CFG_PARAMS, _CFG_QUEUE_MAXLEN, _CFG_MASK, _CFG_FLAGS = 1, 2, 3, 4, 5
_CMD_BIND = 1
_COPY_META = 1
_F_GSO = 4
_PACKET_HDR, _VERDICT_HDR = 1, 2
_ACCEPT = 1

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_FAMILY = struct.Struct("!BBH")  # address family, version, queue
_ATTRIBUTE = struct.Struct("=HH")  # length, type
_ID = struct.Struct("!I")

# A message of the kernel about one packet is some 100 bytes, and takes about 1 KiB of the socket's buffer.
_MESSAGE_BYTES_MAX = 64 * 1024
_BUFFER_BYTES = 2 * 1024 * HELD_MAX
# Read at a time, before those are looked after that are due.
_READ_MAX = 256
_VERDICTS_MAX = 512


@dataclass(slots=True)
class Held:
    """Packets that wait, by the time at which they may go on. Times are seconds of one clock."""

    delay_s: float
    jitter_s: float
    _due: list[tuple[float, int]] = field(default_factory=list)
    _random: SystemRandom = field(default_factory=SystemRandom)

    def add(self, packet: int, now: float) -> None:
        extra_s = self._random.uniform(-self.jitter_s, self.jitter_s) if self.jitter_s else 0.0
        heapq.heappush(self._due, (now + max(0.0, self.delay_s + extra_s), packet))

    def take(self, now: float) -> list[int]:
        """Those that are due, at most _VERDICTS_MAX of them, first the one that is longest due."""
        taken: list[int] = []
        while self._due and self._due[0][0] <= now and len(taken) < _VERDICTS_MAX:
            taken.append(heapq.heappop(self._due)[1])
        return taken

    def next_s(self, now: float) -> float:
        """How long until one is due, infinite while nothing waits."""
        return max(0.0, self._due[0][0] - now) if self._due else inf


class Queue:
    """One queue of this network namespace, ours while it is open. Raises OSError."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._last: int | None = None
        self._buffer = bytearray(_MESSAGE_BYTES_MAX)
        self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
        try:
            self.socket.bind((0, 0))
            self.socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
            self._configure(
                _attribute(_CFG_CMD, struct.pack("!BxH", _CMD_BIND, socket.AF_INET))
                + _attribute(_CFG_PARAMS, struct.pack("!IB", 0, _COPY_META))
                + _attribute(_CFG_QUEUE_MAXLEN, _ID.pack(HELD_MAX))
                # Large segments stay whole: they are cut where they would be without us.
                + _attribute(_CFG_MASK, _ID.pack(_F_GSO))
                + _attribute(_CFG_FLAGS, _ID.pack(_F_GSO))
            )
            self.socket.setblocking(False)
        except OSError:
            self.socket.close()
            raise

    def packets(self) -> list[int]:
        """The ids of those that came since, at most _READ_MAX of them."""
        found: list[int] = []
        for _ in range(_READ_MAX):
            try:
                size = self.socket.recv_into(self._buffer)
            except BlockingIOError:
                break
            except OSError as error:
                # The kernel could not tell us of some packets, and has dropped them: more than we may hold.
                if error.errno != errno.ENOBUFS:
                    raise
                continue
            found += _packet_ids(memoryview(self._buffer)[:size])
        self._last = found[-1] if found else self._last
        return found

    def accept(self, packets: list[int]) -> None:
        """Let each of them go on, in this order."""
        self.socket.sendall(b"".join(self._message(_VERDICT, 0, _verdict(packet)) for packet in packets))

    def close(self) -> None:
        """Let everything go on that the kernel holds for us, and give the queue up."""
        with self.socket:
            self.packets()
            if self._last is not None:
                # All up to an id; ids are compared modulo 2**32, and this one is later than any that waits.
                later = (self._last + HELD_MAX) % 2**32
                self.socket.sendall(self._message(_VERDICT_BATCH, 0, _verdict(later)))

    def _configure(self, attributes: bytes) -> None:
        self.socket.sendall(self._message(_CONFIG, _NLM_F_ACK, attributes))
        size = self.socket.recv_into(self._buffer)
        _, kind, *_ = _HEADER.unpack_from(self._buffer)
        assert kind == _NLMSG_ERROR, "the first answer is to the first request"
        assert size >= _HEADER.size + 4, "it says a number"
        (code,) = struct.unpack_from("=i", self._buffer, _HEADER.size)
        if code:
            raise OSError(-code, f"queue {self.number}: {os.strerror(-code)}")

    def _message(self, kind: int, flags: int, attributes: bytes) -> bytes:
        body = _FAMILY.pack(socket.AF_UNSPEC, 0, self.number) + attributes
        return _HEADER.pack(_HEADER.size + len(body), kind, _NLM_F_REQUEST | flags, 0, 0) + body


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def _verdict(packet: int) -> bytes:
    return _attribute(_VERDICT_HDR, struct.pack("!II", _ACCEPT, packet))


def _packet_ids(data: memoryview) -> list[int]:
    """Of the messages in `data`, which the kernel wrote; answers to verdicts are none of them."""
    found = []
    start = 0
    while start + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, start)
        at, end = start + _HEADER.size + _FAMILY.size, min(start + length, len(data))
        while kind == _PACKET and at + _ATTRIBUTE.size <= end:
            size, attribute = _ATTRIBUTE.unpack_from(data, at)
            if attribute & 0x3FFF == _PACKET_HDR:
                found.append(_ID.unpack_from(data, at + _ATTRIBUTE.size)[0])
                break
            at += max(_ATTRIBUTE.size, size + -size % 4)
        start += max(_HEADER.size, length + -length % 4)
    return found


def serve(queue: Queue, held: Held, stop: socket.socket, wanted: Callable[[], bool]) -> None:
    """Until `stop` can be read, or nobody wants it: this is asked every ASK_S."""
    asked = time.monotonic()
    while True:
        now = time.monotonic()
        if now - asked > ASK_S:
            if not wanted():
                return
            asked = now
        # Not poll: its timeouts are whole milliseconds.
        ready, _, _ = select.select([queue.socket, stop], [], [], min(ASK_S, held.next_s(now)))
        if stop in ready:
            return
        now = time.monotonic()
        if queue.socket in ready:
            for packet in queue.packets():
                held.add(packet, now)
        if due := held.take(now):
            queue.accept(due)


def main(argv: list[str] | None = None) -> int:
    """Delay the packets of a queue until SIGTERM; 1 if it cannot be had."""
    parser = argparse.ArgumentParser(description="Hold the packets of a queue back (NFQUEUE), for test networks.")
    parser.add_argument("--queue", type=int, required=True, help="the queue's number in this network namespace")
    parser.add_argument("--delay-ms", type=int, required=True)
    parser.add_argument("--jitter-ms", type=int, default=0)
    parser.add_argument("--noted", type=Path, metavar="FILE", help="end when FILE no longer has this process's pid")
    arguments = parser.parse_args(argv)
    woken, waker = socket.socketpair()
    waker.setblocking(False)
    signal.set_wakeup_fd(waker.fileno())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    try:
        queue = Queue(arguments.queue)
    except OSError as error:
        print(f"delayer: {error}", file=sys.stderr)
        return 1
    try:
        held = Held(arguments.delay_ms / 1000, arguments.jitter_ms / 1000)
        serve(queue, held, woken, lambda: _is_noted(arguments.noted))
    finally:
        queue.close()
    return 0


def _is_noted(file: Path | None) -> bool:
    """Whether somebody still knows of us: a delayer that nobody could end would keep its namespace for good."""
    if file is None:
        return True
    try:
        return re.search(rb'"pid":%d\b' % os.getpid(), file.read_bytes()) is not None
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main())
