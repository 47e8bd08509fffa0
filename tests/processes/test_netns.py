"""Networks in network namespaces: what they stand on is made, mended and removed whole; a cut there is a cut."""

import asyncio
import secrets
import socket
from collections.abc import Iterator
from ipaddress import IPv4Network
from pathlib import Path

import msgspec
import pytest

from carequorum.client import Client
from carequorum.devnet import Devnet, DevnetError, create, netns
from carequorum.devnet.commands import missing as lack
from carequorum.devnet.commands import tool
from carequorum.devnet.netns import NetnsBackend
from carequorum.devnet.programs import run
from carequorum.processes import Process, is_running
from tests.processes.hospitals import enrol, missing, settled
from tests.processes.load import CONTENT
from tests.processes.sockets import socket_in

LACK = lack()
pytestmark = [pytest.mark.processes, pytest.mark.skipif(LACK is not None, reason=str(LACK))]
PATIENCE_S = 20.0


def backend_of(network: Devnet) -> NetnsBackend:
    return NetnsBackend.open(network.directory, network.nodes)


def remains(network: Devnet) -> list[str]:
    """Everything on this machine that has the network's name."""
    base = f"cq-{network.genesis.chain_id().hex()[:8]}"
    links = run([tool("ip"), "-brief", "link"]).splitlines()
    return [path.name for path in netns.NAMESPACES.glob(f"{base}*")] + [link for link in links if base in link]


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[Devnet]:
    """Namespaces and bridge for two nodes that do not run."""
    network = create(tmp_path / "net", 2, backend="netns")
    try:
        backend_of(network).raise_up()
        yield network
    finally:
        network.down()
    assert remains(network) == []


def connects(network: Devnet) -> None:
    """From this machine to each node's address and port, and from the one node to the other."""
    first, second = network.nodes
    for source, target in ((None, first), (None, second), (first, second)):
        namespace = Path("/proc/self/ns/net") if source is None else backend_of(network).namespace(source)
        home = backend_of(network).namespace(target)
        assert namespace is not None
        assert home is not None
        with socket_in(home, socket.SOCK_STREAM) as listener, socket_in(namespace, socket.SOCK_STREAM) as end:
            listener.bind((target.provider_host, target.provider_port))
            listener.listen(1)
            end.settimeout(PATIENCE_S)
            end.connect((target.provider_host, target.provider_port))


def test_nodes_have_addresses_of_their_own_and_nothing_else_does(bare: Devnet) -> None:
    connects(bare)
    hosts = [node.peer_host for node in bare.nodes]
    subnet = IPv4Network(f"{hosts[0]}/24", strict=False)
    assert hosts == [str(subnet[11]), str(subnet[12])]
    assert subnet.subnet_of(netns.BLOCK)
    for node in bare.nodes:
        shown = run([tool("ip"), "-n", backend_of(bare)._name(node), "-brief", "-6", "address", "show", "eth0"])
        assert shown == ""


def test_raising_up_twice_changes_nothing(bare: Devnet) -> None:
    before = remains(bare), [inode(bare, index) for index in range(2)]
    backend_of(bare).raise_up()
    assert (remains(bare), [inode(bare, index) for index in range(2)]) == before
    connects(bare)


def inode(network: Devnet, index: int) -> int:
    path = backend_of(network).namespace(network.nodes[index])
    assert path is not None
    return path.stat().st_ino


@pytest.mark.parametrize("lost", ["namespace of a node", "namespace of the bridge", "own end", "bridge", "address"])
def test_what_is_half_there_is_mended(bare: Devnet, lost: str) -> None:
    base, ip = backend_of(bare)._base(), tool("ip")
    if lost == "namespace of a node":
        # As ip leaves it when it is killed on its way.
        run([ip, "netns", "del", f"{base}-hospital-a"])
        (netns.NAMESPACES / f"{base}-hospital-a").touch()
    elif lost == "namespace of the bridge":
        run([ip, "-n", base, "link", "del", "n11"])
        run([ip, "-n", base, "link", "del", "n12"])
        run([ip, "link", "del", base])
        run([ip, "netns", "del", base])
    elif lost == "own end":
        run([ip, "link", "del", base])
    elif lost == "bridge":
        run([ip, "-n", base, "link", "del", netns.BRIDGE])
    else:
        run([ip, "-n", f"{base}-hospital-b", "address", "flush", "dev", "eth0"])
        run([ip, "-n", f"{base}-hospital-b", "link", "set", "lo", "down"])
    backend_of(bare).raise_up()
    connects(bare)


def test_a_subnet_that_is_in_use_is_not_taken(bare: Devnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subnet = IPv4Network(f"{bare.nodes[0].peer_host}/24", strict=False)
    other = create(tmp_path / "other", 1, backend="netns")
    assert IPv4Network(f"{other.nodes[0].peer_host}/24", strict=False) != subnet
    with pytest.raises(DevnetError, match=f"{subnet} is in use on this machine"):
        NetnsBackend.open(other.directory, bare.nodes).raise_up()
    assert remains(other) == []
    monkeypatch.setattr(netns, "BLOCK", subnet)
    with pytest.raises(DevnetError, match=f"no subnet of {subnet} is free"):
        create(tmp_path / "third", 1, backend="netns")


def test_tearing_down_ends_delayers_and_can_be_done_twice(bare: Devnet) -> None:
    bare.delay("hospital-a", 50, 10)
    bare.partition([["hospital-a"], ["hospital-b"]])
    noted = bare.folder(bare.nodes[0]) / "wire.json"
    found = delayer_of(noted)
    assert found is None or is_running(found)
    bare.down()
    assert remains(bare) == []
    assert found is None or not is_running(found)
    bare.down()


def delayer_of(noted: Path) -> Process | None:
    """None on a kernel with netem."""
    return msgspec.convert(msgspec.json.decode(noted.read_bytes())["process"], Process) if noted.exists() else None


@pytest.mark.asyncio
async def test_a_leader_that_is_cut_off_is_replaced_and_follows_when_the_cut_is_healed(tmp_path: Path) -> None:
    network = await asyncio.to_thread(create, tmp_path / "net", 3, backend="netns")
    try:
        await asyncio.to_thread(network.start, network.nodes)
        wallet = await enrol(network, network.nodes[0], tmp_path, "clinician", "clinician")
        leader = network.leader()
        assert leader is not None
        await asyncio.to_thread(
            network.partition, [[leader.id], [node.id for node in network.nodes if node != leader]]
        )
        others = [node.url for node in network.nodes if node != leader]
        async with Client(others, network.genesis, wallet) as client:
            added = await client.add_record(
                CONTENT, "application/fhir+json", subject=secrets.token_bytes(32), readers=[wallet.public_key]
            )
            assert (await client.network()).leader != leader.id
        await asyncio.to_thread(network.heal)
        views = await settled(network)
        assert {view.leader for view in views} != {leader.id}
        assert await missing(network, [added.committed]) == []
        ended = await asyncio.to_thread(network.down)
        assert {how.code for how in ended.values() if how} == {0}
        assert remains(network) == []
    finally:
        await asyncio.to_thread(network.kill, network.nodes)
        await asyncio.to_thread(network.down)
