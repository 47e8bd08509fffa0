"""`python -m carequorum.demo`: the whole demonstration. Exits 0 only if every promise of `report` holds."""

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from carequorum.demo.figures import figures
from carequorum.demo.load import DemoError, run_load
from carequorum.demo.plan import Folder
from carequorum.demo.report import Report, broken, table, write
from carequorum.demo.staging import stage
from carequorum.devnet import Devnet, DevnetError, create
from carequorum.views import NetworkStatus
from ledger.errors import Rejection

SETTLE_TIMEOUT_S = 60.0
# For one part at its work: some for every part, and more for each transaction.
PART_TIMEOUT_S, TRANSACTION_TIMEOUT_S = 60.0, 0.1
CHECKS_AT_ONCE = 2
_POLL_S = 0.1


def main() -> int:
    options = _options()
    # So that whoever ends us with SIGTERM ends our daemons too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    directory = options.keep or Path(tempfile.mkdtemp(prefix="carequorum-demo-"))
    try:
        report = _demonstrate(directory, options)
    except (DemoError, DevnetError, Rejection, ValueError, OSError) as error:
        print(f"demo: {' '.join(str(error).split())} (see {directory})", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"demo: interrupted (see {directory})", file=sys.stderr)
        return 130
    write(report, options.out)
    failures = broken(report)
    print("", *table(report), "", f"written to {options.out}", sep="\n")
    for promise in failures:
        print(f"demo: it does not hold that {promise} (see {directory})", file=sys.stderr)
    if not failures and options.keep is None:
        shutil.rmtree(directory)
    return 1 if failures else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m carequorum.demo", description=__doc__)
    parser.add_argument("--fhir", type=Path, help="import this resource, Bundle, NDJSON file, or folder of them")
    parser.add_argument("--keep", type=Path, help="a new folder for the network, which is kept")
    parser.add_argument("--nodes", type=int, default=4, help="how many hospitals (default 4)")
    parser.add_argument("--seed", type=int, default=1, help="of the synthetic histories (default 1)")
    parser.add_argument("--out", type=Path, default=Path("build/demo.json"), help="where the report goes")
    return parser.parse_args()


def _demonstrate(directory: Path, options: argparse.Namespace) -> Report:
    say = _Steps()
    say(f"starting {options.nodes} hospitals in {directory}")
    network = create(directory, options.nodes)
    folder = Folder(network.directory / "demo")
    folder.make()
    with _running(network):
        say("registering clinicians and patients")
        plan = stage(network, folder, options.fhir or _histories(folder.path / "histories", options.seed))
        say(f"writing {len(plan.items)} resources through {options.nodes} hospitals, and killing the leader")
        kill = run_load(network, folder, plan)
        say("waiting until all nodes agree")
        views = _settle(network, folder)
        patience_s = PART_TIMEOUT_S + TRANSACTION_TIMEOUT_S * len(plan.items)
        say("asking every node about every transaction")
        lost = {tx_id for _, tx_id, _ in _part(patience_s, "auditor", folder.path)["lost"]}
        say("opening every record as its patient, elsewhere")
        reading = _part(patience_s, "reader", folder.path)
        say("stopping the network")
        ended = network.stop(network.nodes)
    say("verifying the receipts offline")
    receipts = sorted(folder.receipts.iterdir())
    verified = _part(patience_s, "verifier", plan.genesis_file, *receipts)["verified"]
    say("checking every store")
    clean = _check_stores(network, patience_s)
    answers = folder.answers()
    written = figures([answer for answer in answers if answer.item is not None])
    return Report(
        nodes=len(network.nodes),
        seed=None if options.fhir else options.seed,
        patients=len(plan.patients),
        resources=len(plan.items),
        transactions_expected=len(plan.items) + len(plan.patients) + len(plan.clinicians),
        transactions_committed=len({answer.id for answer in answers}),
        acknowledged_lost=len(lost),
        heads_equal=len({(view.head.height, view.head.hash) for view in views}) == 1,
        state_roots_equal=len({(view.head.height, view.head.state_root) for view in views}) == 1,
        receipts_verified=min(verified.values()),
        resources_opened=reading["opened"],
        resources_equal=reading["equal"],
        stores_clean=clean,
        daemons_stopped=sum(how is not None and how.code == 0 for how in ended.values()),
        leader_kills=1,
        leader_killed_after=kill.answered,
        seconds_without_commit=written.seconds_without_commit,
        in_flight_max=written.in_flight_max,
        tx_per_s=written.tx_per_s,
        commit_ms_p50=written.commit_ms_p50,
        commit_ms_p99=written.commit_ms_p99,
        seconds=round(say.elapsed_s(), 1),
    )


class _Steps:
    """Says what happens, and since when."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def elapsed_s(self) -> float:
        return time.monotonic() - self._started

    def __call__(self, what: str) -> None:
        print(f"{self.elapsed_s():6.1f} s  {what}", flush=True)


@contextmanager
def _running(network: Devnet) -> Iterator[None]:
    """The daemons run inside, and none is left behind outside, whatever happens."""
    try:
        network.start(network.nodes)
        yield
    finally:
        network.kill(network.nodes)


def _histories(folder: Path, seed: int) -> Path:
    try:
        from carequorum.demo.histories import write_histories
    except ImportError as error:
        raise DemoError(f"{error.name} is missing: pip install 'carequorum[demo]', or give --fhir") from None
    write_histories(folder, seed)
    return folder


def _settle(network: Devnet, folder: Folder) -> list[NetworkStatus]:
    """What every node says once all have one head that proves all that was answered, or when the time is over."""
    least = max(answer.height for answer in folder.answers())
    deadline = time.monotonic() + SETTLE_TIMEOUT_S
    while True:
        views = [node.network for node in network.status() if node.network is not None]
        one_head = len(views) == len(network.nodes) and len({view.head.hash for view in views}) == 1
        if one_head and all((view.heights.sealed or 0) >= least for view in views):
            return views
        if time.monotonic() > deadline:
            raise DemoError(f"the nodes did not come to one head within {SETTLE_TIMEOUT_S:g} s")
        time.sleep(_POLL_S)


def _part(timeout_s: float, name: str, *arguments: Path | str) -> dict[str, Any]:
    """Run another part as a process of its own and return its JSON answer."""
    return _json([sys.executable, "-m", f"carequorum.demo.{name}", *map(str, arguments)], (0, 1), timeout_s)


def _check_stores(network: Devnet, timeout_s: float) -> int:
    """How many of the stopped nodes' stores are clean, by the command that people use."""

    def check(node_folder: Path) -> bool:
        command = [sys.executable, "-m", "carequorum", "check", "--at", str(node_folder), "--json"]
        return bool(_json(command, (0, 3), timeout_s)["ok"])

    with ThreadPoolExecutor(CHECKS_AT_ONCE) as pool:
        return sum(pool.map(check, [network.folder(node) for node in network.nodes]))


def _json(command: list[str], codes: tuple[int, ...], timeout_s: float) -> dict[str, Any]:
    """The JSON that a command printed. Raises DemoError if it did not end in time, or with another code."""
    try:
        ended = subprocess.run(command, capture_output=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        raise DemoError(f"{' '.join(command[1:4])} did not end within {timeout_s:g} s") from None
    if ended.returncode not in codes:
        last = ended.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"]
        raise DemoError(f"{' '.join(command[1:4])} ended with {ended.returncode}: {last[-1]}")
    answer: dict[str, Any] = json.loads(ended.stdout)
    return answer


if __name__ == "__main__":
    sys.exit(main())
