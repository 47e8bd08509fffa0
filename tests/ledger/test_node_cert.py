"""The certificate by which peers know a node is a function of its key and its name."""

import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ledger.errors import Rejection
from ledger.keys import SigningKey
from ledger.node_cert import (
    DER_BYTES_MAX,
    certificate_key,
    certificate_pem,
    key_pem,
    make_certificate,
    seed_from_pem,
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
