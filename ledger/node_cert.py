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
from ledger.keys import SIGNATURE_BYTES, is_valid_key, verify

_BEGIN = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)
_END = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)
DER_BYTES_MAX = 1024

# What `make_certificate` writes, in DER (X.690): tag, length, content. Ed25519 is 1.3.101.112.
_ALGORITHM = bytes.fromhex("300506032b6570")
_SIGNATURE_HEAD = bytes.fromhex("034100")
# Critical BasicConstraints that say: no authority.
_EXTENSIONS = bytes.fromhex("a310300e300c0603551d130101ff04023000")
_VERSION_3 = bytes.fromhex("a003020102")
_VALIDITY = b"\x30\x20\x17\x0d000101000000Z\x18\x0f99991231235959Z"
_COMMON_NAME = bytes.fromhex("0603550403")
_KEY_HEAD = bytes.fromhex("302a300506032b6570032100")


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


def standard_key(der: bytes, node_id: str) -> bytes:
    """The raw key in a certificate that is, byte for byte, what `make_certificate` gives for this node.

    For execution, where every node must find the same: no X.509 library decides, whose verdict could change with its
    version. Raises Rejection("bad_certificate") for any other bytes, or a signature that does not verify.
    """
    tail = SIGNATURE_BYTES + len(_SIGNATURE_HEAD) + len(_ALGORITHM) + len(_EXTENSIONS)
    key, signature = der[-tail - 32 : -tail], der[-SIGNATURE_BYTES:]
    if len(der) > DER_BYTES_MAX or not is_valid_key(key):
        raise Rejection("bad_certificate", "it holds no Ed25519 key where one stands")
    signed = _signed_part(key, node_id.encode("ascii"))
    if der != _der(0x30, signed + _ALGORITHM + _SIGNATURE_HEAD + signature):
        raise Rejection("bad_certificate", f"it is not of the one form that a certificate of {node_id} has")
    if not verify(key, b"", signed, signature):
        raise Rejection("bad_certificate", "its signature does not verify")
    return key


def certificate_pem(der: bytes) -> str:
    """The same certificate as PEM text, which TLS libraries want."""
    return x509.load_der_x509_certificate(der).public_bytes(serialization.Encoding.PEM).decode("ascii")


def certificate_from_pem(pem: bytes) -> bytes:
    """The DER of a PEM certificate, or Rejection("bad_certificate")."""
    try:
        return x509.load_pem_x509_certificate(pem).public_bytes(serialization.Encoding.DER)
    except ValueError:
        raise Rejection("bad_certificate", "not a PEM certificate") from None


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


def _der(tag: int, content: bytes) -> bytes:
    length = len(content)
    if length < 0x80:
        return bytes((tag, length)) + content
    size = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(size))) + size + content


def _signed_part(key: bytes, node_id: bytes) -> bytes:
    serial = int.from_bytes(key[:16], "big") >> 1 or 1
    name = _der(0x30, _der(0x31, _der(0x30, _COMMON_NAME + _der(0x0C, node_id))))
    number = _der(0x02, serial.to_bytes(serial.bit_length() // 8 + 1, "big"))
    return _der(0x30, _VERSION_3 + number + _ALGORITHM + name + _VALIDITY + name + _KEY_HEAD + key + _EXTENSIONS)
