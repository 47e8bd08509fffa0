"""A leader that lies: what it sends is changed on the way, under its own signature.

Its own log stays honest, so what it signed and what its followers saw differ, as with a leader that means harm.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from consensus.messages import Append, AppendReply, Entry, Message, Reason
from ledger.block import Block, Header, decode_block, seal_block, tx_root
from ledger.keys import SigningKey
from ledger.transaction import Transaction
from node.inspector import BLOCK_OVERHEAD_BYTES
from tests.node.cluster import Cluster, node_seed

# What becomes of an entry that holds transactions.
Change = Callable[[Block, Entry], Entry]


def key_of_node(cluster: Cluster, node_id: str) -> SigningKey:
    return SigningKey(node_seed(cluster.members[node_id].index))


def block_of(entry: Entry) -> Block:
    return decode_block(entry.data, (1 << 20) + BLOCK_OVERHEAD_BYTES)


def entry_of(block: Block) -> Entry:
    header = block.header
    return Entry(header.height, header.term, header.parent, block.hash, block.data)


def resealed(
    block: Block, key: SigningKey, transactions: Sequence[Transaction] | None = None, **changes: Any
) -> Block:
    """The block with other header fields, or other transactions, sealed again by `key`."""
    inside = list(block.transactions if transactions is None else transactions)
    header: Header = msgspec.structs.replace(block.header, count=len(inside), tx_root=tx_root(inside))
    return seal_block(msgspec.structs.replace(header, **changes), inside, key)


async def successor(cluster: Cluster, leader: str) -> str:
    """The first other leader that a majority follows."""
    await cluster.until(lambda: cluster.leader() not in (None, leader))
    found = cluster.leader()
    assert found is not None
    return found


@dataclass
class LyingLeader:
    """A Cluster's `rewrite`: every block with transactions that `leader` sends to `victims` is changed by `change`.

    `reasons` are those by which followers refused, `sent` counts the changed messages.
    """

    cluster: Cluster
    leader: str
    change: Change
    victims: frozenset[str] | None = None
    reasons: list[Reason] = field(default_factory=list)
    sent: int = 0

    def __call__(self, sender: str, peer: str, message: Message) -> Message:
        if isinstance(message, AppendReply) and peer == self.leader and message.reason is not Reason.NONE:
            self.reasons.append(message.reason)
        if sender != self.leader or not isinstance(message, Append):
            return message
        if self.victims is not None and peer not in self.victims:
            return message
        for index, entry in enumerate(message.entries):
            if block_of(entry).transactions:
                self.sent += 1
                # What follows it would no longer link.
                return replace(message, entries=(*message.entries[:index], self.change(block_of(entry), entry)))
        return message
