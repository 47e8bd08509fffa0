"""Who belongs to the network, as this node knows it: along its log, and from what it has executed.

The log decides who votes (`ledger.membership`); the executed state decides who may connect, and what the leader is to
append next. Both move with blocks alone, so that every node answers alike.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from consensus.messages import Entry
from ledger.block import Header, header_of
from ledger.membership import Configuration
from storage.configurations import check_proof, configuration_of, members_of


@dataclass(frozen=True, slots=True)
class Place:
    """A block as the next one's configuration depends on it: its term, and the configuration in effect at it."""

    term: int
    configuration: Configuration


def followed(parent: Place, header: Header) -> Place:
    """The place of the block above `parent`. Raises Rejection("bad_change")."""
    return Place(header.term, configuration_of(parent.configuration, header))


def entry_on(parent: Place, data: bytes) -> tuple[Entry, Place]:
    """A stored block above `parent` as the core's entry, and its place; its proof is verified. Raises Rejection."""
    header, block_hash = header_of(data)
    check_proof(header, parent.term, parent.configuration)
    place = followed(parent, header)
    changed = place.configuration is not parent.configuration
    members = members_of(place.configuration) if changed else None
    return Entry(header.height, header.term, header.parent, block_hash, data, members), place


def in_effect_at(parent: Place, entries: Iterable[Entry], height: int) -> Configuration:
    """The configuration at `height`, or at the last of `entries`, which stand above `parent`.

    Only blocks that say that they change it are opened; each proof is verified, so that nobody is believed to vote
    whom the voters before did not let in. Raises Rejection.
    """
    place = parent
    for entry in entries:
        if entry.height > height:
            break
        if entry.configuration is None:
            place = Place(entry.term, place.configuration)
        else:
            header, _ = header_of(entry.data)
            check_proof(header, place.term, place.configuration)
            place = followed(place, header)
    return place.configuration
