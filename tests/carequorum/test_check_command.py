"""`carequorum check`: what it prints, what it exits with, and where it takes genesis from."""

import json
from pathlib import Path

import pytest

from carequorum.cli import main
from carequorum.cli.output import stages
from storage import schema
from storage.leveldb import LevelDb
from tests.ledger.founding import GENESIS
from tests.storage.chains import Chain, doctor, record
from tests.storage.folders import flip


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The data_dir of a node, its node.toml beside it and genesis elsewhere."""
    chain = Chain(LevelDb(tmp_path / "node" / "data" / "ledger"))
    chain.add(doctor())
    chain.add(record("r"))
    chain.store.close()
    (tmp_path / "genesis.json").write_text(GENESIS.to_json())
    (tmp_path / "node" / "node.toml").write_text('[node]\ngenesis = "../genesis.json"\n')
    return tmp_path / "node" / "data"


def test_genesis_is_the_configured_one(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--data", str(data), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["ok"], report["chain"]) == (True, GENESIS.chain_id().hex())
    assert (report["last_height"], report["transactions"], report["problems"]) == (2, 2, [])
    assert report["file_bytes"] > 0
    (data.parent / "node.toml").unlink()
    assert main(["check", "--data", str(data)]) == 2
    assert "which network? give --genesis" in capsys.readouterr().err
    assert main(["check", "--data", str(data), "--genesis", str(data.parents[1] / "genesis.json")]) == 0


def test_a_changed_value_is_a_line_with_height_record_and_file(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kv = LevelDb(data / "ledger")
    kv.write([(schema.results_key(2), b"\x90")], sync=True)
    kv.close()
    assert main(["check", "--data", str(data)]) == 3
    out, err = capsys.readouterr()
    (line,) = [line for line in out.splitlines() if "results 2" in line]
    height, _, _, file, *fault = line.split()
    assert (height, file.endswith(".log"), " ".join(fault)) == ("2", True, "it is not what the chain gives")
    assert err.splitlines() == [f"carequorum: {data}: 1 problem"]


def test_a_changed_byte_is_a_line_with_its_file(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (manifest,) = (data / "ledger").glob("MANIFEST-*")
    flip(manifest, 12, 1)
    assert main(["check", "--data", str(data), "--json"]) == 3
    report = json.loads(capsys.readouterr().out)
    assert (report["ok"], report["opened"]) == (False, False)
    assert [problem["file"] for problem in report["problems"]] == [manifest.name]


def test_there_is_no_database(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    genesis = str(data.parents[1] / "genesis.json")
    assert main(["check", "--data", str(tmp_path / "none"), "--genesis", genesis]) == 1
    assert "holds no database" in capsys.readouterr().err


def test_a_bar_for_each_stage_goes_to_terminals_only(capsys: pytest.CaptureFixture[str]) -> None:
    with stages() as show:
        show("files", 1, 2)
        show("files", 2, 2)
        show("blocks", 1, 10)
    assert capsys.readouterr() == ("", "")
