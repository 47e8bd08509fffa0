"""Why a block is final: signed acknowledgements of a quorum of voters.

A voter acknowledges a block once it is durable on its own disk. A quorum of acknowledgements of one block is
its certificate, and through the hash chain commits every ancestor. Votes in elections are signed the same
way, so that a node that contradicts itself leaves evidence.

How large a quorum is stands in `quorum` alone; nothing else here depends on it. Whose signatures are counted is the
configuration in effect at the block's height, see `membership`.
"""

from collections.abc import Iterable, Mapping
from typing import Annotated

import msgspec
from msgspec import Meta

from ledger.encoding import decode_as, encode
from ledger.errors import Rejection
from ledger.keys import Hash, Signature, SigningKey, sha256, tag, verify

ACKNOWLEDGEMENT = tag("acknowledgement")
VOTE = tag("vote")
FORMAT = 1
VOTERS_MAX = 64
CERTIFICATE_BYTES_MAX = 16 * 1024

NodeId = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,31}\Z")]


class NodeSignature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    node: NodeId
    signature: Signature


class Certificate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Acknowledgements of one block, in ascending order of node id."""

    format: int
    hash: Hash
    height: int
    signatures: Annotated[list[NodeSignature], Meta(max_length=VOTERS_MAX)]
    term: int

    def encode(self) -> bytes:
        return encode(self)


class Seal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A certified header: the canonical bytes of both, and the proposer's signature."""

    certificate: bytes
    header: bytes
    signature: Signature


def make_certificate(term: int, height: int, block: bytes, signatures: Iterable[tuple[str, bytes]]) -> Certificate:
    return Certificate(
        format=FORMAT,
        term=term,
        height=height,
        hash=block,
        signatures=[NodeSignature(node, signature) for node, signature in sorted(signatures)],
    )


def decode_certificate(data: bytes) -> Certificate:
    certificate = decode_as(Certificate, data, CERTIFICATE_BYTES_MAX)
    if certificate.format != FORMAT:
        raise Rejection("unknown_format", f"certificate format {certificate.format}")
    return certificate


def quorum(voters: int) -> int:
    """How many of `voters` commit a block or elect a leader: a majority."""
    return voters // 2 + 1


def acknowledgement_digest(chain: bytes, term: int, height: int, block: bytes) -> bytes:
    return sha256(encode({"chain": chain, "hash": block, "height": height, "term": term}))


def vote_digest(chain: bytes, term: int, candidate: str) -> bytes:
    return sha256(encode({"candidate": candidate, "chain": chain, "term": term}))


def sign_acknowledgement(key: SigningKey, chain: bytes, term: int, height: int, block: bytes) -> bytes:
    return key.sign(ACKNOWLEDGEMENT, acknowledgement_digest(chain, term, height, block))


def sign_vote(key: SigningKey, chain: bytes, term: int, candidate: str) -> bytes:
    return key.sign(VOTE, vote_digest(chain, term, candidate))


def verify_acknowledgement(
    public_key: bytes, chain: bytes, term: int, height: int, block: bytes, signature: bytes
) -> bool:
    return verify(public_key, ACKNOWLEDGEMENT, acknowledgement_digest(chain, term, height, block), signature)


def verify_vote(public_key: bytes, chain: bytes, term: int, candidate: str, signature: bytes) -> bool:
    return verify(public_key, VOTE, vote_digest(chain, term, candidate), signature)


def verify_certificate(
    certificate: Certificate, chain: bytes, voters: Mapping[str, bytes], old_voters: Mapping[str, bytes] | None = None
) -> None:
    """Raise Rejection("bad_certificate") unless a quorum of `voters` signed this very block, and while the
    configuration at its height is joint also a quorum of `old_voters`.

    Both map each voter to its public key. Every signature present must be a voter's and must verify, so that no bit
    of a certificate is free.
    """
    names = [entry.node for entry in certificate.signatures]
    if certificate.format != FORMAT:
        raise Rejection("unknown_format", f"certificate format {certificate.format}")
    if names != sorted(set(names)):
        raise Rejection("bad_certificate", "signers are not distinct and ascending")
    for electorate in (voters,) if old_voters is None else (voters, old_voters):
        signed = sum(node in electorate for node in names)
        if signed < quorum(len(electorate)):
            raise Rejection("bad_certificate", f"{signed} of {len(electorate)} voters are no quorum")
    keys = {**(old_voters or {}), **voters}
    digest = acknowledgement_digest(chain, certificate.term, certificate.height, certificate.hash)
    for entry in certificate.signatures:
        public_key = keys.get(entry.node)
        if public_key is None:
            raise Rejection("bad_certificate", f"{entry.node} is no voter")
        if not verify(public_key, ACKNOWLEDGEMENT, digest, entry.signature):
            raise Rejection("bad_certificate", f"the signature of {entry.node} does not verify")
