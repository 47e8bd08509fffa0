"""The configurations along the log, on disk: one record for genesis and for each block that changes them.

They follow from the headers alone, see `ledger.membership`. They are kept beside the log, in its batches, so that a
start needs no walk over all blocks, and pruned blocks leave them. Each record names the one before, and the log's end
names the newest, so that a missing one is missed.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from consensus import messages as consensus
from ledger.block import Header, header_of
from ledger.errors import Rejection
from ledger.finality import decode_certificate, verify_certificate
from ledger.membership import Configuration, configuration_after
from storage import schema
from storage.port import Reads, StorageFailure, Write
from storage.schema import must, require

# (height, configuration in effect from it), ascending.
Configurations = tuple[tuple[int, Configuration], ...]


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`previous`: the height of the record before; None for the first one kept."""

    configuration: Configuration
    previous: Annotated[int, Meta(ge=0, le=2**53)] | None


def members_of(configuration: Configuration) -> consensus.Configuration:
    """The configuration as the core knows it: ids alone."""
    return consensus.Configuration(
        tuple(sorted(configuration.voters)),
        tuple(configuration.learners),
        tuple(sorted(configuration.old_voters or ())),
    )


def configuration_of(parent: Configuration, header: Header) -> Configuration:
    """What is in effect at a block, whose parent's is given; the very same object where nothing changes.

    Raises Rejection("bad_change").
    """
    return configuration_after(parent, header.change, leaves=header.proof is not None)


def check_proof(header: Header, parent_term: int | None, parent: Configuration) -> None:
    """Rejection unless the header's proof, if it has one, is the certificate of its parent by all quorums at it.

    `parent_term` is None where it is not known.
    """
    if header.proof is None:
        return
    certificate = decode_certificate(header.proof)
    if (certificate.height, certificate.hash) != (header.height - 1, header.parent):
        raise Rejection("bad_change", "the proof certifies another block than the parent")
    if parent_term not in (None, certificate.term):
        raise Rejection("bad_change", "the proof names another term than the parent's")
    verify_certificate(certificate, header.chain, parent.voters, parent.old_voters)


def in_effect(configurations: Configurations, height: int) -> Configuration:
    """The one in effect at `height`, which is not below the first one kept."""
    for start, configuration in reversed(configurations):
        if start <= height:
            return configuration
    raise StorageFailure(f"no configuration is kept for height {height}")


def writes_of(configurations: Configurations) -> list[Write]:
    """The records of these, which are all, or the first, that are kept."""
    return [_write(configurations, index) for index in range(len(configurations))]


def gained(configurations: Configurations, entry: consensus.Entry) -> tuple[Configurations, list[Write]]:
    """After an entry of the log: the configurations, and what to write. Raises StorageFailure for a header that
    leads elsewhere than the entry says.
    """
    if entry.configuration is None:
        return configurations, []
    try:
        after = configuration_of(configurations[-1][1], header_of(entry.data)[0])
    except Rejection as error:
        raise StorageFailure(f"block {entry.height} changes the membership as it must not: {error}") from None
    require(members_of(after) == entry.configuration, f"block {entry.height} brings another configuration")
    configurations = (*configurations, (entry.height, after))
    return configurations, [_write(configurations, len(configurations) - 1)]


def load(kv: Reads, newest: int) -> Configurations:
    """From the newest record back to the first. Raises StorageFailure for a missing or changed one."""
    found: list[tuple[int, Configuration]] = []
    height: int | None = newest
    while height is not None:
        configuration, previous = record_at(kv, height)
        found.append((height, configuration))
        height = previous
    return tuple(reversed(found))


def record_at(kv: Reads, height: int) -> tuple[Configuration, int | None]:
    """The configuration that came into effect at `height`, and where the one before it stands, if one is kept.

    Raises StorageFailure.
    """
    key = schema.configuration_key(height)
    record = schema.unseal(_Record, must(kv.get(key), key), schema.name_of(key))
    require(record.previous is None or record.previous < height, f"configuration {height} names no earlier one")
    return record.configuration, record.previous


def _write(configurations: Configurations, index: int) -> Write:
    height, configuration = configurations[index]
    previous = configurations[index - 1][0] if index else None
    return schema.configuration_key(height), schema.seal(_Record(configuration, previous))
