"""`python -m tests.testnets --backend netns`: the fault table. `make netns-test`, `make docker-test`.

Brings a network up, lets the demo's clinicians write, goes through the faults of `rows`, stops the network, checks
every store, takes everything down whatever happened, prints the table and writes it to build/testnets-<backend>.json,
where nothing is left of an earlier run. A row that breaks down is in the table too, and the next one is run.

Exits 0 where every promise holds; also, with one line that says why, where the machine is none for such networks:
not Linux, not root, programs missing and no Debian. 1 where a promise does not hold, the run broke down, or packages
could not be installed; 2 for bad arguments, 130 and 143 when interrupted or terminated.

The network is as `carequorum devnet up` makes it, preset "machine", but for a smaller pool and a shorter wait for an
answer, so that both bounds are met within a row. What a "process" network has no wires for is left out.
"""

import argparse
import asyncio
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from carequorum.demo.histories import write_histories
from carequorum.demo.plan import Folder, Plan
from carequorum.demo.staging import stage
from carequorum.devnet import Devnet, DevnetError, Settings, create
from carequorum.devnet.wire import mechanism
from tests.testnets.engine import engine, image_bytes
from tests.testnets.figures import Finding, Report, Row, attributed, broken, table, write
from tests.testnets.hardening import hardening
from tests.testnets.load import writing
from tests.testnets.rows import FAULTS
from tests.testnets.stranded import POOL_TRANSACTIONS
from tests.testnets.tools import unavailable
from tests.testnets.trial import Fault, Trial, check_stores, enrol_probers, has_wires, why

BACKENDS = ("netns", "docker", "process")
# Where the backend lets them be chosen.
VOTERS, LEARNERS = 4, 1
SEED = 1
SETTINGS: Settings = {
    "pool": {"transactions_max": POOL_TRANSACTIONS},
    "provider": {"wait_ms_max": 3_000},
}
LOG_LINES = 5


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    name = f"{options.backend}-test"
    out = options.out or Path(f"build/testnets-{options.backend}.json")
    try:
        reason = unavailable(options.backend)
    except DevnetError as error:
        out.unlink(missing_ok=True)
        print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    if reason is not None:
        print(f"{name}: skipped: {reason}")
        return 0
    # Whoever looks there finds this run's figures, or none.
    out.unlink(missing_ok=True)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(143))
    directory = options.keep or Path(tempfile.mkdtemp(prefix="carequorum-testnets-"))
    run, broke_down = Run(options.backend, options.rows), ""
    try:
        run.through(directory / "net")
    except Exception as error:  # noqa: BLE001 - whatever it is, the table says how far the run came
        broke_down = why(error)
    except KeyboardInterrupt:
        print(f"{name}: interrupted (see {directory})", file=sys.stderr)
        return 130
    report = run.report(broke_down)
    write(report, out)
    print("", *table(report), sep="\n")
    failures = broken(report)
    for promise in failures:
        print(f"{name}: it does not hold that {promise} (see {directory})", file=sys.stderr)
    if not failures and options.keep is None:
        shutil.rmtree(directory)
    return 1 if failures else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.testnets", description="The fault table.")
    parser.add_argument("--backend", choices=BACKENDS, required=True, help="what runs the nodes")
    parser.add_argument("--rows", type=_rows, default=FAULTS, help="only rows whose names hold one of these, a,b")
    parser.add_argument("--keep", type=Path, help="a folder for the network, which is kept")
    parser.add_argument("--out", type=Path, help="where the report goes (build/testnets-BACKEND.json)")
    return parser.parse_args(arguments)


def _rows(text: str) -> tuple[Fault, ...]:
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        if not part or not any(part in fault.name for fault in FAULTS):
            raise argparse.ArgumentTypeError(
                f"no row {part!r}; there are {', '.join(fault.name for fault in FAULTS)}"
            )
    return tuple(fault for fault in FAULTS if any(part in fault.name for part in parts))


