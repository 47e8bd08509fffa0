"""Keys and passphrases are in their own files, which nobody else may read, and nowhere else."""

import asyncio
import stat
from pathlib import Path

import pytest

from carequorum.client import Client
from carequorum.devnet import Devnet, create
from carequorum.wallet import Wallet, read_passphrase
from ledger.node_cert import seed_from_pem
from tests.processes.hospitals import admin_of, enrol, settled, started, urls_from
from tests.processes.leaks import Finder

pytestmark = pytest.mark.processes


def node_secrets(network: Devnet) -> set[bytes]:
    """The seed of every node; the seeds of every admin and the passphrase of its wallet."""
    found: set[bytes] = set()
    for node in network.nodes:
        found.add(seed_from_pem((network.folder(node) / "node.key").read_bytes(), None))
        found.update(admin_of(network, node).seeds)
        found.add(read_passphrase(network.wallet(node)[1]))
    return found


def told_to(pid: int) -> list[bytes]:
    """A running process's arguments and environment, as others on the machine may see the first."""
    return [Path(f"/proc/{pid}/{name}").read_bytes() for name in ("cmdline", "environ")]


async def rotated_member(network: Devnet, folder: Path) -> Wallet:
    """A clinician who has added a record before and after a change of key."""
    node = network.nodes[0]
    wallet = await enrol(network, node, folder, "clinician", "clinician")
    async with Client(urls_from(network, node), network.genesis, wallet) as client:
        for _ in range(2):
            await client.add_record(b"{}", "application/fhir+json", subject=bytes(32), readers=[wallet.public_key])
            await client.rotate(wait="sealed")
    return wallet


@pytest.mark.asyncio
async def test_keys_are_in_their_own_files_and_nowhere_else(tmp_path: Path) -> None:
    network = create(tmp_path / "net", settings={"logging": {"level": "debug"}})
    members = network.directory / "members"
    members.mkdir()
    async with started(network):
        wallet = await rotated_member(network, members)
        await settled(network)
        pids = [pid for node in network.nodes if (pid := network.pid(node)) is not None]
        told = [data for pid in pids for data in told_to(pid)]
        ended = await asyncio.to_thread(network.stop, network.nodes)
    assert len(ended) == len(pids) == len(network.nodes)
    assert len(wallet.seeds) == 3

    passphrase = members / "clinician.passphrase"
    finder = Finder({*node_secrets(network), *wallet.seeds, read_passphrase(passphrase)})
    assert [finder.find(each) for each in told] == [[] for _ in told]
    files = [path for path in network.directory.rglob("*") if path.is_file()]
    holders = {path for path in files if finder.find(path.read_bytes())}
    keys = {network.folder(node) / name for node in network.nodes for name in ("node.key", "admin.passphrase")}
    assert holders == {passphrase, *keys}
    private = [network.directory, *holders, *(path for path in files if path.suffix == ".wallet")]
    assert {stat.S_IMODE(path.stat().st_mode) & 0o077 for path in private} == {0}
    assert {path.name for path in files} >= {"node.log", "node.toml", "genesis.json", "CURRENT"}
