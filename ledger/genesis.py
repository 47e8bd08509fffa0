"""Genesis: the document that founds a network. Its hash is the chain id, and the hash of block 0."""

import json
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from ledger.encoding import decode_as, encode
from ledger.errors import Rejection
from ledger.finality import NodeId
from ledger.keys import PublicKey, is_valid_key, sha256, tag
from ledger.membership import Configuration
from ledger.node_cert import DER_BYTES_MAX, certificate_key

GENESIS = tag("genesis")
FORMAT = 1
GENESIS_BYTES_MAX = 1024 * 1024
GENESIS_JSON_CHARACTERS_MAX = 2 * GENESIS_BYTES_MAX

Name = Annotated[str, Meta(min_length=1, max_length=128)]
Kind = Literal["hospital", "insurer", "board", "other"]
# host:port, the port from 1 to 65535.
Address = Annotated[
    str,
    Meta(
        max_length=261,
        pattern=r"^[A-Za-z0-9.\-\[\]:]{1,255}:"
        r"([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])\Z",
    ),
]


class Organisation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    admin_keys: Annotated[list[PublicKey], Meta(min_length=1, max_length=16)]
    id: NodeId
    kind: Kind
    name: Name


class Node(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`address` is host:port of the peer port; `certificate` is DER."""

    address: Annotated[str, Meta(pattern=r"^[A-Za-z0-9.\-\[\]:]{1,255}:[0-9]{1,5}\Z")]
    certificate: Annotated[bytes, Meta(max_length=DER_BYTES_MAX)]
    id: NodeId
    organisation: NodeId
    role: Literal["voter", "learner"]


class Parameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits that every node must apply alike. Sizes in bytes, times in ms."""

    block_bytes_max: Annotated[int, Meta(ge=64 * 1024, le=2 * 1024 * 1024)] = 1024 * 1024
    block_transactions_max: Annotated[int, Meta(ge=1, le=10_000)] = 1_000


class Genesis(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    network: Name
    nodes: Annotated[list[Node], Meta(min_length=1, max_length=64)]
    organisations: Annotated[list[Organisation], Meta(min_length=1, max_length=256)]
    parameters: Parameters
    time: Annotated[int, Meta(ge=0, le=2**53)]

    def encode(self) -> bytes:
        return encode(self)

    def chain_id(self) -> bytes:
        """32 bytes: names the network in everything signed, and stands as the hash of block 0."""
        return sha256(GENESIS, self.encode())

    def configuration(self) -> Configuration:
        """The one in effect until the first change."""
        return Configuration(
            learners=[node.id for node in self.nodes if node.role == "learner"],
            left=None,
            old_voters=None,
            steps=0,
            voters={node.id: certificate_key(node.certificate) for node in self.nodes if node.role == "voter"},
        )

    def node_keys(self) -> dict[str, bytes]:
        """Node id to the raw Ed25519 key of its certificate."""
        return {node.id: certificate_key(node.certificate) for node in self.nodes}

    def to_json(self) -> str:
        """The JSON view for people; bytes are base64. `genesis_from_json` gives the same genesis back."""
        return json.dumps(msgspec.to_builtins(self), indent=2, sort_keys=True) + "\n"


def decode_genesis(data: bytes) -> Genesis:
    """Parse and check canonical bytes. Raises Rejection."""
    return _checked(decode_as(Genesis, data, GENESIS_BYTES_MAX))


def genesis_from_json(text: str) -> Genesis:
    """Parse and check the JSON view. Raises Rejection."""
    if len(text) > GENESIS_JSON_CHARACTERS_MAX:
        raise Rejection("too_large", f"at most {GENESIS_JSON_CHARACTERS_MAX} characters")
    try:
        return _checked(msgspec.json.decode(text, type=Genesis))
    except (msgspec.DecodeError, UnicodeError) as error:
        raise Rejection("bad_genesis", str(error)) from None


def read_genesis(data: bytes) -> Genesis:
    """Either view: JSON begins with a brace, the canonical map never does."""
    if data.lstrip()[:1] == b"{":
        return genesis_from_json(data.decode("utf-8", "replace"))
    return decode_genesis(data)


def _checked(genesis: Genesis) -> Genesis:
    if genesis.format != FORMAT:
        raise Rejection("unknown_format", f"genesis format {genesis.format}")
    organisations = [organisation.id for organisation in genesis.organisations]
    nodes = [node.id for node in genesis.nodes]
    _require(organisations == sorted(set(organisations)), "organisations are ascending and distinct")
    _require(nodes == sorted(set(nodes)), "nodes are ascending and distinct")
    _require(any(node.role == "voter" for node in genesis.nodes), "there is a voter")
    _require(all(node.organisation in organisations for node in genesis.nodes), "nodes have organisations")
    _require(all(_port(node.address) in range(1, 65536) for node in genesis.nodes), "ports are 1 to 65535")
    keys = list(genesis.node_keys().values())
    _require(len(set(keys)) == len(keys), "no two nodes share a key")
    admin_keys = [key for organisation in genesis.organisations for key in organisation.admin_keys]
    _require(len(set(admin_keys)) == len(admin_keys), "no two admin keys are equal")
    _require(all(is_valid_key(key) for key in admin_keys + keys), "keys are valid points")
    return genesis


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])


def _require(condition: bool, rule: str) -> None:
    if not condition:
        raise Rejection("bad_genesis", f"the rule that {rule} does not hold")
