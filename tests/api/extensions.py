"""What schemathesis cannot know of this port: how reads are signed, MessagePack, what proofs must prove.

Loaded by schemathesis, in its own process.
"""

import atexit
import base64
import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from itertools import count, cycle
from pathlib import Path
from typing import Any

import msgpack
import requests
import schemathesis
from requests.auth import AuthBase
from schemathesis.auths import GLOBAL_AUTH_STORAGE
from schemathesis.transport.serialization import Binary

from ledger.block import decode_block
from ledger.encoding import decode
from ledger.genesis import decode_genesis
from ledger.receipt import verify_receipt, verify_state_answer
from ledger.request import sign_request
from ledger.transaction import body_commitment
from tests.api.examples import JSON, MSGPACK, examples
from tests.api.facts import FACTS_VARIABLE, Count, Facts, Seen, read_facts, write
from tests.api.submissions import Item, Submissions

BLOCKS_BYTES_MAX = 16 * 1024 * 1024
# Every other read that is to be signed is signed by somebody who may not read, or not as it must be, or not at all.
ODD_READ = 2
ODD = ("unsigned", "gone", "rotated", "stranger", "late", "altered", "elsewhere", "nonsense")
# Of so many bodies that are right by the schema, all but one give way to a transaction.
MADE_UP_BODY = 3

Case = schemathesis.Case[Any]
Operation = schemathesis.APIOperation[Any, Any, Any, Any]

FACTS: Facts = read_facts(Path(os.environ[FACTS_VARIABLE]))
SUBMISSIONS = Submissions(FACTS)
EXAMPLES = examples(FACTS, ODD_READ * len(ODD))
SEEN: Counter[Seen] = Counter()
CONTRACTS = {key: contract for contract, keys in FACTS.state.items() for key in keys}
ACCEPTED = cycle([None, JSON, MSGPACK, f"text/html, {MSGPACK};q=0.9", "*/*"])
_bodies = count()


class SignedRead(AuthBase):
    """Signs a request as it will be sent, for the doctor; every other time wrongly, each path in every way."""

    def __init__(self) -> None:
        self._reads: dict[str, Iterator[int]] = {}

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        kind = next(
            (part for part in ("/state/records/", "/bodies/", "/records", "subject=") if part in request.path_url), ""
        )
        # What schemathesis put there itself is what it wants to try.
        if kind and "Authorization" not in request.headers:
            number = next(self._reads.setdefault(kind, count()))
            how = ODD[number // ODD_READ % len(ODD)] if number % ODD_READ else "doctor"
            if how != "unsigned":
                request.headers["Authorization"] = _signature(request, how)
        return request


def _signature(request: requests.PreparedRequest, how: str) -> str:
    if how == "nonsense":
        return "CareQuorum bm90aGluZw"
    member = FACTS.members.get(how, FACTS.members["doctor"])
    assert request.method is not None
    signed = sign_request(
        member.key,
        member.account,
        "nowhere" if how == "elsewhere" else FACTS.node,
        request.method,
        request.path_url,
        b"",
        time.time_ns() // 1_000_000 - (3_600_000 if how == "late" else 0),
    )
    # What comes last is the signature's end.
    return f"{signed[:-4]}AAAA" if how == "altered" else signed


GLOBAL_AUTH_STORAGE.set_from_requests(SignedRead())


@schemathesis.serializer(MSGPACK)
def to_msgpack(context: schemathesis.SerializationContext, value: Any) -> bytes:
    return _packed(value)


def _packed(value: Any) -> bytes:
    packed: bytes = msgpack.packb(_packable(value), unicode_errors="surrogatepass")
    return packed


def _packable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _packable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_packable(item) for item in value]
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return float(value)
    # What schemathesis makes for "format: binary", a str in name only.
    return value.data if isinstance(value, Binary) else value


@schemathesis.deserializer(MSGPACK, "application/octet-stream")
def from_bytes(context: schemathesis.DeserializationContext, response: schemathesis.Response) -> Any:
    """No schema describes what is inside: `verifies_offline` looks."""
    return {}


@schemathesis.hook
def before_add_examples(context: schemathesis.HookContext, examples: list[Case]) -> None:
    operation = context.operation
    assert operation is not None
    for case in _examples(operation):
        # As schemathesis does for those it makes.
        GLOBAL_AUTH_STORAGE.set(case, schemathesis.AuthContext(operation=operation, app=None))
        examples.append(case)


