"""The development network: its folder, and the processes that run from it (a stand-in for the daemon)."""

import os
import signal
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from carequorum.cli import main
from carequorum.devnet import Devnet, DevnetError, DevnetNode, Faults, create, files, free_ports, local, wire
from carequorum.processes import Process, is_running, send, spawn, wait
from carequorum.wallet import Wallet, read_passphrase
from ledger.genesis import genesis_from_json
from ledger.keys import account_id
from ledger.node_cert import certificate_key, make_certificate, seed_from_pem
from node.config import load_config

FAKE = (sys.executable, "-m", "tests.carequorum.fake_daemon")


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Devnet]:
    monkeypatch.setattr(local, "DAEMON", FAKE)
    created = create(tmp_path / "net", 2)
    yield created
    created.kill(created.nodes)


def sleeper(tmp_path: Path) -> Process:
    return spawn([sys.executable, "-c", "import signal; signal.pause()"], tmp_path / "log")


def noted_delayer(network: Devnet, tmp_path: Path) -> tuple[Process, Path]:
    """A process that the first node's state file calls its delayer."""
    running, state = sleeper(tmp_path), network.folder(network.nodes[0]) / wire.STATE
    state.write_bytes(msgspec.json.encode({"process": running, "delay_ms": 100, "jitter_ms": 0}))
    return running, state


