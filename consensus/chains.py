"""Does a message hang together? Checked before it may change anything."""

from collections.abc import Sequence

from consensus.configuration import is_one_step
from consensus.errors import ProtocolViolation
from consensus.messages import Append, CertifiedBlocks, Configuration, Entry, NodeId


def check_append(sender: NodeId, message: Append) -> None:
    """Raise ProtocolViolation unless the entries continue `prev_height`, and no term exceeds the sender's."""
    if message.prev_term > message.term or message.prev_height < 0:
        raise ProtocolViolation(sender, "names a block of a later term than its own")
    if message.certificate is not None and message.certificate.term > message.term:
        raise ProtocolViolation(sender, "leads with a certificate of a later term than its own")
    _check_links(sender, message.prev_height, message.prev_term, message.prev_hash, message.entries)
    if message.entries and message.entries[-1].term > message.term:
        raise ProtocolViolation(sender, "sends a block of a later term than its own")


def check_certified(sender: NodeId, blocks: CertifiedBlocks) -> None:
    """Raise ProtocolViolation unless the entries are one chain that ends at the certificate's block."""
    if not blocks.entries:
        raise ProtocolViolation(sender, "sends a certificate without its block")
    first, last, certificate = blocks.entries[0], blocks.entries[-1], blocks.certificate
    if first.height < 1:
        raise ProtocolViolation(sender, "sends a block below height 1")
    _check_links(sender, first.height - 1, 0, first.parent, blocks.entries)
    if (last.height, last.term, last.hash) != (certificate.height, certificate.term, certificate.hash):
        raise ProtocolViolation(sender, "sends blocks that do not end at the certified one")


def check_steps(sender: NodeId, before: Configuration, entries: Sequence[Entry]) -> None:
    """Raise ProtocolViolation unless each change of membership in `entries` is one step from the one before it.

    `before` is in effect below the first of them.
    """
    for entry in entries:
        if entry.configuration is not None:
            if not is_one_step(before, entry.configuration):
                raise ProtocolViolation(sender, f"changes the membership at height {entry.height} as none may")
            before = entry.configuration


def _check_links(sender: NodeId, height: int, term: int, block: bytes, entries: Sequence[Entry]) -> None:
    for entry in entries:
        if entry.height != height + 1 or entry.parent != block or entry.term < max(term, 1):
            raise ProtocolViolation(sender, f"sends a block that does not continue height {height}")
        height, term, block = entry.height, entry.term, entry.hash
