"""Chains to store: sealed and certified blocks over the little network of tests/ledger/founding."""

from collections.abc import Callable, Sequence

from consensus.messages import Entry, HardState
from ledger.block import FORMAT, Block, Header, seal_block, tx_root
from ledger.finality import Certificate, make_certificate, sign_acknowledgement
from ledger.keys import SigningKey, sha256
from ledger.membership import Change, Configuration, configuration_after
from ledger.transaction import Transaction, body_commitment
from storage.configurations import members_of
from storage.executed import Commit
from storage.port import KeyValue
from storage.store import Store
from tests.fakes.disk import PowerLossDisk
from tests.ledger.founding import CHAIN, GENESIS, NOW_MS, VOTERS, addition, registration, sign

HEAD = "records/subject/" + sha256(b"subject").hex()

_bodies: dict[bytes, bytes] = {}


def record_key(name: str) -> str:
    return "records/record/" + sha256(name.encode()).hex()


def node_key(node: str) -> SigningKey:
    """The key behind the node's certificate in founding.GENESIS."""
    return SigningKey(sha256(b"node", node.encode()))


def body_of(record: str) -> bytes:
    return b"sealed body of " + record.encode()


def doctor() -> Transaction:
    return sign([registration("doctor", "clinician")], by="north-admin")


def remember(body: bytes) -> None:
    """`bodies_of` knows it from here on."""
    _bodies[body_commitment(body)] = body


def record(name: str, subject: str = "subject") -> Transaction:
    """A record whose one body is `body_of(name)`."""
    body = body_of(name)
    remember(body)
    return sign([addition(name, subject)], by="doctor", bodies=[body])


def bodies_of(*transactions: Transaction) -> dict[bytes, bytes]:
    """What transactions made by `record` commit to."""
    names = [reference.commitment for item in transactions for reference in item.envelope.bodies]
    return {name: _bodies[name] for name in names}


def entry_of(block: Block, configuration: Configuration | None = None) -> Entry:
    """`configuration`: the one that the block puts in effect, where it is another than its parent's."""
    header = block.header
    members = None if configuration is None else members_of(configuration)
    return Entry(header.height, header.term, header.parent, block.hash, block.data, members)


def certify(block: Block, voters: Sequence[str] = VOTERS[:2]) -> Certificate:
    term, height = block.header.term, block.header.height
    signatures = [(voter, sign_acknowledgement(node_key(voter), CHAIN, term, height, block.hash)) for voter in voters]
    return make_certificate(term, height, block.hash, signatures)


class Chain:
    """One node's store, and the blocks put into it. Blocks are sealed by the first voter in term `term`."""

    def __init__(self, kv: KeyValue) -> None:
        self.store = Store(kv, GENESIS)
        self.term = 1

    def seal(
        self,
        *transactions: Transaction,
        executed: int | None = None,
        parent: Entry | None = None,
        time_ms: int | None = None,
        change: Change | None = None,
        proof: Certificate | None = None,
        proposer: str = VOTERS[0],
    ) -> Block:
        """A block after the newest durable one (or after `parent`), with the roots of height `executed`. Its
        configuration follows on the newest of the log.
        """
        store = self.store
        if parent is None:
            height = store.last_height()
            found = store.term_hash(height)
            assert found is not None
            parent_hash = found[1]
        else:
            height, parent_hash = parent.height, parent.hash
        executed = store.executed_height if executed is None else executed
        roots = store.roots(executed)
        header = Header(
            chain=CHAIN,
            change=change,
            configuration=self.configuration_after(change, proof).digest(),
            count=len(transactions),
            executed_height=executed,
            format=FORMAT,
            height=height + 1,
            history_root=roots.history,
            parent=parent_hash,
            proof=None if proof is None else proof.encode(),
            proposer=proposer,
            state_root=roots.state,
            term=self.term,
            time=NOW_MS + height if time_ms is None else time_ms,
            tx_root=tx_root(transactions),
        )
        return seal_block(header, list(transactions), node_key(proposer))

    def configuration_after(self, change: Change | None, proof: Certificate | None) -> Configuration:
        return configuration_after(self.store.configurations()[-1][1], change, leaves=proof is not None)

    def reconfigure(
        self,
        *transactions: Transaction,
        change: Change | None = None,
        proof: Certificate | None = None,
        voters: Sequence[str] = (),
        proposer: str = VOTERS[0],
    ) -> Block:
        """A block that changes the membership: sealed, persisted, executed; certified if `voters` are given."""
        block = self.seal(*transactions, change=change, proof=proof, proposer=proposer)
        entry = entry_of(block, self.configuration_after(change, proof))
        self.store.persist(None, [entry], bodies_of(*transactions), HardState(self.term, None))
        self.store.commit(block, certify(block, voters) if voters else None)
        return block

    def persist(self, *blocks: Block, truncate_from: int | None = None) -> None:
        """Into the log, with the bodies."""
        state = HardState(max(self.term, self.store.hard_state().term), None)
        bodies = bodies_of(*(item for block in blocks for item in block.transactions))
        self.store.persist(truncate_from, [entry_of(block) for block in blocks], bodies, state)

    def add(
        self,
        *transactions: Transaction,
        certified: bool = True,
        executed: int | None = None,
        time_ms: int | None = None,
    ) -> Commit:
        """Seal, persist, execute."""
        block = self.seal(*transactions, executed=executed, time_ms=time_ms)
        self.persist(block)
        return self.store.commit(block, certify(block) if certified else None)


def restarted(disk: PowerLossDisk) -> Store:
    disk.close()
    return Store(disk.open(), GENESIS)


class InterruptedDisk(PowerLossDisk):
    """Another thread's turn comes just before a chosen read."""

    def __init__(self) -> None:
        super().__init__()
        self.interrupt(-1, lambda: None)

    def interrupt(self, place: int, turn: Callable[[], None]) -> None:
        self.reads, self._place, self._turn = 0, place, turn

    def get(self, key: bytes) -> bytes | None:
        if self.reads == self._place:
            self._place = -1
            self._turn()
        self.reads += 1
        return super().get(key)