@pytest.mark.parametrize("verb", ["heal", "down", "start"])
def test_a_delayer_ends_with_the_namespace_it_was_for(
    network: Devnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    running, state = noted_delayer(network, tmp_path)
    try:
        if verb == "start":
            network.start(network.nodes[:1])
        else:
            monkeypatch.setattr(local.ProcessBackend, "has_wires", True)
            getattr(network, verb)()
        assert not state.exists()
        assert not is_running(running)
    finally:
        send(running, signal.SIGKILL)


def test_what_was_raised_half_is_torn_down_and_what_was_made_half_is_deleted(
    network: Devnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torn_down: list[bool] = []

    def fails(*_: object) -> None:
        raise DevnetError("no bridge")

    def founds_half(directory: Path, order: object) -> None:
        (directory / "hospital-a").mkdir()
        (directory / "hospital-a" / "admin.wallet").touch()
        (directory / "genesis.json").touch()
        fails()

    monkeypatch.setattr(local.ProcessBackend, "tear_down", lambda self, *, volumes: torn_down.append(volumes))
    network.start(network.nodes[:1])
    monkeypatch.setattr(local.ProcessBackend, "raise_up", fails)
    with pytest.raises(DevnetError, match="no bridge"):
        network.start(network.nodes)
    assert torn_down == [], "a node stands on it"
    network.kill(network.nodes)
    with pytest.raises(DevnetError, match="no bridge"):
        network.start(network.nodes)
    assert torn_down == [False]
    monkeypatch.setattr(local.ProcessBackend, "found", founds_half)
    with pytest.raises(DevnetError, match="no bridge"):
        create(tmp_path / "other", 2)
    assert not (tmp_path / "other").exists()


def test_create_writes_what_daemons_accept_and_admins_can_use(tmp_path: Path) -> None:
    offsets = {"hospital-b": 10_000}
    network = create(tmp_path / "net", 4, settings={"logging": {"level": "debug"}}, clock_offsets_ms=offsets)
    genesis = genesis_from_json((network.directory / "genesis.json").read_text())
    assert [node.id for node in genesis.nodes] == sorted(node.id for node in network.nodes)
    assert len(genesis.configuration().voters) == 4
    for member in network.nodes:
        config = load_config(network.folder(member) / "node.toml")
        assert config.preset == "machine"
        assert config.logging.level == "debug"
        assert config.devnet.clock_offset_ms == offsets.get(member.id, 0)
        assert config.provider.port == member.provider_port
        node = next(node for node in genesis.nodes if node.id == member.id)
        assert node.address == f"127.0.0.1:{config.peers.listen_port}"
        seed = seed_from_pem(config.node.key_file.read_bytes(), None)
        assert genesis.node_keys()[node.id] == certificate_key(node.certificate)
        assert make_certificate(seed, member.id) == node.certificate
        wallet_file, passphrase_file = network.wallet(member)
        wallet = Wallet.open(wallet_file, read_passphrase(passphrase_file))
        organisation = next(each for each in genesis.organisations if each.id == member.id)
        assert organisation.admin_keys == [wallet.public_key]
        assert account_id(wallet.public_key) == wallet.account


def test_nobody_else_may_look_into_the_folder(tmp_path: Path) -> None:
    network = create(tmp_path / "net", 1)
    folders = [network.directory, network.directory / "hospital-a"]
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in folders] == [0o700, 0o700]
    files = [path for path in network.directory.rglob("*") if path.is_file()]
    assert files
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_create_leaves_a_folder_alone_that_holds_something(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(DevnetError, match="not empty"):
        create(tmp_path, 1)


@pytest.mark.parametrize("nodes", [0, 17])
def test_create_refuses_a_count_it_cannot_serve(tmp_path: Path, nodes: int) -> None:
    with pytest.raises(DevnetError, match="possible are 1 to 16"):
        create(tmp_path / "net", nodes)


def test_ports_are_distinct_and_below_the_ephemeral_range(monkeypatch: pytest.MonkeyPatch) -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20
    assert all(20_000 <= port < 32_000 for port in ports)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", ports[0]))
        taken.listen()
        monkeypatch.setattr(files, "_PORTS", range(ports[0], ports[0] + 1))
        with pytest.raises(DevnetError, match="fewer than 1 free"):
            free_ports(1)


def test_a_folder_without_a_network_is_named(tmp_path: Path) -> None:
    with pytest.raises(DevnetError, match="holds no development network"):
        Devnet(tmp_path)


def test_a_foreign_genesis_is_refused(network: Devnet, tmp_path: Path) -> None:
    other = create(tmp_path / "other", 2)
    (other.directory / "genesis.json").replace(network.directory / "genesis.json")
    with pytest.raises(DevnetError, match="does not belong to its genesis"):
        Devnet(network.directory)


def test_up_kill_restart_down(network: Devnet) -> None:
    hospital_a, hospital_b = network.nodes
    (network.folder(hospital_a) / "leads").touch()
    ready: list[str] = []
    network.start(network.nodes, on_ready=lambda node: ready.append(node.id))
    assert sorted(ready) == ["hospital-a", "hospital-b"]
    assert [(node.id, node.ready) for node in network.status()] == [("hospital-a", True), ("hospital-b", True)]
    assert network.leader() == hospital_a

    first = network.pid(hospital_a)
    assert first is not None
    killed = network.kill([hospital_a])
    assert {node: how and how.code for node, how in killed.items()} == {"hospital-a": -signal.SIGKILL}
    assert network.leader() is None
    assert [(node.id, node.pid is None, node.ready) for node in network.status()] == [
        ("hospital-a", True, False),
        ("hospital-b", False, True),
    ]

    untouched = network.pid(hospital_b)
    network.start(network.nodes)
    second = network.pid(hospital_a)
    assert second is not None
    assert second != first
    assert network.pid(hospital_b) == untouched

    # Another command, which is not the daemons' parent, finds and stops them too.
    ended = Devnet(network.directory).stop(network.nodes)
    assert {node: how and how.code for node, how in ended.items()} == {"hospital-a": 0, "hospital-b": 0}
    assert network.stop(network.nodes) == {}


def test_who_is_cut_off_from_the_leader_does_not_hide_it(network: Devnet) -> None:
    hospital_a, hospital_b = network.nodes
    (network.folder(hospital_a) / "cut_off").touch()
    (network.folder(hospital_b) / "leads").touch()
    network.start(network.nodes)
    assert network.leader() == hospital_b


def test_a_paused_daemon_answers_nobody_and_goes_on_where_it_was(network: Devnet) -> None:
    hospital_a, hospital_b = network.nodes
    network.start(network.nodes)
    pid = network.pid(hospital_a)
    network.pause([hospital_a])
    assert [(node.paused, node.ready) for node in network.status()] == [(True, False), (False, True)]
    assert network.pid(hospital_a) == pid
    network.resume([hospital_a])
    assert [(node.id, node.ready) for node in network.status()] == [("hospital-a", True), ("hospital-b", True)]
    assert network.pid(hospital_a) == pid
    network.kill([hospital_b])
    for act in (network.pause, network.resume):
        with pytest.raises(DevnetError, match="hospital-b does not run"):
            act([hospital_b])


def test_a_paused_daemon_can_be_stopped_in_order(network: Devnet) -> None:
    network.start(network.nodes)
    network.pause(network.nodes[:1])
    ended = network.down()
    assert {node: how and how.code for node, how in ended.items()} == {"hospital-a": 0, "hospital-b": 0}


def test_a_node_named_twice_is_started_once(network: Devnet) -> None:
    hospital_a = network.nodes[0]
    network.start([hospital_a, hospital_a])
    pid = network.pid(hospital_a)
    assert main(["devnet", "restart", "hospital-a", "hospital-a", "--dir", str(network.directory)]) == 0
    assert network.pid(hospital_a) not in (None, pid)


@pytest.mark.parametrize("note", [None, b"", b"[]", b"\xff\xfe"])
def test_a_daemon_whose_note_is_lost_or_damaged_is_found(network: Devnet, note: bytes | None) -> None:
    hospital_a = network.nodes[0]
    network.start([hospital_a])
    pid = network.pid(hospital_a)
    path = network.folder(hospital_a) / "process.json"
    path.unlink()
    if note is not None:
        path.write_bytes(note)
    again = Devnet(network.directory)
    assert again.pid(hospital_a) == pid
    assert again.start([hospital_a]) == []
    assert again.pid(hospital_a) == pid
    assert list(again.down()) == ["hospital-a"]
    assert again.pid(hospital_a) is None


def test_a_daemon_that_cannot_be_noted_does_not_stay(network: Devnet) -> None:
    hospital_a = network.nodes[0]
    blocked = network.folder(hospital_a) / "process.json.new"
    blocked.mkdir()
    with pytest.raises(OSError, match=r"process\.json\.new"):
        network.start([hospital_a])
    assert network.pid(hospital_a) is None
    blocked.rmdir()
    network.start([hospital_a])
    assert network.pid(hospital_a) is not None


def test_a_network_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(DevnetError, match="possible are 1 to 16"):
        create(tmp_path / "net", 0)
    assert not (tmp_path / "net").exists()
    (tmp_path / "genesis.json").touch()
    with pytest.raises(DevnetError, match="is not empty and was not finished: remove it"):
        create(tmp_path, 1)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ('{"cuts": [["nobody", "hospital-a"]]}', "no node 'nobody'; there are hospital-a, hospital-b"),
        ('{"delays_ms": {"hospital-a": [100000000000, 0]}}', "a delay of 100000000000 ms"),
        ('{"losses_percent": {"hospital-a": 500}}', "a loss of 500%"),
        ("{", "truncated"),
    ],
)
def test_faults_that_make_no_sense_are_named_before_anything_starts(network: Devnet, content: str, why: str) -> None:
    (network.directory / "faults.json").write_text(content)
    with pytest.raises(DevnetError, match=f"{why}.*heal makes it anew"):
        network.start(network.nodes)
    assert [network.pid(node) for node in network.nodes] == [None, None]


