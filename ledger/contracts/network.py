"""Who runs the network: its nodes and the limits that all of them apply alike. Written by genesis alone.

state key              value
network/node/<id>      Node
network/parameters     Parameters
"""

from typing import Literal

import msgspec

from ledger.encoding import encode
from ledger.genesis import Genesis

FORMAT = 1
PARAMETERS_PATH = "network/parameters"


class Node(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`address` is host:port of the peer port; `certificate` is the DER that peers pin."""

    address: str
    certificate: bytes
    format: int
    organisation: str
    role: Literal["voter", "learner"]


class Parameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits of a block, as genesis has them."""

    block_bytes_max: int
    block_transactions_max: int
    format: int


def node_path(node: str) -> str:
    return f"network/node/{node}"


def genesis_state(genesis: Genesis) -> dict[str, bytes]:
    """The nodes and the parameters."""
    limits = genesis.parameters
    state = {PARAMETERS_PATH: encode(Parameters(limits.block_bytes_max, limits.block_transactions_max, FORMAT))}
    for node in genesis.nodes:
        state[node_path(node.id)] = encode(
            Node(node.address, node.certificate, FORMAT, organisation=node.organisation, role=node.role)
        )
    return state
