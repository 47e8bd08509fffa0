"""Every signature is real, and each is verified for real once: a cache over (key, message, signature).

Every node of a cluster verifies the same signatures again; here only the first pays for it. A wrong signature is
never kept, so nothing that does not verify is ever taken for what does.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from nacl.bindings import crypto_sign_open

import ledger.keys

KEPT_MAX = 200_000

_verified: dict[tuple[bytes, bytes], bytes] = {}


def _open_once(signed: bytes, public_key: bytes) -> bytes:
    found = _verified.get((signed, public_key))
    if found is None:
        found = crypto_sign_open(signed, public_key)
        if len(_verified) >= KEPT_MAX:
            _verified.clear()
        _verified[signed, public_key] = found
    return found


@contextmanager
def verified_once() -> Iterator[None]:
    """While inside, `ledger.keys.verify` remembers what it has verified."""
    with mock.patch.object(ledger.keys, "crypto_sign_open", _open_once):
        yield
