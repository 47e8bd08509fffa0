"""The bytes of LevelDB's files, read without LevelDB.

Every byte here is covered by a checksum, or is compared with the only value that it can have. The formats are
those of LevelDB's doc/log_format.md and doc/table_format.md, and of its write_batch.cc and version_edit.cc:

log     of writes and MANIFEST alike: 32 KiB blocks of fragments (checksum, length, kind, payload), padded with zeros
batch   one record of a log of writes: sequence number, count, then puts and deletes
edit    one record of a MANIFEST: which tables live, and from which log on there are writes beside them
table   data blocks, filter block, block of names, index block, footer, each at once behind the one before it
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import google_crc32c

_BLOCK_BYTES = 32 * 1024
_FRAGMENT = struct.Struct("<IHB")
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4

_BATCH = struct.Struct("<QI")
_DELETE, _PUT = 0, 1

_TRAILER = struct.Struct("<BI")
_PLAIN = 0
_FOOTER_BYTES = 48
_MAGIC = struct.pack("<Q", 0xDB4775248B80FB57)
_SUFFIX = struct.Struct("<Q")

COMPARATOR = b"leveldb.BytewiseComparator"


class DamagedBytes(Exception):  # noqa: N818 - it is what was found, not a misuse
    """At `offset` something is not as it was written. `remains` is what still stands there of a log's record."""

    def __init__(self, offset: int, fault: str, remains: bytes = b"") -> None:
        super().__init__(f"byte {offset}: {fault}")
        self.offset = offset
        self.fault = fault
        self.remains = remains


# Logs.


@dataclass(slots=True)
class LogContent:
    """The whole records of a log. `cut_off` bytes at its end are a record that a crash left unfinished."""

    records: list[bytes] = field(default_factory=list)
    cut_off: int = 0


def read_log(data: bytes) -> LogContent:
    """Raises DamagedBytes for the first damage.

    What is cut off at the end was never synced and is no damage. A changed length can make a record that was
    written whole look so, and LevelDB drops it without a word; here it is told by its checksum, which fits
    the length that it had.
    """
    content = LogContent()
    parts: list[bytes] = []
    offset = begin = 0
    while offset < len(data):
        end = min(offset - offset % _BLOCK_BYTES + _BLOCK_BYTES, len(data))
        if end - offset < _FRAGMENT.size and end % _BLOCK_BYTES == 0:
            if any(data[offset:end]):
                raise DamagedBytes(offset, "the padding of a block is not zero")
            offset = end
            continue
        begin = begin if parts else offset
        if _is_cut_off(data, offset, end, bool(parts)):
            break
        kind, payload = _fragment(data, offset, end, parts)
        if bool(parts) != (kind in (_MIDDLE, _LAST)):
            raise DamagedBytes(offset, "a record begins or ends inside another", payload)
        offset += _FRAGMENT.size + len(payload)
        parts.append(payload)
        if kind in (_FULL, _LAST):
            content.records.append(b"".join(parts))
            parts = []
            begin = offset
    content.cut_off = len(data) - begin
    return content


def _fragment(data: bytes, offset: int, end: int, before: Sequence[bytes]) -> tuple[int, bytes]:
    crc, length, kind = _FRAGMENT.unpack_from(data, offset)
    start = offset + _FRAGMENT.size
    payload = data[start : min(start + length, end)]
    remains = b"".join([*before, payload])
    if start + length > end:
        raise DamagedBytes(offset, "a record's length is not what was written", remains)
    if _crc(data[start - 1 : start + length]) != crc:
        raise DamagedBytes(offset, "a record's checksum does not fit", remains)
    if kind not in (_FULL, _FIRST, _MIDDLE, _LAST):
        raise DamagedBytes(offset, "a record is of an unknown kind", remains)
    return kind, payload


