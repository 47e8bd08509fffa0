"""A network of hospitals on one machine, whatever runs its nodes."""

import http.client
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from carequorum.devnet import wire
from carequorum.devnet.backend import Order
from carequorum.devnet.backends import backend_named
from carequorum.devnet.errors import DevnetError
from carequorum.devnet.faults import Faults, Wire
from carequorum.devnet.files import locked, read_faults, read_network, write_faults
from carequorum.devnet.members import DevnetNode, Settings
from carequorum.processes import Ended
from carequorum.views import NetworkStatus, decode_view

READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
# How a daemon ends that the other nodes removed (docs/operations.md).
REMOVED_CODE = 5
REQUEST_TIMEOUT_S = 5.0
RESPONSE_BYTES_MAX = 4 * 1024 * 1024
_POLL_S = 0.05


class NodeStatus(msgspec.Struct, frozen=True):
    """`network` is what the node says of itself and the others, None while it says nothing."""

    id: str
    url: str
    pid: int | None
    paused: bool
    ready: bool
    network: NetworkStatus | None


class Devnet:
    """The network in `directory`, which `create` made. Raises DevnetError."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.resolve()
        content, self.genesis = read_network(self.directory)
        self.nodes = content.nodes
        self.backend_name = content.backend
        self._backend = backend_named(content.backend).open(self.directory, content.nodes)

    def node(self, node_id: str) -> DevnetNode:
        for node in self.nodes:
            if node.id == node_id:
                return node
        raise DevnetError(f"no node {node_id!r}; there are {', '.join(node.id for node in self.nodes)}")

    def folder(self, node: DevnetNode) -> Path:
        return self.directory / node.id

    def log(self, node: DevnetNode) -> Path:
        return self.folder(node) / "node.log"

    def last_lines(self, node: DevnetNode, lines: int) -> list[str]:
        """The end of what its daemon wrote."""
        return self._backend.log(node, lines)

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
        waiting, removed = list(dict.fromkeys(nodes)), []
        with locked(self.directory):
            faults = self.faults
            self._raise_up()
            starting = [node for node in waiting if self._backend.pid(node) is None]
            for node in starting:
                self._backend.launch(node)
            self._apply(starting, faults, new=not self._backend.keeps_wires)
        deadline = time.monotonic() + timeout_s
        while waiting:
            for node in list(waiting):
                # Asked once: the exit code is gone with the process.
                ended = self._backend.ended(node)
                if ended is not None and ended.code == REMOVED_CODE:
                    waiting.remove(node)
                    removed.append(node)
                elif self._has_become_ready(node, ended):
                    waiting.remove(node)
                    on_ready(node)
            if waiting and time.monotonic() > deadline:
                names = ", ".join(node.id for node in waiting)
                why = f"its wires: {faults}" if faults != Faults() else f"see the log of {waiting[0].id}"
                raise DevnetError(f"not ready within {timeout_s:g} s: {names}; {why}")
            if waiting:
                time.sleep(_POLL_S)
        return removed

    def stop(self, nodes: Iterable[DevnetNode], timeout_s: float = STOP_TIMEOUT_S) -> dict[str, Ended | None]:
        """SIGTERM, then wait. For each node that ran: how it ended, or None if it would not in time."""
        return self._backend.end(nodes, signal.SIGTERM, timeout_s)

    def kill(self, nodes: Iterable[DevnetNode]) -> dict[str, Ended | None]:
        """SIGKILL, for each node that ran."""
        return self._backend.end(nodes, signal.SIGKILL, STOP_TIMEOUT_S)

    def pause(self, nodes: Iterable[DevnetNode]) -> None:
        """Stop each in the middle of what it does, with its connections open."""
        for node in nodes:
            self._backend.freeze(node)

    def resume(self, nodes: Iterable[DevnetNode]) -> None:
        """Let those that were paused go on."""
        for node in nodes:
            self._backend.thaw(node)

    def paused(self, node: DevnetNode) -> bool:
        """Whether `pause` stopped it."""
        return self._backend.frozen(node)

    def down(self, *, volumes: bool = False) -> dict[str, Ended | None]:
        """Stop every node, then remove what they stood on. The folder stays, and with it the wires' faults; a node
        that does not stop leaves everything as it is.
        """
        if volumes and not self._backend.has_volumes:
            raise DevnetError(f"the {self.backend_name} backend keeps nothing outside of {self.directory}")
        with locked(self.directory):
            ended = self.stop(self.nodes)
            if all(ended.values()):
                for node in self.nodes:
                    wire.forget(self.folder(node) / wire.STATE)
                self._backend.tear_down(volumes=volumes)
        return ended

    def _raise_up(self) -> None:
        """What the nodes stand on, or nothing: half of it stays only where somebody stands on it."""
        try:
            self._backend.raise_up()
        except BaseException:
            with suppress(DevnetError):
                if all(self._backend.pid(node) is None for node in self.nodes):
                    self._backend.tear_down(volumes=False)
            raise

    def pid(self, node: DevnetNode) -> int | None:
        """The daemon's process on this machine, while it runs."""
        return self._backend.pid(node)

    def configure(self, node: DevnetNode, changes: Settings) -> None:
        """Change the configuration of a node, by table and key; it counts from the node's next start."""
        self._backend.configure(node, changes)

    def check(self, node: DevnetNode) -> dict[str, Any]:
        """What `carequorum check --json` says of the store of a node that does not run."""
        return self._backend.check(node)

    # the wires between the nodes

    @property
    def faults(self) -> Faults:
        """What is wrong with them now."""
        return read_faults(self.directory, self.nodes)

    def partition(self, groups: Sequence[Iterable[str]]) -> Faults:
        """Cut groups of nodes from each other, see `Faults`."""
        return self._change(lambda faults: faults.partition([list(group) for group in groups]))

    def oneway(self, source: str, target: str) -> Faults:
        """Drop what goes from one node to another, and not what comes back."""
        return self._change(lambda faults: faults.oneway(source, target))

    def delay(self, node: str, delay_ms: int, jitter_ms: int = 0) -> Faults:
        """Delay a node's packets, one way."""
        return self._change(lambda faults: faults.delay(node, delay_ms, jitter_ms))

    def loss(self, node: str, percent: float) -> Faults:
        """Lose a share of a node's packets, one way."""
        return self._change(lambda faults: faults.loss(node, percent))

    def heal(self) -> Faults:
        """End all of it."""
        return self._change(None)

    def _change(self, change: Callable[[Faults], Faults] | None) -> Faults:
        """Make the faults anew of the last ones, or none of them, whatever they were."""
        if not self._backend.has_wires:
            raise DevnetError("between processes there is no wire to break: devnet up --backend netns, or docker")
        with locked(self.directory):
            faults = change(self.faults) if change is not None else Faults()
            faults.check({node.id for node in self.nodes})
            # Kept first: whoever starts a node from now on applies it.
            write_faults(self.directory, faults)
            self._apply(self.nodes, faults)
        return faults

    def _apply(self, nodes: Iterable[DevnetNode], faults: Faults, *, new: bool = False) -> None:
        """`new` says that nobody has broken these wires yet: those that shall be whole are, and nobody needs root."""
        hosts = {node.id: node.peer_host for node in self.nodes}
        for node in nodes:
            wanted, state = faults.wire(node.id, hosts), self.folder(node) / wire.STATE
            namespace = self._backend.namespace(node)
            if namespace is None and self._backend.has_wires and self._backend.pid(node) is not None:
                raise DevnetError(
                    f"{node.id} runs in a network namespace that somebody removed: devnet kill {node.id}"
                )
            if namespace is None or (new and wanted == Wire()):
                # Of an earlier namespace, if there is one.
                wire.forget(state)
            else:
                wire.apply(namespace, node.peer_host, wanted, state)

    # what the nodes say

    def status(self) -> list[NodeStatus]:
        found = []
        for node in self.nodes:
            pid, paused = self._backend.pid(node), self._backend.frozen(node)
            answers = pid is not None and not paused
            network = self._network(node) if answers else None
            ready = answers and _get(node, "/readyz")[0] == 200
            found.append(NodeStatus(node.id, node.url, pid, paused, ready, network))
        return found

    def leader(self) -> DevnetNode | None:
        """The running node that leads in the newest term anyone speaks of, if one does."""
        views = [view for node in self.nodes if self._can_answer(node) and (view := self._network(node))]
        # Who is cut off from the leader does not know it, in the same term.
        newest = max(views, key=lambda view: (view.term, view.leader is not None), default=None)
        if newest is None or newest.leader is None:
            return None
        node = self.node(newest.leader)
        return node if self._can_answer(node) else None

    def _can_answer(self, node: DevnetNode) -> bool:
        return self._backend.pid(node) is not None and not self._backend.frozen(node)

    def _network(self, node: DevnetNode) -> NetworkStatus | None:
        status, body = _get(node, "/v1/network")
        if status != 200:
            return None
        view = decode_view(NetworkStatus, body)
        if (view.node, view.chain) != (node.id, self.genesis.chain_id().hex()):
            raise DevnetError(f"{node.url} is {view.node} of {view.network}: the port is taken")
        return view

    def _has_become_ready(self, node: DevnetNode, ended: Ended | None) -> bool:
        if ended is not None:
            code = "" if ended.code is None else f" with {ended.code}"
            raise DevnetError(f"the daemon of {node.id} ended{code}: {self._last_words(node)}")
        return _get(node, "/readyz")[0] == 200 and self._network(node) is not None

    def _last_words(self, node: DevnetNode) -> str:
        said = [line for line in self._backend.log(node, 5) if line.strip()]
        return said[-1][:300] if said else "it wrote nothing"


