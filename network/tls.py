"""Who may connect: TLS 1.3 on both sides, with nothing trusted but certificates that the ledger names.

OpenSSL is given the pinned certificates themselves as trust anchors, so that a stranger fails in the handshake;
after it, each side compares the other's certificate with its pins byte by byte. The second check is the one that
decides: it alone knows which node a certificate stands for, and it alone forgets a pin that was taken away.
"""

import hmac
import secrets
import ssl
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from consensus.messages import NodeId
from ledger.node_cert import certificate_pem, key_pem
from network.port import Identity, Peer

# Handshakes that have begun and not ended, of whoever reaches the port. At the bound new ones are refused.
HANDSHAKES_MAX = 128
HANDSHAKE_TIMEOUT_S = 5.0

_REASONS = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "no_certificate",
    "CERTIFICATE_VERIFY_FAILED": "unknown_certificate",
}


class Pins:
    """Which node a certificate stands for."""

    def __init__(self, peers: Mapping[NodeId, Peer]) -> None:
        self._pins = [(peer.certificate, node_id, peer) for node_id, peer in peers.items()]

    def find(self, certificate: bytes | None) -> tuple[NodeId, Peer] | None:
        """The node whose pin these DER bytes are, or None."""
        for pin, node_id, peer in self._pins:
            if same_certificate(pin, certificate):
                return node_id, peer
        return None

    def certificates(self) -> list[bytes]:
        return [pin for pin, _, _ in self._pins]


def same_certificate(pin: bytes, certificate: bytes | None) -> bool:
    return certificate is not None and hmac.compare_digest(pin, certificate)


class TlsContexts:
    """One context for dialling, one for accepting; both carry this node's certificate and trust the pins alone."""

    def __init__(
        self, identity: Identity, pins: Iterable[bytes], refused: Callable[[str], None], now: Callable[[], float]
    ) -> None:
        self.dialling = _context(ssl.PROTOCOL_TLS_CLIENT)
        self.accepting = _context(ssl.PROTOCOL_TLS_SERVER)
        # Each connection shows its certificate anew: no tickets, no resumption.
        self.accepting.num_tickets = 0
        self.accepting.sslobject_class = _counting_handshakes(refused, now)
        _load_identity((self.dialling, self.accepting), identity)
        self.trust(pins)

    def trust(self, pins: Iterable[bytes]) -> None:
        """Add trust anchors. Old ones stay in the contexts; the comparison with the pins is what refuses them."""
        data = b"".join(pins)
        if data:
            self.dialling.load_verify_locations(cadata=data)
            self.accepting.load_verify_locations(cadata=data)


def _context(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    # A pinned certificate is its own anchor although it is no CA.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def _load_identity(contexts: Iterable[ssl.SSLContext], identity: Identity) -> None:
    """Python's ssl reads keys from files only. The file is private, lives for this call, and is encrypted under a
    passphrase that exists in memory alone, so that the disk never sees the key."""
    passphrase = secrets.token_hex(32)
    pem = key_pem(identity.seed, passphrase.encode("ascii"))
    with tempfile.TemporaryDirectory(prefix="carequorum-") as private:
        path = Path(private) / "identity.pem"
        path.touch(mode=0o600)
        path.write_bytes(certificate_pem(identity.certificate).encode("ascii") + pem)
        for context in contexts:
            context.load_cert_chain(path, password=passphrase)


def _counting_handshakes(refused: Callable[[str], None], now: Callable[[], float]) -> type[ssl.SSLObject]:
    """asyncio tells nobody why an incoming handshake failed; the object that performs it can.

    `begun` maps an unfinished handshake to the time until which it counts: one whose peer went away is never
    performed further, and simply expires, as the listening socket's own timeout ends it at the same time.
    """
    begun: dict[int, float] = {}

    class CountingSslObject(ssl.SSLObject):
        def do_handshake(self) -> None:
            if id(self) not in begun:
                self._begin()
            try:
                super().do_handshake()
            except ssl.SSLWantReadError:
                raise
            except ssl.SSLError as error:
                begun.pop(id(self), None)
                refused(_REASONS.get(error.reason or "", "tls"))
                raise
            begun.pop(id(self), None)

        def _begin(self) -> None:
            for key in [key for key, until in begun.items() if until < now()]:
                del begun[key]
            if len(begun) >= HANDSHAKES_MAX:
                refused("busy")
                raise ssl.SSLError(ssl.SSL_ERROR_SSL, "too many handshakes")
            begun[id(self)] = now() + HANDSHAKE_TIMEOUT_S

    return CountingSslObject
