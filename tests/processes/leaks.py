"""Looks for clear text: strings of FHIR resources in whatever a network stores, sends, logs and answers.

What is looked for is every string *value* of a resource that has at least STRING_BYTES_MIN bytes in UTF-8, at any
depth: names and addresses, codes and dates, ids, references, narrative. The names of elements ("birthDate") are
vocabulary of the standard, public and the same for everybody, and are not. A string that stands in genesis is
public too (`not_public`).

A string longer than PIECE_BYTES is looked for by its pieces of that size, each alone, because what gets into a log or
an error is often cut short. Each is looked for in every form of `forms`.

A string of hexadecimal digits alone, such as a code or a telephone number, that is looked for in one piece counts as
raw only where no such digit stands before or after it: within a longer run of them it is a part of one of our ids,
hashes or counters, which are full of digits by chance.
"""

import base64
import json
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple
from urllib.parse import quote_from_bytes

STRING_BYTES_MIN = 8
PIECE_BYTES = 32
_WINDOW_BYTES = 8
_HEX_DIGITS = frozenset(b"0123456789abcdef")
_HEX_ALONE = re.compile(rb"[0-9a-f]+")


class Leak(NamedTuple):
    """`text` stands at `offset` of the data, written as `form`."""

    text: bytes
    form: str
    offset: int


class _Pattern(NamedTuple):
    """`data` is `text`, or a piece of it, written as `form`. `alone`: the rule for digits holds."""

    data: bytes
    text: bytes
    form: str
    alone: bool


def strings(resource: bytes) -> set[str]:
    """The string values of a resource, in JSON, that are long enough to be looked for."""
    return {value for value in _values(json.loads(resource)) if len(value.encode()) >= STRING_BYTES_MIN}


def not_public(values: Iterable[str], genesis: str) -> set[str]:
    """Those of `values` that do not stand in the text of genesis."""
    return {value for value in values if value not in genesis}


def forms(text: bytes) -> Iterator[tuple[str, bytes]]:
    """The ways to write `text`, by name, each once.

    raw; hex and HEX; base64+0, +1, +2: that part of its base64 which does not depend on what stands around it when
    it begins at that offset of a group of three, in both alphabets; json: escaped as in JSON, with and without
    escapes for what is not ASCII; json-twice: JSON within a string of JSON, as where a log or an error quotes JSON;
    percent: as in a URL.
    """
    yield "raw", text
    yield "hex", text.hex().encode()
    if text.hex() != text.hex().upper():
        yield "HEX", text.hex().upper().encode()
    for offset in range(3):
        first, last = -(-offset * 8 // 6), (offset + len(text)) * 8 // 6
        core = base64.b64encode(bytes(offset) + text)[first:last]
        yield from ((f"base64+{offset}", each) for each in _distinct(core, core.translate(_URL_SAFE)))
    once = _escaped(text)
    twice = [each for one in once for each in _escaped(one)]
    yield from (("json", each) for each in _distinct(*once) if each != text)
    yield from (("json-twice", each) for each in _distinct(*twice) if each not in (text, *once))
    if (quoted := quote_from_bytes(text, safe="").encode()) != text:
        yield "percent", quoted


class Finder:
    """Finds any of `texts` in data of any size. Each has at least STRING_BYTES_MIN bytes; beyond PIECE_BYTES, UTF-8.

    Every form of every piece ends in some eight bytes. All sequences of eight bytes of the data, as numbers, are
    intersected with the set of those; only where that finds something is anything compared.
    """

    def __init__(self, texts: Iterable[bytes]) -> None:
        self._by_window: dict[int, list[_Pattern]] = {}
        for text in sorted(set(texts)):
            if len(text) < STRING_BYTES_MIN:
                raise ValueError(f"{len(text)} bytes are too few to be looked for")
            for piece in _pieces(text):
                for form, data in forms(piece):
                    (window,) = memoryview(data[-_WINDOW_BYTES:]).cast("Q")
                    alone = form == "raw" and data == text and _HEX_ALONE.fullmatch(data) is not None
                    self._by_window.setdefault(window, []).append(_Pattern(data, text, form, alone))
        self._windows = frozenset(self._by_window)

    def find(self, data: bytes) -> list[Leak]:
        """One Leak for each text and form that stands in `data`."""
        leaks: dict[tuple[bytes, str], Leak] = {}
        for shift in range(_WINDOW_BYTES):
            count = (len(data) - shift) // _WINDOW_BYTES
            view = memoryview(data)[shift : shift + max(count, 0) * _WINDOW_BYTES].cast("Q")
            for window in self._windows.intersection(view):
                for pattern in self._by_window[window]:
                    offset = _place(pattern, data)
                    if offset is not None:
                        leaks.setdefault((pattern.text, pattern.form), Leak(pattern.text, pattern.form, offset))
        return list(leaks.values())


def _values(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _values(item)
    elif isinstance(value, list):
        for item in value:
            yield from _values(item)


def _pieces(text: bytes) -> Iterator[bytes]:
    """`text`, or its consecutive pieces without characters cut in two; the last reaches back to have full length."""
    if len(text) <= PIECE_BYTES:
        yield text
        return
    for start in range(0, len(text), PIECE_BYTES):
        piece = text[min(start, len(text) - PIECE_BYTES) :][:PIECE_BYTES]
        yield piece.decode("utf-8", "ignore").encode()


def _escaped(text: bytes) -> list[bytes]:
    """As JSON writes it between the quotes, in ASCII and in UTF-8; nothing for bytes that are no text."""
    try:
        decoded = text.decode()
    except UnicodeDecodeError:
        return []
    return [json.dumps(decoded, ensure_ascii=ascii_only)[1:-1].encode() for ascii_only in (True, False)]


def _place(pattern: _Pattern, data: bytes) -> int | None:
    """Where it stands first, by the rule for digits."""
    offset = data.find(pattern.data)
    while offset >= 0:
        end = offset + len(pattern.data)
        around = {*data[max(offset - 1, 0) : offset], *data[end : end + 1]}
        if not pattern.alone or not around & _HEX_DIGITS:
            return offset
        offset = data.find(pattern.data, offset + 1)
    return None


def _distinct(*texts: bytes) -> Iterable[bytes]:
    return dict.fromkeys(texts)


_URL_SAFE = bytes.maketrans(b"+/", b"-_")
