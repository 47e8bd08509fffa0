"""Each daemon in a container of its own, as configs/docker/compose.yaml says: four hospitals, a payer, a licensing
board, and a clinic that learns.

Keys, configurations and stores are in the containers' volumes. The network's folder has genesis, the admins' wallets
and devnet.json, so that programs of this machine work with `--at` as they do with the other backends. An engine has
room for one such network at a time, for its addresses are fixed.
"""

import hashlib
import json
import secrets
import signal
import socket
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import msgspec

from carequorum.devnet import containers, programs
from carequorum.devnet.backend import Order
from carequorum.devnet.containers import COMPOSE_TIMEOUT_S, FILES, State, docker, image
from carequorum.devnet.errors import DevnetError
from carequorum.devnet.files import free_ports, write_network_file
from carequorum.devnet.local import CHECK_TIMEOUT_S, checked
from carequorum.devnet.members import LOOPBACK, DevnetNode, Settings
from carequorum.devnet.volumes import ADMIN, HOME, ORDER_VARIABLE, Member, read_members
from carequorum.processes import Ended
from ledger.genesis import genesis_from_json

INIT = "init"
INIT_TIMEOUT_S = 60.0
# Compose's own labels, the same in both of its generations, whose names of containers differ.
_PROJECT, _SERVICE = "com.docker.compose.project", "com.docker.compose.service"
_CONFINED = ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--network=none")


class DockerBackend:
    """One container for each member of members.toml."""

    NAME = "docker"
    has_wires = True
    keeps_wires = False
    has_volumes = True

    def __init__(self, directory: Path, nodes: list[DevnetNode]) -> None:
        self.directory = directory
        self.nodes = nodes
        # From the folder, so that it needs no file of its own: two folders are two projects.
        self.project = "carequorum-" + hashlib.sha256(str(directory).encode()).hexdigest()[:12]
        self._ids: dict[str, str] = {}

    @classmethod
    def found(cls, directory: Path, order: Order) -> None:
        members = read_members(FILES / "members.toml")
        _refuse(order, members)
        containers.ensure_image()
        backend = cls(directory, _published(members))
        if left := backend._volumes():
            raise DevnetError(
                f"an earlier network of {directory} left its volumes: docker volume rm {' '.join(left)}"
            )
        try:
            backend._found(order)
        except BaseException:
            # Nothing was there before: what is there now is half of it.
            with suppress(DevnetError):
                backend.tear_down(volumes=True)
            raise

    @classmethod
    def open(cls, directory: Path, nodes: list[DevnetNode]) -> Self:
        return cls(directory, nodes)

    def raise_up(self) -> None:
        if not {node.id for node in self.nodes} <= self.containers().keys():
            have = self._volumes()
            lost = [node.id for node in self.nodes if f"{self.project}_{node.id}" not in have]
            if lost:
                raise DevnetError(
                    f"the volumes of {', '.join(lost)} were deleted, with their keys: make the network anew"
                )
            containers.ensure_image()
            # Without init, for which Compose 1.29 would wait even where it starts nothing.
            self._compose("up", "--no-start", "--no-deps", *(node.id for node in self.nodes))
        self._join()

    def tear_down(self, *, volumes: bool) -> None:
        self._compose("--profile", "metrics", "down", "--remove-orphans", *(["--volumes"] if volumes else []))
        self._ids.clear()

    def launch(self, node: DevnetNode) -> None:
        _run([docker(), "start", self._id(node.id)])

    def pid(self, node: DevnetNode) -> int | None:
        state = self._state(node)
        return state.pid if state is not None and state.running and state.pid else None

    def ended(self, node: DevnetNode) -> Ended | None:
        state = self._state(node)
        if state is None:
            return Ended(None)
        return None if state.running else _ended(state)

    def end(self, nodes: Iterable[DevnetNode], number: signal.Signals, timeout_s: float) -> dict[str, Ended | None]:
        running = [node for node in nodes if self.pid(node) is not None]
        if not running:
            return {}
        ids = [self._id(node.id) for node in running]
        # Those that are paused take it too: the engine lets them go on once it is on its way. One may have ended just
        # now, which is no fault.
        _attempt([docker(), "kill", f"--signal={number.name}", *ids])
        with suppress(subprocess.TimeoutExpired):
            subprocess.run([docker(), "wait", *ids], capture_output=True, timeout=timeout_s, check=False)
        return {node.id: self.ended(node) for node in running}

    def freeze(self, node: DevnetNode) -> None:
        self._in_state(node, "pause", paused=True)

    def thaw(self, node: DevnetNode) -> None:
        self._in_state(node, "unpause", paused=False)

    def frozen(self, node: DevnetNode) -> bool:
        state = self._state(node)
        return state is not None and state.running and state.paused

    def log(self, node: DevnetNode, lines: int) -> list[str]:
        if node.id not in self.containers():
            return []
        ended = _attempt([docker(), "logs", f"--tail={lines}", self._id(node.id)])
        # The daemon's two outputs come apart; it writes nothing but its log, to the second.
        return (ended.stdout + ended.stderr).splitlines()[-lines:]

    def configure(self, node: DevnetNode, changes: Settings) -> None:
        words = ["python", "-m", "carequorum.devnet.inside", "configure", json.dumps(changes)]
        with self._aside(node, words) as command:
            _run(command)

    def namespace(self, node: DevnetNode) -> Path | None:
        pid = self.pid(node)
        return Path(f"/proc/{pid}/ns/net") if pid is not None else None

    def check(self, node: DevnetNode) -> dict[str, Any]:
        words = ["carequorum", "check", "--data", str(HOME / "data"), "--json"]
        with self._aside(node, words) as command:
            return checked(node, command, CHECK_TIMEOUT_S)

    def containers(self) -> dict[str, str]:
        """Service to the id of its container, running or not."""
        words = ["ps", "--all", "--no-trunc", f"--filter=label={_PROJECT}={self.project}"]
        text = _run([docker(), *words, f'--format={{{{.Label "{_SERVICE}"}}}} {{{{.ID}}}}'])
        self._ids = dict(line.split() for line in text.splitlines())
        return self._ids

    def _found(self, order: Order) -> None:
        self._compose("up", "--no-start", "--no-deps", INIT, order=order)
        ended = _attempt([docker(), "start", "--attach", self._id(INIT)], INIT_TIMEOUT_S)
        if ended.returncode:
            said = (ended.stderr.strip().splitlines() or [f"it ended with {ended.returncode}"])[-1]
            raise DevnetError(f"the init service: {said[:300]}")
        _run([docker(), "cp", f"{self._id(INIT)}:{ADMIN}/.", str(self.directory)])
        for path in sorted(self.directory.rglob("*")):
            path.chmod(0o700 if path.is_dir() else 0o600)
        genesis = genesis_from_json((self.directory / "genesis.json").read_text())
        write_network_file(self.directory, self.NAME, genesis, self.nodes)

    def _join(self) -> None:
        """Put every container on all of its networks. Compose 1.29 does so only when it starts one itself."""
        members = read_members(FILES / "members.toml")
        ids = [self._id(member.id) for member in members]
        said = _run([docker(), "inspect", "--format={{json .NetworkSettings.Networks}}", *ids]).splitlines()
        for member, container, joined in zip(members, ids, map(json.loads, said), strict=True):
            known = member.inside()
            for network, address in (("peers", known.peer_host), (member.id, known.provider_host)):
                name = f"{self.project}_{network}"
                if name not in joined:
                    words = ["network", "connect", f"--ip={address}", f"--alias={member.id}", name, container]
                    _run([docker(), *words])

    @contextmanager
    def _aside(self, node: DevnetNode, words: list[str]) -> Iterator[list[str]]:
        """The command that runs `words` in a container of its own, on the volume of a node that does not run. The
        container is gone afterwards, even where only the command was ended.
        """
        name = f"{self.project}-aside-{secrets.token_hex(4)}"
        mount = f"type=volume,source={self.project}_{node.id},target={HOME}"
        # The volume has room for whatever is only for the moment; memory may not.
        options = [*_CONFINED, f"--name={name}", f"--env=TMPDIR={HOME}", "--mount", mount]
        try:
            yield [docker(), "run", "--rm", *options, image(), *words]
        finally:
            with suppress(DevnetError):
                _attempt([docker(), "rm", "--force", name])

    def _in_state(self, node: DevnetNode, verb: str, *, paused: bool) -> None:
        state = self._state(node)
        if state is None or not state.running:
            raise DevnetError(f"{node.id} does not run")
        if state.paused != paused:
            _run([docker(), verb, self._id(node.id)])

    def _state(self, node: DevnetNode) -> State | None:
        """None if it has no container."""
        for _ in range(2):
            container = self._ids.get(node.id) or self.containers().get(node.id)
            if container is None:
                return None
            ended = _attempt([docker(), "inspect", "--format={{json .State}}", container])
            if ended.returncode == 0:
                return msgspec.json.decode(ended.stdout, type=State)
            # Another command may have made the containers anew.
            self._ids.clear()
        return None

    def _id(self, service: str) -> str:
        container = self._ids.get(service) or self.containers().get(service)
        if container is None:
            raise DevnetError(f"{service} has no container: devnet up")
        return container

    def _volumes(self) -> list[str]:
        words = ["volume", "ls", f"--filter=label={_PROJECT}={self.project}", "--format={{.Name}}"]
        return _run([docker(), *words]).split()

    def _compose(self, *words: str, order: Order | None = None) -> None:
        settings = {containers.IMAGE_VARIABLE: image(), "COMPOSE_PROFILES": ""}
        settings |= {_port_variable(node): str(node.provider_port) for node in self.nodes}
        if order is not None:
            settings[ORDER_VARIABLE] = msgspec.json.encode(order).decode()
        chosen = ["--project-name", self.project, "--file", str(FILES / "compose.yaml")]
        programs.run([*containers.compose(), *chosen, *words], settings=settings, timeout_s=COMPOSE_TIMEOUT_S)


