"""How a store that was built beside the old one takes its place.

    ledger          the store in use
    ledger.fresh    one that is being built from a snapshot; of no use until it has the next name
    ledger.ready    built, synced, and holding all that the old one had promised: from here on it counts
    ledger.old      the old one, on its way out

The rename of `fresh` to `ready` decides. Before it a crash leaves the old store, after it every start finishes the
exchange before anything is opened. Nothing votes or acknowledges between `carry` and the end of the exchange.
"""

import os
import shutil
from pathlib import Path

from consensus.messages import HardState
from ledger.block import Block, decode_block
from ledger.errors import Rejection
from storage import schema
from storage.log import BLOCK_BYTES_MAX
from storage.port import KeyValue, StorageFailure
from storage.store import Store

# How much of the old log's end is carried at once.
CARRY_BYTES_MAX = 8 * 1024 * 1024


def fresh_folder(folder: Path) -> Path:
    """Where to build: empty, whatever was there before. Raises StorageFailure."""
    fresh = _beside(folder, "fresh")
    try:
        if fresh.exists():
            shutil.rmtree(fresh)
    except OSError as error:
        raise StorageFailure(f"{fresh}: {error.strerror}") from None
    return fresh


def carry(old: KeyValue, old_store: Store, new: KeyValue, new_store: Store) -> None:
    """What this node has promised: term and vote, votes held of others, evidence, votes forsworn; and the blocks of
    its log above the new one's end where they follow on it. Both stores are at rest.

    What contradicts a certified block is left behind, as any leader would make it.
    """
    last = new_store.last_height()
    if old_store.last_height() > last and old_store.term_hash(last) == new_store.term_hash(last):
        while new_store.last_height() < old_store.last_height():
            first = new_store.last_height() + 1
            entries = old_store.entries(first, old_store.last_height(), CARRY_BYTES_MAX)
            bodies: dict[bytes, bytes] = {}
            for entry in entries:
                for transaction in _decoded(entry.data).transactions:
                    for reference in transaction.envelope.bodies:
                        body = old_store.body(reference.commitment)
                        if body is not None:
                            bodies[reference.commitment] = body
            term = max(new_store.hard_state().term, entries[-1].term)
            new_store.persist(None, entries, bodies, HardState(term, None))
    promised, found = old_store.hard_state(), new_store.hard_state()
    if promised.term >= found.term:
        new_store.persist(None, (), {}, promised)
    kept = [*old.range(schema.VOTES_BEGIN, schema.VOTES_END), *old.range(b"e", b"f")]
    forsworn = old.get(schema.FORSWORN_KEY)
    if forsworn is not None:
        kept.append((schema.FORSWORN_KEY, forsworn))
    new.write(kept, sync=True)


def make_ready(folder: Path) -> None:
    """The built store, closed, counts from here on. Every file of it is synced first. Raises StorageFailure."""
    fresh, ready = _beside(folder, "fresh"), _beside(folder, "ready")
    try:
        for path in fresh.iterdir():
            _sync(path)
        _sync(fresh)
        os.rename(fresh, ready)
        _sync(folder.parent)
    except OSError as error:
        raise StorageFailure(f"{fresh}: {error.strerror}") from None


def finish_swap(folder: Path) -> bool:
    """Before a store is opened: put the ready one in its place, if there is one, and remove what is left of others.

    Whether there was one. Raises StorageFailure.
    """
    ready, old = _beside(folder, "ready"), _beside(folder, "old")
    try:
        swapped = ready.exists()
        if swapped:
            if folder.exists():
                if old.exists():
                    shutil.rmtree(old)
                os.rename(folder, old)
                _sync(folder.parent)
            os.rename(ready, folder)
            _sync(folder.parent)
        for left in (_beside(folder, "fresh"), old):
            if left.exists() and (left != old or folder.exists()):
                shutil.rmtree(left)
    except OSError as error:
        raise StorageFailure(f"{folder}: {error.strerror}") from None
    return swapped


def _decoded(data: bytes) -> Block:
    try:
        return decode_block(data, BLOCK_BYTES_MAX)
    except Rejection as error:
        raise StorageFailure(f"a block of the log is not what was written: {error}") from None


def _beside(folder: Path, name: str) -> Path:
    return folder.with_name(f"{folder.name}.{name}")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
