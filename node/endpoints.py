"""The provider port as a table: one row an endpoint, from which requests are routed and parsed, and by which
/openapi.json describes them.

A row names the type that its parameters parse as, those of the path and those of the query alike; what a submission
parses as; every form of its answer, the default first; and every code of a refusal. Beside those each endpoint may
answer EVERYWHERE; and what takes `consistency`, CONFIRMED.
"""

from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from ledger.genesis import Genesis
from node.http_types import (
    BlockQuery,
    BlocksAnswer,
    BlocksQuery,
    BlockView,
    BodyQuery,
    CutView,
    EventIdText,
    EventsQuery,
    EventView,
    ExtendQuery,
    Health,
    NetworkQuery,
    NetworkView,
    NoQuery,
    ReadQuery,
    ReceiptQuery,
    ReceiptView,
    RecordsAnswer,
    RecordsQuery,
    SavedReceipt,
    StateProofView,
    StateQuery,
    StateView,
    SubmitAnswer,
    SubmitQuery,
    Submitted,
    TransactionQuery,
    TransactionResult,
)

JSON, MSGPACK, OCTETS = "application/json", "application/msgpack", "application/octet-stream"
PROMETHEUS, EVENTS = "text/plain", "text/event-stream"

# What any request may be answered with; `method_not_allowed` to a method that the path does not have.
EVERYWHERE = ("bad_request", "method_not_allowed", "internal")
# What a linearizable read may be answered with.
CONFIRMED = ("not_confirmed", "busy")
# Why a member's signed read is refused.
READER = (
    "no_read_request",
    "bad_read_request",
    "stale_read_request",
    "bad_signature",
    "unregistered",
    "wrong_signer",
    "revoked",
    "not_ready",
)
# Why the ledger refuses a transaction before it is in a block.
ADMISSION = (
    "too_large",
    "not_canonical",
    "bad_structure",
    "unknown_format",
    "unknown_action",
    "unsigned",
    "bad_signature",
    "wrong_chain",
    "bad_key",
    "unregistered",
    "wrong_signer",
    "revoked",
    "body_mismatch",
    "expired",
    "until_too_far",
)


