"""Sockets in other network namespaces, held by the test itself: a socket stays where it was made."""

import ctypes
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_CLONE_NEWNET = 0x40000000


def socket_in(namespace: Path, kind: socket.SocketKind) -> socket.socket:
    """An unbound IPv4 socket of `namespace`."""

    def make() -> socket.socket:
        descriptor = os.open(namespace, os.O_RDONLY)
        try:
            if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"setns to {namespace}")
            return socket.socket(socket.AF_INET, kind)
        finally:
            os.close(descriptor)

    # A namespace is a thread's own, and this thread ends with it.
    with ThreadPoolExecutor(1) as other:
        return other.submit(make).result()