def _examples(operation: Operation) -> Iterator[Case]:
    name = str(operation.definition.raw["operationId"])
    if name != "submit":
        yield from (operation.Case(**row) for row in EXAMPLES[name])
        return
    for media in (JSON, MSGPACK):
        for _ in range(SUBMISSIONS.kinds):
            body = _shaped(SUBMISSIONS.next(), media)
            yield operation.Case(query={"wait": "committed"}, body=body, media_type=media)
        hasty = {"wait": "committed", "wait_ms": 1}
        yield operation.Case(query=hasty, body=_shaped(SUBMISSIONS.slow(), media), media_type=media)
    yield operation.Case(body={"envelope": ""}, media_type=JSON, headers={"Content-Type": "text/plain"})


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: Case, kwargs: dict[str, Any]) -> None:
    if case.meta is None:
        # One of the examples, which are complete.
        return
    accept = next(ACCEPTED)
    if accept is not None and "Accept" not in (case.headers or {}):
        case.headers["Accept"] = accept
    if not case.meta.generation.mode.is_positive:
        return
    if _operation(case) == "state" and case.path_parameters["key"] in CONTRACTS:
        # A key that exists, under the contract that has it: drawn apart, they seldom meet.
        case.path_parameters["contract"] = CONTRACTS[case.path_parameters["key"]]
    if _operation(case) == "submit" and case.method == "POST" and next(_bodies) % MADE_UP_BODY:
        body = _shaped(SUBMISSIONS.next(), case.media_type)
        kwargs["data"] = _packed(body) if case.media_type == MSGPACK else json.dumps(body).encode()


def _shaped(submitted: Item | list[Item], media: str | None) -> Any:
    """As the body of a request of this media type."""
    if isinstance(submitted, list):
        return [_shaped(each, media) for each in submitted]
    if media == MSGPACK:
        return {"envelope": Binary(submitted.envelope), "bodies": [Binary(body) for body in submitted.bodies]}
    return {
        "envelope": base64.b64encode(submitted.envelope).decode(),
        "bodies": [base64.b64encode(body).decode() for body in submitted.bodies],
    }


@schemathesis.hook
def after_call(context: schemathesis.HookContext, case: Case, response: schemathesis.Response) -> None:
    media = _media(response)
    code = (
        str(json.loads(response.content).get("code"))
        if media == "application/problem+json" and response.content
        else ""
    )
    SEEN[Seen(_operation(case), response.status_code, media, code)] += 1


@atexit.register
def _write_seen() -> None:
    write(Path(FACTS.seen), [Count(seen, times) for seen, times in sorted(SEEN.items())])


@schemathesis.check
def verifies_offline(ctx: schemathesis.CheckContext, response: schemathesis.Response, case: Case) -> None:
    """What is to be verified with genesis alone verifies, and is of what was asked for."""
    if response.status_code != 200:
        return
    operation, media, data = _operation(case), _media(response), response.content
    parameters = case.path_parameters or {}
    if operation == "extend":
        data = base64.b64decode(json.loads(data)["receipt"]) if media == JSON else data
        assert verify_receipt(data, FACTS.genesis).id == verify_receipt(FACTS.receipt, FACTS.genesis).id
    elif operation == "receipt":
        data = base64.b64decode(json.loads(data)["receipt"]) if media == JSON else data
        assert verify_receipt(data, FACTS.genesis).id.hex() == parameters["id"]
    elif operation == "state" and media == MSGPACK:
        assert verify_state_answer(data, FACTS.genesis).key == f"{parameters['contract']}/{parameters['key']}"
    elif operation == "block" and media == MSGPACK:
        assert decode_block(data, BLOCKS_BYTES_MAX).header.height == int(parameters["height"])
    elif operation == "blocks" and media == MSGPACK:
        for row in decode(data, BLOCKS_BYTES_MAX)["blocks"]:
            decode_block(row["block"], BLOCKS_BYTES_MAX)
    elif operation == "body":
        assert body_commitment(data).hex() == parameters["commitment"]
    elif operation == "genesis" and media == MSGPACK:
        assert decode_genesis(data) == FACTS.genesis


@schemathesis.check
def says_by_its_status_what_is_pending(
    ctx: schemathesis.CheckContext, response: schemathesis.Response, case: Case
) -> None:
    """202 where a commit was waited for that has yet to come, and nowhere else."""
    if response.status_code not in (200, 202):
        return
    late = False
    if _operation(case) == "submit" and case.method == "POST":
        results = json.loads(response.content)["results"]
        waited = (case.query or {}).get("wait", "accepted") != "accepted"
        late = waited and any(result["status"] == "pending" for result in results)
    assert response.status_code == (202 if late else 200)


@schemathesis.check
def has_the_type_asked_for(ctx: schemathesis.CheckContext, response: schemathesis.Response, case: Case) -> None:
    """One type was asked for that this operation has: the answer is of that type."""
    wanted = {**case.headers}.get("Accept")
    described = case.operation.definition.raw["responses"]["200"]["content"]
    both = {JSON, MSGPACK} <= set(described) and _operation(case) != "state"
    if response.status_code == 200 and both and wanted in (JSON, MSGPACK):
        assert _media(response) == wanted


def _operation(case: Case) -> str:
    return str(case.operation.definition.raw["operationId"])


def _media(response: schemathesis.Response) -> str:
    return response.headers.get("content-type", [""])[0].partition(";")[0]
