"""The command line: every command once against real daemons, and every way to get it wrong."""

import base64
import json
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

from carequorum.cli import app, main
from carequorum.client import Client
from carequorum.devnet import Devnet, create
from carequorum.submission import TxStatus
from carequorum.verify import load_genesis
from carequorum.wallet import COST_DEVELOPMENT, Wallet
from ledger.node_cert import seed_from_pem

BUNDLE = """{"resourceType": "Bundle", "type": "collection", "entry": [
  {"resource": {"resourceType": "Patient", "id": "p1", "birthDate": "1970-01-01"}},
  {"resource": {"resourceType":"Observation",  "id": "o1", "valueQuantity": {"value": 10.00}}}]}"""
OBSERVATION = b'{"resourceType":"Observation",  "id": "o1", "valueQuantity": {"value": 10.00}}'

Run = Callable[..., str]
RunJson = Callable[..., Any]


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("CAREQUORUM_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command that must succeed; its stdout."""

    def run(*arguments: str | Path) -> str:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert (code, captured.err) == (0, "")
        return captured.out

    return run


@pytest.fixture
def run_json(run: Run) -> RunJson:
    def run_json(*arguments: str | Path) -> Any:
        return json.loads(run(*arguments, "--json"))

    return run_json


@pytest.fixture
def fail(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run a command that must fail; its exit code and its one line."""

    def fail(*arguments: str | Path) -> tuple[int, str]:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert code != 0
        assert captured.err.count("\n") == 1
        assert captured.err.startswith("carequorum: ")
        return code, captured.err.removeprefix("carequorum: ").strip()

    return fail


Fail = Callable[..., tuple[int, str]]


@pytest.fixture
def passphrase_file(tmp_path: Path) -> Path:
    path = tmp_path / "passphrase"
    path.touch(0o600)
    path.write_text("correct horse\n")
    return path


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Devnet]:
    network = create(tmp_path_factory.mktemp("cli") / "net", 2)
    try:
        network.start(network.nodes)
        yield network
    finally:
        network.kill(network.nodes)


def leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if hasattr(command, "commands"):
        for name, sub in command.commands.items():
            yield from leaves(sub, (*path, name))
    else:
        yield path, command


LEAVES = dict(leaves(typer.main.get_command(app)))


def test_the_commands_are_these() -> None:
    assert sorted(" ".join(path) for path in LEAVES) == [
        "check",
        "devnet clock",
        "devnet delay",
        "devnet down",
        "devnet heal",
        "devnet kill",
        "devnet logs",
        "devnet loss",
        "devnet oneway",
        "devnet partition",
        "devnet pause",
        "devnet restart",
        "devnet resume",
        "devnet status",
        "devnet up",
        "events",
        "genesis new",
        "keys new",
        "keys show",
        "member register",
        "member revoke",
        "member rotate",
        "network proposal",
        "network propose-node",
        "network propose-organisation",
        "network propose-promotion",
        "network propose-removal",
        "network propose-withdrawal",
        "network status",
        "network vote",
        "node",
        "receipt extend",
        "receipt get",
        "receipt verify",
        "record add",
        "record amend",
        "record import",
        "record list",
        "record open",
        "tx status",
    ]


def until_sealed(run_json: RunJson, at: Path, height: int) -> None:
    """Other nodes learn of a block's certificate a moment after the one that was asked to wait for it."""
    deadline = time.monotonic() + 10
    while (run_json("network", "status", "--at", at)["heights"]["sealed"] or 0) < height:
        assert time.monotonic() < deadline


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_every_command_has_an_example_and_a_json_answer(path: tuple[str, ...], run: Run) -> None:
    text = " ".join(run(*path, "--help").split())
    assert f"Example: carequorum {' '.join(path)} " in text
    # `node` gives no answer: it becomes the daemon.
    assert ("--json" in text) == (path != ("node",))


@pytest.mark.parametrize(
    ("known", "sentence"),
    [
        (TxStatus("unknown"), ""),
        (
            TxStatus("unknown", known_since=1_700_000_000_000),
            "The node has pruned its blocks up to 2023-11-14T22:13:20+00:00: the transaction may have been "
            "committed by then, and this node cannot tell. Another may.\n",
        ),
    ],
)
def test_a_status_says_where_the_node_may_have_forgotten(
    known: TxStatus, sentence: str, run: Run, run_json: RunJson, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def status(client: Client, tx_id: bytes) -> TxStatus:
        return known

    monkeypatch.setattr(Client, "status", status)
    asked = ("tx", "status", "00" * 32, "--at", create(tmp_path / "net", 1).directory / "hospital-a")
    assert run(*asked) == f"status  unknown\n{sentence}"
    assert run_json(*asked)["known_since"] == known.known_since


@dataclass(frozen=True)
class Day:
    """Two hospitals and the commands given there; `folder` has the wallets, whatever is written and the receipts."""

    network: Devnet
    run: Run
    run_json: RunJson
    fail: Fail
    passphrase_file: Path
    folder: Path

    @property
    def at_home(self) -> tuple[str, Path]:
        return "--at", self.network.folder(self.network.nodes[0])

    @property
    def away(self) -> Path:
        return self.network.folder(self.network.nodes[1])

    @property
    def genesis(self) -> tuple[str, Path]:
        return "--genesis", self.network.directory / "genesis.json"

    def make_wallet(self, name: str) -> None:
        Wallet.create(self.folder / f"{name}.wallet", b"correct horse", cost=COST_DEVELOPMENT)

    def wallet(self, name: str, whose: str = "") -> tuple[str | Path, ...]:
        """The options that name this wallet: the one that signs, or with "member-" the member's."""
        path = self.folder / f"{name}.wallet"
        return f"--{whose}wallet", path, f"--{whose}passphrase-file", self.passphrase_file

    def register_clinician(self, name: str) -> None:
        """Her wallet is at hand."""
        self.make_wallet(name)
        self.run("member", "register", *self.at_home, *self.wallet(name, "member-"), "--role", "clinician")

    def open_text(self, record: str, *options: str | Path) -> tuple[str, int]:
        """What rosa reads, and its version."""
        opened = self.run_json("record", "open", record, *options, *self.wallet("rosa"))
        return base64.b64decode(opened["content"]).decode(), opened["version"]

    def newest(self) -> list[Any]:
        """Rosa's records."""
        records: list[Any] = self.run_json("record", "list", *self.at_home, *self.wallet("rosa"))["records"]
        return records

    def prove(self, transaction: str, receipt: Path) -> Any:
        """Fetch its receipt where it did not come in, and verify it offline."""
        self.run("receipt", "get", transaction, "--out", receipt, "--at", self.away)
        proven = self.run_json("receipt", "verify", receipt, *self.genesis)
        assert (proven["transaction"], proven["code"]) == (transaction, "ok")
        return proven


def register_patient(day: Day) -> tuple[Any, Any]:
    """Rosa's wallet stays at home and sends a key and a proof. What `keys show` and `member register` answer."""
    day.make_wallet("rosa")
    admin_wallet, admin_passphrase = day.network.wallet(day.network.nodes[0])
    admin = day.run_json("keys", "show", admin_wallet, "--passphrase-file", admin_passphrase)["account"]
    shown = ("keys", "show", day.folder / "rosa.wallet", "--passphrase-file", day.passphrase_file)
    card = day.run_json(*shown, "--prove-to", admin, *day.genesis, "--organisation", day.network.nodes[0].id)
    keys = ("--key", card["key"], "--proof", card["proof"])
    registered = day.run_json("member", "register", *day.at_home, "--role", "patient", *keys)
    assert registered["account"] == card["account"]
    return card, registered


def write_and_read(day: Day, card: Any) -> Any:
    """Records, in and out, byte for byte. What `record add` answers for the note."""
    folder, rosa = day.folder, day.wallet("rosa")
    (folder / "history.json").write_text(BUNDLE)
    (folder / "note.txt").write_text("rest, and plenty of water")
    to_rosa = ("--patient", card["account"], "--subject", card["subject"], *day.at_home, *day.wallet("lee"))
    imported = day.run_json("record", "import", folder / "history.json", *to_rosa)["records"]
    observation = next(each for each in imported if each["source"].endswith(f":{BUNDLE.index(OBSERVATION.decode())}"))
    note = day.run_json("record", "add", folder / "note.txt", "--content-type", "text/plain", *to_rosa)
    listed = day.newest()
    until_sealed(day.run_json, day.away, note["height"])
    assert {each["record"] for each in listed} == {each["record"] for each in [*imported, note]}
    assert listed[0]["record"] == note["record"]
    opened = day.run_json("record", "open", observation["record"], "--at", day.away, *rosa)
    assert base64.b64decode(opened["content"]) == OBSERVATION
    assert opened["content_type"] == "application/fhir+json"
    day.run("record", "open", note["record"], *day.at_home, *rosa, "--out", folder / "copy.txt")
    assert (folder / "copy.txt").read_text() == "rest, and plenty of water"
    assert stat.S_IMODE((folder / "copy.txt").stat().st_mode) == 0o600
    return note


def correct_the_note(day: Day, card: Any, note: Any) -> list[Any]:
    """A colleague amends it, as can be seen at once at the other hospital; what it said before stays. The records."""
    day.register_clinician("ito")
    (day.folder / "better.txt").write_text("rest, and no water")
    better = (day.folder / "better.txt", "--content-type", "text/plain")
    of_rosa = ("--patient", card["account"], *day.at_home)
    amending = ("record", "amend", note["record"], *better, "--version", "1", *of_rosa)
    amended = day.run_json(*amending, *day.wallet("ito"))
    assert (amended["record"], amended["version"]) == (note["record"], 2)
    at_once = ("--at", day.away, "--linearizable")
    assert day.open_text(note["record"], *at_once)[1] == 2
    assert day.run_json("record", "list", *day.wallet("rosa"), *at_once)["records"][0]["version"] == 2
    assert day.run_json("tx", "status", amended["transaction"], *at_once)["code"] == "ok"
    assert day.run_json("network", "status", *at_once)["heights"]["executed"] >= amended["height"]
    assert day.fail(*amending, *day.wallet("lee"))[1].startswith("stale_version:")

    until_sealed(day.run_json, day.away, amended["height"])
    for version, text in ((None, "rest, and no water"), (2, "rest, and no water"), (1, "rest, and plenty of water")):
        chosen = () if version is None else ("--version", str(version))
        assert day.open_text(note["record"], *chosen, "--at", day.away) == (text, version or 2)
    third = ("record", "open", note["record"], "--version", "3", *day.at_home, *day.wallet("rosa"))
    assert day.fail(*third)[1].startswith("no_such_version:")
    listed = day.newest()
    assert (listed[0]["record"], listed[0]["version"]) == (note["record"], 2)
    day.prove(amended["transaction"], day.folder / "amended.receipt")
    return listed


def prove_the_note(day: Day, note: Any) -> None:
    receipt = day.folder / "tx.receipt"
    proven = day.prove(note["transaction"], receipt)
    status = day.run_json("tx", "status", note["transaction"], "--at", day.away)
    assert (status["status"], status["height"]) == ("sealed", proven["height"])
    damaged = bytearray(receipt.read_bytes())
    damaged[-1] ^= 1
    receipt.write_bytes(damaged)
    code, line = day.fail("receipt", "verify", receipt, *day.genesis)
    assert code == 3
    assert "does not verify" in line


def tell_what_happened(day: Day, card: Any, registered: Any, listed: list[Any]) -> None:
    """The same at either hospital."""
    about_rosa = ("events", "--from", "1", "--subject", card["subject"], "--limit", "4", "--json")
    told = day.run(*about_rosa, *day.at_home, *day.wallet("lee"))
    assert day.run(*about_rosa, "--at", day.away, *day.wallet("lee")) == told
    events = [json.loads(line) for line in told.splitlines()]
    assert [each["actions"][0]["do"] for each in events] == ["record.add"] * 3 + ["record.amend"]
    assert {each["actions"][0]["record"] for each in events} == {each["record"] for each in listed}
    after = ("--after", events[-2]["id"], "--contract", "records", "--limit", "1")
    (last,) = day.run("events", *after, *day.at_home).splitlines()
    assert last.split()[0] == events[-1]["id"]
    assert f"record.amend body=0 record={listed[0]['record']}" in last
    of_her = day.run("events", "--from", "1", "--member", card["account"], "--limit", "1", "--json", *day.at_home)
    assert json.loads(of_her)["transaction"] == registered["transaction"]


def change_and_end_keys(day: Day, card: Any, listed: list[Any]) -> None:
    rosa = day.wallet("rosa")
    day.run("member", "rotate", *day.at_home, *rosa)
    assert day.newest() == listed
    day.run("member", "revoke", card["account"], *day.at_home)
    listing = ("record", "list", *day.at_home, *rosa, "--subject", card["subject"])
    assert day.fail(*listing)[1].startswith("revoked:")


@pytest.mark.processes
def test_a_day_at_the_hospital(
    network: Devnet, run: Run, run_json: RunJson, fail: Fail, passphrase_file: Path, tmp_path: Path
) -> None:
    day = Day(network, run, run_json, fail, passphrase_file, tmp_path)
    day.register_clinician("lee")
    card, registered = register_patient(day)
    note = write_and_read(day, card)
    listed = correct_the_note(day, card, note)
    # The admin is no reader, wherever it asks.
    assert fail("record", "open", note["record"], *day.at_home) == (
        1,
        "not_a_reader: none of the wallet's keys opens this record",
    )
    prove_the_note(day, note)
    tell_what_happened(day, card, registered, listed)
    change_and_end_keys(day, card, listed)

    view = run_json("network", "status", *day.at_home)
    assert view["chain"] == network.genesis.chain_id().hex()
    assert [member["id"] for member in view["members"]] == sorted(node.id for node in network.nodes)
    assert "leader" in run("network", "status", *day.at_home)


@pytest.mark.processes
def test_hospitals_vote_on_who_belongs_to_the_network(
    network: Devnet, run: Run, run_json: RunJson, fail: Fail, passphrase_file: Path, tmp_path: Path
) -> None:
    home, away = (network.folder(node) for node in network.nodes)
    genesis = ("--genesis", network.directory / "genesis.json")
    admin_wallet, admin_passphrase = network.wallet(network.nodes[0])
    admin = run_json("keys", "show", admin_wallet, "--passphrase-file", admin_passphrase)["account"]
    Wallet.create(tmp_path / "chief.wallet", b"correct horse", cost=COST_DEVELOPMENT)
    chief = ("--wallet", tmp_path / "chief.wallet", "--passphrase-file", passphrase_file)
    shown = ("keys", "show", tmp_path / "chief.wallet", "--passphrase-file", passphrase_file)
    card = run_json(*shown, *genesis, "--prove-to", admin)

    # A new hospital is there as soon as more than half of those before want it.
    founded = ("st-anna", "--name", "St. Anna", "--kind", "hospital", "--admin", f"{card['key']}:{card['proof']}")
    proposed = run_json("network", "propose-organisation", *founded, "--at", home)
    assert (proposed["change"], proposed["of"], proposed["status"]) == ("add_organisation", "st-anna", "open")
    voted = run_json("network", "vote", proposed["proposal"], "--approve", "--at", away)
    assert (voted["status"], len(voted["approvals"])) == ("passed", 2)
    run("keys", "new", tmp_path / "anna.key", "--node", "anna-1")
    place = ("--organisation", "st-anna", "--address", "127.0.0.1:19999", "--certificate", tmp_path / "anna.key.crt")
    until_sealed(run_json, home, voted["height"])
    asked = run_json("network", "propose-node", "anna-1", *place, "--no-vote", "--at", home, *chief)
    assert (asked["status"], asked["approvals"]) == ("open", [])
    until_sealed(run_json, away, asked["height"])
    assert run_json("network", "proposal", asked["proposal"], "--at", away)["organisation"] == "st-anna"
    assert "add_node" in run("network", "proposal", asked["proposal"], "--at", away)

    # Two against one.
    run("network", "vote", asked["proposal"], "--reject", "--at", home)
    closed = run_json("network", "vote", asked["proposal"], "--reject", "--at", away)
    assert closed["status"] == "rejected"
    assert fail("network", "vote", asked["proposal"], "--approve", "--at", home)[1].startswith("proposal_closed:")
    for verb in ("propose-promotion", "propose-removal"):
        assert fail("network", verb, "anna-1", "--at", home)[1].startswith("no_such_node:")
    assert fail("network", "propose-withdrawal", asked["proposal"], "--at", home)[1].startswith("nothing_pending:")


@pytest.mark.processes
def test_an_import_with_a_fault_in_it_writes_nothing(
    network: Devnet, fail: Fail, passphrase_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "history.ndjson").write_text('{"resourceType": "Patient", "id": "p1"}\n{"resourceType": ')
    person = ("--patient", "00" * 32, "--subject", "00" * 32)
    code, line = fail(
        "record", "import", tmp_path / "history.ndjson", *person, "--at", network.folder(network.nodes[0])
    )
    assert code == 1
    assert line.startswith("bad_fhir:")


@pytest.mark.processes
def test_devnet_up_kill_restart_down_and_check(tmp_path: Path, run: Run, run_json: RunJson, fail: Fail) -> None:
    where = ("--dir", tmp_path / "net")
    try:
        up = run_json("devnet", "up", "--nodes", "1", *where)
        assert [(node["id"], node["ready"]) for node in up["nodes"]] == [("hospital-a", True)]
        assert fail("devnet", "up", "--nodes", "2", *where)[0] == 1
        assert fail("devnet", "kill", "hospital-a", "--leader", *where)[0] == 2
        assert fail("check", "--at", tmp_path / "net" / "hospital-a")[0] == 1  # the daemon holds its store
        assert run_json("devnet", "kill", "--leader", *where).keys() == {"hospital-a"}
        (down,) = run_json("devnet", "status", *where)["nodes"]
        assert (down["pid"], down["ready"]) == (None, False)
        (again,) = run_json("devnet", "restart", *where)["nodes"]
        assert again["ready"]
        assert run("devnet", "up", *where).startswith("NODE")
    finally:
        run("devnet", "down", *where)
    assert run("devnet", "down", *where) == "nothing was running\n"
    report = run_json("check", "--at", tmp_path / "net" / "hospital-a")
    assert report["ok"]
    assert report["last_height"] >= 2  # an election each time it started

    other = create(tmp_path / "other", 1)
    store = tmp_path / "net" / "hospital-a" / "data"
    assert main(["check", "--data", str(store), "--genesis", str(other.directory / "genesis.json")]) == 3


def test_keys_and_genesis_for_a_network_of_ones_own(
    run_json: RunJson, fail: Fail, passphrase_file: Path, tmp_path: Path
) -> None:
    node = run_json("keys", "new", tmp_path / "node.key", "--node", "hospital-a")
    assert stat.S_IMODE((tmp_path / "node.key").stat().st_mode) == 0o600
    assert run_json("keys", "show", tmp_path / "node.key") == {"key": node["key"]}
    seed_from_pem((tmp_path / "node.key").read_bytes(), None)
    assert fail("keys", "new", tmp_path / "node.key", "--node", "hospital-a")[0] == 2
    assert fail("keys", "new", tmp_path / "other.key", "--node", "No Such Id")[0] == 2

    protected = ("--passphrase-file", passphrase_file)
    wallet = run_json("keys", "new", tmp_path / "admin.wallet", *protected)
    assert run_json("keys", "show", tmp_path / "admin.wallet", *protected) == wallet
    plan = tmp_path / "plan.toml"
    plan.write_text(
        f"""network = "one hospital"
        [[organisations]]
        id = "hospital-a"
        name = "Riverside"
        kind = "hospital"
        admin_keys = ["{wallet["key"]}"]
        [[nodes]]
        id = "hospital-a"
        organisation = "hospital-a"
        address = "127.0.0.1:7400"
        certificate = "node.key.crt"
        """
    )
    made = run_json("genesis", "new", plan, "--out", tmp_path / "genesis.json")
    genesis = load_genesis(tmp_path / "genesis.json")
    assert genesis.chain_id().hex() == made["chain"]
    assert genesis.node_keys() == {"hospital-a": bytes.fromhex(node["key"])}
    assert genesis.organisations[0].admin_keys == [bytes.fromhex(wallet["key"])]
    assert fail("genesis", "new", plan, "--out", tmp_path / "genesis.json")[0] == 2  # exists

    plan.write_text(plan.read_text().replace('organisation = "hospital-a"', 'organisation = "hospital-b"'))
    assert fail("genesis", "new", plan, "--out", tmp_path / "second.json")[1].startswith("bad_genesis:")
    plan.write_text('netwrok = "typo"')
    assert fail("genesis", "new", plan, "--out", tmp_path / "second.json")[0] == 2
    assert not (tmp_path / "second.json").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "Missing command."),
        (["nonsense"], 2, "No such command 'nonsense'."),
        (["network", "status"], 2, "which network? give --genesis (or --at)"),
        (["check"], 2, "whose store? give --data (or --at)"),
        (["receipt", "verify", "x"], 2, "which network? give --genesis"),
        (["tx", "status", "abc"], 2, "TRANSACTION is 64 hex digits, not 'abc'"),
        (["devnet", "status", "--dir", "/nonexistent"], 1, "holds no development network"),
        (["network", "status", "--genesis", "/nonexistent"], 1, "no_such_file"),
        (["record", "import", "x", "--in-flight", "0", "--patient", "a", "--subject", "b"], 2, "--in-flight"),
        (["member", "register", "--role", "wizard"], 2, "'wizard' is not one of"),
        (["member", "rotate", "--account", "00"], 2, "all of --account, --key and --proof"),
        (["node", "--config", "/nonexistent"], 2, "/nonexistent is not a file"),
        (["keys", "show", "/nonexistent"], 1, "no_such_file"),
        (["events", "--contract", "claims"], 2, "--contract is identity or network or records, not 'claims'"),
        (["events", "--after", "one"], 1, "bad_event_id"),
        (["events", "--from", "1", "--after", "1"], 2, "--from or --after, not both"),
    ],
)
def test_mistakes_are_one_line_and_an_exit_code(fail: Fail, arguments: list[str], code: int, words: str) -> None:
    actual, line = fail(*arguments)
    assert actual == code
    assert words in line


def test_a_passphrase_comes_from_no_argument_and_no_pipe(
    fail: Fail, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", (tmp_path / "pipe").open("w+"))
    code, line = fail("keys", "new", tmp_path / "lee.wallet")
    assert code == 2
    assert line == "no terminal to ask for the passphrase; give --passphrase-file"
    sys.stdin.close()
    options = {name for command in LEAVES.values() for each in command.params for name in each.opts}
    assert {name for name in options if "pass" in name} == {"--passphrase-file", "--member-passphrase-file"}


def test_node_becomes_the_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "node.toml"
    config.touch()
    seen: list[list[str]] = []

    def execv(path: str, arguments: list[str]) -> None:
        seen.append([path, *arguments])

    monkeypatch.setattr(os, "execv", execv)
    main(["node", "--config", str(config)])
    assert seen == [[sys.executable, sys.executable, "-m", "node", "--config", str(config)]]
