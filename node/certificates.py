"""The two shapes of one certificate: the core's plain value, and the signed object that is stored and shown.

They are two types because neither room may import the other; this is the only place where one becomes the other.
"""

from consensus.messages import Certificate
from ledger.finality import Certificate as SignedCertificate
from ledger.finality import make_certificate


def signed(certificate: Certificate) -> SignedCertificate:
    return make_certificate(certificate.term, certificate.height, certificate.hash, certificate.signatures)


def plain(certificate: SignedCertificate) -> Certificate:
    signatures = tuple((item.node, item.signature) for item in certificate.signatures)
    return Certificate(certificate.term, certificate.height, certificate.hash, signatures)
