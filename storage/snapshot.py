"""A snapshot: what a node must hold to go on from one sealed height, as a stream of records cut into chunks.

The same chain gives the same snapshot on every node, byte by byte, so that its chunks may come from several of them.
Its height S is the executed height of some header; it begins at the base B, the newest block that is WINDOW_MS of
block time older than S. In this order:

record                       key                  value
leaves of the history log    h, 0, first height   up to LEAVES_A_RECORD leaf hashes, of the heights 0 to S
base                         m, base              SnapshotBase
blocks of B + 1 to S         b, height            the block; each is followed by
results                      x, height            the canonical list of its encoded results
state after S                s, state key         the value, in order of the keys

Each record is framed as length of key (2) ‖ length of value (4) ‖ key ‖ value. The manifest names the roots after S
and the hash of every chunk. What proves it is not the same everywhere and travels beside it: the headers from one
that carries the roots of S up to a certified one, and the seal of that. So nothing of a snapshot is believed.

Bodies do not travel with it. Blocks above S come as to any node that catches up.
"""

import struct
from collections.abc import Callable, Iterator, Mapping
from itertools import chain as joined
from typing import Annotated

import msgspec
from msgspec import Meta

from ledger.block import block_hash, decode_header, header_of
from ledger.contracts.network import step_path
from ledger.encoding import decode_as, encode
from ledger.errors import Rejection
from ledger.finality import Certificate, Seal, decode_certificate
from ledger.genesis import Genesis
from ledger.keys import HASH_BYTES, Hash, sha256, tag
from ledger.membership import Configuration, Step
from ledger.receipt import STEPS_BYTES_MAX, VerifiedSeal, verify_seal
from storage import schema
from storage.base import BASE_KEY, load_base
from storage.configurations import in_effect, load
from storage.index import WINDOW_MS
from storage.port import Reads, StorageFailure
from storage.schema import LogRecord, must, require

FORMAT = 1
CHUNK_BYTES = 1024 * 1024
# 16 GiB. What is larger is not taken.
CHUNKS_MAX = 16 * 1024
LEAVES_A_RECORD = 1_024
MANIFEST_BYTES_MAX = 64 * 1024 + CHUNKS_MAX * (HASH_BYTES + 2)
# How many headers may stand between the one that carries the roots and a certified one.
PROOF_HEADERS_MAX = 256
PROOF_BYTES_MAX = 8 * 1024 * 1024 + STEPS_BYTES_MAX

STATE_RANGE = (b"s", b"t")
FRAME = struct.Struct(">HI")
_CHUNK = tag("snapshot-chunk")
_MANIFEST = tag("snapshot-manifest")

Height = Annotated[int, Meta(ge=0, le=2**53)]
# Told after each chunk, so that whoever takes or reads one in a thread can let others run.
Pause = Callable[[], None]


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`size` is the whole stream's length; all chunks but the last have CHUNK_BYTES."""

    base: Height
    size: Annotated[int, Meta(ge=1, le=CHUNKS_MAX * CHUNK_BYTES)]
    chain: Hash
    chunks: Annotated[list[Hash], Meta(min_length=1, max_length=CHUNKS_MAX)]
    format: int
    height: Annotated[int, Meta(ge=1, le=2**53)]
    history_root: Hash
    state_root: Hash

    def encode(self) -> bytes:
        return encode(self)


