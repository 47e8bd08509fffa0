"""What every trial asks first, whatever schemathesis makes up after it: each answer that a request alone provokes.

A row is what `APIOperation.Case` takes: path_parameters, query, headers.
"""

import base64
from collections.abc import Mapping
from typing import Any

import msgspec
from schemathesis.transport.serialization import Binary

from ledger.encoding import encode
from ledger.receipt import decode_receipt
from tests.api.facts import Facts

JSON, MSGPACK = "application/json", "application/msgpack"
NOWHERE = "00" * 32

Row = Mapping[str, Any]


def examples(facts: Facts, signed_reads: int) -> dict[str, list[Row]]:
    """By operation. Reads that are to be signed come `signed_reads` times, to be signed in that many ways."""
    record: Row = _path(contract="records", key=facts.state["records"][0])
    body: Row = _path(commitment=facts.commitments[0])
    listed: Row = {"query": {"subject": facts.subject}}
    happened: Row = {"query": {"from": 1, "subject": facts.subject}}
    transactions = [*facts.transactions, NOWHERE]
    return {
        "transaction": [_path(id=tx_id) for tx_id in transactions],
        "receipt": [_path(id=tx_id) | accept for tx_id in transactions for accept in _ACCEPTS],
        "extend": _extensions(facts.receipt),
        "blocks": [{"query": query} | accept for query in ({}, {"from": 3, "limit": 2}) for accept in _ACCEPTS],
        "block": [_path(height=height) | accept for height in (1, facts.heights[-1], 10**9) for accept in _ACCEPTS],
        "state": [
            _path(contract=contract, key=key) | {"query": query} | accept
            for contract, keys in facts.state.items()
            for key in keys
            for query, accept in (({}, {}), ({"proof": "1"}, {}), ({"proof": "true"}, _ACCEPTS[1]))
        ]
        + [record] * signed_reads,
        "body": [_path(commitment=commitment) for commitment in [*facts.commitments, NOWHERE, NOWHERE]]
        + [body] * signed_reads,
        # Twice each: every other one is signed as it must be.
        "records": [
            _query(subject=facts.subject, **more)
            for more in ({"limit": 2}, {"before": facts.records[-1]}, {"before": NOWHERE})
            for _ in range(2)
        ]
        + [listed] * signed_reads,
        "events": [
            _query(**{"from": 1}),
            _query(**{"from": 1}, contract="records"),
            _query(**{"from": 1}, member=facts.members["doctor"].account.hex()),
            {"headers": {"Last-Event-ID": "0.0.0"}},
            {"headers": {"Last-Event-ID": "never"}},
        ]
        + [happened] * signed_reads,
        "network": [{}],
        "genesis": list(_ACCEPTS),
        "healthz": [{}],
        "readyz": [{}],
        "metrics": [{}],
    }


_ACCEPTS: tuple[dict[str, Any], ...] = ({}, {"headers": {"Accept": JSON}}, {"headers": {"Accept": MSGPACK}})


def _path(**parameters: str | int) -> dict[str, Any]:
    return {"path_parameters": parameters}


def _query(**parameters: str | int) -> dict[str, Any]:
    return {"query": parameters}


def _extensions(receipt: bytes) -> list[Row]:
    """A good receipt in both forms, and each way to get one wrong."""
    content = decode_receipt(receipt)
    wrong = [
        b"\x80",
        b"\xde\x00\x00",
        encode(msgspec.structs.replace(content, format=99)),
        encode(msgspec.structs.replace(content, index=content.index + 1)),
    ]
    good: list[Row] = [
        {"body": body, "media_type": media, **accept}
        for media, body in ((JSON, _base64(receipt)), (MSGPACK, {"receipt": Binary(receipt)}))
        for accept in _ACCEPTS
    ]
    refused: list[Row] = [{"body": _base64(data), "media_type": JSON} for data in wrong]
    text: Row = {"body": _base64(receipt), "media_type": JSON, "headers": {"Content-Type": "text/plain"}}
    return [*good, *refused, text]


def _base64(receipt: bytes) -> dict[str, str]:
    return {"receipt": base64.b64encode(receipt).decode()}
