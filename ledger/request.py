"""A member's signed read: a transaction's mechanism under a tag of its own, bound to one request at one node.

Reads that are linked to a subject carry it as

    Authorization: CareQuorum <base64url, unpadded, of the canonical map {body, signature}>

where `body` is canonical bytes: who asks, with which key, of which node, for which method, path and body, and
when. It is good for `skew_ms` around its time. Inside that window the same request may be repeated at the
same node; nothing that it asks for changes state, and the way there is the provider's own machine.
"""

import base64
import binascii
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from ledger.encoding import decode_as, encode
from ledger.errors import Rejection
from ledger.finality import NodeId
from ledger.keys import AccountId, Hash, PublicKey, Signature, SigningKey, sha256, tag, verify

READ_REQUEST = tag("read-request")
FORMAT = 1
SCHEME = "CareQuorum"
SKEW_MS = 30_000
PATH_BYTES_MAX = 2_048
REQUEST_BYTES_MAX = 3_072

T = TypeVar("T")


class ReadRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is signed. `path` is the target as sent, query included; `time` is the signer's clock in ms."""

    body_hash: Hash
    by: AccountId
    format: int
    key: PublicKey
    method: Annotated[str, Meta(min_length=1, max_length=16)]
    node: NodeId
    path: Annotated[str, Meta(min_length=1, max_length=PATH_BYTES_MAX)]
    time: Annotated[int, Meta(ge=0, le=2**53)]


class _Wire(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    body: bytes
    signature: Signature


def sign_request(key: SigningKey, by: bytes, node: str, method: str, path: str, body: bytes, time_ms: int) -> str:
    """The Authorization header by which account `by` asks `node` for `method path` with `body`."""
    request = ReadRequest(
        body_hash=sha256(body),
        by=by,
        format=FORMAT,
        key=key.public,
        method=method,
        node=node,
        path=path,
        time=time_ms,
    )
    signed = encode(request)
    data = encode({"body": signed, "signature": key.sign(READ_REQUEST, sha256(signed))})
    return f"{SCHEME} {base64.urlsafe_b64encode(data).rstrip(b'=').decode('ascii')}"


def verify_request(
    header: str | None, node: str, method: str, path: str, body: bytes, now_ms: int, skew_ms: int = SKEW_MS
) -> ReadRequest:
    """The request that `header` signs, bound to exactly these arguments. Whether its signer is a member
    is for the caller to ask.

    Raises Rejection: "no_read_request" without one, "bad_read_request" for another form or another request,
    "stale_read_request" outside the window, "bad_signature".
    """
    if header is None:
        raise Rejection("no_read_request", f"this read needs an Authorization header of scheme {SCHEME}")
    signed, signature = _parse(header)
    request = _decode(ReadRequest, signed)
    _require(request.format == FORMAT, f"format {request.format} is unknown")
    _require(request.node == node, "it was signed for another node")
    _require(request.method == method, "it was signed for another method")
    _require(request.path == path, "it was signed for another path")
    _require(request.body_hash == sha256(body), "it was signed for another body")
    if abs(request.time - now_ms) > skew_ms:
        raise Rejection("stale_read_request", f"signed {now_ms - request.time} ms ago by this node's clock")
    if not verify(request.key, READ_REQUEST, sha256(signed), signature):
        raise Rejection("bad_signature", "the read request does not verify under its key")
    return request


def _parse(header: str) -> tuple[bytes, bytes]:
    """The signed bytes and the signature that a header carries."""
    scheme, _, token = header.partition(" ")
    _require(scheme == SCHEME, f"the scheme is not {SCHEME}")
    _require(len(token) <= REQUEST_BYTES_MAX * 4 // 3 + 3, "it is too long")
    try:
        data = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise Rejection("bad_read_request", "it is not base64url") from None
    # One value, one token: neither padding nor spare bits of the last character are free.
    _require(base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii") == token, "it is not base64url")
    wire = _decode(_Wire, data)
    return wire.body, wire.signature


def _decode(shape: type[T], data: bytes) -> T:
    try:
        return decode_as(shape, data, REQUEST_BYTES_MAX)
    except Rejection as error:
        raise Rejection("bad_read_request", str(error)) from None


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise Rejection("bad_read_request", otherwise)