class Proof(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`headers` link the header that carries the roots, the first, to the seal's; none where that carries them."""

    format: int
    headers: Annotated[list[bytes], Meta(max_length=PROOF_HEADERS_MAX)]
    seal: Seal
    steps: list[Step]

    def encode(self) -> bytes:
        return encode(self)


class SnapshotBase(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The base's header, None at genesis, and the configuration in effect at it."""

    configuration: Configuration
    header: bytes | None


def chunk_hash(data: bytes) -> bytes:
    return sha256(_CHUNK, data)


def manifest_id(data: bytes) -> bytes:
    """By which peers name the same snapshot."""
    return sha256(_MANIFEST, data)


def decode_manifest(data: bytes) -> Manifest:
    """Raises Rejection."""
    manifest = decode_as(Manifest, data, MANIFEST_BYTES_MAX)
    if manifest.format != FORMAT:
        raise Rejection("unknown_format", f"snapshot format {manifest.format}")
    if manifest.base >= manifest.height or len(manifest.chunks) != -(-manifest.size // CHUNK_BYTES):
        raise Rejection("bad_snapshot", "the manifest contradicts itself")
    return manifest


def verify_manifest(manifest: Manifest, proof: bytes, genesis: Genesis) -> VerifiedSeal:
    """The seal that proves the manifest's height and roots. Raises Rejection: "bad_snapshot", or as `verify_seal`."""
    found = decode_as(Proof, proof, PROOF_BYTES_MAX)
    if found.format != FORMAT:
        raise Rejection("unknown_format", f"snapshot proof format {found.format}")
    sealing = decode_header(found.seal.header)
    verified = verify_seal(found.seal, sealing, found.steps, genesis)
    # Down from the certified header, each by the hash that the one above names.
    header = sealing
    for data in reversed(found.headers):
        below = decode_header(data)
        if block_hash(data) != header.parent:
            raise Rejection("bad_snapshot", "the headers of the proof are not linked")
        header = below
    said = (header.executed_height, header.history_root, header.state_root, genesis.chain_id())
    if said != (manifest.height, manifest.history_root, manifest.state_root, manifest.chain):
        raise Rejection("bad_snapshot", "the certified header says other roots than the manifest")
    return verified


def proof_certificate(proof: bytes) -> Certificate:
    """The certificate in a proof that `verify_manifest` has verified."""
    return decode_certificate(decode_as(Proof, proof, PROOF_BYTES_MAX).seal.certificate)


def make_proof(view: Reads, genesis: Genesis, height: int) -> Proof | None:
    """The proof of a snapshot at `height`, from the blocks above it; None as long as none of them is certified, or
    where no header carries its roots.
    """
    end = schema.unseal(LogRecord, must(view.get(schema.LOG_KEY), schema.LOG_KEY), "record of the log's end")
    headers: list[bytes] = []
    for above in range(height + 1, end.height + 1):
        data = view.get(schema.block_key(above))
        if data is None:
            return None
        header, _ = header_of(data)
        if header.executed_height < height:
            continue
        if not headers and header.executed_height > height:
            return None
        certificate = view.get(schema.certificate_key(above))
        if certificate is not None:
            seal = seal_of(data, certificate)
            steps = _steps(view, seal)
            try:
                verify_seal(seal, header, steps, genesis)
            except Rejection:
                # Joint: it seals nothing. The next one may.
                pass
            else:
                return Proof(FORMAT, headers, seal, steps)
        headers.append(header.encode())
        if len(headers) > PROOF_HEADERS_MAX:
            return None
    return None


def records(view: Reads, base: int, height: int, before: Mapping[str, bytes | None]) -> Iterator[tuple[bytes, bytes]]:
    """The snapshot at `height` that begins at `base`. `before` has the values after `height` of what later blocks
    changed in this view.

    Raises StorageFailure where something is missing.
    """
    yield from _leaves(view, height)
    yield BASE_KEY, encode(_base_of(view, base))
    for at in range(base + 1, height + 1):
        for key in (schema.block_key(at), schema.results_key(at)):
            yield key, must(view.get(key), key)
    yield from _state(view, before)


def chunks(framed: Iterator[tuple[bytes, bytes]]) -> Iterator[bytes]:
    """The records' bytes in pieces of CHUNK_BYTES, the last one shorter."""
    buffer = bytearray()
    for key, value in framed:
        buffer += FRAME.pack(len(key), len(value)) + key + value
        while len(buffer) >= CHUNK_BYTES:
            yield bytes(buffer[:CHUNK_BYTES])
            del buffer[:CHUNK_BYTES]
    if buffer:
        yield bytes(buffer)


def window_base(view: Reads, height: int) -> int:
    """The newest height that is WINDOW_MS of block time older than `height`; 0 where there is none."""
    limit_ms = _roots(view, height).time_ms - WINDOW_MS
    low, high = load_base(view).height, height
    if low and _roots(view, low).time_ms > limit_ms:
        raise StorageFailure(f"the window of ids before height {height} is pruned")
    # Block time always rises.
    while high - low > 1:
        middle = (low + high) // 2
        if _roots(view, middle).time_ms <= limit_ms:
            low = middle
        else:
            high = middle
    return low


def seal_of(block: bytes, certificate: bytes) -> Seal:
    """The seal that a stored block and its certificate are."""
    wire = msgspec.msgpack.decode(block)
    return Seal(certificate, wire["header"], wire["signature"])


def _steps(view: Reads, seal: Seal) -> list[Step]:
    """Those before the seal's block, by the configuration in effect at it."""
    height = decode_header(seal.header).height
    end = schema.unseal(LogRecord, must(view.get(schema.LOG_KEY), schema.LOG_KEY), "record of the log's end")
    count = in_effect(load(view, end.configured), height).steps
    found: list[Step] = []
    for number in range(count):
        key = schema.state_key(step_path(number))
        data = view.get(key)
        if data is None:
            break
        found.append(schema.parse(Step, data, schema.name_of(key)))
    return found


def _base_of(view: Reads, base: int) -> SnapshotBase:
    end = schema.unseal(LogRecord, must(view.get(schema.LOG_KEY), schema.LOG_KEY), "record of the log's end")
    configuration = in_effect(load(view, end.configured), base)
    kept = load_base(view)
    if base == kept.height:
        return SnapshotBase(configuration, kept.header)
    header, _ = header_of(must(view.get(schema.block_key(base)), schema.block_key(base)))
    return SnapshotBase(configuration, header.encode())


def _leaves(view: Reads, height: int) -> Iterator[tuple[bytes, bytes]]:
    for first in range(0, height + 1, LEAVES_A_RECORD):
        last = min(first + LEAVES_A_RECORD, height + 1) - 1
        found = view.range(schema.history_key(0, first), schema.history_key(0, last + 1))
        leaves = b"".join(leaf for _, leaf in found)
        require(len(leaves) == (last + 1 - first) * HASH_BYTES, f"history nodes from 0/{first} on are missing")
        yield schema.history_key(0, first), leaves


def _state(view: Reads, before: Mapping[str, bytes | None]) -> Iterator[tuple[bytes, bytes]]:
    """The stored values, with those of `before` in their place, in order of the keys."""
    changed = {schema.state_key(key): value for key, value in before.items()}
    waiting = iter(sorted(changed))
    upcoming = next(waiting, None)
    for key, value in joined(view.range(*STATE_RANGE), [(STATE_RANGE[1], b"")]):
        while upcoming is not None and upcoming < key:
            old = changed[upcoming]
            if old is not None:
                yield upcoming, old
            upcoming = next(waiting, None)
        if key == upcoming:
            old = changed[key]
            if old is not None:
                yield key, old
            upcoming = next(waiting, None)
        elif key != STATE_RANGE[1]:
            yield key, value


def _roots(view: Reads, height: int) -> schema.Roots:
    return schema.decode_roots(must(view.get(schema.roots_key(height)), schema.roots_key(height)), height)
