"""The certificate by which peers know a node is a function of its key and its name."""

import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.errors import Rejection
from ledger.keys import SigningKey
from ledger.node_cert import (
    DER_BYTES_MAX,
    certificate_key,
    certificate_pem,
    key_pem,
    make_certificate,
    seed_from_pem,
    standard_key,
)

SEED = bytes(range(32))


def elliptic_certificate() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "n1")])
    day = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(day).not_valid_after(day + datetime.timedelta(days=1))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def test_the_same_key_and_name_give_the_same_bytes() -> None:
    assert make_certificate(SEED, "n1") == make_certificate(SEED, "n1")
    assert make_certificate(SEED, "n1") != make_certificate(SEED, "n2")
    assert certificate_key(make_certificate(SEED, "n1")) == SigningKey(SEED).public


def test_it_is_self_signed_no_authority_and_does_not_expire() -> None:
    der = make_certificate(SEED, "n1")
    assert len(der) <= DER_BYTES_MAX
    certificate = x509.load_der_x509_certificate(der)
    certificate.verify_directly_issued_by(certificate)
    assert certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    assert (certificate.not_valid_before_utc.year, certificate.not_valid_after_utc.year) == (2000, 9999)
    assert x509.load_pem_x509_certificate(certificate_pem(der).encode()) == certificate


@pytest.mark.parametrize(
    "der",
    [b"", b"\x30\x00", make_certificate(SEED, "n1") + b"\0", make_certificate(SEED, "n1")[:-1], bytes(2_000)],
    ids=["empty", "no certificate", "trailing", "cut", "long"],
)
def test_what_is_no_certificate_is_refused(der: bytes) -> None:
    with pytest.raises(Rejection, match="bad_certificate"):
        certificate_key(der)


def test_a_key_of_another_kind_is_refused() -> None:
    with pytest.raises(Rejection, match="not Ed25519"):
        certificate_key(elliptic_certificate())


def test_whatever_byte_is_wrong_the_verdict_is_a_rejection() -> None:
    der = make_certificate(SEED, "n1")
    refused = 0
    for position in range(len(der)):
        try:
            certificate_key(der[:position] + bytes([der[position] ^ 0x55]) + der[position + 1 :])
        except Rejection:
            refused += 1
    assert refused > 0


@pytest.mark.parametrize("passphrase", [None, b"correct horse"])
def test_a_key_file_gives_the_seed_back(passphrase: bytes | None) -> None:
    pem = key_pem(SEED, passphrase)
    assert seed_from_pem(pem, passphrase) == SEED
    assert (b"ENCRYPTED" in pem) is (passphrase is not None)
    other = b"another" if passphrase is None else None
    for wrong in (other, b"wrong"):
        with pytest.raises(Rejection, match="bad_key_file"):
            seed_from_pem(pem, wrong)


def test_other_key_files_are_refused() -> None:
    elliptic = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for pem in (b"", b"not a key", elliptic):
        with pytest.raises(Rejection, match="bad_key_file"):
            seed_from_pem(pem, None)


@settings(deadline=None, max_examples=60)
@given(st.binary(min_size=32, max_size=32), st.from_regex(r"[a-z0-9][a-z0-9-]{0,31}", fullmatch=True))
def test_a_standard_certificate_is_what_we_make(seed: bytes, node_id: str) -> None:
    assert standard_key(make_certificate(seed, node_id), node_id) == SigningKey(seed).public


def test_no_bit_of_a_standard_certificate_is_free() -> None:
    der = make_certificate(SEED, "n1")
    for bit in range(len(der) * 8):
        changed = bytearray(der)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Rejection, match="bad_certificate"):
            standard_key(bytes(changed), "n1")


@pytest.mark.parametrize(
    "der",
    [b"", bytes(31), make_certificate(SEED, "n2"), make_certificate(SEED, "n1") + b"\0", bytes(DER_BYTES_MAX + 1)],
    ids=["empty", "short", "another node's", "longer", "too long"],
)
def test_other_bytes_are_no_standard_certificate(der: bytes) -> None:
    with pytest.raises(Rejection, match="bad_certificate"):
        standard_key(der, "n1")


def test_other_certificates_of_the_same_node_are_no_standard_ones() -> None:
    with pytest.raises(Rejection, match="bad_certificate"):
        standard_key(elliptic_certificate(), "n1")


def test_a_key_that_may_not_be_registered_is_none() -> None:
    der = make_certificate(SEED, "n1").replace(SigningKey(SEED).public, bytes(32))
    with pytest.raises(Rejection, match="no Ed25519 key"):
        standard_key(der, "n1")