@dataclass(frozen=True, slots=True)
class Answer:
    """One form of an answer that is no problem. `shapes` are what its JSON may be; none where it is not JSON."""

    media: str
    what: str
    shapes: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One row. `handler` is the method of `http_api.ProviderApi` that answers.

    `signed`: whether it takes a member's signed request; "records" where only that contract's state does, "subject"
    where only a request with this parameter does. `links` says which operations take something of the answer: the
    operation, its parameter, and the place in the answer's JSON. `headers` are those of the request that it reads
    beside Accept and Authorization: name, type, what. `late` is what status 202 says where there is one: its answer
    has the form of the others, which have 200.
    """

    method: Literal["GET", "POST"]
    path: str
    parameters: type[msgspec.Struct]
    handler: str
    summary: str
    answers: tuple[Answer, ...]
    problems: tuple[str, ...] = ()
    signed: Literal["never", "records", "subject", "always"] = "never"
    body: Any = None
    links: tuple[tuple[str, str, str], ...] = ()
    headers: tuple[tuple[str, Any, str], ...] = ()
    late: str | None = None

    @property
    def codes(self) -> tuple[str, ...]:
        """Every code of a refusal that it answers with."""
        return (*EVERYWHERE, *self.problems, *(CONFIRMED if issubclass(self.parameters, ReadQuery) else ()))

    @property
    def template(self) -> str:
        """The path as OpenAPI writes it."""
        return self.path.replace(":.+}", "}")


ENDPOINTS = (
    Endpoint(
        "POST",
        "/v1/transactions",
        SubmitQuery,
        "submit",
        "Submit a signed transaction, or a list of them",
        (
            Answer(
                JSON,
                "One result for each transaction, in order. A single one that is refused is answered by the problem "
                "itself; so is a list of which all is refused as `pool_full` or `not_ready`.",
                (SubmitAnswer,),
            ),
        ),
        ("unsupported_media_type", "request_timeout", "pool_full", "busy", "not_ready", "pruned", *ADMISSION),
        body=Submitted,
        links=(("transaction", "id", "/results/0/id"), ("receipt", "id", "/results/0/id")),
        late="A commit was waited for, and some transaction is `pending` still: taken, and in no block yet.",
    ),
    Endpoint(
        "GET",
        "/v1/transactions/{id}",
        TransactionQuery,
        "transaction",
        "How far a transaction came",
        (Answer(JSON, "Its status here.", (TransactionResult,)),),
    ),
    Endpoint(
        "GET",
        "/v1/transactions/{id}/receipt",
        ReceiptQuery,
        "receipt",
        "The proof of a transaction's result",
        (
            Answer(MSGPACK, "The receipt's canonical bytes: they verify offline, with genesis alone."),
            Answer(JSON, "The same bytes in base64, and what they say.", (ReceiptView,)),
        ),
        ("unknown_transaction", "not_sealed", "pruned"),
    ),
    Endpoint(
        "POST",
        "/v1/receipts/extend",
        ExtendQuery,
        "extend",
        "A saved receipt under the newest seal, though its block may be pruned",
        (
            Answer(MSGPACK, "The receipt's canonical bytes: they verify offline, with genesis alone."),
            Answer(JSON, "The same bytes in base64, and what they say.", (ReceiptView,)),
        ),
        (
            "unsupported_media_type",
            "request_timeout",
            "busy",
            "too_large",
            "not_canonical",
            "bad_structure",
            "unknown_format",
            "bad_receipt",
            "not_sealed",
        ),
        body=SavedReceipt,
    ),
    Endpoint(
        "GET",
        "/v1/blocks",
        BlocksQuery,
        "blocks",
        "Committed blocks, ascending",
        (
            Answer(JSON, "Blocks, and the height to go on with.", (BlocksAnswer,)),
            Answer(MSGPACK, "{blocks: [{block, certificate}], next}, the stored bytes of each."),
        ),
        ("pruned",),
        links=(("block", "height", "/blocks/0/height"),),
    ),
    Endpoint(
        "GET",
        "/v1/blocks/{height}",
        BlockQuery,
        "block",
        "One committed block",
        (Answer(JSON, "The block.", (BlockView,)), Answer(MSGPACK, "The block's stored bytes.")),
        ("not_found", "pruned"),
    ),
    Endpoint(
        "GET",
        "/v1/state/{contract}/{key:.+}",
        StateQuery,
        "state",
        "A value of the state",
        (
            Answer(
                JSON, "The value at the executed height; with proof, what proves it.", (StateView, StateProofView)
            ),
            Answer(MSGPACK, "With proof, the default: the state answer's canonical bytes, which verify offline."),
        ),
        ("not_found", "not_sealed", *READER),
        signed="records",
    ),
    Endpoint(
        "GET",
        "/v1/bodies/{commitment}",
        BodyQuery,
        "body",
        "A sealed body",
        (Answer(OCTETS, "The body. Only who holds a key to it reads what is inside."),),
        ("not_found", *READER),
        signed="always",
    ),
    Endpoint(
        "GET",
        "/v1/records",
        RecordsQuery,
        "records",
        "The records of a subject, newest first",
        (Answer(JSON, "Records, and the one to go on before.", (RecordsAnswer,)),),
        ("not_found", *READER),
        signed="always",
    ),
    Endpoint(
        "GET",
        "/v1/events",
        EventsQuery,
        "events",
        "What happened, as server-sent events",
        (
            Answer(
                EVENTS,
                "Events named `action`, `failed` and, last of all, `cut`. It ends when node or reader ends it.",
                (EventView, CutView),
            ),
        ),
        ("bad_event_id", "busy", "pruned", *READER),
        signed="subject",
        headers=(("Last-Event-ID", EventIdText, "Go on after this event, whatever `from` says."),),
    ),
    Endpoint(
        "GET",
        "/v1/network",
        NetworkQuery,
        "network",
        "The network as this node sees it",
        (Answer(JSON, "Members, leader, heights, evidence.", (NetworkView,)),),
    ),
    Endpoint(
        "GET",
        "/v1/genesis",
        NoQuery,
        "genesis",
        "The document that founds the network",
        (
            Answer(JSON, "Genesis; here every byte string is base64.", (Genesis,)),
            Answer(MSGPACK, "Its canonical bytes, whose hash is the chain id."),
        ),
    ),
    Endpoint(
        "GET",
        "/openapi.json",
        NoQuery,
        "openapi",
        "This document",
        (Answer(JSON, "OpenAPI 3.1.", (dict[str, Any],)),),
    ),
    Endpoint(
        "GET",
        "/healthz",
        NoQuery,
        "healthz",
        "Whether the process serves",
        (Answer(JSON, "It does.", (Health,)),),
    ),
    Endpoint(
        "GET",
        "/readyz",
        NoQuery,
        "readyz",
        "Whether the node can serve clients",
        (Answer(JSON, "It can.", (Health,)),),
        ("not_ready",),
    ),
    Endpoint(
        "GET",
        "/metrics",
        NoQuery,
        "metrics",
        "Figures for Prometheus",
        (Answer(PROMETHEUS, "Prometheus text; series are named carequorum_…"),),
    ),
)
