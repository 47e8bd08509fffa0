"""The demonstration's arithmetic, its made-up histories, and what it calls a success."""

import json
from pathlib import Path

import msgspec
import pytest

from carequorum import fhir
from carequorum.demo import histories
from carequorum.demo.figures import figures
from carequorum.demo.histories import write_histories
from carequorum.demo.plan import Answer, Folder, Item, slices
from carequorum.demo.report import Report, broken, table, write
from carequorum.sealing import CONTENT_BYTES_MAX

MS = 1_000_000


def answer(submitted_ms: int, answered_ms: int) -> Answer:
    return Answer(
        id="00",
        height=1,
        item=0,
        record="00",
        submitted_ns=submitted_ms * MS,
        answered_ns=answered_ms * MS,
    )


def test_figures_of_a_worked_example() -> None:
    #            0    100   200   300        1000  1100 ms
    # a          |-----|
    # b          |-----------|
    # c                |-----------------------|
    # d                                      |-----|
    found = figures([answer(0, 100), answer(0, 200), answer(100, 1000), answer(990, 1100)])
    assert found.committed == 4
    assert found.seconds_without_commit == 0.8
    assert found.in_flight_max == 2
    assert found.tx_per_s == pytest.approx(4 / 1.1, abs=0.1)
    assert found.commit_ms_p50 == 110.0  # of 100, 110, 200, 900
    assert found.commit_ms_p99 == 900.0


def test_an_answer_ends_its_flight_before_the_next_begins() -> None:
    assert figures([answer(0, 10), answer(10, 20), answer(20, 30)]).in_flight_max == 1


def test_histories_are_enough_and_fhir(tmp_path: Path) -> None:
    write_histories(tmp_path, seed=1)
    assert len(list(tmp_path.iterdir())) == histories.PATIENTS
    assert sum(1 for _ in fhir.read_path(tmp_path)) >= 500


def test_histories_are_those_of_their_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(histories, "PATIENTS", 2)
    for name in ("first", "second"):
        write_histories(tmp_path / name, seed=5)
    write_histories(tmp_path / "third", seed=6)
    first, second, third = (
        [file.read_bytes() for file in sorted((tmp_path / name).iterdir())] for name in ("first", "second", "third")
    )
    assert first == second
    assert first != third


def test_a_slice_is_read_back_as_the_resource_that_any_parser_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(histories, "PATIENTS", 2)
    write_histories(tmp_path, seed=5)
    for file in fhir.files(tmp_path):
        entries = json.loads(file.read_bytes())["entry"]
        items = [Item(str(file), offset, length, kind, 0) for kind, offset, length in slices(file)]
        assert [json.loads(item.read()) for item in items] == [entry["resource"] for entry in entries]
        assert [item.type for item in items] == [entry["resource"]["resourceType"] for entry in entries]


def test_a_resource_too_long_to_seal_is_named_before_anything_is_written(tmp_path: Path) -> None:
    text = json.dumps({"resourceType": "Binary", "data": "A" * CONTENT_BYTES_MAX})
    (tmp_path / "large.json").write_text(text)
    with pytest.raises(ValueError, match=r"Binary, \d+ bytes at .*large\.json:0"):
        list(slices(tmp_path / "large.json"))


def test_notes_are_read_while_the_last_line_is_on_its_way(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "demo")
    folder.make()
    notebook = folder.notebook("hospital-a")
    notebook.note(answer(0, 1))
    assert folder.answers() == [answer(0, 1)]
    notebook.close()
    with (folder.committed / "hospital-a.jsonl").open("ab") as file:
        file.write(msgspec.json.encode(answer(1, 2))[:-5])
    assert folder.answers() == [answer(0, 1)]


SUCCESS = Report(
    nodes=4,
    seed=1,
    patients=2,
    resources=10,
    transactions_expected=16,
    transactions_committed=16,
    acknowledged_lost=0,
    heads_equal=True,
    state_roots_equal=True,
    receipts_verified=16,
    resources_opened=10,
    resources_equal=10,
    stores_clean=4,
    daemons_stopped=4,
    leader_kills=1,
    leader_killed_after=3,
    seconds_without_commit=0.9,
    in_flight_max=64,
    tx_per_s=300.0,
    commit_ms_p50=100.0,
    commit_ms_p99=900.0,
    seconds=20.0,
)


def test_a_success_breaks_no_promise(tmp_path: Path) -> None:
    assert broken(SUCCESS) == []
    write(SUCCESS, tmp_path / "build" / "demo.json")
    written = json.loads((tmp_path / "build" / "demo.json").read_text())
    assert written["acknowledged_lost"] == 0
    assert written["state_roots_equal"] is True
    assert any("0.9 s" in line for line in table(SUCCESS))


@pytest.mark.parametrize(
    ("field", "value", "promise"),
    [
        ("transactions_committed", 15, "all was committed"),
        ("acknowledged_lost", 1, "nothing acknowledged is lost"),
        ("heads_equal", False, "one head"),
        ("state_roots_equal", False, "one state root"),
        ("receipts_verified", 15, "every receipt"),
        ("resources_opened", 9, "every record opens"),
        ("resources_equal", 9, "every record opens"),
        ("stores_clean", 3, "every store is clean"),
        ("daemons_stopped", 3, "every daemon stopped"),
        ("leader_kills", 0, "the leader was killed"),
    ],
)
def test_each_promise_can_be_broken(field: str, value: object, promise: str) -> None:
    failures = broken(msgspec.structs.replace(SUCCESS, **{field: value}))
    assert promise in failures[0]