def create(
    directory: Path,
    nodes: int | None = None,
    *,
    learners: int | None = None,
    backend: str = "process",
    settings: Settings | None = None,
    clock_offsets_ms: Mapping[str, int] | None = None,
) -> Devnet:
    """Make a network in a new or empty folder, of `nodes` that vote and `learners` that do not, where the backend
    lets them be chosen.

    `settings` adds to every node.toml, by table and key; `clock_offsets_ms` shifts the clocks of single
    nodes, by id. Raises DevnetError.
    """
    if sys.platform != "linux":
        raise DevnetError("development networks need Linux (/proc and pidfd)")
    kind = backend_named(backend)
    directory = directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
        half = " and was not finished: remove it" if (directory / "genesis.json").exists() else ""
        raise DevnetError(f"{directory} is not empty{half}")
    directory.chmod(0o700)
    try:
        kind.found(directory, Order(nodes, learners, settings or {}, clock_offsets_ms or {}))
    except BaseException:
        # It was empty, and half of a network can neither be used nor made whole.
        for path in directory.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        with suppress(OSError):
            directory.rmdir()
        raise
    return Devnet(directory)


def _get(node: DevnetNode, path: str) -> tuple[int, bytes]:
    """Status and body, or status 0 where nobody answers."""
    connection = http.client.HTTPConnection(node.provider_host, node.provider_port, timeout=REQUEST_TIMEOUT_S)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read(RESPONSE_BYTES_MAX)
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()
