"""What configs/docker says: locks with hashes, a hardened compose file, members that agree with it; and what runs in
the containers beside the daemon.
"""

import ipaddress
import json
import re
import socket
import threading
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from packaging.requirements import Requirement

from carequorum.devnet import DevnetError, containers, inside, programs
from carequorum.devnet import docker as docker_backend
from carequorum.devnet.backend import Order
from carequorum.devnet.containers import FILES, PROJECT
from carequorum.devnet.docker import DockerBackend
from carequorum.devnet.volumes import ORDER_VARIABLE, UID, Member, configure, found, read_members
from ledger.genesis import genesis_from_json
from node import ready
from node.config import ProviderSection, load_config
from node.keyfile import read_node_key
from tests.testnets import lent

TRIAL_NET = ipaddress.ip_network("198.18.0.0/15")
COMPOSE: dict[str, Any] = yaml.safe_load((FILES / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
MEMBERS = read_members(FILES / "members.toml")
PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text())
_PIN = re.compile(r"([a-z0-9.-]+)==([^ ;]+)((?: --hash=sha256:[0-9a-f]{64})+)")


def pins(lock: str) -> dict[str, str]:
    """Version by name. Every line of the file must be a comment, or such a pin with its hashes."""
    text = (FILES / lock).read_text().replace("\\\n", " ")
    lines = [" ".join(line.split()) for line in text.splitlines() if line and not line.startswith("#")]
    matched = [_PIN.fullmatch(line) for line in lines]
    assert all(matched), [line[:80] for line, found in zip(lines, matched, strict=True) if not found]
    return {pin.group(1): pin.group(2) for pin in matched if pin}


@pytest.mark.parametrize(
    ("lock", "asked"),
    [
        ("requirements.lock", PYPROJECT["project"]["dependencies"]),
        ("build.lock", PYPROJECT["build-system"]["requires"]),
    ],
)
def test_locks_pin_what_the_project_asks_for_by_hash_and_name_no_host(lock: str, asked: list[str]) -> None:
    pinned = pins(lock)
    for requirement in map(Requirement, asked):
        assert requirement.specifier.contains(pinned[requirement.name.lower()]), requirement
    assert not re.search(r"https?:|--(?:extra-)?index-url|--find-links|--trusted-host", (FILES / lock).read_text())


def test_ports_are_published_on_the_loopback_interface_only() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(published) == len(MEMBERS) + 1
    for port in published:
        assert re.fullmatch(r"127\.0\.0\.1:\$\{CAREQUORUM_PORT_[A-Z_]+:-[0-9]+\}:[0-9]+", port), port


def test_subnets_are_explicit_apart_and_out_of_the_net_for_trials() -> None:
    subnets = [ipaddress.ip_network(net["ipam"]["config"][0]["subnet"]) for net in COMPOSE["networks"].values()]
    for number, subnet in enumerate(subnets):
        assert isinstance(subnet, ipaddress.IPv4Network)
        assert subnet.subnet_of(TRIAL_NET)  # type: ignore[arg-type]
        assert not any(subnet.overlaps(other) for other in subnets[:number])
    assert COMPOSE["networks"]["peers"]["internal"] is True
    taken = [
        (name, place["ipv4_address"])
        for service in SERVICES.values()
        for name, place in service.get("networks", {}).items()
    ]
    assert len(set(taken)) == len(taken)
    for name, address in taken:
        subnet = COMPOSE["networks"][name]["ipam"]["config"][0]["subnet"]
        assert ipaddress.ip_address(address) in ipaddress.ip_network(subnet)


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "no"
    assert service["mem_limit"]
    assert service["pids_limit"]
    assert "privileged" not in service
    if name == "init":
        assert (service["user"], service["network_mode"]) == ("0:0", "none")
        assert set(service["cap_add"]) <= {"CHOWN", "DAC_OVERRIDE", "FOWNER"}
    else:
        assert "cap_add" not in service
        assert not service["user"].startswith("0")


def test_members_and_the_compose_file_agree() -> None:
    assert [member.id for member in MEMBERS] == [name for name in SERVICES if name not in ("init", "prometheus")]
    for member in MEMBERS:
        service, known = SERVICES[member.id], member.inside()
        # On its own segment and the shared network, and its store, with its key, is seen by itself and by init only.
        assert service["networks"] == {
            "peers": {"ipv4_address": known.peer_host},
            member.id: {"ipv4_address": known.provider_host},
        }
        variable = "CAREQUORUM_PORT_" + member.id.upper().replace("-", "_")
        assert service["ports"] == [f"127.0.0.1:${{{variable}:-{member.published}}}:{known.provider_port}"]
        assert service["volumes"] == [f"{member.id}:/var/lib/carequorum"]
        assert f"{member.id}:/nodes/{member.id}" in SERVICES["init"]["volumes"]
        assert service["user"] == f"{UID}:{UID}"
        assert service["depends_on"] == {"init": {"condition": "service_completed_successfully"}}
        assert SERVICES["prometheus"]["networks"][member.id]
    assert "peers" not in SERVICES["prometheus"]["networks"]


def test_prometheus_reads_every_member() -> None:
    scraped = yaml.safe_load((FILES / "prometheus.yml").read_text())["scrape_configs"][0]["static_configs"]
    assert [(entry["labels"]["member"], *entry["targets"]) for entry in scraped] == [
        (member.id, member.provider) for member in MEMBERS
    ]


def test_the_image_runs_as_the_owner_of_the_volumes_and_pulls_no_frontend() -> None:
    lines = (FILES / "Dockerfile").read_text().splitlines()
    assert f"USER {UID}:{UID}" in lines
    assert not any(line.lower().startswith("# syntax=") for line in lines)
    assert [line for line in lines if line.startswith("CMD")] == [
        'CMD ["python", "-m", "node", "--config", "/var/lib/carequorum/node.toml"]'
    ]


def test_the_image_says_the_version_of_the_project() -> None:
    text = (FILES / "Dockerfile").read_text()
    labelled = re.findall(r'org\.opencontainers\.image\.version="([^"]*)"', text)
    assert labelled == [PYPROJECT["project"]["version"]]


def test_python_finds_no_module_in_the_volume() -> None:
    text = (FILES / "Dockerfile").read_text()
    assert re.search(r"^ +PYTHONSAFEPATH=1( \\)?$", text, re.MULTILINE)


# is the image older than the project?


def test_everything_that_the_image_is_built_from_counts() -> None:
    copied = re.findall(r"^COPY (?!--)(.+) \S+$", (FILES / "Dockerfile").read_text(), re.MULTILINE)
    assert {name for names in copied for name in names.split()} == set(containers.SOURCES[2:])
    assert all((PROJECT / name).exists() for name in containers.SOURCES)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name in containers.SOURCES:
        path = tmp_path / name / "module.py" if (PROJECT / name).is_dir() else tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path


def test_the_hash_of_the_sources_is_of_names_and_contents(project: Path) -> None:
    hashes = [containers.sources_hash(project)]
    (project / "node" / "__pycache__").mkdir()
    (project / "node" / "__pycache__" / "module.pyc").write_bytes(b"x")
    (project / "elsewhere").write_text("x")
    assert containers.sources_hash(project) == hashes[0]
    (project / "node" / "module.py").write_text("x")
    hashes.append(containers.sources_hash(project))
    (project / "node" / "module.py").rename(project / "node" / "renamed.py")
    hashes.append(containers.sources_hash(project))
    (project / "configs" / "docker" / "build.lock").write_text("x")
    hashes.append(containers.sources_hash(project))
    assert len(set(hashes)) == 4
    (project / "pyproject.toml").unlink()
    with pytest.raises(DevnetError, match=r"pyproject\.toml is missing"):
        containers.sources_hash(project)


@pytest.mark.parametrize(
    ("present", "label", "named", "builds"),
    [
        (False, "", False, True),
        (True, "current", False, False),
        (True, "older", False, True),
        (True, "", False, True),
        # Whoever names an image means that one.
        (True, "older", True, False),
        (False, "", True, True),
    ],
)
def test_an_image_of_other_sources_is_built_anew(
    monkeypatch: pytest.MonkeyPatch, present: bool, label: str, named: bool, builds: bool
) -> None:
    built: list[bool] = []
    monkeypatch.setattr(containers, "has_image", lambda name: present)
    monkeypatch.setattr(containers, "sources_hash", lambda: "current")
    monkeypatch.setattr(containers, "_label", lambda name: label)
    monkeypatch.setattr(containers, "build", lambda: built.append(True))
    monkeypatch.setenv(containers.IMAGE_VARIABLE, "registry.example/node:1" if named else "")
    containers.ensure_image()
    assert built == [True] * builds


def test_an_old_image_that_cannot_be_built_anew_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def build() -> None:
        raise DevnetError("docker build: no index")

    monkeypatch.delenv(containers.IMAGE_VARIABLE, raising=False)
    monkeypatch.setattr(containers, "has_image", lambda name: True)
    monkeypatch.setattr(containers, "_label", lambda name: "older")
    monkeypatch.setattr(containers, "build", build)
    said = r"carequorum:local is older .*docker build: no index.*CAREQUORUM_IMAGE=carequorum:local"
    with pytest.raises(DevnetError, match=said) as raised:
        containers.ensure_image()
    assert "\n" not in str(raised.value)


# what is run beside the daemons


@pytest.mark.parametrize("verb", ["check", "configure"])
def test_a_container_beside_is_removed_even_if_only_its_client_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    ran: list[list[str]] = []

    def gives_up(command: list[str], **_: object) -> str:
        ran.append(command)
        raise DevnetError("it did not end")

    def checked(node: object, command: list[str], timeout_s: float) -> None:
        gives_up(command)

    monkeypatch.setattr(docker_backend, "docker", lambda: "docker")
    monkeypatch.setattr(docker_backend, "checked", checked)
    monkeypatch.setattr(programs, "run", gives_up)
    monkeypatch.setattr(programs, "attempt", lambda command, **_: ran.append(command))
    node = MEMBERS[0].outside(1)
    backend = DockerBackend(tmp_path, [node])
    calls: dict[str, Callable[[], object]] = {
        "check": lambda: backend.check(node),
        "configure": lambda: backend.configure(node, {}),
    }
    with pytest.raises(DevnetError, match="it did not end"):
        calls[verb]()
    started, removed = ran
    name = next(word.removeprefix("--name=") for word in started if word.startswith("--name="))
    assert removed == ["docker", "rm", "--force", name]


# keys and genesis in the volumes


def volumes(directory: Path) -> tuple[Path, Path]:
    """Empty ones, as an engine makes them."""
    for member in MEMBERS:
        (directory / "nodes" / member.id).mkdir(parents=True)
    (directory / "admin").mkdir()
    return directory / "nodes", directory / "admin"


def make(nodes: Path, admin: Path, order: Order | None = None) -> bool:
    return found(MEMBERS, nodes, admin, order or Order(), owner=None)


def files(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_each_volume_gets_its_own_key_and_nothing_changes_the_second_time(tmp_path: Path) -> None:
    nodes, admin = volumes(tmp_path)
    assert make(nodes, admin, Order(settings={"pool": {"transactions_max": 500}}, clock_offsets_ms={"board": -10}))
    made = files(tmp_path)
    genesis = genesis_from_json((admin / "genesis.json").read_text())
    assert [node.id for node in genesis.nodes] == sorted(member.id for member in MEMBERS)
    kinds = {organisation.id: organisation.kind for organisation in genesis.organisations}
    assert (kinds["payer"], kinds["board"], kinds["clinic"]) == ("insurer", "board", "other")
    for member in MEMBERS:
        home, known = nodes / member.id, member.inside()
        assert sorted(path.name for path in home.iterdir()) == ["genesis.json", "node.key", "node.toml"]
        config = load_config(home / "node.toml")
        assert config.node.genesis == home / "genesis.json"
        assert (config.provider.host, config.provider.port) == (known.provider_host, known.provider_port)
        assert (config.peers.listen_host, config.peers.listen_port) == (known.peer_host, known.peer_port)
        assert config.pool.transactions_max == 500
        assert config.devnet.clock_offset_ms == (-10 if member.id == "board" else 0)
        read_node_key(home / "node.key", None)
        wallet = admin / member.id
        assert sorted(path.name for path in wallet.iterdir()) == ["admin.passphrase", "admin.wallet"]
    assert len({made[f"nodes/{member.id}/node.key"] for member in MEMBERS}) == len(MEMBERS)
    assert not make(nodes, admin)
    assert files(tmp_path) == made


def test_what_was_left_half_made_is_made_anew(tmp_path: Path) -> None:
    nodes, admin = volumes(tmp_path)
    make(nodes, admin)
    (admin / "genesis.json").unlink()
    old = (nodes / "payer" / "node.key").read_bytes()
    assert make(nodes, admin)
    assert (nodes / "payer" / "node.key").read_bytes() != old
    assert len({(nodes / member.id / "genesis.json").read_bytes() for member in MEMBERS}) == 1


def test_volumes_of_two_networks_and_stores_without_genesis_are_refused(tmp_path: Path) -> None:
    nodes, admin = volumes(tmp_path)
    make(nodes, admin)
    (nodes / "payer" / "genesis.json").unlink()
    with pytest.raises(DevnetError, match="the volume of payer is not of this network"):
        make(nodes, admin)
    (admin / "genesis.json").unlink()
    (nodes / "board" / "data").mkdir()
    before = files(tmp_path)
    with pytest.raises(DevnetError, match="the volume of board holds a store"):
        make(nodes, admin)
    assert files(tmp_path) == before


def test_a_configuration_is_changed_where_it_is(tmp_path: Path) -> None:
    nodes, admin = volumes(tmp_path)
    make(nodes, admin)
    configure(nodes / "clinic", {"devnet": {"clock_offset_ms": 10_000}})
    config = load_config(nodes / "clinic" / "node.toml")
    assert (config.devnet.clock_offset_ms, config.provider.host) == (10_000, MEMBERS[-1].inside().provider_host)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('peer = "198.19.0.12:7400"', 'peer = "198.19.0.12"', "'198.19.0.12' is not host:port"),
        ('id = "hospital-b"', 'id = "hospital-a"', "each id once"),
        ('kind = "insurer"', 'kind = "bank"', "Invalid enum value 'bank'"),
        ("published = 17481", "", "missing required field `published`"),
        ("[[member]]", "[[member]", "line"),
    ],
)
def test_a_bad_list_of_members_is_one_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = (FILES / "members.toml").read_text()
    assert old in text
    path = tmp_path / "members.toml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(DevnetError, match=re.escape(message)) as raised:
        read_members(path)
    assert "\n" not in str(raised.value)


