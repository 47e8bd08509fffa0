"""What may run the nodes of a development network: one table, the same verbs for all.

process     daemons of this machine, on ports of 127.0.0.1; there is no wire between them that could be cut
netns       each daemon in a network namespace of its own, joined by a bridge; needs root
docker      each daemon in a container, as configs/docker/compose.yaml says; faults on its wire need root
"""

from collections.abc import Mapping

from carequorum.devnet.backend import Backend
from carequorum.devnet.docker import DockerBackend
from carequorum.devnet.errors import DevnetError
from carequorum.devnet.local import ProcessBackend
from carequorum.devnet.netns import NetnsBackend

BACKENDS: Mapping[str, type[Backend]] = {
    "process": ProcessBackend,
    "netns": NetnsBackend,
    "docker": DockerBackend,
}


def backend_named(name: str) -> type[Backend]:
    """Raises DevnetError."""
    if name not in BACKENDS:
        raise DevnetError(f"no backend {name[:40]!r}; there are {', '.join(BACKENDS)}")
    return BACKENDS[name]
