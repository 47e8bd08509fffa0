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
from ledger.genesis import Node as GenesisNode
from ledger.keys import SigningKey
from ledger.node_cert import certificate_key
from network.peer_network import PeerNetwork
from network.port import Handler, Identity, NetworkSettings, Peer, Tap
from node.catchup import ForkError
from node.config import Config, ConfigError, load_config
from node.http_api import provider_port
from node.keyfile import read_node_key
from node.logs import fault_fields, logs
from node.metrics import Metrics
from node.node import Node, NodeSettings, RemovedError
from node.peering import NetworkCounters
from node.pool import PoolLimits
from storage.boot import check_files, check_newest
from storage.executed import Divergence
from storage.leveldb import LevelDb
from storage.port import StorageFailure
from storage.report import DamageError
from storage.store import Store

_log = structlog.get_logger("node.daemon")

T = TypeVar("T")

FILES_MAX = 8192

# In data_dir.
STORE_FOLDER = "ledger"

# So many more objects than were freed, before Python looks for cycles among the new ones. What a node makes is freed
# by reference counts almost without exception; looking at Python's own rate costs a twentieth of its time.
NEW_OBJECTS_MAX = 50_000

EXIT_FAULT = 1
EXIT_CONFIGURATION = 2

# The first kind that a fault is, or is caused by, decides.
EXITS: tuple[tuple[type[BaseException], int], ...] = (
    (ConfigError, EXIT_CONFIGURATION),
    (StorageFailure, 3),
    (Divergence, 4),
    (Contradiction, 4),
    (ForkError, 4),
    (RemovedError, 5),
)

# A follower further behind than this fetches certified blocks from any peer. All nodes of a network share it.
REPLICATE_GAP_BLOCKS = 128


@dataclass(frozen=True, slots=True)
class Identified:
    """This node as genesis knows it, and its key's 32-byte seed."""

    genesis: Genesis
    entry: GenesisNode
    seed: bytes

    def __repr__(self) -> str:
        return f"Identified({self.entry.id})"


def identify(config: Config) -> Identified:
    """Read genesis and the key, and find the node whose key it is. Raises ConfigError or Rejection."""
    path = config.node.genesis
    try:
        with path.open("rb") as file:
            data = file.read(GENESIS_BYTES_MAX * 2)
    except OSError as error:
        raise ConfigError("node.genesis", str(path), f"a readable file ({error.strerror})") from None
    genesis = read_genesis(data)
    seed = read_node_key(config.node.key_file, config.node.passphrase_file)
    public = SigningKey(seed).public
    for entry in genesis.nodes:
        if certificate_key(entry.certificate) == public:
            return Identified(genesis, entry, seed)
    raise ConfigError("node.key_file", str(config.node.key_file), "the key of a node that genesis names")


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
    )
    limits = PoolLimits(pool.transactions_max, pool.bytes_max, pool.organisation_share, pool.member_share)
    return NodeSettings(core, limits, tick, timing.seal_delay_ms, timing.clock_skew_ms)


def peers_of(config: Config, genesis: Genesis) -> dict[str, Peer]:
    """Every node of genesis with the address to dial it at."""
    peers: dict[str, Peer] = {}
    for node in genesis.nodes:
        host, _, port = config.peers.addresses.get(node.id, node.address).rpartition(":")
        peers[node.id] = Peer(node.certificate, (host.strip("[]"), int(port)))
    return peers


def open_store(folder: Path, genesis: Genesis) -> Store:
    """The store, checked as far as `storage.boot` says before anything is built on it. Raises StorageFailure."""
    begin = time.monotonic()
    files = check_files(folder)
    kv = LevelDb(folder)
    try:
        heights = check_newest(kv, genesis, folder)
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
    return store


@asynccontextmanager
async def running(config: Config, identified: Identified, tap: Tap | None = None) -> AsyncIterator[Node]:
    """A node from its files to its ports, ready to serve once a leader is known. Leaving stops it in order."""
    genesis, node_id = identified.genesis, identified.entry.id
    metrics = Metrics()
    offset_ms = config.devnet.clock_offset_ms
    store = open_store(config.node.data_dir / STORE_FOLDER, genesis)

    def make_network(handler: Handler) -> PeerNetwork:
        return PeerNetwork(
            NetworkSettings(
                config.peers.listen_host, config.peers.listen_port, reannounce_ms=config.peers.reannounce_ms
            ),
            Identity(node_id, identified.seed, identified.entry.certificate),
            genesis.chain_id(),
            peers_of(config, genesis),
            handler,
            NetworkCounters(metrics),
            tap,
        )

    try:
        node = Node(
            genesis,
            node_id,
            identified.seed,
            store,
            metrics,
            node_settings(config, node_id),
            now_ms=lambda: time.time_ns() // 1_000_000 + offset_ms,
            make_network=make_network,
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
        async with running(config, identified):
            await stop.wait()
            _log.info("stopping")


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
        _log.info("starting", node=identified.entry.id, chain=identified.genesis.chain_id().hex())
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
