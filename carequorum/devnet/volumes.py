"""The volumes of the network in configs/docker: what founds it there, and what changes a node's configuration.

A node's volume holds node.toml, node.key, genesis.json and later data/; the volume `admin` holds genesis.json and,
for every member, a folder with the wallet of its first admin. `inside` calls this in containers.
"""

import os
import tempfile
import tomllib
from pathlib import Path

import msgspec

from carequorum.devnet.backend import Order
from carequorum.devnet.errors import DevnetError
from carequorum.devnet.files import change_config, write_network, write_private
from carequorum.devnet.members import DevnetNode, Seat, Settings

# Where compose.yaml mounts things, and who the daemon is.
MEMBERS = Path("/etc/carequorum/members.toml")
NODES = Path("/nodes")
ADMIN = Path("/admin")
HOME = Path("/var/lib/carequorum")
UID = 10_001
ORDER_VARIABLE = "CAREQUORUM_ORDER"
MEMBERS_MAX = 64


class Member(Seat, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One entry of members.toml. `published` is the port of 127.0.0.1 that leads to `provider`, which the member's
    container listens on; both `peer` and `provider` are host:port.
    """

    peer: str
    provider: str
    published: int

    def inside(self) -> DevnetNode:
        """As its own container knows it."""
        peer_host, peer_port = _address(self.peer)
        provider_host, provider_port = _address(self.provider)
        return DevnetNode(
            self.id, self.name, self.kind, self.role, peer_host, peer_port, provider_host, provider_port
        )

    def outside(self, published: int) -> DevnetNode:
        """As this machine knows it, with `published` leading to its provider port."""
        peer_host, peer_port = _address(self.peer)
        return DevnetNode(self.id, self.name, self.kind, self.role, peer_host, peer_port, provider_port=published)


class _Members(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    member: list[Member]


def read_members(path: Path) -> list[Member]:
    """The members in the file. Raises DevnetError."""
    try:
        members = msgspec.convert(tomllib.loads(path.read_text()), _Members).member
        for member in members:
            member.inside()
    except OSError as error:
        raise DevnetError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise DevnetError(f"{path}: {str(error)[:300]}") from None
    if not (0 < len(members) <= MEMBERS_MAX and len({member.id for member in members}) == len(members)):
        raise DevnetError(f"{path}: 1 to {MEMBERS_MAX} members, each id once")
    return members


def found(members: list[Member], nodes: Path, admin: Path, order: Order, owner: int | None = UID) -> bool:
    """Make keys and genesis, unless they are there: False. `nodes` has a folder for every member: its own volume.

    `owner` gets what is the nodes'; None leaves it to whom it is. Raises DevnetError where the volumes are not all of
    one network.
    """
    if (admin / "genesis.json").exists():
        for member in members:
            _belongs(nodes / member.id, admin / "genesis.json")
        return False
    for member in members:
        if (nodes / member.id / "data").exists():
            raise DevnetError(f"the volume of {member.id} holds a store, but genesis is lost: delete all volumes")
    # What an earlier run left half made is made anew: no node has started before all of it was there.
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch)
        settings = {**order.settings, "node": {**order.settings.get("node", {}), "genesis": "genesis.json"}}
        write_network(
            made,
            [member.inside() for member in members],
            backend="docker",
            settings=settings,
            clock_offsets_ms=order.clock_offsets_ms,
        )
        genesis = (made / "genesis.json").read_bytes()
        for member in members:
            own = {name: (made / member.id / name).read_bytes() for name in ("node.toml", "node.key")}
            _fill(nodes / member.id, {**own, "genesis.json": genesis}, owner)
            wallet = {name: (made / member.id / name).read_bytes() for name in ("admin.wallet", "admin.passphrase")}
            (admin / member.id).mkdir(mode=0o700, exist_ok=True)
            _fill(admin / member.id, wallet, None)
    # Last: it says that all is there.
    _fill(admin, {"genesis.json": genesis}, None)
    return True


def configure(home: Path, changes: Settings) -> None:
    """Change the node.toml of a node, by table and key."""
    path = home / "node.toml"
    write_private(path, change_config(path.read_bytes(), changes).encode())


def _fill(folder: Path, files: dict[str, bytes], owner: int | None) -> None:
    if owner is not None:
        # The engine may have given it to the daemon already, and another's folder cannot be changed.
        os.chown(folder, os.geteuid(), os.getegid())
    folder.chmod(0o700)
    for name, content in files.items():
        write_private(folder / name, content)
        if owner is not None:
            os.chown(folder / name, owner, owner)
    if owner is not None:
        os.chown(folder, owner, owner)


def _belongs(folder: Path, genesis: Path) -> None:
    path = folder / "genesis.json"
    if not path.exists() or path.read_bytes() != genesis.read_bytes():
        raise DevnetError(f"the volume of {folder.name} is not of this network: delete all volumes and begin anew")


def _address(text: str) -> tuple[str, int]:
    """Raises ValueError."""
    host, colon, port = text.rpartition(":")
    if not (host and colon and port.isascii() and port.isdigit() and 0 < int(port) < 65_536):
        raise ValueError(f"{text[:80]!r} is not host:port")
    return host, int(port)
