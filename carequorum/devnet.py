"""A network of hospitals on one machine: its folder, and the daemons that run from it.

    DIR/genesis.json
    DIR/devnet.json                      which nodes, on which ports
    DIR/<node>/node.toml  node.key       the daemon's configuration and its private key (0600)
    DIR/<node>/admin.wallet .passphrase  the organisation's first admin (0600)
    DIR/<node>/data/                     the daemon's store
    DIR/<node>/node.log  process.json    its output; the process that runs now, if one does

The folder is 0700: it holds every key of the network, which is why this is for development only. Linux only,
see `carequorum.processes`.
"""

import http.client
import json
import os
import secrets
import signal
import socket
import string
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path

import msgspec

from carequorum.processes import Ended, Process, is_running, send, spawn, wait
from carequorum.views import NetworkStatus, decode_view
from carequorum.wallet import COST_DEVELOPMENT, Wallet
from ledger.genesis import FORMAT as GENESIS_FORMAT
from ledger.genesis import Genesis, Node, Organisation, Parameters, genesis_from_json
from ledger.node_cert import key_pem, make_certificate

FORMAT = 1
DAEMON = (sys.executable, "-m", "node")
NODES_MAX = 16
READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
# How a daemon ends that the other nodes removed (docs/operations.md).
REMOVED_CODE = 5
REQUEST_TIMEOUT_S = 5.0
RESPONSE_BYTES_MAX = 4 * 1024 * 1024

# Below every ephemeral range in use, so that no outgoing connection takes a port while its daemon is down.
_PORTS = range(20_000, 32_000)
_POLL_S = 0.05

Settings = Mapping[str, Mapping[str, str | int | float]]


class DevnetError(Exception):
    """What went wrong with a development network, in one line for people."""


