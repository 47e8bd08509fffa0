"""Who may read what is linked to a subject: an active member, by a request signed for exactly this read."""

from aiohttp import web

from ledger.errors import Rejection
from ledger.request import ReadRequest, verify_request
from node.http_types import Backend


def require_member(request: web.Request, backend: Backend) -> ReadRequest:
    """The signed read request in the Authorization header, its signer an active member now.

    Raises Rejection: no_read_request, bad_read_request, stale_read_request, bad_signature, unregistered,
    wrong_signer, revoked; not_ready in the place of the last three while the node is not ready.
    """
    headers = request.headers.getall("Authorization", [])
    if len(headers) > 1:
        raise Rejection("bad_read_request", "more than one Authorization header")
    read_request = verify_request(
        headers[0] if headers else None,
        node=backend.node_id,
        method=request.method,
        path=request.raw_path,
        # The port refuses a body on anything but a submission.
        body=b"",
        now_ms=backend.now_ms(),
    )
    backend.check_reader(read_request)
    return read_request
