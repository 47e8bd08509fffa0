"""Chains that span hours of block time, so that there is something to prune; and snapshots of them."""

from collections.abc import Mapping
from pathlib import Path

from consensus.messages import HardState
from ledger.block import Block, decode_block
from ledger.finality import Certificate
from ledger.transaction import Transaction
from storage.install import extend, install
from storage.port import KeyValue
from storage.shelf import Kept, Shelf
from storage.snapshot import decode_manifest, make_proof, verify_manifest
from storage.store import Store
from tests.fakes.disk import PowerLossDisk
from tests.ledger.founding import GENESIS, NOW_MS, addition, sign
from tests.storage.chains import Chain, bodies_of, body_of, certify, doctor, entry_of, remember

MINUTE_MS = 60_000


def timed_record(name: str, minute: int) -> Transaction:
    """A record signed in this minute after NOW_MS."""
    remember(body_of(name))
    until = NOW_MS + minute * MINUTE_MS + MINUTE_MS
    return sign([addition(name)], by="doctor", bodies=[body_of(name)], until=until)


class Span:
    """One block of one record every minute, each certified."""

    def __init__(self, disk: PowerLossDisk | None = None, minutes: int = 40) -> None:
        self.disk = disk or PowerLossDisk()
        self.chain = Chain(self.disk)
        self.minute = 0
        self.transactions: list[Transaction] = [doctor()]
        self.chain.add(*self.transactions)
        self.run(minutes)

    @property
    def store(self) -> Store:
        return self.chain.store

    def run(self, minutes: int, *, certified: bool = True) -> None:
        for _ in range(minutes):
            self.minute += 1
            transaction = timed_record(f"minute {self.minute}", self.minute)
            self.transactions.append(transaction)
            self.chain.add(transaction, time_ms=NOW_MS + self.minute * MINUTE_MS, certified=certified)

    def reopen(self) -> None:
        self.disk.close()
        self.chain.store = Store(self.disk.open(), GENESIS)

    def take(self, folder: Path, height: int | None = None) -> tuple[Shelf, Kept]:
        """The snapshot at `height`, or the sealed one, taken while nothing else happens."""
        shelf = Shelf(folder)
        sealed = self.store.sealed_height
        assert sealed is not None
        at = sealed if height is None else height
        kept = shelf.take(self.disk.view(), at, before(self.store, at), lambda: None)
        assert kept is not None
        return shelf, kept


def before(store: Store, height: int) -> Mapping[str, bytes | None]:
    """The values after `height` of what later blocks changed."""
    values: dict[str, bytes | None] = {}
    for step in store.undo_above(height):
        for key, value in step.state.items():
            values.setdefault(key, value)
    return values


def installed(source: Span, shelf: Shelf, kept: Kept, kv: KeyValue) -> Store:
    """What a joiner makes of it, with the blocks above it from the same source."""
    proof = make_proof(source.disk.view(), GENESIS, kept.manifest.height)
    assert proof is not None
    manifest = decode_manifest(kept.data)
    seal = verify_manifest(manifest, proof.encode(), GENESIS)
    chunks = (shelf.chunk(kept.id, index) or b"" for index in range(len(manifest.chunks)))
    install(kv, GENESIS, manifest, chunks)
    store = source.store
    certified = seal.certified_height
    entries = store.entries(manifest.height + 1, certified, 1 << 30)
    certificate = store.certificate(certified)
    assert certificate is not None
    blocks = [decode_block(entry.data, 1 << 20) for entry in entries]
    bodies = bodies_of(*(item for block in blocks for item in block.transactions))
    return extend(kv, GENESIS, entries, bodies, [certificate], HardState())


def follow(store: Store, *blocks: tuple[Block, Certificate | None]) -> None:
    """Further blocks into a store, as its node would take them."""
    for block, certificate in blocks:
        store.persist(
            None,
            [entry_of(block)],
            bodies_of(*block.transactions),
            HardState(max(block.header.term, store.hard_state().term), None),
        )
        store.commit(block, certificate)


__all__ = ["MINUTE_MS", "Span", "before", "certify", "follow", "installed", "timed_record"]
