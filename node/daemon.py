"""The daemon's life: from configuration to files and ports, one task group, one stop event, an exit code.

exit 0   SIGTERM or SIGINT: stopped serving, answered what was in flight, closed the store
exit 1   a fault: the log's last line names it
exit 2   the configuration, a key file or genesis is wrong, or a port is taken; nothing was started
exit 3   the disk failed, or holds what was never written: the last line names height, record and file
exit 4   what is certified contradicts this node: it keeps its store, for people to look at
exit 5   the other nodes removed this one
"""

import asyncio
import gc
import json
import os
import resource
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import structlog
import uvloop

from consensus.errors import Contradiction
from consensus.ports import CoreSettings
from ledger.errors import Rejection
from ledger.genesis import GENESIS_BYTES_MAX, Genesis, read_genesis
from ledger.keys import SigningKey
from ledger.node_cert import certificate_from_pem, certificate_key, make_certificate, standard_key
from network.peer_network import PeerNetwork
from network.port import Handler, Identity, NetworkSettings, Tap
from node.catchup import ForkError
from node.config import Config, ConfigError, load_config
from node.founding import check_founding
from node.http_api import provider_port
from node.joining import SnapshotReady
from node.keyfile import read_node_key
from node.logs import fault_fields, logs
from node.metrics import Metrics
from node.node import Node, NodeSettings
from node.peering import NetworkCounters
from node.pool import PoolLimits
from node.snapshots import SnapshotPlaces, SnapshotSettings
from node.standing import RemovedError, WrongKeyError
from storage.boot import check_files, check_newest
from storage.executed import Divergence
from storage.leveldb import BUILD_BUFFER_BYTES, LevelDb
from storage.port import StorageFailure
from storage.report import DamageError
from storage.shelf import Shelf
from storage.store import Store
from storage.swap import carry, finish_swap, fresh_folder, make_ready

_log = structlog.get_logger("node.daemon")

T = TypeVar("T")

FILES_MAX = 8192

# In data_dir.
STORE_FOLDER = "ledger"
SNAPSHOTS_FOLDER = "snapshots"

# So many more objects than were freed, before Python looks for cycles among the new ones. What a node makes is freed
# by reference counts almost without exception; looking at Python's own rate costs a twentieth of its time.
NEW_OBJECTS_MAX = 50_000

EXIT_FAULT = 1
EXIT_CONFIGURATION = 2

# The first kind that a fault is, or is caused by, decides.
EXITS: tuple[tuple[type[BaseException], int], ...] = (
    (ConfigError, EXIT_CONFIGURATION),
    (WrongKeyError, EXIT_CONFIGURATION),
    (StorageFailure, 3),
    (Divergence, 4),
    (Contradiction, 4),
    (ForkError, 4),
    (RemovedError, 5),
)

# A follower further behind than this fetches certified blocks from any peer. All nodes of a network share it.
REPLICATE_GAP_BLOCKS = 128
# A learner further behind than this is not made a voter: from then on blocks may wait for it.
PROMOTE_GAP_BLOCKS = 16


@dataclass(frozen=True, slots=True)
class Identified:
    """Which node this is, its certificate as peers pin it, and its key's 32-byte seed."""

    genesis: Genesis
    node_id: str
    certificate: bytes
    seed: bytes

    def __repr__(self) -> str:
        return f"Identified({self.node_id})"


def identify(config: Config) -> Identified:
    """Read genesis and the key, and find the node whose key it is. Raises ConfigError or Rejection.

    A key that genesis does not name is that of `node.id`: whether the ledger agrees is seen as the chain comes in.
    """
    path = config.node.genesis
    try:
        with path.open("rb") as file:
            data = file.read(GENESIS_BYTES_MAX * 2)
    except OSError as error:
        raise ConfigError("node.genesis", str(path), f"a readable file ({error.strerror})") from None
    genesis = read_genesis(data)
    seed = read_node_key(config.node.key_file, config.node.passphrase_file)
    public = SigningKey(seed).public
    named = config.node.id
    for entry in genesis.nodes:
        if certificate_key(entry.certificate) == public:
            if named not in (None, entry.id):
                raise ConfigError("node.id", named, f"no other id than genesis gives this key, {entry.id}")
            return Identified(genesis, entry.id, entry.certificate, seed)
    if named is None:
        expected = "the key of a node that genesis names, or node.id beside it"
        raise ConfigError("node.key_file", str(config.node.key_file), expected)
    if named in genesis.node_keys():
        raise ConfigError("node.id", named, "an id that genesis does not give to another key")
    return Identified(genesis, named, make_certificate(seed, named), seed)


def read_certificates(config: Config) -> dict[str, bytes]:
    """The certificates (DER) of [peers.certificates]. Raises ConfigError."""
    found: dict[str, bytes] = {}
    for node_id, path in config.peers.certificates.items():
        try:
            found[node_id] = certificate_from_pem(path.read_bytes())
            standard_key(found[node_id], node_id)
        except (OSError, Rejection):
            expected = f"a readable PEM file of the certificate of {node_id}"
            raise ConfigError(f"peers.certificates.{node_id}", str(path), expected) from None
    return found


