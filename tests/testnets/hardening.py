"""Whether the containers of a network run as confined as configs/docker says, by the engine's own word."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from carequorum.devnet import Devnet
from carequorum.devnet.containers import docker
from carequorum.devnet.docker import DockerBackend
from carequorum.devnet.members import LOOPBACK
from carequorum.devnet.programs import run
from carequorum.devnet.volumes import UID

# The first health check comes 10 s after the start, and may come just before the node is ready.
HEALTHY_TIMEOUT_S = 45.0
_POLL_S = 0.5
NO_NEW_PRIVILEGES = ("no-new-privileges", "no-new-privileges:true")


def hardening(devnet: Devnet, timeout_s: float = HEALTHY_TIMEOUT_S) -> list[str]:
    """What is wrong with the running containers of a network of the docker backend, whose nodes are ready; nothing if
    all is as it shall be. Waits until the engine has found them healthy, or for `timeout_s`. Raises DevnetError.
    """
    ids = DockerBackend.open(devnet.directory, devnet.nodes).containers()
    names = {node.id: ids[node.id] for node in devnet.nodes if node.id in ids}
    lost = [f"{node.id} has no container" for node in devnet.nodes if node.id not in ids]
    deadline = time.monotonic() + timeout_s
    while True:
        said = run([docker(), "inspect", *names.values()]) if names else "[]"
        documents = dict(zip(names, msgspec.json.decode(said, type=list[dict[str, Any]]), strict=True))
        starting = [name for name, document in documents.items() if _health(document) != "healthy"]
        if not starting or time.monotonic() > deadline:
            break
        time.sleep(_POLL_S)
    return lost + [f"{name}: {finding}" for name, document in documents.items() for finding in findings(document)]


def findings(document: Mapping[str, Any]) -> list[str]:
    """What is wrong with one container, as `docker inspect` describes it. What it does not say is wrong, too."""
    host: Mapping[str, Any] = document.get("HostConfig") or {}
    user = (document.get("Config") or {}).get("User")
    wrong = {
        f"its health is {_health(document)}": _health(document) != "healthy",
        f"it runs as {user!r}": user != f"{UID}:{UID}",
        "its root file system can be written": host.get("ReadonlyRootfs") is not True,
        f"of its capabilities it lost {host.get('CapDrop')}": host.get("CapDrop") != ["ALL"],
        f"it was given the capabilities {host.get('CapAdd')}": bool(host.get("CapAdd")),
        "it is privileged": host.get("Privileged") is not False,
        "it may gain privileges": not set(NO_NEW_PRIVILEGES) & set(host.get("SecurityOpt") or ()),
        "it has no bound on its memory": not host.get("Memory"),
        "it has no bound on its processes": not (host.get("PidsLimit") or 0) > 0,
    }
    return [finding for finding, holds in wrong.items() if holds] + _ports(document)


def _ports(document: Mapping[str, Any]) -> list[str]:
    """Its provider port, and nothing else, is published, on the loopback interface only."""
    published: Mapping[str, Sequence[Mapping[str, str]] | None]
    published = (document.get("NetworkSettings") or {}).get("Ports") or {}
    found = [(port, binding) for port, bindings in published.items() for binding in bindings or ()]
    elsewhere = [
        f"port {port} is published on {binding.get('HostIp') or 'every address'}"
        for port, binding in found
        if binding.get("HostIp") != LOOPBACK
    ]
    return elsewhere + ([] if len(found) == 1 else [f"{len(found)} ports are published"])


def _health(document: Mapping[str, Any]) -> str:
    """`none` without a health check."""
    return str(((document.get("State") or {}).get("Health") or {}).get("Status") or "none")