@pytest.mark.parametrize("content", [b"[[[", b"\xff", b"devnet = 5", b"[devnet]\nclock_offset_ms = [1]"])
def test_a_configuration_that_is_none_is_named(
    network: Devnet, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    path = network.folder(network.nodes[0]) / "node.toml"
    path.write_bytes(content)
    assert main(["devnet", "clock", "hospital-a", "1s", "--dir", str(network.directory)]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert path.read_bytes() == content


def test_a_clock_that_the_daemon_would_refuse_is_refused_before(
    network: Devnet, capsys: pytest.CaptureFixture[str]
) -> None:
    path = network.folder(network.nodes[0]) / "node.toml"
    before = path.read_bytes()
    assert main(["devnet", "clock", "hospital-a", "86401s", "--dir", str(network.directory)]) == 1
    assert "possible is 86400 s at most" in capsys.readouterr().err
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("file", "content"),
    [("genesis.json", b"\xff"), ("devnet.json", b'{"format": 2}'), ("devnet.json", b"\xff")],
)
def test_a_damaged_folder_is_named_in_one_line(network: Devnet, file: str, content: bytes) -> None:
    (network.directory / file).write_bytes(content)
    with pytest.raises(DevnetError, match=r"^[^\n]*json[^\n]*$"):
        Devnet(network.directory)


def test_a_network_without_nodes_or_with_odd_addresses_is_refused(network: Devnet) -> None:
    path = network.directory / "devnet.json"
    content = msgspec.json.decode(path.read_bytes())
    path.write_bytes(msgspec.json.encode({**content, "nodes": []}))
    with pytest.raises(DevnetError, match="names no node"):
        Devnet(network.directory)
    odd = [{**node, "peer_host": "abc"} for node in content["nodes"]]
    path.write_bytes(msgspec.json.encode({**content, "nodes": odd}))
    with pytest.raises(DevnetError, match="'abc'"):
        Devnet(network.directory)


def test_between_processes_there_is_no_wire_to_break(network: Devnet) -> None:
    network.start(network.nodes)
    breaking: list[Callable[[], Faults]] = [
        lambda: network.partition([["hospital-a"], ["hospital-b"]]),
        lambda: network.oneway("hospital-a", "hospital-b"),
        lambda: network.delay("hospital-a", 1),
        lambda: network.loss("hospital-a", 1),
        network.heal,
    ]
    for act in breaking:
        with pytest.raises(DevnetError, match="no wire to break: devnet up --backend netns, or docker"):
            act()
    assert network.faults == Faults()


def test_what_a_process_network_cannot_do_is_refused(network: Devnet, tmp_path: Path) -> None:
    with pytest.raises(DevnetError, match="keeps nothing outside of"):
        network.down(volumes=True)
    with pytest.raises(DevnetError, match="no backend 'cloud'; there are process, netns, docker"):
        create(tmp_path / "other", 1, backend="cloud")
    assert not (tmp_path / "other").exists()


def test_learners_have_no_vote(tmp_path: Path) -> None:
    network = create(tmp_path / "net", 3, learners=2)
    assert [node.id for node in network.nodes][3:] == ["clinic-a", "clinic-b"]
    configuration = network.genesis.configuration()
    assert sorted(configuration.voters) == ["hospital-a", "hospital-b", "hospital-c"]
    assert sorted(configuration.learners) == ["clinic-a", "clinic-b"]


def test_the_last_lines_of_a_log(network: Devnet) -> None:
    hospital_a = network.nodes[0]
    assert network.last_lines(hospital_a, 3) == []
    network.log(hospital_a).write_text("one\ntwo\nthree\n")
    assert network.last_lines(hospital_a, 2) == ["two", "three"]


def test_a_changed_configuration_keeps_all_else(network: Devnet) -> None:
    hospital_a = network.nodes[0]
    before = load_config(network.folder(hospital_a) / "node.toml")
    network.configure(hospital_a, {"devnet": {"clock_offset_ms": -10_000}, "storage": {"join": "replay"}})
    after = load_config(network.folder(hospital_a) / "node.toml")
    assert (after.devnet.clock_offset_ms, after.storage.join) == (-10_000, "replay")
    assert msgspec.structs.replace(after, devnet=before.devnet, storage=before.storage) == before


def test_a_folder_of_another_format_is_refused(network: Devnet) -> None:
    path = network.directory / "devnet.json"
    path.write_text(path.read_text().replace('"format": 2', '"format": 1'))
    with pytest.raises(DevnetError, match="has format 1, not 2: make the network anew"):
        Devnet(network.directory)
    path.write_text("[1]")
    with pytest.raises(DevnetError, match=r"devnet\.json: "):
        Devnet(network.directory)


def test_a_daemon_that_ends_at_once_is_reported_with_its_last_words(network: Devnet) -> None:
    (network.directory / "hospital-b" / "broken").touch()
    with pytest.raises(DevnetError, match="daemon of hospital-b ended with 3: the disk is on fire"):
        network.start(network.nodes)


def test_a_daemon_that_the_network_removed_is_told_and_no_failure(
    network: Devnet, capsys: pytest.CaptureFixture[str]
) -> None:
    hospital_a, hospital_b = network.nodes
    (network.folder(hospital_b) / "removed").touch()
    ready: list[DevnetNode] = []
    assert network.start(network.nodes, on_ready=ready.append) == [hospital_b]
    assert ready == [hospital_a]
    assert main(["devnet", "up", "--dir", str(network.directory)]) == 0
    assert "hospital-b was removed from the network by a vote" in capsys.readouterr().out
    assert main(["devnet", "restart", "--dir", str(network.directory), "--json"]) == 0
    assert msgspec.json.decode(capsys.readouterr().out)["removed"] == ["hospital-b"]


def test_a_daemon_that_does_not_get_ready_in_time_is_named(network: Devnet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "DAEMON", (sys.executable, "-c", "import signal; signal.pause()"))
    with pytest.raises(DevnetError, match=r"not ready within 0\.1 s: hospital-a"):
        network.start(network.nodes[:1], timeout_s=0.1)


def test_stop_says_who_would_not(network: Devnet) -> None:
    hospital_a = network.nodes[0]
    (network.folder(hospital_a) / "stubborn").touch()
    network.start([hospital_a])
    assert network.stop([hospital_a], timeout_s=0.1) == {"hospital-a": None}
    assert network.pid(hospital_a) is not None


def test_another_network_on_the_port_is_no_readiness(network: Devnet, tmp_path: Path) -> None:
    network.start(network.nodes)
    hospital_a, hospital_b = network.nodes
    # As if the first one's port had gone to somebody else while it was down.
    swapped = msgspec.structs.replace(hospital_a, provider_port=hospital_b.provider_port)
    with pytest.raises(DevnetError, match="the port is taken"):
        network.start([swapped])


def test_a_recycled_pid_is_never_signalled(tmp_path: Path) -> None:
    bystander = sleeper(tmp_path)
    try:
        impostor = Process(bystander.pid, "0000:1")
        assert not is_running(impostor)
        assert not send(impostor, signal.SIGKILL)
        assert wait(impostor, 0) is not None
        assert is_running(bystander)
        assert wait(bystander, 0) is None
    finally:
        send(bystander, signal.SIGKILL)
        assert wait(bystander, 10) is not None
    assert not is_running(bystander)
    assert not send(bystander, signal.SIGKILL)


def test_a_process_that_has_ended_is_not_running_even_before_it_is_reaped(tmp_path: Path) -> None:
    process = sleeper(tmp_path)
    assert send(process, signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # wait, and leave it in the process table
    assert not is_running(process)
    ended = wait(process, 0)
    assert ended is not None
    assert ended.code == -signal.SIGKILL
