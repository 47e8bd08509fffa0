"""The demonstration with real daemons: it succeeds, and each of its detectors finds what is planted for it."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from carequorum.demo import load
from carequorum.demo.load import DemoError, run_load
from carequorum.demo.plan import Answer, Folder, Plan
from carequorum.demo.staging import stage
from carequorum.devnet import Devnet, create

pytestmark = pytest.mark.processes

RESOURCES = 24


def write_history(path: Path) -> None:
    resources = [
        {"resourceType": "Observation", "id": f"o{number}", "valueString": f"reading {number} of the evening"}
        for number in range(RESOURCES)
    ]
    path.write_text("".join(json.dumps(resource) + "\n" for resource in resources))


def part(name: str, *arguments: object) -> tuple[int, dict[str, Any]]:
    """Run a part of the demonstration as the demonstration does."""
    command = [sys.executable, "-m", f"carequorum.demo.{name}", *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, check=False)
    answer: dict[str, Any] = json.loads(ended.stdout)
    return ended.returncode, answer


def demonstrate(*options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "carequorum.demo", *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Devnet, Folder, Plan]]:
    """A network of two with a history in it, still running."""
    base = tmp_path_factory.mktemp("demo")
    write_history(base / "history.ndjson")
    network = create(base / "net", 2)
    try:
        network.start(network.nodes)
        folder = Folder(network.directory / "demo")
        folder.make()
        plan = stage(network, folder, base / "history.ndjson")
        run_load(network, folder, plan)
        yield network, folder, plan
    finally:
        network.kill(network.nodes)


def test_the_whole_of_it(tmp_path: Path) -> None:
    write_history(tmp_path / "history.ndjson")
    out, kept = tmp_path / "demo.json", tmp_path / "kept"
    ended = demonstrate("--fhir", tmp_path / "history.ndjson", "--keep", kept, "--out", out)
    assert (ended.returncode, ended.stderr) == (0, "")
    report = json.loads(out.read_text())
    assert report["nodes"] == 4
    assert report["transactions_committed"] == RESOURCES + 4 + 1  # four clinicians, one patient
    assert report["receipts_verified"] == report["transactions_committed"]
    assert report["acknowledged_lost"] == 0
    assert report["heads_equal"] is report["state_roots_equal"] is True
    assert report["resources_equal"] == RESOURCES
    assert report["leader_kills"] == 1
    assert report["seconds_without_commit"] > 0
    assert [node.id for node in Devnet(kept).nodes if Devnet(kept).pid(node)] == []


def test_a_source_that_is_no_fhir_fails_and_leaves_no_daemon(tmp_path: Path) -> None:
    (tmp_path / "letter.json").write_text('{"dear": "doctor"}')
    kept, out = tmp_path / "kept", tmp_path / "demo.json"
    ended = demonstrate("--nodes", 1, "--fhir", tmp_path / "letter.json", "--keep", kept, "--out", out)
    assert ended.returncode == 1
    assert ended.stderr.startswith("demo: bad_fhir:")
    assert ended.stderr.count("\n") == 1
    network = Devnet(kept)
    assert network.pid(network.nodes[0]) is None
    assert not out.exists()


def test_a_transaction_that_no_node_knows_is_found_missing(
    written: tuple[Devnet, Folder, Plan], tmp_path: Path
) -> None:
    network, folder, _ = written
    planted = copy(folder, tmp_path)
    real = folder.answers()[0]
    strange = Answer(id="ab" * 32, height=1, item=None, record=None, submitted_ns=0, answered_ns=1)
    moved = msgspec.structs.replace(real, height=real.height + 1)
    notebook = planted.notebook("planted")
    notebook.note(strange)
    notebook.note(moved)
    notebook.close()
    code, found = part("auditor", planted.path)
    assert code == 1
    assert found["asked"] == len(folder.answers()) + 2
    lost = {(node, tx_id) for node, tx_id, _ in found["lost"]}
    assert lost == {(node.id, tx_id) for node in network.nodes for tx_id in (strange.id, moved.id)}


def test_a_record_that_differs_from_its_source_is_found(written: tuple[Devnet, Folder, Plan], tmp_path: Path) -> None:
    _, folder, plan = written
    code, found = part("reader", folder.path)
    assert (code, found) == (0, {"opened": RESOURCES, "equal": RESOURCES, "wrong": []})

    planted = copy(folder, tmp_path)
    source = tmp_path / "history.ndjson"
    source.write_text(Path(plan.items[0].source).read_text().replace("reading 7 of", "reading 8 of"))
    items = [msgspec.structs.replace(item, source=str(source)) for item in plan.items]
    planted.write_plan(msgspec.structs.replace(plan, items=items))
    code, found = part("reader", planted.path)
    assert code == 1
    assert (found["opened"], found["equal"]) == (RESOURCES, RESOURCES - 1)
    assert [f"byte {plan.items[7].offset}" in line for line in found["wrong"]] == [True]


def test_a_record_that_is_not_there_is_found(written: tuple[Devnet, Folder, Plan], tmp_path: Path) -> None:
    _, folder, _ = written
    planted = copy(folder, tmp_path)
    notebook = planted.notebook("planted")
    notebook.note(Answer(id="ab" * 32, height=1, item=0, record="cd" * 32, submitted_ns=0, answered_ns=1))
    notebook.close()
    code, found = part("reader", planted.path)
    assert (code, found["wrong"]) == (1, [f"{'cd' * 32}: not listed"])


def test_a_receipt_that_proves_nothing_or_another_is_found(
    written: tuple[Devnet, Folder, Plan], tmp_path: Path
) -> None:
    network, folder, plan = written
    planted = copy(folder, tmp_path)
    assert part("auditor", planted.path)[0] == 0
    file = planted.receipts / f"{network.nodes[0].id}.jsonl"
    count = len(folder.answers())
    assert part("verifier", plan.genesis_file, file) == (0, {"verified": {file.stem: count}, "refused": []})

    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[0]["id"], lines[1]["id"] = lines[1]["id"], lines[0]["id"]
    lines[2]["receipt"] = lines[2]["receipt"][:-8] + "AAAAAAA="
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, found = part("verifier", plan.genesis_file, file)
    assert (code, found["verified"]) == (1, {file.stem: count - 3})
    assert len(found["refused"]) == 3


def copy(folder: Folder, tmp_path: Path) -> Folder:
    """The same plan and notes in a folder that a test may spoil."""
    planted = Folder(tmp_path / "planted")
    planted.make()
    shutil.copytree(folder.committed, planted.committed, dirs_exist_ok=True)
    shutil.copy(folder.plan, planted.plan)
    return planted


def test_a_writer_that_fails_is_named_with_its_last_words(
    written: tuple[Devnet, Folder, Plan], tmp_path: Path
) -> None:
    network, folder, plan = written
    planted = copy(folder, tmp_path)
    nobody = {
        hospital: msgspec.structs.replace(person, wallet="/nonexistent")
        for hospital, person in plan.clinicians.items()
    }
    broken_plan = msgspec.structs.replace(plan, clinicians=nobody)
    planted.write_plan(broken_plan)
    with pytest.raises(DemoError, match=r"the writer of hospital-a failed: .*no_such_file: /nonexistent"):
        run_load(network, planted, broken_plan)


def test_when_nothing_is_committed_any_more_the_writers_are_ended(
    written: tuple[Devnet, Folder, Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, folder, plan = written
    monkeypatch.setattr(load, "STALL_S", 0.0)
    planted = copy(folder, tmp_path)
    with pytest.raises(DemoError, match=r"after [0-9]+ of 24 records nothing was committed for 0 s"):
        run_load(network, planted, plan)
