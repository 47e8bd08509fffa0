"""Canonical MessagePack: one value has one encoding, and only that one is accepted.

Allowed: map with str keys in strictly ascending byte order, list, str (UTF-8), bytes, int, bool, nil; every
length and integer in its shortest form. Refused: floats, extension types, duplicate keys, trailing bytes,
anything deeper than DEPTH_MAX, with more than ITEMS_MAX items in one map or list, or longer than the caller's
limit.

The decoder decodes, walks the value once, encodes it again and requires the same bytes. So the bytes that
were received are the bytes that were checked, whatever a library's decoder would have forgiven.

Where the shape of a value is known and can hold nothing else than the above, the walk is left out: bytes that
decode to the shape, and that the shape encodes to, are canonical. Whatever fails there goes the long way, which
decides and says why. The two ways never disagree; they differ in cost, tenfold.
"""

import re
from collections.abc import Iterable
from typing import Any, TypeVar

import msgpack
import msgspec
from msgspec import inspect

from ledger.errors import Rejection

DEPTH_MAX = 16
ITEMS_MAX = 16_384
INT_MIN, INT_MAX = -(2**63), 2**64 - 1

Value = dict[str, "Value"] | list["Value"] | str | bytes | int | bool | None

T = TypeVar("T")

# Where the library's message quotes the input, which may be content that no message of ours may hold.
_ECHO = re.compile(r"""(unknown field|value) (?:([`'"]).*\2|-?[0-9]+)(?= - at `|\Z)""", re.DOTALL)
_SCALARS = frozenset((bytes, str, int, bool, type(None)))
_PLAIN = (
    inspect.BytesType,
    inspect.StrType,
    inspect.IntType,
    inspect.BoolType,
    inspect.NoneType,
    inspect.LiteralType,
)
# What the library's typed coders raise. None of it decides: the long way does.
_DOUBTS = (ValueError, TypeError, OverflowError, RecursionError)
_encode_typed = msgspec.msgpack.Encoder(order="sorted").encode
# By shape, of which there are as many as this code names.
_decoders: dict[Any, msgspec.msgpack.Decoder[Any] | None] = {}


def encode(value: object) -> bytes:
    """The canonical bytes of `value`, whose maps may be in any order.

    Raises Rejection("not_canonical") for a value outside the allowed types, ranges, depth or size of maps and
    lists.
    """
    if isinstance(value, msgspec.Struct):
        decoder = _decoder_of(type(value))
        if decoder is not None:
            try:
                data = _encode_typed(value)
                # A Struct may hold what its class does not allow; only decoding checks it.
                decoder.decode(data)
                return data
            except _DOUBTS:
                pass
    try:
        return _pack(_sorted(value, DEPTH_MAX))
    except UnicodeEncodeError:
        raise Rejection("not_canonical", "a string has no UTF-8 form") from None


def decode(data: bytes, bytes_max: int) -> Any:
    """The value that `data` encodes, or Rejection: "too_large" or "not_canonical"."""
    if len(data) > bytes_max:
        raise Rejection("too_large", f"{len(data)} bytes, at most {bytes_max}")
    try:
        # The library makes room for as many items as a length claims: bound the claim before it is believed.
        items_max = min(len(data), ITEMS_MAX)
        value = msgpack.unpackb(data, ext_hook=_no_extensions, max_array_len=items_max, max_map_len=items_max)
    except (ValueError, msgpack.UnpackException) as error:
        raise Rejection("not_canonical", type(error).__name__) from None
    _require_allowed(value, DEPTH_MAX)
    if _pack(value) != data:
        raise Rejection("not_canonical", "another encoding of the same value is shorter or ordered")
    return value


def decode_as(shape: type[T], data: bytes, bytes_max: int) -> T:
    """`decode`, then the typed value: a msgspec Struct that names exactly the fields of the map.

    Raises Rejection: as `decode`, or "bad_structure" where fields, types or lengths do not fit.
    """
    decoder = _decoder_of(shape)
    if decoder is not None and len(data) <= bytes_max:
        try:
            value: T = decoder.decode(data)
            if _encode_typed(value) == data:
                return value
        except _DOUBTS:
            pass
    return convert(shape, decode(data, bytes_max))


