"""schemathesis against a live node of a real network: no 5xx, no answer outside its schema. `make api-trial`.

    python -m tests.api.trial [--seconds 180] [--seed N] [--nodes 1] [--keep DIR]

Every check of schemathesis is on, beside three of our own (`extensions`), and nothing is exempt: a 503 counts as a
finding like a 500. The port says 503 when it is overloaded or not ready, and a trial asks one thing at a time of a
node that leads a healthy network. What the trial also requires, so that it cannot pass by asking nothing: that every
endpoint answered in every form that it has, and with every code that a request alone can provoke.

/v1/events is part of it. As its answers never end by themselves, each is read for EVENTS_MAX events or EVENTS_S.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

from carequorum.devnet import Devnet, DevnetNode, create
from node.endpoints import ENDPOINTS, Endpoint
from node.openapi import describe
from node.problems import PROBLEM_TYPE, PROBLEMS
from tests.api.facts import FACTS_VARIABLE, Facts, Seen, read_seen, write
from tests.api.seeding import seed as seed_ledger
from tests.processes.hospitals import started

ROOT = Path(__file__).resolve().parents[2]
REPORT = ROOT / "build" / "api-trial.json"
SEED = 20_250_301
EVENTS_MAX, EVENTS_S = 20, 0.2
REQUEST_S = 40.0
# Beyond what it was given: for starting, and for the request under way when the time was over.
GRACE_S = 120.0
# Real values take this share of those that schemathesis gives a parameter.
REAL = 0.6

# schemathesis does not test the endpoint that it has the description from; we do.
DESCRIPTION = "openapi"
# What no request provokes alone: time, load, a node that fails, or one that has pruned its blocks.
UNPROVOKED = frozenset({"request_timeout", "pool_full", "busy", "not_ready", "not_sealed", "internal", "pruned"})
# A receipt may be as large as a request.
UNPROVOKED_AT = {"extend": frozenset({"too_large"})}


@dataclass(frozen=True, slots=True)
class Outcome:
    """`findings` are schemathesis' report where it found anything, and our own; none means that the trial holds."""

    seconds: float
    requests: int
    seen: dict[Seen, int]
    findings: list[str]


async def run(folder: Path, arguments: Iterable[str], *, nodes: int, limit_s: float) -> Outcome:
    """Make a network in `folder`, seed it, and let schemathesis loose on the node that leads it."""
    devnet = create(folder / "net", nodes)
    async with started(devnet):
        node = await asyncio.to_thread(devnet.leader) or devnet.nodes[0]
        assert urlsplit(node.url).hostname == "127.0.0.1", "a trial is of a node on this machine"
        facts = await seed_ledger(devnet, node, folder)
        before = await asyncio.to_thread(_server_errors, node)
        begun = time.monotonic()
        findings = await _schemathesis(folder, facts, [*arguments], limit_s)
        seconds = time.monotonic() - begun
        seen = await asyncio.to_thread(read_seen, Path(facts.seen))
        findings += [f"never answered: {each}" for each in missing(seen)]
        findings += await asyncio.to_thread(_node_findings, devnet, node, before)
    return Outcome(round(seconds, 1), sum(seen.values()), seen, findings)


async def _schemathesis(folder: Path, facts: Facts, arguments: list[str], limit_s: float) -> list[str]:
    """Its report, if it found anything."""
    write(folder / "facts.json", facts)
    (folder / "schemathesis.toml").write_text(_configuration(facts))
    command = [sys.executable, "-m", "schemathesis.cli", "--no-color", "run", f"{facts.url}/openapi.json", *arguments]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")},
        "PYTHONPATH": str(ROOT),
        FACTS_VARIABLE: str(folder / "facts.json"),
    }
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(limit_s):
            output, _ = await process.communicate()
    except TimeoutError:
        return [f"schemathesis did not end within {limit_s:.0f} s"]
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    report = output.decode(errors="replace")
    (folder / "schemathesis.log").write_text(report)
    return [] if process.returncode == 0 else [report]


