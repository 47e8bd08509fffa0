"""How a pruned store is checked: from what it holds itself at its sealed height, as if that were a snapshot.

What lies below the base is gone, so nothing can be executed again from genesis. Yet a certificate proves state
and history at the sealed height. So these are taken from the store, verified, set up in the scratch database just
as a snapshot is installed; execution goes on from there.
"""

from ledger.block import decode_header
from ledger.contracts.network import step_path
from ledger.errors import Rejection
from ledger.genesis import Genesis
from ledger.membership import Step
from ledger.receipt import verify_seal
from ledger.state_tree import EMPTY
from storage import schema
from storage.base import BaseRecord
from storage.heights import Heights
from storage.install import BadSnapshot, install
from storage.port import KeyValue, Reads, StorageFailure
from storage.schema import ExecutedRecord, Undo, must, require
from storage.snapshot import FORMAT, Manifest, chunks, records, seal_of


def refound(kv: Reads, genesis: Genesis, heights: Heights, scratch: KeyValue) -> int:
    """Set up the empty `scratch`; the sealed height. Raises StorageFailure where the store does not give what is
    certified there.
    """
    name = schema.name_of(schema.EXECUTED_KEY)
    head = schema.unseal(ExecutedRecord, must(kv.get(schema.EXECUTED_KEY), schema.EXECUTED_KEY), name)
    require(head.seal is not None and head.sealed is not None, "a pruned store has no seal")
    assert head.seal is not None
    assert head.sealed is not None
    sealed = head.sealed
    block_key, certificate_key = schema.block_key(head.seal), schema.certificate_key(head.seal)
    steps = [_step(kv, number) for number in range(head.steps)]
    try:
        seal = seal_of(must(kv.get(block_key), block_key), must(kv.get(certificate_key), certificate_key))
        proved = verify_seal(seal, decode_header(seal.header), steps, genesis)
        require(proved.sealed_height == sealed, "the sealing header seals another height")
        manifest = Manifest(
            base=heights.base.height,
            chain=heights.chain,
            chunks=[],
            format=FORMAT,
            height=sealed,
            history_root=proved.history_root,
            size=0,
            state_root=proved.state_root,
        )
        before = _before(kv, sealed, head.height)
        install(scratch, genesis, manifest, chunks(records(kv, heights.base.height, sealed, before)))
    except (BadSnapshot, Rejection) as error:
        raise StorageFailure(
            f"what is stored at the sealed height {sealed} is not what is certified: {error}"
        ) from None
    # From which block on certificates were stored, no snapshot says.
    key = schema.roots_key(sealed)
    stored = schema.decode_roots(must(kv.get(key), key), sealed)
    found = schema.decode_roots(must(scratch.get(key), key), sealed)
    require(stored._replace(certified=0) == found, f"the roots of height {sealed} are not what is certified")
    scratch.write([(key, stored.encode())], sync=False)
    return sealed


def same_roots(height: int, stored: bytes, found: bytes, base: BaseRecord, given: int) -> bool:
    """Whether stored roots say what could be found out about them. Heights from the base on and below `given` were
    not executed again: their state's root is found only where a header carries it, their certificates not at all.

    EMPTY is stored only where the snapshot that the store began with proved no root of the state. Raises
    StorageFailure.
    """
    there, here = schema.decode_roots(stored, height), schema.decode_roots(found, height)
    if there.state == EMPTY and not base.may_lack_state(height):
        return False
    if EMPTY in (there.state, here.state):
        here = here._replace(state=there.state)
    if base.height <= height < given:
        here = here._replace(certified=there.certified)
    return there == here


def _before(kv: Reads, sealed: int, executed: int) -> dict[str, bytes | None]:
    values: dict[str, bytes | None] = {}
    for height in range(sealed + 1, executed + 1):
        key = schema.undo_key(height)
        undo = schema.parse(Undo, must(kv.get(key), key), schema.name_of(key))
        for name, value in undo.state.items():
            values.setdefault(name, value)
    return values


def _step(kv: Reads, number: int) -> Step:
    key = schema.state_key(step_path(number))
    return schema.parse(Step, must(kv.get(key), key), schema.name_of(key))
