"""How a connection begins and why it ends: Hello both ways, Goodbye from the side that accepted it.

A hello also shows what its sender holds from the receiver: a node whose disk went back to an earlier state learns so
before it hears anything else.
"""

from collections.abc import Callable

import msgspec

from consensus.messages import NodeId
from ledger.encoding import encode
from ledger.errors import Rejection
from ledger.keys import SigningKey, sha256, tag, verify
from ledger.node_cert import certificate_key
from network import messages
from network.frames import FRAME_BYTES_MAX, HEADER_BYTES, pack
from network.messages import KIND_BY_NUMBER, PROTOCOL_VERSION, Goodbye, Hello, Lane, decode
from network.port import Identity, Statements

GOODBYE = tag("goodbye")

# The path that the dialling side asks for says which lane it opens.
PATHS = {Lane.CONTROL: "/peer/control", Lane.GOSSIP: "/peer/gossip"}
LANE_BY_PATH = {path: lane for lane, path in PATHS.items()}


class Greeter:
    """What this node says first and last, and what it accepts from others.

    `statements_of` gives what to show to a node; `shown` takes what a node shows, once its hello is accepted.
    """

    def __init__(
        self,
        identity: Identity,
        chain: bytes,
        statements_of: Callable[[NodeId], Statements] = lambda peer: Statements(),
        shown: Callable[[NodeId, Statements], None] = lambda peer, statements: None,
    ) -> None:
        self._node_id = identity.node_id
        self._key = SigningKey(identity.seed)
        self._chain = chain
        self._statements_of = statements_of
        self._shown = shown

    def hello(self, to: NodeId) -> bytes:
        statements = msgspec.convert(self._statements_of(to), messages.Statements, from_attributes=True)
        return pack(Hello(PROTOCOL_VERSION, self._chain, self._node_id, statements)).frames[0]

    def goodbye(self, to: NodeId, reason: str) -> bytes:
        signature = self._key.sign(GOODBYE, goodbye_digest(self._chain, self._node_id, to, reason))
        return pack(Goodbye(reason, signature)).frames[0]

    def check_hello(self, frame: bytes, peer: NodeId) -> None:
        """Rejection unless the node behind the certificate of `peer` speaks this protocol on this chain.

        What it shows is taken then. Codes: bad_hello, protocol_version, wrong_chain, wrong_node.
        """
        hello = read_greeting(frame)
        if not isinstance(hello, Hello):
            raise Rejection("bad_hello", "the first message is no hello")
        if hello.version != PROTOCOL_VERSION:
            raise Rejection("protocol_version", f"{hello.version}, this node speaks {PROTOCOL_VERSION}")
        if hello.chain != self._chain:
            raise Rejection("wrong_chain", hello.chain.hex())
        if hello.node != peer:
            raise Rejection("wrong_node", f"certificate of {peer}, hello of another")
        if hello.statements is None:
            raise Rejection("bad_hello", "it does not say what it holds from this node")
        self._shown(peer, msgspec.convert(hello.statements, Statements, from_attributes=True))

    def check_goodbye(self, goodbye: Goodbye, peer: NodeId, certificate: bytes) -> None:
        """Rejection("bad_frame") unless `peer` signed this goodbye for this node."""
        digest = goodbye_digest(self._chain, peer, self._node_id, goodbye.reason)
        if not verify(certificate_key(certificate), GOODBYE, digest, goodbye.signature):
            raise Rejection("bad_frame", "the signature of the goodbye does not verify")


def goodbye_digest(chain: bytes, node: NodeId, to: NodeId, reason: str) -> bytes:
    return sha256(encode({"chain": chain, "node": node, "reason": reason, "to": to}))


def read_greeting(frame: bytes) -> Hello | Goodbye:
    """The greeting in a whole frame, or Rejection("bad_hello")."""
    if not HEADER_BYTES <= len(frame) <= FRAME_BYTES_MAX or frame[1] != 0:
        raise Rejection("bad_hello", "not one whole frame")
    kind = KIND_BY_NUMBER.get(frame[0])
    if kind is None or kind.lane is not None:
        raise Rejection("bad_hello", f"kind {frame[0]}")
    try:
        message: Hello | Goodbye = decode(kind, frame[HEADER_BYTES:])
    except Rejection as rejection:
        raise Rejection("bad_hello", rejection.detail) from None
    return message
