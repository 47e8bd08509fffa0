"""Every error of the provider port: one stable code, one HTTP status, RFC 9457 bodies.

The ledger's codes come from the ledger and keep their names here. docs/errors.md lists them all.
"""

import msgspec
from aiohttp import web

from ledger.errors import Rejection
from node.http_types import Problem

# On every answer: the ledger grows, and a type is what it says.
COMMON_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
PROBLEM_TYPE = "application/problem+json"
RETRY_AFTER_S = 1
DETAIL_CHARACTERS_MAX = 300

# code: (HTTP status, title)
PROBLEMS: dict[str, tuple[int, str]] = {
    # The request as such.
    "bad_request": (400, "The request is malformed"),
    "not_found": (404, "There is nothing here"),
    "method_not_allowed": (405, "This path has other methods"),
    "request_timeout": (408, "The request's body did not arrive in time"),
    "too_large": (413, "Larger than allowed"),
    "unsupported_media_type": (415, "The body's media type is not one that this path reads"),
    "bad_event_id": (400, "Not the id of an event"),
    # A member's signed read.
    "no_read_request": (401, "This read must be signed by a member"),
    "bad_read_request": (401, "The signed read request does not fit"),
    "stale_read_request": (401, "The signed read request is too old or too new"),
    # Who signs.
    "unsigned": (401, "A transaction carries a signature"),
    "bad_signature": (401, "The signature does not verify"),
    "unregistered": (403, "The account is not registered"),
    "wrong_signer": (403, "The key is not the account's current key"),
    "revoked": (403, "The account is revoked"),
    # The form of a transaction.
    "not_canonical": (400, "Not canonical MessagePack"),
    "bad_structure": (400, "The fields do not fit"),
    "unknown_format": (400, "The format number is unknown"),
    "unknown_action": (400, "The action is unknown"),
    "bad_key": (400, "The key is not one that an account may have"),
    "wrong_chain": (400, "Signed for another network"),
    "body_mismatch": (400, "The bodies are not what the transaction commits to"),
    # Its time.
    "expired": (409, "The transaction's time is over"),
    "until_too_far": (409, "The transaction reaches too far ahead"),
    # What is not there, or not yet.
    "pruned": (410, "This node keeps it no longer"),
    "bad_receipt": (400, "Not a receipt of this chain"),
    "unknown_transaction": (404, "This node knows no such transaction"),
    "not_sealed": (409, "There is no proof yet"),
    # The node.
    "pool_full": (503, "Too many transactions wait for a block"),
    "busy": (503, "Too many requests at once"),
    "not_ready": (503, "The node cannot serve now"),
    "not_confirmed": (503, "No quorum confirmed the read in time"),
    "internal": (500, "The node failed; its log says where"),
}

# A code that the table above does not know is still the ledger's verdict on input.
OTHERWISE = (400, "The ledger refuses this")

# Codes that time alone may mend: the answer says when to try again.
RETRIED = frozenset({"pool_full", "busy", "not_ready", "not_sealed", "not_confirmed"})


def problem(code: str, detail: str) -> web.Response:
    """The application/problem+json answer for a code."""
    status, title = PROBLEMS.get(code, OTHERWISE)
    body = Problem(type="about:blank", title=title, status=status, code=code, detail=detail[:DETAIL_CHARACTERS_MAX])
    response = web.Response(status=status, body=msgspec.json.encode(body), content_type=PROBLEM_TYPE)
    if code in RETRIED:
        response.headers["Retry-After"] = str(RETRY_AFTER_S)
    if status == 401:
        response.headers["WWW-Authenticate"] = "CareQuorum"
    return response


def problem_of(rejection: Rejection) -> web.Response:
    return problem(rejection.code, rejection.detail)
