"""Daemons in network namespaces of this machine, each with an address of its own, joined by a bridge. Needs root.

    cq-1a2b3c4d               a namespace with the bridge br0, out of reach of the machine's own filters
    cq-1a2b3c4d-hospital-a    a node's: eth0 is 198.18.N.11, the next node's .12, and so on
    cq-1a2b3c4d               also the machine's own end of a wire to the bridge, as 198.18.N.1

The eight digits are the chain id's first, so that what belongs to a network is found again by its name alone. N is
chosen where the folder is made, and part of the genesis. Nothing leads out of the bridge but the machine's own end.
"""

import secrets
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network
from pathlib import Path

import msgspec

from carequorum.devnet.commands import inside, need, tool
from carequorum.devnet.errors import DevnetError
from carequorum.devnet.files import read_network
from carequorum.devnet.local import ProcessBackend
from carequorum.devnet.members import DevnetNode, Seat
from carequorum.devnet.programs import run

# For tests between networks (RFC 2544): no address of the internet, and hardly one of anybody's own network.
BLOCK = IPv4Network("198.18.0.0/16")
PREFIX_LENGTH = 24
HOST, FIRST_NODE = 1, 11
PEER_PORT, PROVIDER_PORT = 7400, 7480

NAMESPACES = Path("/run/netns")
BRIDGE, UPLINK, NODE_DEVICE = "br0", "host", "eth0"


class _Link(msgspec.Struct, frozen=True):
    """Of `ip -json link`, what is needed here."""

    ifname: str


class _Route(msgspec.Struct, frozen=True):
    """Of `ip -json route`. Some lead nowhere, and have no device."""

    dst: str
    dev: str = ""


class NetnsBackend(ProcessBackend):
    """As the process backend, but for where a daemon runs."""

    NAME = "netns"
    has_wires = True
    keeps_wires = True

    @classmethod
    def place(cls, seats: Sequence[Seat]) -> list[DevnetNode]:
        need()
        subnet = _free_subnet()
        return [
            DevnetNode(seat.id, seat.name, seat.kind, seat.role, host, PEER_PORT, host, PROVIDER_PORT)
            for seat, host in zip(
                seats, (str(subnet[FIRST_NODE + index]) for index in range(len(seats))), strict=True
            )
        ]

    def command(self, node: DevnetNode) -> list[str]:
        return inside(NAMESPACES / self._name(node), super().command(node))

    def raise_up(self) -> None:
        need()
        for target, device in _routes():
            if target.overlaps(self._subnet()) and device != self._base():
                raise DevnetError(f"{self._subnet()} is in use on this machine: {target} {device}".rstrip())
        for node in self.nodes:
            pid = self.pid(node)
            if pid is not None and not _is_in(pid, self.namespace(node)):
                raise DevnetError(f"somebody removed the namespace that {node.id} runs in: devnet kill {node.id}")
        for name in [self._base(), *map(self._name, self.nodes)]:
            _make_namespace(name)
        self._lay_wires()
        ports = [UPLINK, *map(self._port, self.nodes)]
        joined = [f"link set dev {port} master {BRIDGE}" for port in ports]
        _ip(self._base(), [*joined, *_up("lo"), *_up(BRIDGE), *(line for port in ports for line in _up(port))])
        _ip(None, _up(self._base(), f"{self._subnet()[HOST]}/{PREFIX_LENGTH}"))
        for node in self.nodes:
            _ip(self._name(node), [*_up("lo"), *_up(NODE_DEVICE, f"{node.peer_host}/{PREFIX_LENGTH}")])

    def tear_down(self, *, volumes: bool) -> None:
        super().tear_down(volumes=volumes)
        need()
        # The devices first: the kernel takes its time over those that it finds in a namespace.
        if _is_namespace(self._base()):
            _ip(self._base(), [f"link del dev {link}" for link in _links(self._base()) if link != "lo"])
        if self._base() in _links(None):
            _ip(None, [f"link del dev {self._base()}"])
        for path in sorted(NAMESPACES.glob(f"{self._base()}*")):
            if path.name == self._base() or path.name.startswith(f"{self._base()}-"):
                _remove_namespace(path.name)

    def namespace(self, node: DevnetNode) -> Path | None:
        return NAMESPACES / self._name(node) if _is_namespace(self._name(node)) else None

    def _lay_wires(self) -> None:
        """Every pair of devices, of which one end is at the bridge."""
        at_bridge = _links(self._base())
        adding = [] if BRIDGE in at_bridge else [f"link add {BRIDGE} netns {self._base()} type bridge"]
        ends = [(None, self._base(), UPLINK), *((self._name(n), NODE_DEVICE, self._port(n)) for n in self.nodes)]
        for namespace, device, port in ends:
            there = device in _links(namespace)
            if there and port in at_bridge:
                continue
            # Half of it, whose other end is in a namespace that somebody else removed.
            _ip(namespace, [f"link del dev {device}"] if there else [])
            _ip(self._base(), [f"link del dev {port}"] if port in at_bridge else [])
            where = f"netns {namespace} " if namespace else ""
            adding.append(f"link add {device} {where}type veth peer name {port} netns {self._base()}")
        _ip(None, adding)

    def _base(self) -> str:
        return f"cq-{read_network(self.directory)[0].chain[:8]}"

    def _name(self, node: DevnetNode) -> str:
        return f"{self._base()}-{node.id}"

    def _port(self, node: DevnetNode) -> str:
        """The node's port at the bridge, by the last number of its address."""
        return f"n{node.peer_host.rpartition('.')[2]}"

    def _subnet(self) -> IPv4Network:
        return IPv4Network(f"{self.nodes[0].peer_host}/{PREFIX_LENGTH}", strict=False)


