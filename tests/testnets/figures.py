"""What one run of the fault table found, what it promised, and the table that shows both. No I/O here.

Definitions:

- a commit is seen as an answer `committed` that some client got from some node, by the machine's monotonic clock;
- a row lasts from the moment its fault begins until its writers are told to rest, all faults ended and nodes back;
- the gap of a row is the longest time in it without such an answer: it begins with the last answer before the fault;
- acknowledged: answered `committed` from the row's writers' first submission to their last answer;
- lost: acknowledged, and not in the block at the height answered, in the chain that all nodes agree on afterwards;
- terms: the newest term any node speaks of at the row's end less the one before it;
- shown: what was measured while the fault lasted that would not be so without it, by name;
- check clean: once the network has stopped, every store is checked. Each finding belongs to the row in which its
  height came to be; one that names no height, or one from before the first row, is held against the whole run.
"""

import itertools
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec

from carequorum.cli.output import columns

WINDOW_S = 5.0
# How much later than its deadline an answer may come, on a machine whose two cores do all of it.
LATE_MS_MAX = 500
# How a submission of an enrolled clinician may be refused: for now, and not for what it is.
REFUSALS = frozenset(
    {"busy", "not_confirmed", "not_ready", "not_sealed", "pool_full", "request_timeout", "unreachable"}
)


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a row promises beyond what every row does; None where it promises nothing of the kind.

    `recovery_s` bounds the time from the start of the daemons to the first commit, where all were down. `shown` has
    the least and the most of each figure by which the fault must show.
    """

    gap_s: float | None = None
    terms: int | None = None
    windows_share: float | None = None
    recovery_s: float | None = None
    offline_transactions: int | None = None
    stranded: int = 0
    shown: dict[str, tuple[float | None, float | None]] = {}


class Stranded(msgspec.Struct, frozen=True, kw_only=True):
    """What a node without a majority said, over plain HTTP.

    `pending`: submissions that were answered 202, `pending`, of `asked` that waited `deadline_ms` for a commit, the
    slowest in `answer_ms_max`. `taken` more were accepted until the pool was full. `refusal` and `unconfirmed` are
    (status, code): of the submission for which there was no room, and of a linearizable read. `proven` of `read`
    committed facts were proven by this node meanwhile. Of all that was accepted, and is good for far longer than
    the row lasts, `committed` came into the chain after healing.
    """

    node: str
    asked: int
    pending: int
    deadline_ms: int
    answer_ms_max: float
    taken: int
    refusal: tuple[int, str]
    unconfirmed: tuple[int, str]
    read: int
    proven: int
    committed: int


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One fault. Heights are those that came to be in it, both inclusive; `note` is one line for people.

    `unresolved` submissions ended without anybody knowing what became of them, `refused` ones by code; `failed` ones
    are in a block, by the code with which they changed nothing. `undead` were refused or expired, in this row or
    before, and are in a block of it. `twice` are transactions that the chain holds more than once, `falls` blocks
    whose time did not rise. `unproven` receipts of `receipts`, asked of every node, did not verify. `found_down` are
    the findings of checks made while the nodes were down. `broke_down` says why the row did not get to its end, empty
    if it did: the figures are then those of the mended network.
    """

    name: str
    limits: Limits
    seconds: float
    gap_s: float
    terms: int
    acknowledged: int
    lost: int
    expired: int
    refused: dict[str, int]
    failed: dict[str, int]
    undead: int
    unresolved: int
    twice: int
    falls: int
    heads_equal: bool
    receipts: int
    unproven: int
    first_height: int
    last_height: int
    windows_share: float | None = None
    recovery_s: float | None = None
    offline_transactions: int | None = None
    shown: dict[str, float] = {}
    found_down: int = 0
    stranded: list[Stranded] = []
    findings: list[str] = []
    broke_down: str = ""
    note: str = ""


class Finding(msgspec.Struct, frozen=True):
    """What a check found wrong with the store of `node`."""

    node: str
    height: int | None
    fault: str

    def __str__(self) -> str:
        return f"{self.node}: {self.fault}"


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """build/testnets-<backend>.json. `rows_expected` are the names of those that were to run, `unmeasured` those of
    which nothing is known, and why. `findings` are those of no row. `stores_checked` counts the stores that reach as
    high as the chain that was read; `stopped` has the daemons' exit codes, None for one that would not. `unconfined`
    is what is wrong with containers' confinement. `mechanism` and `image_bytes` say what made delays and losses, and
    how large the nodes' image is, where there is such a thing. `broke_down` says why the run did not get to its end.
    `steps_s` says how long each part of it took.
    """

    backend: str
    voters: int
    learners: int
    rows_expected: list[str]
    rows: list[Row]
    unmeasured: dict[str, str]
    findings: list[str]
    stores: int
    stores_checked: int
    unconfined: list[str] = []
    mechanism: str | None = None
    image_bytes: int | None = None
    broke_down: str = ""
    stopped: dict[str, int | None]
    transactions: int
    steps_s: dict[str, float]
    seconds: float


