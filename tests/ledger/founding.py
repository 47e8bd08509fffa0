"""A small network to test with: keys from fixed seeds, its genesis, and transactions upon it."""

from collections.abc import Sequence
from itertools import count

from ledger.block import FORMAT as HEADER_FORMAT
from ledger.block import Header, seal_block, tx_root
from ledger.contracts import Action, identity, network, records
from ledger.execution import Outcome, execute, genesis_state
from ledger.finality import Seal, sign_acknowledgement
from ledger.finality import make_certificate as make_block_certificate
from ledger.genesis import Genesis, Node, Organisation, Parameters, decode_genesis
from ledger.keys import SigningKey, account_id, sha256
from ledger.membership import Change, Configuration
from ledger.node_cert import make_certificate
from ledger.transaction import (
    FORMAT,
    NONCE_BYTES,
    Envelope,
    Transaction,
    body_reference,
    sign_transaction,
)

ORGANISATIONS = ("north", "south")
VOTERS = ("north-1", "south-1", "west-1")
NOW_MS = 1_000_000

_nonces = count()


def signing_key(name: str) -> SigningKey:
    """The same name gives the same key."""
    return SigningKey(sha256(name.encode()))


def node_key(node: str) -> SigningKey:
    """The key of a node of this id, in genesis or not."""
    return SigningKey(sha256(b"node", node.encode()))


def account_of(name: str) -> bytes:
    """The account whose first key is `signing_key(name)`."""
    return account_id(signing_key(name).public)


def make_genesis(network: str = "test") -> Genesis:
    """Two hospitals with one admin each ("north-admin", "south-admin"), three voters and a learner."""
    genesis = Genesis(
        format=1,
        network=network,
        nodes=[
            Node(
                address=f"127.0.0.1:{20_000 + index}",
                certificate=make_certificate(sha256(b"node", node.encode()), node),
                id=node,
                organisation="north" if node == "north-1" else "south",
                role="voter" if node in VOTERS else "learner",
            )
            for index, node in enumerate((*VOTERS, "zone-1"))
        ],
        organisations=[
            Organisation(
                admin_keys=[signing_key(f"{name}-admin").public], id=name, kind="hospital", name=name.title()
            )
            for name in ORGANISATIONS
        ],
        parameters=Parameters(),
        time=NOW_MS - 1,
    )
    return decode_genesis(genesis.encode())


GENESIS = make_genesis()
CHAIN = GENESIS.chain_id()


def make_envelope(
    actions: Sequence[Action],
    *,
    by: str,
    key: str | None = None,
    bodies: Sequence[bytes] = (),
    until: int = NOW_MS + 60_000,
    chain: bytes = CHAIN,
) -> Envelope:
    """An envelope with a nonce never used before; `key` names the signing key where it is not the first."""
    return Envelope(
        actions=list(actions),
        bodies=[body_reference(body) for body in bodies],
        by=account_of(by),
        chain=chain,
        format=FORMAT,
        key=signing_key(key or by).public,
        nonce=next(_nonces).to_bytes(NONCE_BYTES, "big"),
        until=until,
    )


def sign(
    actions: Sequence[Action],
    *,
    by: str,
    key: str | None = None,
    bodies: Sequence[bytes] = (),
    until: int = NOW_MS + 60_000,
) -> Transaction:
    """A transaction of `by`, signed by the key named `key`, which is its first key unless said otherwise."""
    envelope = make_envelope(actions, by=by, key=key, bodies=bodies, until=until)
    return sign_transaction(envelope, signing_key(key or by))


def registration(name: str, role: identity.Role, admin: str = "north-admin") -> identity.Register:
    key = signing_key(name)
    return identity.Register(key.public, identity.possession_proof(key, CHAIN, account_of(admin)), role)


def rotation(name: str, new: str, version: int) -> identity.Rotate:
    key = signing_key(new)
    proof = identity.possession_proof(key, CHAIN, account_of(name))
    return identity.Rotate(account_of(name), key.public, proof, version)


def revocation(name: str, version: int) -> identity.Revoke:
    return identity.Revoke(account_of(name), version)


def addition(record: str, subject: str = "subject", body: int = 0) -> records.Add:
    return records.Add(body=body, record=sha256(record.encode()), subject=sha256(subject.encode()))