def _run(command: list[str]) -> str:
    return programs.run(command, timeout_s=containers.TIMEOUT_S)


def _attempt(command: list[str], timeout_s: float = containers.TIMEOUT_S) -> subprocess.CompletedProcess[str]:
    return programs.attempt(command, timeout_s=timeout_s)


def _refuse(order: Order, members: list[Member]) -> None:
    counts = {role: sum(member.role == role for member in members) for role in ("voter", "learner")}
    if order.nodes not in (None, counts["voter"]) or order.learners not in (None, counts["learner"]):
        raise DevnetError(
            f"the docker backend has the {len(members)} members of {FILES / 'members.toml'}: leave out how many"
        )


def _published(members: list[Member]) -> list[DevnetNode]:
    """With the ports of members.toml, or others if one of them is taken."""
    ports = [member.published for member in members]
    if not all(_is_free(port) for port in ports):
        ports = free_ports(len(members))
    return [member.outside(port) for member, port in zip(members, ports, strict=True)]


def _is_free(port: int) -> bool:
    with socket.socket() as candidate:
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def _port_variable(node: DevnetNode) -> str:
    return "CAREQUORUM_PORT_" + node.id.upper().replace("-", "_")


def _ended(state: State) -> Ended:
    """As for a process of this machine: a signal is a negative code."""
    return Ended(128 - state.exit_code if state.exit_code > 128 else state.exit_code)