def longest_gap_s(answers: Iterable[float], begin: float, end: float) -> float:
    """The longest time without an answer from `begin` to `end`. All are moments in s, answers in any order.

    The time before the first answer counts from the last one before `begin`, that after the last one until `end`.
    """
    known = sorted(moment for moment in answers if moment <= end)
    before = [moment for moment in known if moment <= begin]
    points = [before[-1] if before else begin, *(moment for moment in known if moment > begin), end]
    return max(later - earlier for earlier, later in itertools.pairwise(points))


def windows_share(answers: Iterable[float], begin: float, end: float, window_s: float = WINDOW_S) -> float:
    """The share of the whole windows of `window_s` after `begin` in which an answer came.

    Raises ValueError where there is none.
    """
    count = math.floor((end - begin) / window_s + 1e-9)
    if count < 1:
        raise ValueError(f"from {begin} to {end} there is no window of {window_s} s")
    until = begin + count * window_s
    hit = {math.floor((moment - begin) / window_s) for moment in answers if begin <= moment < until}
    return len(hit) / count


def attributed(rows: Sequence[Row], findings: Iterable[Finding]) -> tuple[list[Row], list[str]]:
    """The rows with the findings that are theirs by height, and the findings of no row."""
    by_row: dict[str, list[str]] = {row.name: list(row.findings) for row in rows}
    rest: list[str] = []
    for finding in findings:
        owner = next((row.name for row in rows if _owns(row, finding.height)), None)
        (rest if owner is None else by_row[owner]).append(str(finding))
    return [msgspec.structs.replace(row, findings=by_row[row.name]) for row in rows], rest


def _owns(row: Row, height: int | None) -> bool:
    return height is not None and row.first_height <= height <= row.last_height


def _within(value: float | None, limit: float | None) -> bool:
    return limit is None or (value is not None and value <= limit)


def _at_least(value: float | None, limit: float | None) -> bool:
    return limit is None or (value is not None and value >= limit)


def _shows(row: Row) -> bool:
    """Whether every figure is there that the row promises, and within its bounds."""
    return all(
        _at_least(row.shown[name], least) and _within(row.shown[name], most) if name in row.shown else False
        for name, (least, most) in row.limits.shown.items()
    )


def _all_stranded(holds: Callable[[Stranded], bool]) -> Callable[[Row], bool]:
    return lambda row: all(holds(each) for each in row.stranded)


# What must hold of every row, and how it is told.
ROW_PROMISES: tuple[tuple[str, Callable[[Row], bool]], ...] = (
    ("it went through to its end", lambda it: not it.broke_down),
    ("the fault was felt", lambda it: it.limits.shown != {} and _shows(it)),
    ("commits go on within the bound", lambda it: _within(it.gap_s, it.limits.gap_s)),
    ("terms are bounded", lambda it: _within(it.terms, it.limits.terms)),
    ("enough windows have commits", lambda it: _at_least(it.windows_share, it.limits.windows_share)),
    ("a network that was down commits soon after its start", lambda it: _within(it.recovery_s, it.limits.recovery_s)),
    (
        "enough was committed while the learner was offline",
        lambda it: _at_least(it.offline_transactions, it.limits.offline_transactions),
    ),
    ("something was acknowledged", lambda it: it.acknowledged > 0),
    ("nothing acknowledged is lost", lambda it: it.lost == 0),
    ("nothing is committed twice", lambda it: it.twice == 0),
    ("no submission is left unresolved", lambda it: it.unresolved == 0),
    ("no submission is refused but for now", lambda it: it.refused.keys() <= REFUSALS),
    ("no transaction fails", lambda it: not it.failed),
    ("what was refused or expired is in no block", lambda it: it.undead == 0),
    ("block times rise", lambda it: it.falls == 0),
    ("heads are equal after healing", lambda it: it.heads_equal),
    ("receipts of every node verify", lambda it: it.receipts > 0 and it.unproven == 0),
    ("check is clean", lambda it: not it.findings and it.found_down == 0),
    ("nodes without a majority were asked", lambda it: len(it.stranded) >= it.limits.stranded),
    (
        "without a majority, what was accepted is answered 202 pending by its deadline",
        _all_stranded(
            lambda it: it.asked == it.pending > 0 and it.answer_ms_max <= it.deadline_ms + LATE_MS_MAX,
        ),
    ),
    (
        "without a majority, what was not accepted is answered 503 pool_full",
        _all_stranded(lambda it: it.refusal == (503, "pool_full")),
    ),
    (
        "without a majority, a linearizable read is answered 503 not_confirmed",
        _all_stranded(lambda it: it.unconfirmed == (503, "not_confirmed")),
    ),
    (
        "without a majority, committed facts are read and proven",
        _all_stranded(lambda it: it.read == it.proven > 0),
    ),
    (
        "what was accepted without a majority is committed after healing",
        _all_stranded(lambda it: it.committed == it.pending + it.taken),
    ),
)

