"""The networks that are simulated: keys from fixed names, genesis, and what clients sign. All of it the same in every
run, so that one process makes each key and signature once.
"""

from functools import cache

from ledger.contracts import Action, identity, network
from ledger.genesis import Genesis, Node, Organisation, Parameters, decode_genesis
from ledger.keys import SigningKey, account_id, sha256
from ledger.node_cert import make_certificate
from ledger.transaction import FORMAT, NONCE_BYTES, Envelope, Transaction, sign_transaction

TIME_MS = 1_800_000_000_000
# How long what is signed now may be included, rounded, so that runs share what was signed.
VALID_MS = 400_000
ROUND_MS = 100_000
ORGANISATION = "simulated"


def node_name(number: int) -> str:
    return f"n{number}"


@cache
def node_seed(name: str) -> bytes:
    return sha256(b"simulated node", name.encode())


@cache
def node_key(name: str) -> SigningKey:
    return SigningKey(node_seed(name))


@cache
def node_certificate(name: str) -> bytes:
    return make_certificate(node_seed(name), name)


@cache
def admin_key() -> SigningKey:
    return SigningKey(sha256(b"simulated admin"))


@cache
def admin_account() -> bytes:
    return account_id(admin_key().public)


@cache
def found(voters: int, learners: int) -> Genesis:
    """One organisation, so that one vote decides; what takes several is the contract's own matter."""
    numbers = range(1, voters + learners + 1)
    genesis = Genesis(
        format=1,
        network="simulated",
        nodes=[
            Node(
                address=address(number),
                certificate=node_certificate(node_name(number)),
                id=node_name(number),
                organisation=ORGANISATION,
                role="voter" if number <= voters else "learner",
            )
            for number in numbers
        ],
        organisations=[
            Organisation(admin_keys=[admin_key().public], id=ORGANISATION, kind="hospital", name="Simulated")
        ],
        parameters=Parameters(),
        time=TIME_MS,
    )
    return decode_genesis(genesis.encode())


@cache
def _member_key(number: int) -> SigningKey:
    return SigningKey(sha256(b"simulated member", number.to_bytes(8, "big")))


@cache
def registration(chain: bytes, number: int, until_ms: int) -> Transaction:
    """The `number`th transaction of a run: an admin registers a patient."""
    key = _member_key(number)
    action = identity.Register(key.public, identity.possession_proof(key, chain, admin_account()), "patient")
    return _signed(chain, [action], number, until_ms)


@cache
def revocation(chain: bytes, number: int, until_ms: int, registered: int) -> Transaction:
    """Revokes the member whom `registration(chain, registered)` made: right only after it, and only once."""
    return _signed(chain, [identity.Revoke(account_id(_member_key(registered).public), 1)], number, until_ms)


@cache
def membership_vote(chain: bytes, number: int, until_ms: int, change: network.Proposed) -> Transaction:
    """Proposes the change and passes it."""
    proposal = proposal_id(number)
    return _signed(chain, [network.Propose(change, proposal), network.Vote(True, proposal)], number, until_ms)


def proposal_id(number: int) -> bytes:
    return sha256(b"simulated proposal", number.to_bytes(8, "big"))


def joining(name: str, number: int) -> network.AddNode:
    return network.AddNode(
        address=address(number), certificate=node_certificate(name), id=name, organisation=ORGANISATION
    )


def address(number: int) -> str:
    return f"127.0.0.1:{1000 + number}"


def until(now_ms: int) -> int:
    return (now_ms + VALID_MS) // ROUND_MS * ROUND_MS + ROUND_MS


def _signed(chain: bytes, actions: list[Action], number: int, until_ms: int) -> Transaction:
    key = admin_key()
    envelope = Envelope(
        actions=actions,
        bodies=[],
        by=account_id(key.public),
        chain=chain,
        format=FORMAT,
        key=key.public,
        nonce=number.to_bytes(NONCE_BYTES, "big"),
        until=until_ms,
    )
    return sign_transaction(envelope, key)
