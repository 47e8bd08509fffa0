"""The folder of a development network, and what is written into it.

    DIR/genesis.json
    DIR/devnet.json                      which nodes, where they listen, what runs them
    DIR/faults.json                      what is wrong with the wires, if anything is
    DIR/<node>/node.toml  node.key       the daemon's configuration and its private key (0600)
    DIR/<node>/admin.wallet .passphrase  the organisation's first admin (0600)
    DIR/<node>/data/                     the daemon's store
    DIR/<node>/node.log  process.json    its output; the process that runs now, if one does

The folder is 0700: it holds every key of the network, which is why this is for development only. With containers
a node's key, configuration and store are in its own volume instead.
"""

import fcntl
import ipaddress
import json
import os
import secrets
import socket
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec

from carequorum.devnet.errors import DevnetError
from carequorum.devnet.faults import Faults
from carequorum.devnet.members import LOOPBACK, DevnetNode, Settings
from carequorum.wallet import COST_DEVELOPMENT, Wallet
from ledger.genesis import FORMAT as GENESIS_FORMAT
from ledger.genesis import Genesis, Node, Organisation, Parameters, genesis_from_json
from ledger.node_cert import key_pem, make_certificate

FORMAT = 2

# Below every ephemeral range in use, so that no outgoing connection takes a port while its daemon is down.
_PORTS = range(20_000, 32_000)


class NetworkFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """devnet.json. `chain` is the chain id in hex."""

    backend: str
    chain: str
    format: int
    nodes: list[DevnetNode]


def write_network(
    directory: Path,
    members: Sequence[DevnetNode],
    *,
    backend: str,
    settings: Settings,
    clock_offsets_ms: Mapping[str, int],
) -> None:
    """Keys, genesis and configurations for `members`, whose ports are known, into an empty folder."""
    founders = [_found(directory / member.id, member) for member in sorted(members, key=lambda member: member.id)]
    genesis = Genesis(
        format=GENESIS_FORMAT,
        network=f"devnet of {len(members)}",
        nodes=[node for node, _ in founders],
        organisations=[organisation for _, organisation in founders],
        parameters=Parameters(),
        time=time.time_ns() // 1_000_000,
    )
    alone = sum(member.role == "voter" for member in members) == 1
    for member in members:
        tables = _tables(member, alone=alone and member.role == "voter")
        offset_ms = clock_offsets_ms.get(member.id, 0)
        clock: Settings = {"devnet": {"clock_offset_ms": offset_ms}} if offset_ms else {}
        config = render_config(_merged(_merged(tables, settings), clock))
        write_private(directory / member.id / "node.toml", config.encode())
    write_private(directory / "genesis.json", genesis.to_json().encode())
    write_network_file(directory, backend, genesis, members)


def write_network_file(directory: Path, backend: str, genesis: Genesis, members: Sequence[DevnetNode]) -> None:
    """Last of all: a folder without it was not finished."""
    content = NetworkFile(backend, genesis.chain_id().hex(), FORMAT, list(members))
    write_private(directory / "devnet.json", msgspec.json.format(msgspec.json.encode(content), indent=2))


def read_network(directory: Path) -> tuple[NetworkFile, Genesis]:
    """What `write_network` left in the folder. Raises DevnetError."""
    at = directory / "devnet.json"
    try:
        content = msgspec.json.decode(at.read_bytes())
        if isinstance(content, dict) and content.get("format") != FORMAT:
            found = str(content.get("format"))[:20]
            raise DevnetError(f"{at} has format {found}, not {FORMAT}: make the network anew")
        network = msgspec.convert(content, NetworkFile)
        for node in network.nodes:
            ipaddress.IPv4Address(node.peer_host)
        at = directory / "genesis.json"
        genesis = genesis_from_json(at.read_text())
    except FileNotFoundError as error:
        missing = f"{error.filename} is missing"
        raise DevnetError(f"{directory} holds no development network: {missing}") from None
    except ValueError as error:
        raise DevnetError(f"{at}: {str(error)[:300]}") from None
    if not network.nodes:
        raise DevnetError(f"{directory / 'devnet.json'} names no node")
    if network.chain != genesis.chain_id().hex():
        raise DevnetError(f"{directory / 'devnet.json'} does not belong to its genesis.json")
    return network, genesis