# What must hold of the run as a whole.
PROMISES: tuple[tuple[str, Callable[[Report], bool]], ...] = (
    ("the run went through to its end", lambda it: not it.broke_down),
    ("every row was measured", lambda it: it.rows_expected == [row.name for row in it.rows] != []),
    ("every store was checked", lambda it: it.stores_checked == it.stores > 0),
    ("containers are confined as they shall be", lambda it: not it.unconfined),
    ("no store has a finding of no row", lambda it: not it.findings),
    (
        "every daemon stopped with 0",
        lambda it: len(it.stopped) == it.stores and all(code == 0 for code in it.stopped.values()),
    ),
)


def broken(report: Report) -> list[str]:
    """The promises that do not hold, each with its row."""
    of_rows = [f"{row.name}: {promise}" for row in report.rows for promise, holds in ROW_PROMISES if not holds(row)]
    return of_rows + [promise for promise, holds in PROMISES if not holds(report)]


def table(report: Report) -> list[str]:
    """The rows as aligned lines, then what single rows add."""
    head = ("FAULT", "SECONDS", "GAP S", "BOUND S", "TERMS", "ACKNOWLEDGED", "LOST", "HEADS", "CHECK", "NOTE")
    lines: list[tuple[object, ...]] = [head]
    for row in report.rows:
        lines.append(
            (
                row.name,
                f"{row.seconds:.1f}",
                f"{row.gap_s:.2f}",
                "-" if row.limits.gap_s is None else f"{row.limits.gap_s:g}",
                row.terms,
                row.acknowledged,
                row.lost,
                "equal" if row.heads_equal else "DIFFERENT",
                "clean" if not row.findings and row.found_down == 0 else "NOT CLEAN",
                f"BROKE DOWN: {row.broke_down}" if row.broke_down else row.note or "-",
            )
        )
    lines += [(name, *["-"] * (len(head) - 2), f"NOT MEASURED: {why}") for name, why in report.unmeasured.items()]
    return [*columns(lines), "", *_told(report)]


def _told(report: Report) -> list[str]:
    stranded = [(row, each) for row in report.rows for each in row.stranded]
    lines = [
        f"{row.name}, {it.node}: {it.pending} of {it.asked} answered 202 pending within {it.answer_ms_max:.0f} ms of "
        f"{it.deadline_ms} ms, {it.taken} more taken, then {it.refusal[0]} {it.refusal[1]}; a linearizable read "
        f"{it.unconfirmed[0]} {it.unconfirmed[1]}; {it.proven} of {it.read} facts proven; "
        f"{it.committed} of {it.pending + it.taken} committed after healing"
        for row, it in stranded
    ]
    for row in report.rows:
        shown = [f"{name} {value:g}{_bounds(row.limits.shown.get(name))}" for name, value in row.shown.items()]
        lines += [f"{row.name}: {'; '.join(shown)}"] if shown else []
        beside = [f"{row.expired} expired"] if row.expired else []
        beside += [f"{count} refused {code}" for code, count in row.refused.items()]
        beside += [f"{count} failed {code}" for code, count in row.failed.items()]
        beside += [f"{row.unresolved} unresolved"] if row.unresolved else []
        lines += [f"{row.name}: {', '.join(beside)}"] if beside else []
    checked = f"{report.stores_checked} of {report.stores} stores checked"
    lines.append(f"{report.transactions} transactions in the chain; {checked} up to its height")
    lines += [] if report.mechanism is None else [f"delays and losses are made by {report.mechanism}"]
    lines += [] if report.image_bytes is None else [f"the image has {report.image_bytes / 1e6:.0f} MB"]
    steps = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in report.steps_s.items())
    lines.append(f"took {report.seconds:.1f} s: {steps}")
    lines += [f"not confined: {finding}" for finding in report.unconfined]
    lines += [f"the run broke down: {report.broke_down}"] if report.broke_down else []
    return [*lines, *(f"finding of no row: {finding}" for finding in report.findings)]


def _bounds(bounds: tuple[float | None, float | None] | None) -> str:
    if bounds is None:
        return ""
    least, most = bounds
    if least == most:
        return ""
    said = [f"at least {least:g}"] if least is not None else []
    said += [f"at most {most:g}"] if most is not None else []
    return f" ({', '.join(said)})"


def write(report: Report, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(msgspec.to_builtins(report), indent=2) + "\n")
