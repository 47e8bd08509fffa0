"""The types of JSON views: `http_types.json_view` says how a value of the ledger is written, this how its type reads.

Derived, so that a contract's new action or state is described without anybody's doing.
"""

import types
from functools import cache
from typing import Annotated, Any, Union, get_args, get_origin

import msgspec
from msgspec import Meta

from ledger.block import Header
from ledger.finality import Certificate, Seal
from ledger.receipt import StateAnswer
from node.http_types import HEX_BYTES_MAX, StateValue

# Fields that hold canonical bytes and are shown decoded (`http_views`): what is in them.
OPENED: dict[tuple[type[msgspec.Struct], str], Any] = {
    (Header, "proof"): Certificate | None,
    (Seal, "certificate"): Certificate,
    (Seal, "header"): Header,
    (StateAnswer, "value"): StateValue | None,
}

_ANY_BYTES = Annotated[
    str,
    Meta(
        pattern="^(([0-9a-f]{2})*|[A-Za-z0-9+/]+={0,2})$",
        description=f"Bytes: hex up to {HEX_BYTES_MAX} of them, else base64.",
    ),
]


def json_type(shape: Any) -> Any:
    """The type of `json_view(value)` for values of `shape`: a Struct of the ledger, or the type of a field of one."""
    if shape is bytes:
        return _ANY_BYTES
    if isinstance(shape, type) and issubclass(shape, msgspec.Struct):
        return _struct(shape)
    origin, arguments = get_origin(shape), get_args(shape)
    if origin is Annotated:
        inner, *notes = arguments
        return _sized(notes) if inner is bytes else Annotated[(json_type(inner), *notes)]
    if origin is list:
        return list[json_type(arguments[0])]  # type: ignore[misc]
    if origin is dict:
        return dict[json_type(arguments[0]), json_type(arguments[1])]  # type: ignore[misc]
    if origin in (Union, types.UnionType):
        return Union[tuple(json_type(each) for each in arguments)]  # noqa: UP007 - made from a list
    return shape


@cache
def _struct(shape: type[msgspec.Struct]) -> type[msgspec.Struct]:
    """Named with the module, as several contracts have a Struct of the same name."""
    config = shape.__struct_config__
    return msgspec.defstruct(
        f"{shape.__module__.rpartition('.')[2]}.{shape.__name__}",
        [
            (field.encode_name, json_type(OPENED.get((shape, field.name), field.type)))
            for field in msgspec.structs.fields(shape)
        ],
        namespace={"__doc__": shape.__doc__},
        tag=config.tag,
        tag_field=config.tag_field,
        forbid_unknown_fields=True,
    )


def _sized(notes: list[Any]) -> Any:
    """Hex, where the length is fixed and short enough."""
    sizes = {(note.min_length, note.max_length) for note in notes}
    least, most = sizes.pop() if len(sizes) == 1 else (None, None)
    if least is None or least != most or most > HEX_BYTES_MAX:
        return _ANY_BYTES
    return Annotated[
        str,
        Meta(pattern=f"^[0-9a-f]{{{2 * most}}}$", max_length=2 * most, description=f"{most} bytes in hex"),
    ]
