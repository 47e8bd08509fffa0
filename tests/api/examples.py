"""What every trial asks first, whatever schemathesis makes up after it: each answer that a request alone provokes.

A row is what `APIOperation.Case` takes: path_parameters, query, headers.
"""

from collections.abc import Mapping
from typing import Any

from tests.api.facts import Facts

JSON, MSGPACK = "application/json", "application/msgpack"
NOWHERE = "00" * 32

Row = Mapping[str, Any]


def examples(facts: Facts, signed_reads: int) -> dict[str, list[Row]]:
    """By operation. Reads that are to be signed come `signed_reads` times, to be signed in that many ways."""
    records = {"contract": "records", "key": facts.state["records"][0]}
    transactions = [*facts.transactions, NOWHERE]
    return {
        "transaction": [_path(id=tx_id) for tx_id in transactions],
        "receipt": [_path(id=tx_id) | accept for tx_id in transactions for accept in _ACCEPTS],
        "blocks": [{"query": query} | accept for query in ({}, {"from": 3, "limit": 2}) for accept in _ACCEPTS],
        "block": [_path(height=height) | accept for height in (1, facts.heights[-1], 10**9) for accept in _ACCEPTS],
        "state": [
            _path(contract=contract, key=key) | {"query": query} | accept
            for contract, keys in facts.state.items()
            for key in keys
            for query, accept in (({}, {}), ({"proof": "1"}, {}), ({"proof": "true"}, _ACCEPTS[1]))
        ]
        + [_path(**records)] * signed_reads,
        "body": [_path(commitment=commitment) for commitment in [*facts.commitments, NOWHERE, NOWHERE]]
        + [_path(commitment=facts.commitments[0])] * signed_reads,
        "records": [
            {"query": {"subject": facts.subject, **more}}
            for more in ({"limit": 2}, {"limit": 2}, {"before": facts.records[-1]}, {"before": facts.records[-1]})
        ]
        + [{"query": {"subject": facts.subject, "before": NOWHERE}}] * 2
        + [{"query": {"subject": facts.subject}}] * signed_reads,
        "events": [
            {"query": {"from": 1}},
            {"query": {"from": 1, "contract": "records"}},
            {"query": {"from": 1, "member": facts.members["doctor"].account.hex()}},
            {"query": {}, "headers": {"Last-Event-ID": "0.0.0"}},
            {"query": {}, "headers": {"Last-Event-ID": "never"}},
        ]
        + [{"query": {"from": 1, "subject": facts.subject}}] * signed_reads,
        "network": [{}],
        "genesis": list(_ACCEPTS),
        "healthz": [{}],
        "readyz": [{}],
        "metrics": [{}],
    }


_ACCEPTS: tuple[dict[str, Any], ...] = ({}, {"headers": {"Accept": JSON}}, {"headers": {"Accept": MSGPACK}})


def _path(**parameters: str | int) -> dict[str, Any]:
    return {"path_parameters": parameters}