def _is_cut_off(data: bytes, offset: int, end: int, is_inside: bool) -> bool:
    """Whether a crash left off writing at `offset`, in a block that ends at `end`."""
    header = data[offset : offset + _FRAGMENT.size]
    if not is_inside and not any(header) and not any(data[offset:]):
        # Room that the file system kept for writes that never came.
        return True
    if end < len(data) or end % _BLOCK_BYTES == 0:
        return False
    if len(header) < _FRAGMENT.size:
        return True
    crc, length, kind = map(int, _FRAGMENT.unpack(header))
    start = offset + _FRAGMENT.size
    if start + length <= end or kind not in (_FULL, _FIRST, _MIDDLE, _LAST):
        return False
    found: int = google_crc32c.value(header[-1:])
    for place in range(start, end):
        if _masked(found) == crc:
            return False
        found = google_crc32c.extend(found, data[place : place + 1])
    return _masked(found) != crc


def _crc(data: bytes) -> int:
    """As LevelDB stores it: shifted, so that data which holds checksums does not disturb it."""
    return _masked(google_crc32c.value(data))


def _masked(crc: int) -> int:
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def batch_keys(batch: bytes) -> Iterator[bytes]:
    """The keys of one batch in their order. Raises DamagedBytes where it is no batch any more."""
    at = _BATCH.size
    while at < len(batch):
        kind, at = batch[at], at + 1
        if kind not in (_DELETE, _PUT):
            raise DamagedBytes(at, "neither put nor delete")
        key, at = _string(batch, at)
        if kind == _PUT:
            _, at = _string(batch, at)
        yield key


# The MANIFEST.


@dataclass(frozen=True, slots=True)
class Table:
    """A live table as the MANIFEST has it. `smallest` and `largest` are keys of ours."""

    size: int
    smallest: bytes
    largest: bytes


@dataclass(slots=True)
class Version:
    """What the edits of a MANIFEST add up to. Logs below `log` are done with, but for `previous_log`."""

    tables: dict[int, Table] = field(default_factory=dict)
    log: int = 0
    previous_log: int = 0


def read_version(records: Sequence[bytes]) -> Version:
    """Raises DamagedBytes for what is no edit. Its offset is inside its record, whose checksum did fit."""
    version = Version()
    for record in records:
        at = 0
        while at < len(record):
            at = _apply(version, record, at)
    return version


def _apply(version: Version, record: bytes, at: int) -> int:
    """One field of an edit; where the next one begins."""
    start = at
    tag, at = _varint(record, at)
    if tag == 1:
        name, at = _string(record, at)
        if name != COMPARATOR:
            raise DamagedBytes(start, "its keys are ordered by another rule")
    elif tag in (2, 3, 4, 9):
        number, at = _varint(record, at)
        if tag == 2:
            version.log = number
        elif tag == 9:
            version.previous_log = number
    elif tag == 5:
        _, at = _varint(record, at)
        _, at = _string(record, at)
    elif tag == 6:
        _, at = _varint(record, at)
        number, at = _varint(record, at)
        version.tables.pop(number, None)
    elif tag == 7:
        _, at = _varint(record, at)
        number, at = _varint(record, at)
        size, at = _varint(record, at)
        smallest, at = _string(record, at)
        largest, at = _string(record, at)
        version.tables[number] = Table(size, smallest[: -_SUFFIX.size], largest[: -_SUFFIX.size])
    else:
        raise DamagedBytes(start, f"field {tag} of an edit is unknown")
    return at


# Tables.


@dataclass(frozen=True, slots=True)
class Block:
    """A block of a table. A data block's keys of ours are above `low` (None: the first block) and at most `high`."""

    offset: int
    size: int
    low: bytes | None = None
    high: bytes | None = None


def table_blocks(data: bytes) -> list[Block]:
    """The data blocks of a table; all the rest of it is verified on the way. Raises DamagedBytes."""
    names, index = _footer(data)
    _verify(data, index, "the index block")
    _verify(data, names, "the block of names")
    others = [_handle(value, names.offset) for _, value in _entries(data, names)]
    for block in others:
        _verify(data, block, "the filter block")
    blocks: list[Block] = []
    low = None
    for key, value in _entries(data, index):
        place, high = _handle(value, index.offset), key[: -_SUFFIX.size]
        blocks.append(Block(place.offset, place.size, low, high))
        low = high
    end = 0
    for block in [*blocks, *others, names, index]:
        if block.offset != end:
            raise DamagedBytes(end, "its blocks do not follow on each other")
        end = _end(block)
    return blocks