def test_the_docker_network_has_its_own_number_of_nodes(tmp_path: Path) -> None:
    with pytest.raises(DevnetError, match="the docker backend has the 7 members"):
        DockerBackend.found(tmp_path, Order(nodes=4))
    assert not list(tmp_path.iterdir())


def test_outside_a_member_is_reached_on_the_loopback_interface() -> None:
    member: Member = MEMBERS[0]
    assert member.outside(12_345).url == "http://127.0.0.1:12345"
    assert member.outside(12_345).peer_host == member.inside().peer_host


@pytest.mark.parametrize(
    ("arguments", "order", "said"),
    [
        (["found"], "{", "truncated"),
        (["found"], "", "members.toml: No such file"),
        (["configure", "[]"], "", "Expected `object`"),
        (["configure"], "", "usage: "),
        ([], "", "usage: "),
    ],
)
def test_what_goes_wrong_in_a_container_is_said_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    order: str,
    said: str,
) -> None:
    present = FILES / "members.toml" if order else tmp_path / "members.toml"
    monkeypatch.setattr(inside, "MEMBERS", present)
    monkeypatch.setenv(ORDER_VARIABLE, order)
    assert inside.main(arguments) == 1
    error = capsys.readouterr().err
    assert said in error
    assert re.fullmatch(r"error: .+\n", error)