class DevnetNode(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One hospital of the network. Its id names its organisation too."""

    id: str
    name: str
    peer_port: int
    provider_port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.provider_port}"


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    chain: str
    format: int
    nodes: list[DevnetNode]


class NodeStatus(msgspec.Struct, frozen=True):
    """`network` is what the node says of itself and the others, None while it says nothing."""

    id: str
    url: str
    pid: int | None
    ready: bool
    network: NetworkStatus | None


class Devnet:
    """The network in `directory`, which `create` made. Raises DevnetError."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.resolve()
        try:
            content = msgspec.json.decode((self.directory / "devnet.json").read_bytes(), type=_File)
            self.genesis = genesis_from_json((self.directory / "genesis.json").read_text())
        except FileNotFoundError as error:
            missing = f"{error.filename} is missing"
            raise DevnetError(f"{directory} holds no development network: {missing}") from None
        except msgspec.DecodeError as error:
            raise DevnetError(f"{directory / 'devnet.json'}: {error}") from None
        if content.format != FORMAT or content.chain != self.genesis.chain_id().hex():
            raise DevnetError(f"{directory / 'devnet.json'} does not belong to its genesis.json")
        self.nodes = content.nodes

    def node(self, node_id: str) -> DevnetNode:
        for node in self.nodes:
            if node.id == node_id:
                return node
        raise DevnetError(f"no node {node_id!r}; there are {', '.join(node.id for node in self.nodes)}")

    def folder(self, node: DevnetNode) -> Path:
        return self.directory / node.id

    def log(self, node: DevnetNode) -> Path:
        return self.folder(node) / "node.log"

    def wallet(self, node: DevnetNode) -> tuple[Path, Path]:
        """The admin's wallet and the file with its passphrase."""
        return self.folder(node) / "admin.wallet", self.folder(node) / "admin.passphrase"

    # processes

    def start(
        self,
        nodes: Iterable[DevnetNode],
        timeout_s: float = READY_TIMEOUT_S,
        on_ready: Callable[[DevnetNode], None] = lambda node: None,
    ) -> list[DevnetNode]:
        """Start those of `nodes` that do not run, and return when every one of them says that it is ready, or has
        ended because the network removed it: these.
        """
        waiting, removed = [], []
        for node in nodes:
            if self.process(node) is None:
                config = self.folder(node) / "node.toml"
                process = spawn([*DAEMON, "--config", str(config)], self.log(node))
                _write(self.folder(node) / "process.json", msgspec.json.encode(process))
            waiting.append(node)
        deadline = time.monotonic() + timeout_s
        while waiting:
            for node in list(waiting):
                # Asked once: the exit code is gone with the process.
                ended = wait(self._started(node), 0)
                if ended is not None and ended.code == REMOVED_CODE:
                    waiting.remove(node)
                    removed.append(node)
                elif self._has_become_ready(node, ended):
                    waiting.remove(node)
                    on_ready(node)
            if waiting and time.monotonic() > deadline:
                names = ", ".join(node.id for node in waiting)
                raise DevnetError(f"not ready within {timeout_s:g} s: {names}; see {self.log(waiting[0])}")
            if waiting:
                time.sleep(_POLL_S)
        return removed

    def stop(self, nodes: Iterable[DevnetNode], timeout_s: float = STOP_TIMEOUT_S) -> dict[str, Ended | None]:
        """SIGTERM, then wait. For each node that ran: how it ended, or None if it would not in time."""
        ended = self._signal(nodes, signal.SIGTERM, timeout_s)
        self._forget(ended)
        return ended

    def kill(self, nodes: Iterable[DevnetNode]) -> dict[str, Ended | None]:
        """SIGKILL, for each node that ran."""
        ended = self._signal(nodes, signal.SIGKILL, STOP_TIMEOUT_S)
        self._forget(ended)
        return ended

    def process(self, node: DevnetNode) -> Process | None:
        """The daemon of `node` that runs now."""
        try:
            data = (self.folder(node) / "process.json").read_bytes()
        except FileNotFoundError:
            return None
        process = msgspec.json.decode(data, type=Process)
        return process if is_running(process) else None

    # what the nodes say

    def status(self) -> list[NodeStatus]:
        found = []
        for node in self.nodes:
            process = self.process(node)
            network = self._network(node) if process else None
            ready = process is not None and _get(node, "/readyz")[0] == 200
            found.append(NodeStatus(node.id, node.url, process.pid if process else None, ready, network))
        return found

    def leader(self) -> DevnetNode | None:
        """The running node that leads in the newest term anyone speaks of, if one does."""
        views = [view for node in self.nodes if self.process(node) and (view := self._network(node))]
        newest = max(views, key=lambda view: view.term, default=None)
        if newest is None or newest.leader is None:
            return None
        node = self.node(newest.leader)
        return node if self.process(node) else None

    def _network(self, node: DevnetNode) -> NetworkStatus | None:
        status, body = _get(node, "/v1/network")
        if status != 200:
            return None
        view = decode_view(NetworkStatus, body)
        if (view.node, view.chain) != (node.id, self.genesis.chain_id().hex()):
            raise DevnetError(f"{node.url} is {view.node} of {view.network}: the port is taken")
        return view

    def _started(self, node: DevnetNode) -> Process:
        return msgspec.json.decode((self.folder(node) / "process.json").read_bytes(), type=Process)

    def _has_become_ready(self, node: DevnetNode, ended: Ended | None) -> bool:
        if ended is not None:
            code = "" if ended.code is None else f" with {ended.code}"
            raise DevnetError(f"the daemon of {node.id} ended{code}: {_last_line(self.log(node))}")
        return _get(node, "/readyz")[0] == 200 and self._network(node) is not None

    def _signal(
        self, nodes: Iterable[DevnetNode], number: signal.Signals, timeout_s: float
    ) -> dict[str, Ended | None]:
        running = [(node, process) for node in nodes if (process := self.process(node))]
        for _, process in running:
            send(process, number)
        deadline = time.monotonic() + timeout_s
        return {node.id: wait(process, max(0.0, deadline - time.monotonic())) for node, process in running}

    def _forget(self, ended: Mapping[str, Ended | None]) -> None:
        for node_id, how in ended.items():
            if how is not None:
                (self.directory / node_id / "process.json").unlink(missing_ok=True)


def create(
    directory: Path,
    nodes: int = 4,
    *,
    settings: Settings | None = None,
    clock_offsets_ms: Mapping[str, int] | None = None,
) -> Devnet:
    """Write keys, genesis and configurations for `nodes` hospitals into a new or empty folder.

    `settings` adds to every node.toml, by table and key; `clock_offsets_ms` shifts the clocks of single
    nodes, by id. Raises DevnetError.
    """
    if sys.platform != "linux":
        raise DevnetError("development networks need Linux (/proc and pidfd)")
    if not 1 <= nodes <= NODES_MAX:
        raise DevnetError(f"{nodes} nodes; possible are 1 to {NODES_MAX}")
    directory = directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
        raise DevnetError(f"{directory} is not empty")
    directory.chmod(0o700)
    ports = free_ports(2 * nodes)
    members = [
        DevnetNode(f"hospital-{letter}", f"Hospital {letter.upper()}", ports.pop(), ports.pop())
        for letter in string.ascii_lowercase[:nodes]
    ]
    founders = [_found(directory / member.id, member) for member in members]
    genesis = Genesis(
        format=GENESIS_FORMAT,
        network=f"devnet of {nodes}",
        nodes=[node for node, _ in founders],
        organisations=[organisation for _, organisation in founders],
        parameters=Parameters(),
        time=time.time_ns() // 1_000_000,
    )
    for member in members:
        offset_ms = (clock_offsets_ms or {}).get(member.id, 0)
        _write(
            directory / member.id / "node.toml", _config(member, settings or {}, offset_ms, alone=nodes == 1).encode()
        )
    _write(directory / "genesis.json", genesis.to_json().encode())
    content = _File(chain=genesis.chain_id().hex(), format=FORMAT, nodes=members)
    # Last: a folder without it was not finished.
    _write(directory / "devnet.json", msgspec.json.format(msgspec.json.encode(content), indent=2))
    return Devnet(directory)


def new_wallet(path: Path, label: str) -> tuple[Wallet, Path]:
    """A development wallet and, beside it, the file with its passphrase."""
    passphrase_file = path.with_suffix(".passphrase")
    passphrase = secrets.token_hex(32).encode()
    _write(passphrase_file, passphrase + b"\n")
    # It cannot be guessed, and who finds the wallet finds it too: a costly derivation would protect nothing.
    return Wallet.create(path, passphrase, cost=COST_DEVELOPMENT, label=label), passphrase_file


def free_ports(count: int) -> list[int]:
    """Distinct ports on 127.0.0.1 that nobody listens on now. Raises DevnetError if too few are free."""
    found: list[int] = []
    with ExitStack() as held:
        start = secrets.randbelow(len(_PORTS))
        for step in range(len(_PORTS)):
            port = _PORTS[(start + step) % len(_PORTS)]
            # Held until all are found, so that two commands at once choose different ones.
            candidate = held.enter_context(socket.socket())
            try:
                candidate.bind(("127.0.0.1", port))
            except OSError:
                continue
            found.append(port)
            if len(found) == count:
                return found
    raise DevnetError(f"fewer than {count} free ports in {_PORTS.start}-{_PORTS.stop}")


def _found(folder: Path, member: DevnetNode) -> tuple[Node, Organisation]:
    """Make a member's keys, and say what genesis must know of them."""
    folder.mkdir(mode=0o700)
    seed = secrets.token_bytes(32)
    _write(folder / "node.key", key_pem(seed, None))
    wallet, _ = new_wallet(folder / "admin.wallet", member.name)
    node = Node(
        address=f"127.0.0.1:{member.peer_port}",
        certificate=make_certificate(seed, member.id),
        id=member.id,
        organisation=member.id,
        role="voter",
    )
    organisation = Organisation(admin_keys=[wallet.public_key], id=member.id, kind="hospital", name=member.name)
    return node, organisation


def _config(member: DevnetNode, settings: Settings, clock_offset_ms: int, *, alone: bool) -> str:
    tables: dict[str, dict[str, str | int | float]] = {
        "node": {"genesis": "../genesis.json", "data_dir": "data", "key_file": "node.key"},
        "peers": {"listen_host": "127.0.0.1", "listen_port": member.peer_port},
        "provider": {"host": "127.0.0.1", "port": member.provider_port},
    }
    if alone:
        tables["node"]["found"] = True
    for table, values in settings.items():
        tables.setdefault(table, {}).update(values)
    if clock_offset_ms:
        tables.setdefault("devnet", {})["clock_offset_ms"] = clock_offset_ms
    lines = ['preset = "machine"']
    for table, values in tables.items():
        lines += ["", f"[{table}]"]
        # JSON writes these strings and numbers as TOML does.
        lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    return "\n".join(lines) + "\n"


def _get(node: DevnetNode, path: str) -> tuple[int, bytes]:
    """Status and body, or status 0 where nobody answers."""
    connection = http.client.HTTPConnection("127.0.0.1", node.provider_port, timeout=REQUEST_TIMEOUT_S)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read(RESPONSE_BYTES_MAX)
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    return next((line[:300] for line in reversed(lines) if line.strip()), "it wrote nothing")


def _write(path: Path, data: bytes) -> None:
    """Create or replace a private file, whole or not at all."""
    temporary = path.with_name(path.name + ".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    temporary.replace(path)