def node_settings(config: Config, node_id: str) -> NodeSettings:
    """Milliseconds into ticks; the configuration has checked that they divide."""
    timing, pool = config.consensus, config.pool
    tick = timing.tick_ms
    core = CoreSettings(
        node_id=node_id,
        election_ticks_min=timing.election_timeout_min_ms // tick,
        election_ticks_max=timing.election_timeout_max_ms // tick,
        heartbeat_ticks=timing.heartbeat_ms // tick,
        # Two starts of one node must not draw the same timeouts as a rival that started with it.
        seed=time.time_ns(),
        inflight_messages_max=timing.inflight_blocks_max,
        append_bytes_max=timing.append_bytes_max,
        uncommitted_bytes_max=timing.uncommitted_bytes_max,
        replicate_gap_blocks=REPLICATE_GAP_BLOCKS,
        promote_gap_blocks=PROMOTE_GAP_BLOCKS,
    )
    limits = PoolLimits(pool.transactions_max, pool.bytes_max, pool.organisation_share, pool.member_share)
    return NodeSettings(core, limits, tick, timing.seal_delay_ms, timing.clock_skew_ms, timing.trace)


def snapshot_settings(config: Config) -> SnapshotSettings:
    storage = config.storage
    return SnapshotSettings(storage.snapshot_interval_blocks, storage.keep_blocks, storage.join)


def open_store(folder: Path, genesis: Genesis, *, verified: bool = False) -> tuple[LevelDb, Store]:
    """The database and the store in it, checked as far as `storage.boot` says before anything is built on it.

    `verified`: this process has just built it from a snapshot, and verified all of it. Raises StorageFailure.
    """
    begin = time.monotonic()
    files = check_files(folder)
    kv = LevelDb(folder)
    try:
        heights = 0 if verified else check_newest(kv, genesis, folder)
        store = Store(kv, genesis)
    except BaseException:
        kv.close()
        raise
    _log.info(
        "store checked",
        heights=heights,
        bytes=files.bytes_read,
        bytes_unchecked=files.bytes_all - files.bytes_read,
        cut_off=files.cut_off,
        seconds=round(time.monotonic() - begin, 3),
    )
    return kv, store


@asynccontextmanager
async def running(
    config: Config, identified: Identified, tap: Tap | None = None, *, verified: bool = False
) -> AsyncIterator[Node]:
    """A node from its files to its ports, ready to serve once a leader is known. Leaving stops it in order."""
    genesis, node_id = identified.genesis, identified.node_id
    metrics = Metrics()
    introduced = read_certificates(config)
    offset_ms = config.devnet.clock_offset_ms
    folder = config.node.data_dir / STORE_FOLDER
    if finish_swap(folder):
        _log.info("the store built from a snapshot takes the place of the old one")
    kv, store = open_store(folder, genesis, verified=verified)

    def make_network(handler: Handler) -> PeerNetwork:
        return PeerNetwork(
            NetworkSettings(
                config.peers.listen_host, config.peers.listen_port, reannounce_ms=config.peers.reannounce_ms
            ),
            Identity(node_id, identified.seed, identified.certificate),
            genesis.chain_id(),
            {},
            handler,
            NetworkCounters(metrics),
            tap,
        )

    try:
        check_founding(genesis, node_id, store, found=config.node.found)
        node = Node(
            genesis,
            node_id,
            identified.seed,
            store,
            metrics,
            node_settings(config, node_id),
            now_ms=lambda: time.time_ns() // 1_000_000 + offset_ms,
            make_network=make_network,
            addresses=config.peers.addresses,
            introduced=introduced,
            places=SnapshotPlaces(
                kv,
                Shelf(config.node.data_dir / SNAPSHOTS_FOLDER),
                snapshot_settings(config),
                # `make_ready` syncs every file of it at the end.
                fresh=lambda: LevelDb(fresh_folder(folder), sync=False, write_buffer_bytes=BUILD_BUFFER_BYTES),
            ),
        )
        async with _serving(config, node):
            yield node
    finally:
        store.close()


@asynccontextmanager
async def _serving(config: Config, node: Node) -> AsyncIterator[None]:
    """The node's tasks, then its peer links, then its provider port; left in the opposite order."""
    async with asyncio.TaskGroup() as group:
        started = asyncio.Event()
        life = group.create_task(node.run(started.set), name="node")
        await started.wait()
        network = node.network
        assert isinstance(network, PeerNetwork)
        peers, provider = config.peers, config.provider
        async with (
            bound("peers.listen_port", f"{peers.listen_host}:{peers.listen_port}", network),
            bound("provider.port", f"{provider.host}:{provider.port}", provider_port(node.backend, provider)) as port,
        ):
            write_ports(config.node.ports_file, network.address, (config.provider.host, port))
            _log.info("listening", peer_port=network.address[1], provider_port=port)
            try:
                yield
            finally:
                node.stop_serving()
        life.cancel()