# the health check


@contextmanager
def answering(answer: bytes) -> Iterator[int]:
    """A port of 127.0.0.1 that gives the first who asks this answer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(5)

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                asked = connection.recv(4096)
                connection.sendall(answer if asked.startswith(b"GET /readyz HTTP/1.1\r\n") else b"")

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            thread.join(5)


@pytest.mark.parametrize(
    ("answer", "code", "said"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 0, ""),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", 1, "answers 503"),
        (b"SSH-2.0-server\r\n", 1, "does not speak HTTP"),
        (b"", 1, "does not speak HTTP"),
    ],
)
def test_ready_only_if_the_node_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], answer: bytes, code: int, said: str
) -> None:
    config = tmp_path / "node.toml"
    with answering(answer) as port:
        config.write_text(f'[provider]\nhost = "0.0.0.0"\nport = {port}\n')
        assert ready.main(["--config", str(config)]) == code
    assert said in capsys.readouterr().err


def test_ready_finds_a_port_that_the_system_chose(tmp_path: Path) -> None:
    config = tmp_path / "node.toml"
    config.write_text('[node]\nports_file = "where.json"\n[provider]\nport = 0\n')
    (tmp_path / "where.json").write_text(json.dumps({"provider": {"host": "127.0.0.1", "port": 17_499}}))
    assert ready.listens(config) == ("127.0.0.1", 17_499)


@pytest.mark.parametrize(
    "text", [None, "not toml", 'provider = "x"', "[provider]\nport = 0", '[provider]\nport = "x"']
)
def test_ready_says_in_one_line_what_is_wrong_with_the_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None
) -> None:
    config = tmp_path / "node.toml"
    if text is not None:
        config.write_text(text)
    assert ready.main(["--config", str(config)]) == 1
    assert re.fullmatch(r"not ready: .+\n", capsys.readouterr().err)


def test_ready_knows_the_defaults_of_the_configuration(tmp_path: Path) -> None:
    config = tmp_path / "node.toml"
    config.write_text("")
    assert ready.listens(config) == (ProviderSection().host, ProviderSection().port)


# what is lent to a build of the image


def test_pip_settings_that_mean_something_inside_of_a_build_are_lent() -> None:
    listed = lent.settings(
        "global.index-url='https://user:secret@index.example/simple'\n"
        "global.extra-index-url='file:///somewhere/simple https://more.example/simple'\n"
        "global.find-links='/wheels'\n"
        ":env:.timeout='9'\n"
    )
    assert lent.pip_conf(listed, {"HTTPS_PROXY": "http://proxy.example:3128"}) == (
        "[global]\n"
        "extra-index-url = https://more.example/simple\n"
        "index-url = https://user:secret@index.example/simple\n"
        "proxy = http://proxy.example:3128\n"
        "timeout = 9\n"
    )
    assert lent.pip_conf({"find-links": "/wheels"}, {}) == ""


def test_certificates_are_lent_where_they_exist(tmp_path: Path) -> None:
    bundle = tmp_path / "ca.crt"
    bundle.write_text("x")
    assert lent.authorities({"cert": str(tmp_path / "none")}, {"SSL_CERT_FILE": str(bundle)}) == bundle
    assert lent.authorities({}, {}) is None
