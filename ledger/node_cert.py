"""The X.509 certificate by which peers know a node: self-signed over the node's Ed25519 key, pinned whole.

Nothing in it is trusted for what it says: peers compare its DER bytes with the ones in genesis. So it is made
once, never renewed, and valid from 2000 to 9999.
"""

import datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import NameOID

from ledger.errors import Rejection

_BEGIN = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)
_END = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)
DER_BYTES_MAX = 1024


def make_certificate(seed: bytes, node_id: str) -> bytes:
    """The DER certificate of the node whose key has this 32-byte seed. The same seed gives the same bytes."""
    key = Ed25519PrivateKey.from_private_bytes(seed)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, node_id)])
    public = key.public_key()
    serial = int.from_bytes(public.public_bytes_raw()[:16], "big") >> 1 or 1
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(serial)
        .not_valid_before(_BEGIN)
        .not_valid_after(_END)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, algorithm=None)
    )
    return certificate.public_bytes(serialization.Encoding.DER)


def certificate_key(der: bytes) -> bytes:
    """The raw 32-byte Ed25519 key in a DER certificate, or Rejection("bad_certificate")."""
    if len(der) > DER_BYTES_MAX:
        raise Rejection("bad_certificate", f"longer than {DER_BYTES_MAX} bytes")
    try:
        key = x509.load_der_x509_certificate(der).public_key()
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion):
        raise Rejection("bad_certificate", "not a DER certificate of a known kind") from None
    if not isinstance(key, Ed25519PublicKey):
        raise Rejection("bad_certificate", "the key is not Ed25519")
    return key.public_bytes_raw()


def certificate_pem(der: bytes) -> str:
    """The same certificate as PEM text, which TLS libraries want."""
    return x509.load_der_x509_certificate(der).public_bytes(serialization.Encoding.PEM).decode("ascii")


def key_pem(seed: bytes, passphrase: bytes | None) -> bytes:
    """The node's private key as PKCS#8 PEM, encrypted when a passphrase is given."""
    protection: serialization.KeySerializationEncryption = (
        serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    )
    return Ed25519PrivateKey.from_private_bytes(seed).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection
    )


def seed_from_pem(pem: bytes, passphrase: bytes | None) -> bytes:
    """The 32-byte seed in a PEM key, or Rejection("bad_key_file")."""
    try:
        key = serialization.load_pem_private_key(pem, passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise Rejection("bad_key_file", "not a PEM key, or the wrong passphrase") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise Rejection("bad_key_file", "the key is not Ed25519")
    return key.private_bytes_raw()
