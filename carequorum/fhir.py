"""FHIR R4 resources as the exact bytes in which their source wrote them.

What is sealed and compared is a slice of the file, never a rewritten resource: parsers lose 10.00, key order and
escapes. Read are a single resource, a Bundle (each `entry.resource`, in order; entries without one have nothing to
import) and NDJSON (one resource a line; https://hl7.org/fhir/R4/nd-json.html). A Bundle inside a Bundle's entry is
one resource. Text must be UTF-8; a leading byte order mark is skipped.

Errors are Rejection("bad_fhir") naming source and byte offset, never the content there.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from json import JSONDecodeError, JSONDecoder
from pathlib import Path
from typing import BinaryIO, NoReturn

from ledger.errors import Rejection

CONTENT_TYPE = "application/fhir+json"
DOCUMENT_BYTES_MAX = 256 * 1024 * 1024
LINE_BYTES_MAX = 16 * 1024 * 1024
DEPTH_MAX = 64
LINE_SUFFIXES = (".ndjson", ".jsonl")
SUFFIXES = (".json", *LINE_SUFFIXES)

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_WHITESPACE = re.compile(r"[ \t\r\n]*")
# A string, whole even if it never ends, or one bracket.
_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*+"?|[\[\]{}]', re.DOTALL)
_TYPE = re.compile(r"[A-Z][A-Za-z]{1,63}")
_ID = re.compile(r"[A-Za-z0-9.-]{1,64}")


@dataclass(frozen=True, slots=True)
class Resource:
    """`data` is the exact slice; it begins at byte `offset` of `source`. `id` is the server's, if any."""

    type: str
    id: str | None
    data: bytes
    source: str
    offset: int

    def __repr__(self) -> str:
        return f"Resource({self.type}, {len(self.data)} bytes at {self.source}:{self.offset})"


def read_path(path: str | Path) -> Iterator[Resource]:
    """Every resource of a file, or of all FHIR files in a folder and below, in order of path.

    NDJSON files (LINE_SUFFIXES) are read a line of at most LINE_BYTES_MAX at a time; others whole, up to
    DOCUMENT_BYTES_MAX. Raises Rejection: "no_such_file", "bad_fhir".
    """
    for file in files(path):
        with _open(file) as stream:
            if file.suffix.lower() in LINE_SUFFIXES:
                yield from _lines(stream, str(file))
            else:
                data = stream.read(DOCUMENT_BYTES_MAX + 1)
                if len(data) > DOCUMENT_BYTES_MAX:
                    _refuse(str(file), 0, f"longer than {DOCUMENT_BYTES_MAX} bytes; use NDJSON")
                yield from resources(data, str(file))


def files(path: str | Path) -> list[Path]:
    """The file itself, or the files with a FHIR suffix (SUFFIXES) in a folder and below, ascending.

    Links to folders are not followed. Raises Rejection("no_such_file") also for a folder that has none.
    """
    root = Path(path)
    if root.is_file():
        return [root]
    found = sorted(
        Path(folder, name) for folder, _, names in os.walk(root) for name in names if name.lower().endswith(SUFFIXES)
    )
    if not found:
        raise Rejection("no_such_file", f"{path}: neither a file nor a folder with {', '.join(SUFFIXES)}")
    return found


def resources(data: bytes, source: str) -> Iterator[Resource]:
    """The resources in one document: a resource, a Bundle, or NDJSON. Raises Rejection("bad_fhir")."""
    document = _Document(data, source, 0)
    if not document.space():
        document.refuse("there is nothing in it")
    start = document.at
    value = document.value()
    if document.space():
        yield from _lines(BytesIO(data), source)
        return
    document.at = start
    if isinstance(value, dict) and value.get("resourceType") == "Bundle":
        yield from document.entries()
    else:
        yield document.resource()


def _lines(stream: BinaryIO, source: str) -> Iterator[Resource]:
    offset = 0
    while line := stream.readline(LINE_BYTES_MAX + 1):
        if len(line) > LINE_BYTES_MAX:
            _refuse(source, offset, f"a line longer than {LINE_BYTES_MAX} bytes")
        document = _Document(line, source, offset)
        if document.space():
            yield document.resource()
        if document.space():
            document.refuse("more than one value on a line")
        offset += len(line)