def read_faults(directory: Path, nodes: Sequence[DevnetNode]) -> Faults:
    """What is wrong with the wires of these nodes. Raises DevnetError."""
    try:
        faults = msgspec.json.decode((directory / "faults.json").read_bytes(), type=Faults)
        faults.check({node.id for node in nodes})
    except FileNotFoundError:
        return Faults()
    except (msgspec.DecodeError, DevnetError) as error:
        raise DevnetError(f"{directory / 'faults.json'}: {error} (carequorum devnet heal makes it anew)") from None
    return faults


def write_faults(directory: Path, faults: Faults) -> None:
    write_private(directory / "faults.json", msgspec.json.encode(faults))


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """One command at a time changes the network; another waits here."""
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def change_config(config: bytes, changes: Settings) -> str:
    """A node.toml with some of its keys changed. Raises DevnetError where it is none."""
    try:
        tables = msgspec.convert(tomllib.loads(config.decode()), dict[str, dict[str, str | int | float] | str])
    except ValueError as error:
        raise DevnetError(f"node.toml: {error}") from None
    return render_config(_merged({name: table for name, table in tables.items() if isinstance(table, dict)}, changes))


def render_config(tables: Settings) -> str:
    """A node.toml for a network on one machine. JSON writes these strings and numbers as TOML does."""
    lines = ['preset = "machine"']
    for table, values in tables.items():
        lines += ["", f"[{table}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    return "\n".join(lines) + "\n"


def new_wallet(path: Path, label: str) -> tuple[Wallet, Path]:
    """A development wallet and, beside it, the file with its passphrase."""
    passphrase_file = path.with_suffix(".passphrase")
    passphrase = secrets.token_hex(32).encode()
    write_private(passphrase_file, passphrase + b"\n")
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
                candidate.bind((LOOPBACK, port))
            except OSError:
                continue
            found.append(port)
            if len(found) == count:
                return found
    raise DevnetError(f"fewer than {count} free ports in {_PORTS.start}-{_PORTS.stop}")


def write_private(path: Path, data: bytes) -> None:
    """Create or replace a private file, whole or not at all."""
    temporary = path.with_name(path.name + ".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    temporary.replace(path)


def _found(folder: Path, member: DevnetNode) -> tuple[Node, Organisation]:
    """Make a member's keys, and say what genesis must know of them."""
    folder.mkdir(mode=0o700)
    seed = secrets.token_bytes(32)
    write_private(folder / "node.key", key_pem(seed, None))
    wallet, _ = new_wallet(folder / "admin.wallet", member.name)
    node = Node(
        address=f"{member.peer_host}:{member.peer_port}",
        certificate=make_certificate(seed, member.id),
        id=member.id,
        organisation=member.id,
        role=member.role,
    )
    organisation = Organisation(admin_keys=[wallet.public_key], id=member.id, kind=member.kind, name=member.name)
    return node, organisation


def _tables(member: DevnetNode, *, alone: bool) -> Settings:
    node: dict[str, str | bool] = {"genesis": "../genesis.json", "data_dir": "data", "key_file": "node.key"}
    if alone:
        node["found"] = True
    return {
        "node": node,
        "peers": {"listen_host": member.peer_host, "listen_port": member.peer_port},
        "provider": {"host": member.provider_host, "port": member.provider_port},
    }


def _merged(tables: Settings, changes: Settings) -> Settings:
    """The tables with single keys of them set."""
    named = dict.fromkeys([*tables, *changes])
    return {table: {**tables.get(table, {}), **changes.get(table, {})} for table in named}
