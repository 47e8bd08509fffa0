"""Where the kept log begins. Pruning moves it up, and then deletes what lies below it.

The record of the base moves first, in a synced batch of its own; what is below it goes in batches that each say how
far they came. So after a crash at any point the log is whole from some base up, and `sweep` goes on where it stopped.

Of the base block itself stay the link, the header, the roots and the certificate: what a block above it must follow
on, and a leader must still name. Of genesis stay the link and the roots. The nodes of the history log stay for ever,
as do bodies and configurations.
"""

from collections.abc import Iterator
from typing import Annotated

import msgspec
from msgspec import Meta

from ledger.block import Header, block_hash, decode_header
from ledger.errors import Rejection
from ledger.execution import stored_result
from ledger.keys import Hash
from storage import schema
from storage.port import KeyValue, Reads, StorageFailure, Write
from storage.schema import must, require

BASE_KEY = b"mbase"
# What one batch of a sweep deletes at most: it must not hold up the log for long. At least one height.
SWEEP_KEYS_MAX = 2_000
# Over how many heights, and over which part of the index of transactions, space is given back at a time: such a piece
# cannot be interrupted.
COMPACTED_HEIGHTS = 10_000
COMPACTED_PARTS = 16

Height = Annotated[int, Meta(ge=0, le=2**53)]


class BaseRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The block below the first one kept; genesis at first, which has no header.

    Heights up to `swept` are deleted, those up to `height` are being deleted. Blocks up to `bodiless` came without
    their bodies. The store began as a snapshot of height `installed`, with 0 at genesis; it stays what it is.
    """

    bodiless: Height
    format: int
    hash: Hash
    header: bytes | None
    height: Height
    installed: Height = 0
    swept: Height
    term: Height

    def may_lack_state(self, height: int) -> bool:
        """Whether EMPTY may stand for the state's root of this height: the snapshot may not have proved it."""
        return 0 < height < self.installed


def genesis_base(chain: bytes) -> BaseRecord:
    return BaseRecord(bodiless=0, format=schema.FORMAT, hash=chain, header=None, height=0, swept=0, term=0)


def base_write(record: BaseRecord) -> Write:
    return BASE_KEY, schema.seal(record)


def load_base(kv: Reads) -> BaseRecord:
    """Raises StorageFailure: missing, changed, or of an unknown format."""
    record = schema.unseal(BaseRecord, must(kv.get(BASE_KEY), BASE_KEY), "record of the log's base")
    require(record.format == schema.FORMAT, f"base format {record.format} is unknown")
    require(record.swept <= record.height, "more is pruned than lies below the log's base")
    base_header(record)
    return record


def base_header(record: BaseRecord) -> Header | None:
    """The base block's header, None at genesis. Raises StorageFailure."""
    if record.header is None:
        require(record.height == 0, "the base has no header")
        return None
    try:
        header = decode_header(record.header)
    except Rejection as error:
        raise StorageFailure(f"the base's header is damaged: {error}") from None
    said = (record.height, record.term, record.hash)
    require((header.height, header.term, block_hash(record.header)) == said, "the base's header is of another block")
    return header


def swept_ranges(begin: int, base: int) -> Iterator[tuple[bytes, bytes]]:
    """The ranges of keys, first and one past the last, in which a sweep of `begin` to `base` left space."""
    for first in range(begin, base + 1, COMPACTED_HEIGHTS):
        stop = min(first + COMPACTED_HEIGHTS, base + 1)
        for key in (schema.block_key, schema.link_key, schema.roots_key, schema.certificate_key, schema.results_key):
            yield key(first), key(stop)
    size = 256 // COMPACTED_PARTS
    for part in range(0, 256, size):
        start = schema.transaction_key(bytes((part,)))
        yield start, schema.transaction_key(bytes((part + size,))) if part + size < 256 else b"u"


class Base:
    """`move` belongs to the event loop, and from it on no read reaches below; `write` and `sweep` to the writer. Only
    one of all these is under way at a time.
    """

    def __init__(self, kv: KeyValue) -> None:
        self._kv = kv
        self._record = load_base(kv)

    @property
    def record(self) -> BaseRecord:
        return self._record

    @property
    def height(self) -> int:
        return self._record.height

    @property
    def is_swept(self) -> bool:
        """Whether nothing is left to delete below the base."""
        return self._record.swept == self._record.height

    def move(self, height: int, term: int, block: bytes, header: bytes) -> None:
        """Up to a block that is executed, sealed and on the disk. One move at a time: the last one is swept."""
        before = self._record
        assert height > before.height, "the base only moves up"
        assert self.is_swept, "what lies below the last base is gone"
        self._record = msgspec.structs.replace(before, hash=block, header=header, height=height, term=term)

    def have_all_bodies(self) -> None:
        """Every body that blocks above the base name is here. The disk follows by `write`."""
        self._record = msgspec.structs.replace(self._record, bodiless=0)

    def write(self) -> None:
        self._kv.write([base_write(self._record)], sync=True)

    def sweep(self) -> bool:
        """Delete some heights, in one batch; whether there are more of them. Raises StorageFailure."""
        record = self._record
        batch: list[Write] = []
        height = record.swept
        while height < record.height and (not batch or len(batch) < SWEEP_KEYS_MAX):
            if height > 0:
                # What of it stayed while it was the base, too.
                batch += self._all_of(height)
            height += 1
        if height == record.height:
            batch += [*self._index_of(height), (schema.block_key(height), None), (schema.results_key(height), None)]
        swept = msgspec.structs.replace(record, swept=height)
        self._kv.write([*batch, base_write(swept)], sync=True)
        self._record = swept
        return not self.is_swept

    def _all_of(self, height: int) -> list[Write]:
        keys = (schema.block_key, schema.link_key, schema.roots_key, schema.certificate_key, schema.results_key)
        return [*self._index_of(height), *((key(height), None) for key in keys)]

    def _index_of(self, height: int) -> list[Write]:
        """The ids that this height settled."""
        data = self._kv.get(schema.results_key(height))
        if data is None:
            # Swept when it became the base.
            return []
        deletes: list[Write] = []
        for encoded in schema.parse(list[bytes], data, f"results {height}"):
            key = schema.transaction_key(stored_result(encoded).id)
            place = self._kv.get(key)
            if place is not None and schema.decode_place(place).height == height:
                deletes.append((key, None))
        return deletes