def verify_block(data: bytes, block: Block) -> None:
    """Raises DamagedBytes unless the checksum of a data block fits."""
    _verify(data, block, "a data block")


def block_keys(data: bytes, block: Block) -> list[bytes]:
    """Our keys in a data block that may be damaged, as far as they can be read and fit where they stand."""
    keys: list[bytes] = []
    try:
        for internal, _ in _entries(data, block):
            key = internal[: -_SUFFIX.size]
            if (block.low is None or key >= block.low) and (block.high is None or key <= block.high):
                keys.append(key)
    except (DamagedBytes, IndexError, struct.error):
        pass
    return keys


def newest_in_table(data: bytes, key: bytes) -> int | None:
    """The sequence number of the newest write to `key` in a sound table, or None."""
    for block in table_blocks(data):
        if block.high is not None and block.high >= key:
            for internal, _ in _entries(data, block):
                if internal[: -_SUFFIX.size] == key:
                    (suffix,) = _SUFFIX.unpack(internal[-_SUFFIX.size :])
                    return int(suffix) >> 8
            if block.high > key:
                break
    return None


def _footer(data: bytes) -> tuple[Block, Block]:
    """The places of the block of names and of the index block. No checksum covers the footer, but no bit of it is
    free: the two end where the file does.
    """
    start = max(len(data) - _FOOTER_BYTES, 0)
    footer = data[start:]
    numbers: list[int] = []
    at = 0
    try:
        for _ in range(4):
            number, at = _varint(footer, at)
            numbers.append(number)
        names, index = Block(numbers[0], numbers[1]), Block(numbers[2], numbers[3])
        written = b"".join(map(_encoded, numbers)).ljust(_FOOTER_BYTES - len(_MAGIC), b"\0") + _MAGIC
        fits = [_end(names), _end(index), written] == [index.offset, start, footer]
    except DamagedBytes:
        fits = False
    if not fits:
        raise DamagedBytes(start, "the footer is not what was written")
    return names, index


def _end(block: Block) -> int:
    """Where the next block begins."""
    return block.offset + block.size + _TRAILER.size


def _verify(data: bytes, block: Block, what: str) -> None:
    end = block.offset + block.size
    if _end(block) > len(data):
        raise DamagedBytes(block.offset, f"{what} reaches beyond the end")
    kind, crc = _TRAILER.unpack_from(data, end)
    if _crc(data[block.offset : end + 1]) != crc:
        raise DamagedBytes(block.offset, f"the checksum of {what} does not fit")
    if kind != _PLAIN:
        raise DamagedBytes(end, f"{what} is compressed")


def _entries(data: bytes, block: Block) -> Iterator[tuple[bytes, bytes]]:
    """Internal keys (a key of ours and 8 bytes: sequence number and kind) and values."""
    content = data[block.offset : block.offset + block.size]
    (restarts,) = struct.unpack_from("<I", content, len(content) - 4)
    end, at, key = len(content) - 4 - 4 * restarts, 0, b""
    while at < end:
        shared, at = _varint(content, at)
        own, at = _varint(content, at)
        length, at = _varint(content, at)
        key = key[:shared] + content[at : at + own]
        at += own
        yield key, content[at : at + length]
        at += length


def _handle(value: bytes, offset: int) -> Block:
    """The place of a block as another block, at `offset`, names it."""
    try:
        start, at = _varint(value, 0)
        size, at = _varint(value, at)
    except DamagedBytes:
        raise DamagedBytes(offset, "it names no block where one must stand") from None
    return Block(start, size)


# Numbers and strings.


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of 7 bits a byte, lowest first, and where it ends."""
    number = 0
    for shift in range(0, 64, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
    raise DamagedBytes(at, "a number does not end")


def _encoded(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _string(data: bytes, at: int) -> tuple[bytes, int]:
    length, at = _varint(data, at)
    if at + length > len(data):
        raise DamagedBytes(at, "a string ends behind its record")
    return data[at : at + length], at + length