def amendment(record: str, version: int, subject: str = "subject", body: int = 0) -> records.Amend:
    return records.Amend(body=body, record=sha256(record.encode()), subject=sha256(subject.encode()), version=version)


def proposal_id(name: str) -> bytes:
    return sha256(b"proposal", name.encode())


def proposal(name: str, change: network.Proposed) -> network.Propose:
    return network.Propose(change=change, proposal=proposal_id(name))


def ballot(name: str, approve: bool = True) -> network.Vote:
    return network.Vote(approve=approve, proposal=proposal_id(name))


def new_node(node: str, organisation: str = "south", port: int = 30_000) -> network.AddNode:
    certificate = make_certificate(sha256(b"node", node.encode()), node)
    return network.AddNode(f"127.0.0.1:{port}", certificate, node, organisation)


def new_organisation(organisation: str, *admins: str, proposer: str = "north-admin") -> network.AddOrganisation:
    """The keys of `admins`, proven to the account that proposes."""
    return network.AddOrganisation(
        admins=[
            network.NewAdmin(key.public, identity.possession_proof(key, CHAIN, account_of(proposer)))
            for key in map(signing_key, admins or (f"{organisation}-admin",))
        ],
        id=organisation,
        kind="hospital",
        name=organisation.title(),
    )


class Ledger:
    """State and ids in two dicts, and blocks executed upon them: the smallest StateView."""

    def __init__(self, genesis: Genesis = GENESIS) -> None:
        self.state: dict[str, bytes] = genesis_state(genesis)
        self.included: dict[bytes, int] = {}
        self.height = 0
        self.time_ms = NOW_MS

    def get(self, key: str) -> bytes | None:
        return self.state.get(key)

    def included_at_ms(self, tx_id: bytes) -> int | None:
        return self.included.get(tx_id)

    def run(self, *transactions: Transaction, at_ms: int | None = None) -> list[str]:
        """Execute one block of these transactions; the code of each."""
        return [result.code for result in self.block(transactions, at_ms).results]

    def block(
        self,
        transactions: Sequence[Transaction],
        at_ms: int | None = None,
        reconfiguration: Change | Seal | None = None,
    ) -> Outcome:
        self.height += 1
        self.time_ms = self.time_ms + 1 if at_ms is None else at_ms
        outcome = execute(self.time_ms, self.height, transactions, self, reconfiguration)
        for key, value in outcome.writes.items():
            if value is None:
                self.state.pop(key, None)
            else:
                self.state[key] = value
        for result in outcome.results:
            if result.settles:
                self.included.setdefault(result.id, self.time_ms)
        return outcome

    @property
    def configuration(self) -> Configuration:
        return network.current_configuration(self.get)

    def pass_vote(self, name: str, change: network.Proposed) -> list[str]:
        """Both hospitals want it: proposed and approved in one block."""
        return self.run(
            sign([proposal(name, change), ballot(name)], by="north-admin", until=self.time_ms + 60_000),
            sign([ballot(name)], by="south-admin", until=self.time_ms + 60_000),
        )

    def complete(self) -> list[Seal]:
        """What the leader makes of the pending change: block c, and block p where voters change. The proof's seal."""
        pending = network.pending_change(self.get)
        assert pending is not None
        change = network.next_change(self.configuration, pending)
        self.block([], reconfiguration=change)
        if not self.configuration.is_joint:
            return []
        seal = self._seal(change)
        self.block([], reconfiguration=seal)
        return [seal]

    def _seal(self, change: Change) -> Seal:
        """Of the newest block, as one that begins a change; every voter signs. Its roots are made up."""
        configuration = self.configuration
        header = Header(
            chain=CHAIN,
            change=change,
            configuration=configuration.digest(),
            count=0,
            executed_height=self.height - 1,
            format=HEADER_FORMAT,
            height=self.height,
            history_root=bytes(32),
            parent=bytes(32),
            proof=None,
            proposer=min(configuration.signers),
            state_root=bytes(32),
            term=1,
            time=self.time_ms,
            tx_root=tx_root([]),
        )
        block = seal_block(header, [], node_key(header.proposer))
        signatures = [
            (node, sign_acknowledgement(node_key(node), CHAIN, header.term, header.height, block.hash))
            for node in configuration.signers
        ]
        certificate = make_block_certificate(header.term, header.height, block.hash, signatures)
        return Seal(certificate=certificate.encode(), header=block.header_data, signature=block.signature)
