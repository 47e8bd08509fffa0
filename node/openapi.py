"""OpenAPI 3.1 of the provider port, made from the table of endpoints and from the types that it names.

What requests are parsed as and what answers are shaped from is what is described: msgspec writes the schemas. What
a type cannot say is here: how canonical bytes look in JSON (`json_type`), headers, which codes go with which status.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from ledger.contracts import Action, identity, network, records
from ledger.contracts.context import BodyReference
from ledger.finality import Certificate
from ledger.membership import Configuration, Step
from ledger.receipt import Receipt, StateAnswer
from ledger.transaction import Envelope
from node.endpoints import EVENTS, JSON, MSGPACK, Answer, Endpoint
from node.http_types import SCHEMAS, CutView, EventIdText, EventView, Problem
from node.json_types import json_type
from node.problems import COMMON_HEADERS, PROBLEM_TYPE, PROBLEMS, RETRIED, RETRY_AFTER_S

VERSION = "1"
SIGNED = "memberSignature"

# What the state of the contracts is made of, beside the account that a key belongs to.
STATE = (
    identity.Organisation,
    identity.Account,
    network.Node,
    network.NodeKey,
    network.Ids,
    network.Parameters,
    network.Proposal,
    network.OpenProposals,
    network.Pending,
    Configuration,
    Step,
    records.Record,
    records.Subject,
)
# What the types of answers refer to by name.
REFERRED = (Envelope, Certificate, BodyReference, Receipt, StateAnswer)

# What the data of a server-sent event is, by the event's name.
EVENT_DATA = {"action": EventView, "failed": EventView, "cut": CutView}

Schema = dict[str, Any]
SchemaOf = Callable[[Any], Schema]

_SECURITY: Schema = {
    "type": "apiKey",
    "in": "header",
    "name": "Authorization",
    "description": "`CareQuorum` and a member's signed read request, good for one node, method, path and minute: "
    "docs/api.md says how it is made.",
}
_HEADERS: dict[str, Schema] = {
    "Cache-Control": {
        "description": "The ledger grows: ask again.",
        "required": True,
        "schema": {"const": COMMON_HEADERS["Cache-Control"]},
    },
    "X-Content-Type-Options": {
        "description": "The type is what Content-Type says.",
        "required": True,
        "schema": {"const": COMMON_HEADERS["X-Content-Type-Options"]},
    },
    "Retry-After": {
        "description": "Time alone may mend this: the seconds to wait.",
        "required": True,
        "schema": {"type": "integer", "minimum": RETRY_AFTER_S},
    },
    "WWW-Authenticate": {
        "description": f"The scheme of `{SIGNED}`.",
        "required": True,
        "schema": {"const": "CareQuorum"},
    },
    "Allow": {
        "description": "The methods that the path has.",
        "required": True,
        "schema": {"type": "string", "pattern": "^[A-Z]+(, [A-Z]+)*$"},
    },
    "X-Accel-Buffering": {
        "description": "A reverse proxy is not to hold events back.",
        "required": True,
        "schema": {"const": "no"},
    },
}


class _Described(NamedTuple):
    """`schema_of` finds the schema of a type that some row names; `components` are those that schemas refer to."""

    schema_of: SchemaOf
    components: dict[str, Schema]


def describe(endpoints: Iterable[Endpoint]) -> Schema:
    """The document, as JSON can carry it."""
    rows = list(endpoints)
    schema_of, components = _schemas(rows)
    paths: dict[str, Schema] = {}
    for row in rows:
        paths.setdefault(row.template, {})[row.method.lower()] = _operation(row, schema_of)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "CareQuorum provider port",
            "version": VERSION,
            "description": "Plain HTTP for a hospital's own programs. docs/api.md explains it, docs/errors.md every "
            "code. Any other path is answered 404 `not_found`.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/", "description": "This node"}],
        "paths": paths,
        "components": {"schemas": components, "headers": _HEADERS, "securitySchemes": {SIGNED: _SECURITY}},
    }


def _schemas(rows: Iterable[Endpoint]) -> _Described:
    shapes = [shape for row in rows for answer in row.answers for shape in answer.shapes]
    shapes += [row.body for row in rows if row.body is not None]
    ledger = [json_type(each) for each in (*STATE, *REFERRED, Action)]
    # All at once, so that msgspec sees to it that no two types have one name.
    made, components = msgspec.json.schema_components([*shapes, *ledger, Problem], ref_template=SCHEMAS + "{name}")
    by_shape = {id(shape): _portable(schema) for shape, schema in zip(shapes, made, strict=False)}
    described = {name: _portable(schema) for name, schema in components.items()}
    described["Action"] = _portable(made[len(shapes) + len(STATE) + len(REFERRED)])
    described["StateValue"] = {
        "description": "A value of the state: contract and key say which of these. The bare one is the account that "
        "a key belongs to, in hex.",
        "anyOf": [*made[len(shapes) : len(shapes) + len(STATE)], {"type": "string", "pattern": "^[0-9a-f]{64}$"}],
    }
    for body in (row.body for row in rows if row.body is not None):
        described |= {_binary_name(name): _binary(described[name]) for name in _references(by_shape[id(body)])}
    return _Described(lambda shape: by_shape[id(shape)], dict(sorted(described.items())))


def _operation(row: Endpoint, schema_of: SchemaOf) -> Schema:
    operation: Schema = {
        "operationId": row.handler,
        "summary": row.summary,
        "parameters": _parameters(row),
        "responses": {"200": _answer(row, schema_of), **_problems(row.codes)},
    }
    if row.late is not None:
        operation["responses"]["202"] = {**_answer(row, schema_of), "description": row.late}
    if row.body is not None:
        schema = schema_of(row.body)
        operation["requestBody"] = {
            "required": True,
            "content": {
                JSON: {"schema": schema},
                MSGPACK: {"schema": {**_binary(schema), "description": "As in JSON, with bytes as they are."}},
            },
        }
    if row.signed != "never":
        optional: list[Schema] = [] if row.signed == "always" else [{}]
        operation["security"] = [*optional, {SIGNED: []}]
    return operation


def _parameters(row: Endpoint) -> list[Schema]:
    (_,), components = msgspec.json.schema_components([row.parameters])
    shape = _portable(components[row.parameters.__name__])
    parameters = []
    for name, found in shape["properties"].items():
        # A parameter is given or not; there is no way to write null.
        schema = found["anyOf"][0] if found.get("default", "") is None else found
        in_path = f"{{{name}}}" in row.template
        parameters.append(
            {
                "name": name,
                "in": "path" if in_path else "query",
                "required": in_path or name in shape["required"],
                "description": schema["description"],
                "schema": {key: value for key, value in schema.items() if key != "description"},
            }
        )
    for name, kind, what in row.headers:
        schema = _portable(msgspec.json.schema(kind))
        parameters.append({"name": name, "in": "header", "required": False, "description": what, "schema": schema})
    return parameters


def _answer(row: Endpoint, schema_of: SchemaOf) -> Schema:
    streams = [each for each in row.answers if each.media == EVENTS]
    answer: Schema = {
        "description": row.answers[0].what,
        "headers": _headers(*(["X-Accel-Buffering"] if streams else [])),
        "content": {each.media: {"schema": _answer_schema(each, schema_of)} for each in row.answers},
    }
    if row.links:
        answer["links"] = {
            operation: {"operationId": operation, "parameters": {parameter: f"$response.body#{place}"}}
            for operation, parameter, place in row.links
        }
    return answer


def _answer_schema(answer: Answer, schema_of: SchemaOf) -> Schema:
    described: Schema = {"description": answer.what}
    if not answer.shapes:
        return described
    if answer.media == EVENTS:
        return {**described, "anyOf": [_event(name, schema_of(shape)) for name, shape in EVENT_DATA.items()]}
    first, *others = (schema_of(shape) for shape in answer.shapes)
    return {**described, **({"anyOf": [first, *others]} if others else first)}


def _event(name: str, data: Schema) -> Schema:
    """One server-sent event, its fields as an object."""
    return {
        "type": "object",
        "properties": {
            "id": _portable(msgspec.json.schema(EventIdText)),
            "event": {"const": name},
            "data": {"type": "string", "contentMediaType": JSON, "contentSchema": data},
        },
        "required": ["id", "event", "data"],
    }


def _problems(codes: Iterable[str]) -> dict[str, Schema]:
    """The responses that are errors, by status: each says which codes go with it."""
    by_status: dict[int, list[str]] = {}
    for code in dict.fromkeys(codes):
        by_status.setdefault(PROBLEMS[code][0], []).append(code)
    return {str(status): _problem(status, by_status[status]) for status in sorted(by_status)}


def _problem(status: int, codes: list[str]) -> Schema:
    marks = {401: "WWW-Authenticate", 405: "Allow"}
    named = [marks[status]] if status in marks else []
    if RETRIED.issuperset(codes):
        named.append("Retry-After")
    return {
        "description": "; ".join(f"`{code}`: {PROBLEMS[code][1]}" for code in codes),
        "headers": _headers(*named),
        "content": {
            PROBLEM_TYPE: {
                "schema": {
                    "allOf": [
                        {"$ref": SCHEMAS + Problem.__name__},
                        {"properties": {"status": {"const": status}, "code": {"enum": codes}}},
                    ]
                }
            }
        },
    }


def _headers(*more: str) -> dict[str, Schema]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in (*COMMON_HEADERS, *more)}


def _portable(schema: Any) -> Any:
    """What msgspec wrote, as other languages read it: patterns of JSON Schema's kind, docstrings on one line."""
    if isinstance(schema, list):
        return [_portable(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _portable(value) for key, value in schema.items()}
    if isinstance(made.get("pattern"), str):
        made["pattern"] = made["pattern"].replace(r"\Z", "$")
    if isinstance(made.get("description"), str):
        made["description"] = " ".join(made["description"].split())
    if made.get("contentEncoding") == "base64":
        made["pattern"] = "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"
    return made


def _binary(schema: Any) -> Any:
    """The same in MessagePack: what is base64 in JSON is bytes."""
    if isinstance(schema, list):
        return [_binary(each) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    if schema.get("contentEncoding") == "base64":
        return {"type": "string", "format": "binary", "description": "Bytes."}
    return {key: _binary_name(value) if key == "$ref" else _binary(value) for key, value in schema.items()}


def _binary_name(name: str) -> str:
    return f"{name}.msgpack"


def _references(schema: Any) -> list[str]:
    """The names of the components that a schema refers to."""
    if isinstance(schema, list):
        return [name for each in schema for name in _references(each)]
    if not isinstance(schema, Mapping):
        return []
    named = [schema["$ref"].removeprefix(SCHEMAS)] if "$ref" in schema else []
    return named + [name for each in schema.values() for name in _references(each)]
