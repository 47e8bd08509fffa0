"""Three kinds of wrong: ours, the network's, and a peer's. Only the last one is survived."""

from consensus.messages import Certificate, NodeId


class InvariantViolation(Exception):  # noqa: N818 - named for what was broken
    """The core, or the shell that drives it, broke a rule of its own. The node must stop."""


class Contradiction(Exception):  # noqa: N818 - the network contradicts itself, the code does not err
    """Two certified facts exclude each other. The node must stop and keep both.

    `certificate` is the newly learnt one. `held_term` and `held_hash` name this node's own block at that height.
    """

    def __init__(self, detail: str, certificate: Certificate, held_term: int, held_hash: bytes) -> None:
        super().__init__(detail)
        self.certificate = certificate
        self.held_term = held_term
        self.held_hash = held_hash


class ProtocolViolation(Exception):  # noqa: N818 - a verdict on a peer, not a fault of ours
    """A peer sent what no correct peer sends. The message changed nothing beyond a newer term; count it, go on."""

    def __init__(self, sender: NodeId, detail: str) -> None:
        super().__init__(f"{sender}: {detail}")
        self.sender = sender
        self.detail = detail


def require(condition: bool, invariant: str) -> None:
    """Raise InvariantViolation unless `condition`. On in production: a node that cannot trust itself stops."""
    if not condition:
        raise InvariantViolation(invariant)