def _configuration(facts: Facts) -> str:
    """schemathesis.toml: real values beside the made-up ones, and what bounds a stream of events."""
    dictionaries: dict[str, list[str] | list[int]] = {
        "transactions": facts.transactions,
        "records": facts.records,
        "subjects": [facts.subject],
        "commitments": facts.commitments,
        "heights": facts.heights,
        "accounts": [member.account.hex() for member in facts.members.values()],
        "contracts": list(facts.state),
        "keys": [key for keys in facts.state.values() for key in keys],
        "events": [*(str(height) for height in facts.heights), "1.0.0", "0.0.0", "0", "1.0", "-1", "1.0.0.0"],
    }
    parameters = {
        "transaction": {"path.id": "transactions"},
        "receipt": {"path.id": "transactions"},
        "block": {"path.height": "heights"},
        "blocks": {"query.from": "heights"},
        "state": {"path.contract": "contracts", "path.key": "keys"},
        "body": {"path.commitment": "commitments"},
        "records": {"query.subject": "subjects", "query.before": "records"},
        "events": {
            "query.from": "heights",
            "query.subject": "subjects",
            "query.member": "accounts",
            "header.Last-Event-ID": "events",
        },
    }
    lines = ['hooks = "tests.api.extensions"', f"request-timeout = {REQUEST_S}", "max-redirects = 0"]
    # Signing is ours: see extensions. A made-up Authorization header would be in its way.
    lines += ["[generation]", "with-security-parameters = false", "[cache]", "enabled = false"]
    for name, values in dictionaries.items():
        lines += [f"[dictionaries.{name}]", f"values = {json.dumps(values)}"]
    for operation, bound in parameters.items():
        lines += ["[[operations]]", f'include-operation-id = "{operation}"']
        if operation == "events":
            lines += [f"request-timeout = {EVENTS_S}", f"max-stream-events = {EVENTS_MAX}"]
        lines += ["[operations.parameters]"]
        lines += [f'"{name}" = {{ dictionary = "{named}", probability = {REAL} }}' for name, named in bound.items()]
    # Bytes that are base64 are right by the schema, and seldom a transaction or a receipt.
    for operation in ("submit", "extend"):
        lines += ["[[operations]]", f'include-operation-id = "{operation}"']
        lines += [
            "[operations.checks.positive_data_acceptance]",
            'expected-statuses = ["2xx", "400", "401", "403", "409", "413", "415"]',
        ]
    return "\n".join(lines) + "\n"


def expected(row: Endpoint) -> set[tuple[str, int, str]]:
    """(media type, status, code) of every answer of its own that a request alone provokes."""
    without = UNPROVOKED | UNPROVOKED_AT.get(row.handler, frozenset())
    problems = {(PROBLEM_TYPE, PROBLEMS[code][0], code) for code in {*row.problems} - without}
    statuses = (200,) if row.late is None else (200, 202)
    return problems | {(answer.media, status, "") for answer in row.answers for status in statuses}


def missing(seen: Iterable[Seen]) -> list[str]:
    """What should have been among the answers and was not."""
    came = {(each.operation, each.media, each.status, each.code) for each in seen}
    return [
        f"{row.handler}: {media} {status} {code}".rstrip()
        for row in ENDPOINTS
        if row.handler != DESCRIPTION
        for media, status, code in sorted(expected(row))
        if (row.handler, media, status, code) not in came
    ]


def _node_findings(devnet: Devnet, node: DevnetNode, before: list[str]) -> list[str]:
    """What the node itself says: its own count of answers, its log, and whether it still is what it was."""
    findings = [line for line in _server_errors(node) if line not in before]
    if json.loads(_get(node, "/openapi.json")) != json.loads(json.dumps(describe(ENDPOINTS))):
        findings.append("/openapi.json is not what the table of endpoints says")
    if json.loads(_get(node, "/readyz")) != {"status": "ready"}:
        findings.append("not ready in the end")
    logged = [json.loads(line) for line in devnet.log(node).read_text().splitlines()]
    return findings + [str(line) for line in logged if line["level"] in ("error", "critical")]


def _server_errors(node: DevnetNode) -> list[str]:
    """The node's own count of them: a line for each endpoint and status. Before it was ready it said so."""
    lines = _get(node, "/metrics").splitlines()
    return [line for line in lines if line.startswith("carequorum_http_requests_total") and 'status="5' in line]


def _get(node: DevnetNode, path: str) -> str:
    with urlopen(f"{node.url}{path}", timeout=REQUEST_S) as answer:  # noqa: S310 - at 127.0.0.1, as was checked
        text: str = answer.read().decode()
    return text


def table(seen: dict[Seen, int]) -> list[str]:
    """One line for each endpoint: how often each status came."""
    lines = []
    for row in ENDPOINTS:
        counts: dict[int, int] = {}
        for each, times in seen.items():
            if each.operation == row.handler:
                counts[each.status] = counts.get(each.status, 0) + times
        shown = "  ".join(f"{status}: {times}" for status, times in sorted(counts.items()))
        lines.append(f"{row.method:5} {row.template:32} {shown}")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description="schemathesis against a live node")
    parser.add_argument("--seconds", type=int, default=180)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="make the network in this new folder, and leave it there")
    given = parser.parse_args()
    arguments = ["--max-time", str(given.seconds), "--seed", str(given.seed), "--continue-on-failure"]
    with tempfile.TemporaryDirectory(prefix="api-trial-") as temporary:
        folder: Path = given.keep or Path(temporary)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        outcome = asyncio.run(run(folder, arguments, nodes=given.nodes, limit_s=given.seconds + GRACE_S))
    print(*table(outcome.seen), sep="\n")
    print(*outcome.findings, sep="\n")
    print(f"{outcome.requests} requests in {outcome.seconds} s, seed {given.seed}: {len(outcome.findings)} findings")
    REPORT.parent.mkdir(exist_ok=True)
    figures = {
        "seconds": outcome.seconds,
        "seed": given.seed,
        "nodes": given.nodes,
        "requests": outcome.requests,
        "server_errors": sum(times for each, times in outcome.seen.items() if each.status >= 500),
        "kinds_of_answer": len(outcome.seen),
        "findings": outcome.findings,
    }
    REPORT.write_text(json.dumps(figures, indent=2) + "\n")
    return 1 if outcome.findings else 0


if __name__ == "__main__":
    sys.exit(main())
