"""The node's private key: a PKCS#8 PEM file that only its owner may read, encrypted or not."""

import os
import stat
from pathlib import Path

from ledger.errors import Rejection
from ledger.node_cert import seed_from_pem

FILE_BYTES_MAX = 16 * 1024
OTHERS = stat.S_IRWXG | stat.S_IRWXO


def read_node_key(key_file: Path, passphrase_file: Path | None) -> bytes:
    """The 32-byte Ed25519 seed in `key_file`. Raises Rejection("bad_key_file"): which file, and why."""
    passphrase = None
    if passphrase_file is not None:
        # One trailing newline is the editor's, not the passphrase's.
        passphrase = _read_secret(passphrase_file).removesuffix(b"\n").removesuffix(b"\r")
        if not passphrase:
            raise Rejection("bad_key_file", f"{passphrase_file}: the passphrase is empty")
    pem = _read_secret(key_file)
    try:
        return seed_from_pem(pem, passphrase)
    except Rejection as error:
        raise Rejection("bad_key_file", f"{key_file}: {error.detail}") from None


def _read_secret(path: Path) -> bytes:
    """The content of a regular file that neither group nor others may touch."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise Rejection("bad_key_file", f"{path}: {error.strerror}") from None
    try:
        # Asked of the open file, so that what is checked is what is read.
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise Rejection("bad_key_file", f"{path}: not a regular file")
        if mode & OTHERS:
            readable = f"mode {stat.S_IMODE(mode):04o} lets others read it"
            raise Rejection("bad_key_file", f"{path}: {readable}; run: chmod 600 {path}")
        data = os.read(descriptor, FILE_BYTES_MAX + 1)
    finally:
        os.close(descriptor)
    if len(data) > FILE_BYTES_MAX:
        raise Rejection("bad_key_file", f"{path}: longer than {FILE_BYTES_MAX} bytes")
    return data