class Run:
    """One run: its steps, and what they found so far."""

    def __init__(self, backend: str, faults: Sequence[Fault]) -> None:
        self._backend = backend
        self._faults = [fault for fault in faults if has_wires(backend) or not fault.wire]
        self._began = time.monotonic()
        self._steps_s: dict[str, float] = {}
        self._rows: list[Row] = []
        self._unmeasured = {fault.name: "the run did not get there" for fault in self._faults}
        self._findings: list[Finding] = []
        self._checked = 0
        self._stopped: dict[str, int | None] = {}
        self._height = self._transactions = 0
        self._network: Devnet | None = None
        self._unconfined: list[str] = []
        self._mechanism: str | None = None
        self._image_bytes: int | None = None

    def through(self, directory: Path) -> None:
        """Everything, and nothing is left running. Raises what the parts raise."""
        with ExitStack() as ending:
            if self._backend == "docker":
                with self._step("engine"):
                    ending.enter_context(engine())
                    self._image_bytes = image_bytes()
                    print(f"image of {self._image_bytes / 1e6:.0f} MB", flush=True)
            if has_wires(self._backend):
                self._mechanism = mechanism()
                print(f"delays and losses are made by {self._mechanism}", flush=True)
            with self._step("network"):
                network = self._network = _made(directory, self._backend)
                ending.enter_context(_taken_down(network))
                network.start(network.nodes)
            if self._backend == "docker":
                with self._step("confinement"):
                    self._unconfined = hardening(network)
            with self._step("people"):
                folder = Folder(directory / "demo")
                folder.make()
                write_histories(folder.path / "histories", SEED)
                plan = stage(network, folder, folder.path / "histories")
            with self._step("faults"):
                asyncio.run(self._break(network, folder, plan))
            with self._step("stop"):
                ended = network.stop(network.nodes)
                self._stopped = {node: None if how is None else how.code for node, how in ended.items()}
            with self._step("check"):
                checked = check_stores(network)
                self._findings, self._checked = checked.findings, checked.reaching(self._height)

    def report(self, broke_down: str) -> Report:
        """What was found. `broke_down` says why the run did not go through, empty if it did."""
        rows, findings = attributed(self._rows, self._findings)
        roles = [node.role for node in self._network.nodes] if self._network is not None else []
        return Report(
            backend=self._backend,
            voters=roles.count("voter"),
            learners=roles.count("learner"),
            rows_expected=[fault.name for fault in self._faults],
            rows=rows,
            unmeasured=self._unmeasured,
            findings=findings,
            stores=len(roles),
            stores_checked=self._checked,
            unconfined=self._unconfined,
            mechanism=self._mechanism,
            image_bytes=self._image_bytes,
            broke_down=broke_down,
            stopped=self._stopped,
            transactions=self._transactions,
            steps_s=self._steps_s,
            seconds=round(time.monotonic() - self._began, 1),
        )

    async def _break(self, network: Devnet, folder: Folder, plan: Plan) -> None:
        wallets = await enrol_probers(network, folder.wallets)
        async with writing(plan, network.genesis, lambda node: plan.clinicians[node].open()) as load:
            trial = Trial(network, load, wallets)
            self._rows = trial.rows
            await trial.begin()
            try:
                for fault in self._faults:
                    self._say(fault.name)
                    mended = await trial.run(fault)
                    del self._unmeasured[fault.name]
                    if not mended:
                        break
            finally:
                self._unmeasured |= trial.unmeasured
                self._height, self._transactions = trial.chain.height, len(trial.chain.places)

    @contextmanager
    def _step(self, name: str) -> Iterator[None]:
        self._say(name)
        began = time.monotonic()
        yield
        self._steps_s[name] = round(time.monotonic() - began, 1)

    def _say(self, what: str) -> None:
        print(f"{time.monotonic() - self._began:6.1f} s  {what}", flush=True)


def _made(directory: Path, backend: str) -> Devnet:
    if backend == "docker":
        return create(directory, backend=backend, settings=SETTINGS)
    return create(directory, VOTERS, learners=LEARNERS, backend=backend, settings=SETTINGS)


@contextmanager
def _taken_down(network: Devnet) -> Iterator[None]:
    """Nothing of the network is left outside, whatever happens inside."""
    try:
        yield
    except Exception:
        for node in network.nodes:
            with suppress(DevnetError, OSError):
                print(f"{node.id}:", *network.last_lines(node, LOG_LINES), sep="\n  ", file=sys.stderr)
        raise
    finally:
        with _undisturbed():
            try:
                network.kill(network.nodes)
            finally:
                network.down(volumes=network.backend_name == "docker")


@contextmanager
def _undisturbed() -> Iterator[None]:
    """What ends the run has been heard: a second signal is not to leave half of it behind."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before: dict[signal.Signals, Callable[..., object] | int | None] = {}
    for number in numbers:
        before[number] = signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
