"""Run in a node's network namespace by `wires`, as a file and with the standard library alone.

    python datagrams.py HOST COUNT

It binds a UDP socket at HOST and says its port; reads one line, JSON, with its own number and everybody's host and
port; sends each of the others COUNT datagrams and says so; takes what comes until its input ends; then says, as JSON,
by number of the sender, how long each datagram that came was under way, in ms by the machine's monotonic clock.
"""

import json
import select
import socket
import struct
import sys
import time
from contextlib import suppress

# The sender's number, and when it was sent, in ns.
DATAGRAM = struct.Struct("!Hq")
PAUSE_S = 0.005


def main(host: str, count: int) -> None:
    came: dict[int, list[float]] = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as port:
        port.bind((host, 0))
        port.setblocking(False)
        print(port.getsockname()[1], flush=True)
        told = json.loads(sys.stdin.readline())
        own, everybody = told["own"], told["everybody"]
        for _ in range(count):
            for number, place in enumerate(everybody):
                if number != own:
                    # One that the kernel would not take is as good as lost.
                    with suppress(OSError):
                        port.sendto(DATAGRAM.pack(own, time.monotonic_ns()), tuple(place))
            _take(port, came, PAUSE_S)
        print("sent", flush=True)
        while not _take(port, came, None):
            pass
    print(json.dumps(came), flush=True)


def _take(port: socket.socket, came: dict[int, list[float]], wait_s: float | None) -> bool:
    """What comes within `wait_s`, None: until something does. Whether the input has ended meanwhile."""
    until = None if wait_s is None else time.monotonic() + wait_s
    while True:
        left = None if until is None else max(0.0, until - time.monotonic())
        ready, _, _ = select.select([port] if until is not None else [port, sys.stdin], [], [], left)
        if port in ready:
            number, sent_ns = DATAGRAM.unpack(port.recv(DATAGRAM.size))
            came.setdefault(number, []).append(round((time.monotonic_ns() - sent_ns) / 1e6, 3))
        elif ready:
            return True
        elif until is not None:
            return False


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