def convert(shape: type[T], value: object) -> T:
    """A decoded value as `shape`, or Rejection("bad_structure") naming the field, never what was in it."""
    try:
        # Were bytes not among the builtin types, base64 text would do in their place: a second encoding.
        return msgspec.convert(value, shape, strict=True, builtin_types=(bytes,))
    except msgspec.ValidationError as error:
        raise Rejection("bad_structure", _ECHO.sub(r"\1", str(error))) from None


def _decoder_of(shape: Any) -> msgspec.msgpack.Decoder[Any] | None:
    """The typed decoder of a shape whose values all keep the rules above; None if some might not."""
    if shape not in _decoders:
        keeps = _keeps_rules(inspect.type_info(shape), DEPTH_MAX)
        _decoders[shape] = msgspec.msgpack.Decoder(shape) if keeps else None
    return _decoders[shape]


def _keeps_rules(form: inspect.Type, depth: int) -> bool:
    if isinstance(form, inspect.Metadata):
        return _keeps_rules(form.type, depth)
    if isinstance(form, _PLAIN):
        return True
    if isinstance(form, inspect.UnionType):
        return all(_keeps_rules(each, depth) for each in form.types)
    if depth == 0:
        return False
    if isinstance(form, inspect.StructType):
        return not form.array_like and all(_keeps_rules(each.type, depth - 1) for each in form.fields)
    if not isinstance(form, inspect.ListType | inspect.DictType) or (form.max_length or ITEMS_MAX + 1) > ITEMS_MAX:
        return False
    if isinstance(form, inspect.DictType):
        return isinstance(form.key_type, inspect.StrType) and _keeps_rules(form.value_type, depth - 1)
    return _keeps_rules(form.item_type, depth - 1)


def _pack(value: object) -> bytes:
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


def _no_extensions(code: int, data: bytes) -> None:
    raise Rejection("not_canonical", "extension types are not allowed")


def _require_allowed(value: object, depth: int) -> None:
    """Types, depth and key order; lengths and forms are left to the comparison of bytes."""
    if type(value) in _SCALARS:
        return
    if depth == 0:
        raise Rejection("not_canonical", f"deeper than {DEPTH_MAX}")
    items: Iterable[object]
    if type(value) is dict:
        _require_text(value)
        # Code point order and UTF-8 byte order are the same order.
        if list(value) != sorted(value):
            raise Rejection("not_canonical", "keys are not in ascending order")
        items = value.values()
    elif type(value) is list:
        items = value
    else:
        raise Rejection("not_canonical", f"{type(value).__name__} is not allowed")
    for item in items:
        if type(item) not in _SCALARS:
            _require_allowed(item, depth - 1)


def _sorted(value: object, depth: int) -> object:
    """The value with its maps in order and its Structs as maps; types, ranges and sizes checked."""
    if type(value) in _SCALARS:
        if type(value) is int and not INT_MIN <= value <= INT_MAX:
            raise Rejection("not_canonical", "integer out of range")
        return value
    if isinstance(value, msgspec.Struct):
        return _sorted(msgspec.to_builtins(value, builtin_types=(bytes,)), depth)
    if not isinstance(value, dict | list | tuple):
        raise Rejection("not_canonical", f"{type(value).__name__} is not allowed")
    if depth == 0:
        raise Rejection("not_canonical", f"deeper than {DEPTH_MAX}")
    if len(value) > ITEMS_MAX:
        raise Rejection("not_canonical", f"{len(value)} items, at most {ITEMS_MAX}")
    if isinstance(value, dict):
        _require_text(value)
        return {key: _sorted(value[key], depth - 1) for key in sorted(value)}
    return [_sorted(item, depth - 1) for item in value]


def _require_text(keys: Iterable[object]) -> None:
    if any(type(key) is not str for key in keys):
        raise Rejection("not_canonical", "a key is not a string")