@asynccontextmanager
async def bound(key: str, address: str, listener: AbstractAsyncContextManager[T]) -> AsyncIterator[T]:
    """The listener, entered. Raises ConfigError, naming `key`, where its address cannot be bound."""
    try:
        entered = await listener.__aenter__()
    except OSError as error:
        raise ConfigError(key, address, f"an address that can be bound ({error.strerror})") from None
    async with AsyncExitStack() as stack:
        stack.push_async_exit(listener)
        yield entered


def write_ports(path: Path, peer: tuple[str, int], provider: tuple[str, int]) -> None:
    """The bound ports as JSON, whole or not at all."""
    ports = {
        "peer": {"host": peer[0], "port": peer[1]},
        "provider": {"host": provider[0], "port": provider[1]},
    }
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(ports) + "\n")
    os.replace(partial, path)


async def serve(config: Config, identified: Identified) -> None:
    """Run until SIGTERM or SIGINT; raises the fault that ended it otherwise."""
    stop = asyncio.Event()
    with _stop_signals(stop):
        verified = False
        while not stop.is_set():
            try:
                async with running(config, identified, verified=verified) as node:
                    await stop.wait()
                    _log.info("stopping")
                    await node.hand_over()
            except* SnapshotReady as ready:
                _log.info("starting again on a snapshot", detail=str(next(_leaves(ready))))
                take_over(config.node.data_dir / STORE_FOLDER, identified.genesis)
                verified = True


def take_over(folder: Path, genesis: Genesis) -> None:
    """The store built beside the one in `folder`, at rest both: give it what was promised, and let it count."""
    old = LevelDb(folder, create=False)
    try:
        new = LevelDb(folder.with_name(folder.name + ".fresh"), create=False)
        try:
            carry(old, Store(old, genesis), new, Store(new, genesis))
        finally:
            new.close()
    finally:
        old.close()
    make_ready(folder)


@contextmanager
def _stop_signals(stop: asyncio.Event) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
            # All is closed: a signal repeated now must not turn exit 0 into a death.
            signal.signal(number, signal.SIG_IGN)


def main(config_path: Path, run: Callable[[Any], None] = uvloop.run) -> int:
    """Run the daemon; the exit code."""
    try:
        config = load_config(config_path)
        check_log_file(config)
        identified = identify(config)
    except (ConfigError, Rejection) as error:
        print(f"carequorum node: {error}", file=sys.stderr)
        return EXIT_CONFIGURATION
    raise_file_limit()
    gc.freeze()
    gc.set_threshold(NEW_OBJECTS_MAX)
    with logs(config.logging):
        _log.info("starting", node=identified.node_id, chain=identified.genesis.chain_id().hex())
        try:
            run(serve(config, identified))
        except BaseException as error:  # noqa: BLE001 - the last place: every fault becomes a line and a code
            code, cause = exit_of(error)
            damage = damage_fields(cause, config.node.data_dir / STORE_FOLDER)
            _log.critical("fault", code=code, detail=detail_of(cause), **damage, **fault_fields(cause))
            if config.logging.file is not None:
                # Whoever started it by hand looks here.
                print(f"carequorum node: {detail_of(cause) or type(cause).__name__}", file=sys.stderr)
            return code
        _log.info("stopped")
    return 0


def check_log_file(config: Config) -> None:
    """Raises ConfigError where the log cannot be written."""
    path = config.logging.file
    try:
        if path is not None:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise ConfigError("logging.file", str(path), f"a file that can be written ({error.strerror})") from None


def raise_file_limit() -> None:
    """Let this process open FILES_MAX files, or as many as it may: connections and LevelDB share them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES_MAX if hard == resource.RLIM_INFINITY else min(FILES_MAX, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def exit_of(error: BaseException) -> tuple[int, BaseException]:
    """The exit code of a fault, and the exception inside it that decided."""
    for one in _leaves(error):
        for kind, code in EXITS:
            if isinstance(one, kind):
                return code, one
    return EXIT_FAULT, next(_leaves(error))


def detail_of(error: BaseException) -> str:
    """The message of faults that name only heights, files and nodes; other messages could carry content."""
    return str(error) if isinstance(error, tuple(kind for kind, _ in EXITS)) else ""


def damage_fields(error: BaseException, folder: Path) -> dict[str, int | str | None]:
    """Where the store is damaged. What LevelDB finds while the node runs does not name the file: it is looked for."""
    found = error
    if isinstance(error, StorageFailure) and not isinstance(error, DamageError):
        try:
            check_files(folder)
        except StorageFailure as failure:
            found = failure
    if not isinstance(found, DamageError):
        return {}
    problem = found.problem
    return {"height": problem.height, "record": problem.record, "file": problem.file, "problems": found.count}


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from _leaves(one)
    else:
        yield error