class _Document:
    """JSON text and a place in it. `at` counts characters from 0; what people see are bytes of the source."""

    def __init__(self, data: bytes, source: str, base: int) -> None:
        """`base` is the offset of `data` in its source, in bytes."""
        self.source = source
        self.at = 0
        self._counted = (0, base)
        if base == 0 and data.startswith(_BYTE_ORDER_MARK):
            data = data[len(_BYTE_ORDER_MARK) :]
            self._counted = (0, len(_BYTE_ORDER_MARK))
        try:
            self.text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            _refuse(source, base + error.start, "not UTF-8")
        self._require_shallow()

    def space(self) -> bool:
        """Pass over white space; whether anything is left."""
        found = _WHITESPACE.match(self.text, self.at)
        assert found is not None, "the pattern matches nothing, too"
        self.at = found.end()
        return self.at < len(self.text)

    def value(self) -> object:
        """Pass over the JSON value here, whose first character is at `at`. Numbers come as None."""
        try:
            value, self.at = _DECODER.raw_decode(self.text, self.at)
        except JSONDecodeError as error:
            self.at = error.pos
            self.refuse(error.msg)
        except _BadValueError as error:
            self.refuse(f"in the value that begins here: {error}")
        return value

    def resource(self) -> Resource:
        """Pass over the value here, which must be a resource."""
        start, offset = self.at, self._offset()
        value = self.value()
        kind = value.get("resourceType") if isinstance(value, dict) else None
        if not isinstance(value, dict) or not isinstance(kind, str) or not _TYPE.fullmatch(kind):
            _refuse(self.source, offset, "not a FHIR resource: no resourceType")
        name = value.get("id")
        return Resource(
            type=kind,
            id=name if isinstance(name, str) and _ID.fullmatch(name) else None,
            data=self.text[start : self.at].encode("utf-8"),
            source=self.source,
            offset=offset,
        )

    def entries(self) -> Iterator[Resource]:
        """The resources of the Bundle here, whose text is known to be valid JSON."""
        for name in self._members():
            if name != "entry":
                self.value()
                continue
            for _ in self._items("[", "]"):
                for part in self._members():
                    if part == "resource":
                        yield self.resource()
                    else:
                        self.value()

    def refuse(self, why: str) -> NoReturn:
        _refuse(self.source, self._offset(), why)

    def _members(self) -> Iterator[str]:
        """The names in the object here; at each, `at` is the value's place, and the caller passes over the value."""
        for _ in self._items("{", "}"):
            name = self.value()
            self.space()
            self._take(":")
            assert isinstance(name, str), "valid JSON names its members by strings"
            yield name

    def _items(self, opening: str, closing: str) -> Iterator[None]:
        """One turn for each item between the brackets; the caller passes over the item."""
        self._take(opening)
        while self.text[self.at] != closing:
            yield
            self.space()
            if self.text[self.at] != closing:
                self._take(",")
        self._take(closing)

    def _take(self, character: str) -> None:
        if self.text[self.at : self.at + 1] != character:
            self.refuse(f"expected {character}")
        self.at += 1
        self.space()

    def _offset(self) -> int:
        """`at` in bytes of the source, counted onwards from the last time it was asked where that is behind."""
        last, offset = self._counted
        if last <= self.at:
            self._counted = (self.at, offset + len(self.text[last : self.at].encode("utf-8")))
            return self._counted[1]
        return offset - len(self.text[self.at : last].encode("utf-8"))

    def _require_shallow(self) -> None:
        """Refuse what is nested deeper than DEPTH_MAX before the parser, which is recursive, sees it."""
        depth = 0
        for found in _STRING_OR_BRACKET.finditer(self.text):
            character = found.group()
            if character in "[{":
                depth += 1
                if depth > DEPTH_MAX:
                    self.at = found.start()
                    self.refuse(f"nested deeper than {DEPTH_MAX}")
            elif character in "]}":
                depth -= 1


class _BadValueError(ValueError):
    """What FHIR's JSON does not allow and Python's decoder would."""


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise _BadValueError("a name stands twice in one object")
    return value


def _constant(name: str) -> NoReturn:
    raise _BadValueError(f"{name} is not JSON")


def _number(text: str) -> None:
    """Numbers are passed over: converting could lose digits, or take long for many of them."""


_DECODER = JSONDecoder(object_pairs_hook=_object, parse_constant=_constant, parse_float=_number, parse_int=_number)


def _open(file: Path) -> BinaryIO:
    try:
        return file.open("rb")
    except OSError as error:
        raise Rejection("no_such_file", f"{file}: {error.strerror}") from None


def _refuse(source: str, offset: int, why: str) -> NoReturn:
    raise Rejection("bad_fhir", f"{source}: byte {offset}: {why}")
