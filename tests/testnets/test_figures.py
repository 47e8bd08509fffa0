"""The arithmetic of the fault table, and that each of its promises can be broken."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.testnets.figures import (
    LATE_MS_MAX,
    PROMISES,
    ROW_PROMISES,
    Finding,
    Limits,
    Report,
    Row,
    Stranded,
    attributed,
    broken,
    longest_gap_s,
    table,
    windows_share,
    write,
)

STRANDED = Stranded(
    node="hospital-a",
    asked=4,
    pending=4,
    deadline_ms=1_000,
    answer_ms_max=1_010.0,
    taken=10,
    refusal=(503, "pool_full"),
    unconfirmed=(503, "not_confirmed"),
    read=6,
    proven=6,
    committed=14,
)
ROW = Row(
    name="leader cut off",
    limits=Limits(
        gap_s=3.0,
        terms=20,
        windows_share=0.8,
        recovery_s=15.0,
        offline_transactions=2_000,
        stranded=1,
        shown={"wires": (0, 0), "terms": (1, None), "late": (None, 30.0)},
    ),
    seconds=40.0,
    gap_s=2.9,
    terms=20,
    acknowledged=1_000,
    lost=0,
    expired=1,
    refused={"pool_full": 2},
    failed={},
    undead=0,
    unresolved=0,
    twice=0,
    falls=0,
    heads_equal=True,
    receipts=15,
    unproven=0,
    first_height=11,
    last_height=20,
    windows_share=0.8,
    recovery_s=3.0,
    offline_transactions=2_000,
    shown={"wires": 0, "terms": 1, "late": 30.0},
    stranded=[STRANDED],
)
REPORT = Report(
    backend="netns",
    voters=4,
    learners=1,
    rows_expected=["leader cut off"],
    rows=[ROW],
    unmeasured={},
    findings=[],
    stores=5,
    stores_checked=5,
    stopped=dict.fromkeys("abcde", 0),
    transactions=1_000,
    steps_s={"faults": 40.0},
    seconds=50.0,
)


def row(**changes: Any) -> Row:
    return msgspec.structs.replace(ROW, **changes)


def stranded(**changes: Any) -> Row:
    return row(stranded=[STRANDED, msgspec.structs.replace(STRANDED, **changes)])


def report(**changes: Any) -> Report:
    return msgspec.structs.replace(REPORT, **changes)


# Gaps and windows.


@pytest.mark.parametrize(
    ("answers", "begin", "end", "gap_s"),
    [
        ([1.0, 2.0, 4.5, 5.0], 2.0, 5.0, 2.5),
        # It begins with the last answer before the fault.
        ([1.0, 5.0, 5.5], 3.0, 6.0, 4.0),
        # Nothing came any more: it lasts to the row's end.
        ([1.0, 2.0], 2.5, 9.0, 7.0),
        ([], 2.0, 9.0, 7.0),
        # What came before the fault or after the row is not of the row.
        ([0.0, 8.0, 8.5, 9.0, 9.5, 30.0], 8.2, 9.6, 0.5),
        # In any order.
        ([5.0, 4.5, 2.0, 1.0], 2.0, 5.0, 2.5),
    ],
)
def test_the_longest_gap(answers: list[float], begin: float, end: float, gap_s: float) -> None:
    assert longest_gap_s(answers, begin, end) == pytest.approx(gap_s)


@pytest.mark.parametrize(
    ("answers", "share"),
    [
        ([100.0, 105.0, 110.0, 115.0, 120.0, 125.0], 1.0),
        ([100.0, 100.1, 104.9, 129.9], 2 / 6),
        ([], 0.0),
        # Before, after, and in the rest that is no whole window.
        ([99.9, 130.0, 131.0], 0.0),
    ],
)
def test_the_share_of_windows_with_commits(answers: list[float], share: float) -> None:
    assert windows_share(answers, 100.0, 132.0) == pytest.approx(share)


def test_no_window_has_no_share() -> None:
    with pytest.raises(ValueError, match="no window"):
        windows_share([1.0], 0.0, 4.9)


# Findings.


def test_findings_belong_to_the_row_in_which_their_height_came_to_be() -> None:
    rows = [row(name="one", first_height=11, last_height=20), row(name="two", first_height=21, last_height=21)]
    found = [
        Finding("a", 11, "first of one"),
        Finding("b", 20, "last of one"),
        Finding("a", 21, "of two"),
        Finding("a", 10, "before all"),
        Finding("a", 22, "after all"),
        Finding("a", None, "of a file"),
    ]
    (one, two), rest = attributed(rows, found)
    assert one.findings == ["a: first of one", "b: last of one"]
    assert two.findings == ["a: of two"]
    assert rest == ["a: before all", "a: after all", "a: of a file"]


# Promises.

DOCTORED_ROWS: list[tuple[str, Row]] = [
    ("it went through to its end", row(broke_down="TrialError: no leader came")),
    ("the fault was felt", row(shown={"wires": 1, "terms": 1, "late": 30.0})),
    ("the fault was felt", row(shown={"wires": -1, "terms": 1, "late": 30.0})),
    ("the fault was felt", row(shown={"wires": 0, "terms": 0, "late": 30.0})),
    ("the fault was felt", row(shown={"wires": 0, "terms": 1, "late": 30.1})),
    ("the fault was felt", row(shown={"wires": 0, "terms": 1})),
    ("the fault was felt", row(shown={})),
    ("the fault was felt", row(limits=msgspec.structs.replace(ROW.limits, shown={}))),
    ("commits go on within the bound", row(gap_s=3.01)),
    ("terms are bounded", row(terms=21)),
    ("enough windows have commits", row(windows_share=0.79)),
    ("enough windows have commits", row(windows_share=None)),
    ("a network that was down commits soon after its start", row(recovery_s=15.1)),
    ("a network that was down commits soon after its start", row(recovery_s=None)),
    ("enough was committed while the learner was offline", row(offline_transactions=1_999)),
    ("something was acknowledged", row(acknowledged=0)),
    ("nothing acknowledged is lost", row(lost=1)),
    ("nothing is committed twice", row(twice=1)),
    ("no submission is left unresolved", row(unresolved=1)),
    ("no submission is refused but for now", row(refused={"pool_full": 1, "unregistered": 1})),
    ("no transaction fails", row(failed={"unregistered": 1})),
    ("what was refused or expired is in no block", row(undead=1)),
    ("block times rise", row(falls=1)),
    ("heads are equal after healing", row(heads_equal=False)),
    ("receipts of every node verify", row(unproven=1)),
    ("receipts of every node verify", row(receipts=0)),
    ("check is clean", row(findings=["a: bad"])),
    ("check is clean", row(found_down=1)),
    ("nodes without a majority were asked", row(stranded=[])),
    ("without a majority, what was accepted is answered 202 pending by its deadline", stranded(asked=5)),
    (
        "without a majority, what was accepted is answered 202 pending by its deadline",
        stranded(asked=0, pending=0, committed=10),
    ),
    (
        "without a majority, what was accepted is answered 202 pending by its deadline",
        stranded(answer_ms_max=1_000.0 + LATE_MS_MAX + 1),
    ),
    ("without a majority, what was not accepted is answered 503 pool_full", stranded(refusal=(503, "busy"))),
    ("without a majority, what was not accepted is answered 503 pool_full", stranded(refusal=(200, ""))),
    ("without a majority, a linearizable read is answered 503 not_confirmed", stranded(unconfirmed=(200, ""))),
    ("without a majority, committed facts are read and proven", stranded(proven=5)),
    ("without a majority, committed facts are read and proven", stranded(read=0, proven=0)),
    # All that was taken was dropped, but for what was answered 202; one of all; one that nobody handed over.
    ("what was accepted without a majority is committed after healing", stranded(committed=4)),
    ("what was accepted without a majority is committed after healing", stranded(committed=13)),
    ("what was accepted without a majority is committed after healing", stranded(committed=15)),
]
DOCTORED: list[tuple[str, Report]] = [
    ("the run went through to its end", report(broke_down="no engine answers")),
    ("every row was measured", report(rows_expected=["leader cut off", "another"])),
    ("every row was measured", report(rows_expected=[], rows=[])),
    ("containers are confined as they shall be", report(unconfined=["a: it runs as root"])),
    ("every store was checked", report(stores_checked=4)),
    ("no store has a finding of no row", report(findings=["a: of a file"])),
    ("every daemon stopped with 0", report(stopped={**REPORT.stopped, "a": 1})),
    ("every daemon stopped with 0", report(stopped={**REPORT.stopped, "a": None})),
    ("every daemon stopped with 0", report(stopped={})),
]


def test_a_good_run_breaks_no_promise() -> None:
    assert broken(REPORT) == []


@pytest.mark.parametrize(("promise", "doctored"), DOCTORED_ROWS)
def test_a_doctored_row_breaks_its_promise_and_no_other(promise: str, doctored: Row) -> None:
    assert broken(report(rows=[doctored])) == [f"leader cut off: {promise}"]


@pytest.mark.parametrize(("promise", "doctored"), DOCTORED)
def test_a_doctored_run_breaks_its_promise_and_no_other(promise: str, doctored: Report) -> None:
    assert broken(doctored) == [promise]


def test_every_promise_was_broken_here() -> None:
    assert {promise for promise, _ in ROW_PROMISES} == {promise for promise, _ in DOCTORED_ROWS}
    assert {promise for promise, _ in PROMISES} == {promise for promise, _ in DOCTORED}


def test_a_row_without_a_bound_promises_none() -> None:
    free = row(
        limits=Limits(shown={"wires": (0, 0)}),
        gap_s=99.0,
        terms=99,
        windows_share=None,
        recovery_s=None,
        offline_transactions=None,
    )
    assert broken(report(rows=[free])) == []


# What is shown and written.


def test_the_table_shows_every_row_and_what_is_wrong_with_it() -> None:
    bad = row(name="bad", heads_equal=False, findings=["a: bad"], lost=7, unresolved=3, note="of note")
    broken_down = row(name="half", broke_down="TrialError: no leader came")
    unmeasured = {"last": "the run did not get there"}
    doctored = report(
        rows=[ROW, bad, broken_down],
        unmeasured=unmeasured,
        findings=["b: of a file"],
        mechanism="netem",
        image_bytes=2_000_000,
    )
    shown = "\n".join(table(doctored))
    for said in ("leader cut off", "2.90", "equal", "clean", "DIFFERENT", "NOT CLEAN", "of note", "3 unresolved"):
        assert said in shown
    assert "BROKE DOWN: TrialError: no leader came" in shown
    assert "NOT MEASURED: the run did not get there" in shown
    assert "wires 0; terms 1 (at least 1); late 30 (at most 30)" in shown
    assert "made by netem" in shown
    assert "the image has 2 MB" in shown
    assert "2 refused pool_full" in shown
    assert "503 pool_full" in shown
    assert "finding of no row: b: of a file" in shown


def test_the_report_is_written_as_json(tmp_path: Path) -> None:
    write(REPORT, tmp_path / "deep" / "report.json")
    content = json.loads((tmp_path / "deep" / "report.json").read_text())
    assert msgspec.convert(content, Report) == REPORT