def _free_subnet() -> IPv4Network:
    """One of BLOCK that nothing on this machine leads to. Raises DevnetError."""
    routes = _routes()
    free = [
        subnet
        for subnet in BLOCK.subnets(new_prefix=PREFIX_LENGTH)
        if not any(subnet.overlaps(target) for target, _ in routes)
    ]
    if not free:
        raise DevnetError(f"no subnet of {BLOCK} is free on this machine")
    # Networks that are down have no routes: chance keeps their subnets apart.
    return secrets.choice(free)


def _routes() -> list[tuple[IPv4Network, str]]:
    """Targets with their devices, but for routes that would take any address."""
    said = run([tool("ip"), "-json", "-4", "route", "show", "table", "all"])
    found = [
        (IPv4Network("0.0.0.0/0" if route.dst == "default" else route.dst, strict=False), route.dev)
        for route in msgspec.json.decode(said, type=list[_Route])
    ]
    return [(target, device) for target, device in found if target.prefixlen >= 8]


def _links(namespace: str | None) -> set[str]:
    """Names of the devices in a namespace, None is the one that we are in."""
    where = ["-n", namespace] if namespace else []
    said = run([tool("ip"), *where, "-json", "link", "show"])
    return {link.ifname for link in msgspec.json.decode(said, type=list[_Link])}


def _ip(namespace: str | None, lines: Iterable[str]) -> None:
    """Commands for ip, in this order."""
    text = "".join(f"{line}\n" for line in lines)
    if text:
        run([tool("ip"), *(["-n", namespace] if namespace else []), "-batch", "-"], text)


def _up(device: str, address: str | None = None) -> list[str]:
    """IPv4 or nothing: no device gets an address of IPv6 by itself."""
    lines = [f"link set dev {device} addrgenmode none"] if Path("/proc/sys/net/ipv6").exists() else []
    lines += [f"addr replace {address} dev {device}"] if address else []
    return [*lines, f"link set dev {device} up"]


def _is_namespace(name: str) -> bool:
    """Whether the name leads to a namespace, and is not the empty file of one that was never finished."""
    try:
        return (NAMESPACES / name).stat().st_dev == Path("/proc/self/ns/net").stat().st_dev
    except FileNotFoundError:
        return False


def _is_in(pid: int, namespace: Path | None) -> bool:
    try:
        return namespace is not None and Path(f"/proc/{pid}/ns/net").samefile(namespace)
    except FileNotFoundError:
        return True


def _make_namespace(name: str) -> None:
    if not _is_namespace(name):
        (NAMESPACES / name).unlink(missing_ok=True)
        run([tool("ip"), "netns", "add", name])


def _remove_namespace(name: str) -> None:
    if _is_namespace(name):
        run([tool("ip"), "netns", "del", name])
    else:
        (NAMESPACES / name).unlink(missing_ok=True)
