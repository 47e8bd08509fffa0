"""What a row needs of the network, and how a row is measured."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from carequorum.devnet import Devnet, DevnetNode
from carequorum.devnet.backends import backend_named
from carequorum.submission import Committed
from carequorum.views import NetworkStatus
from carequorum.wallet import Wallet
from tests.processes.hospitals import enrol, missing, settled, view_of
from tests.testnets.chain import Chain
from tests.testnets.figures import Finding, Limits, Row, Stranded, longest_gap_s
from tests.testnets.load import Answer, Load, Tally
from tests.testnets.stranded import FACTS, Probe

# Resources a second over all nodes, of which two cores carry several times as many.
RATE_PER_S = 25.0
# Answers before a fault begins: everybody writes.
WARM = 20
# For the next answers, a leader, a learner that has caught up: far above what is promised, so that a gap is measured
# and not only found to be too long.
WAIT_TIMEOUT_S = 60.0
RECEIPTS = 3
CHECKS_AT_ONCE = 2
_POLL_S = 0.05

T = TypeVar("T")


class TrialError(Exception):
    """A row could not be brought to its end; one line for people."""


@dataclass(slots=True)
class Extra:
    """What a row found beside the figures of every row, see `figures.Row`."""

    note: str = ""
    windows_share: float | None = None
    recovery_s: float | None = None
    offline_transactions: int | None = None
    checked_down: int = 0
    found_down: int = 0
    stranded: list[Stranded] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Fault:
    """One row: `act` breaks the network, mends it, and returns once every node runs again and answers come.

    `wire`: it needs nodes that have wires of their own.
    """

    name: str
    act: "Callable[[Trial], Awaitable[Extra]]"
    limits: Limits
    wire: bool = True


class Trial:
    """The network, its load and the chain as far as it was read."""

    def __init__(self, network: Devnet, load: Load, wallets: dict[str, Wallet]) -> None:
        self.network = network
        self.load = load
        self.chain = Chain(network.genesis)
        self.rows: list[Row] = []
        self.nodes = list(network.nodes)
        self.voters = [node for node in network.nodes if node.role == "voter"]
        self.learners = [node for node in network.nodes if node.role == "learner"]
        self.quorum = len(self.voters) // 2 + 1
        self.has_wires = has_wires(network.backend_name)
        self._wallets = wallets
        self._term = 0

    async def run(self, fault: Fault) -> Row:
        """Measure one row. Raises TrialError, DevnetError."""
        begun, first_height = time.monotonic(), self.chain.height + 1
        tally = self.load.tally = Tally()
        self.load.go(RATE_PER_S)
        await self.more(WARM)
        broken_at = time.monotonic()
        extra = await fault.act(self)
        mended_at = time.monotonic()
        await self._rest(fault)
        before = self._term
        self._term, heads_equal, seen = await self._agree()
        sample = _sample([answer.committed for answer in tally.answers])
        row = Row(
            name=fault.name,
            limits=fault.limits,
            gap_s=round(longest_gap_s([answer.at_s for answer in tally.answers], broken_at, mended_at), 3),
            terms=self._term - before,
            acknowledged=len(tally.answers),
            lost=len(self.chain.lost(answer.committed for answer in tally.answers)),
            expired=tally.expired,
            refused=dict(tally.refused),
            unresolved=sum(tx_id not in self.chain.places for tx_id in tally.unknown),
            twice=sum(height >= first_height for height in self.chain.twice),
            falls=sum(height >= first_height for height in self.chain.falls),
            heads_equal=heads_equal,
            receipts=len(sample) * len(self.nodes),
            unproven=len(await missing(self.network, sample)),
            first_height=first_height,
            last_height=self.chain.height,
            seconds=round(time.monotonic() - begun, 1),
            windows_share=extra.windows_share,
            recovery_s=extra.recovery_s,
            offline_transactions=extra.offline_transactions,
            checked_down=extra.checked_down,
            found_down=extra.found_down,
            stranded=extra.stranded,
            note=extra.note if heads_equal else f"{extra.note} - {'; '.join(map(_told, seen))}",
        )
        self.rows.append(row)
        return row

    async def begin(self) -> None:
        """Read what there is before the first row. Raises TrialError where the nodes do not agree."""
        self._term, agreed, _ = await self._agree()
        if not agreed:
            raise TrialError("the nodes do not agree before anything is broken")

    # what rows use

    async def call(self, verb: Callable[..., T], *arguments: object) -> T:
        """A verb of the network, which waits, beside the load."""
        return await asyncio.to_thread(verb, *arguments)

    async def more(self, count: int) -> None:
        """Until `count` more answers came. Raises TrialError."""
        try:
            await self.load.more(count, WAIT_TIMEOUT_S)
        except TimeoutError:
            raise TrialError(f"nothing was committed for up to {WAIT_TIMEOUT_S:g} s") from None

    async def until(self, what: str, condition: Callable[[], Awaitable[bool]]) -> float:
        """Until it holds; the seconds that took. Raises TrialError."""
        began = time.monotonic()
        while not await condition():
            if time.monotonic() - began > WAIT_TIMEOUT_S:
                raise TrialError(f"{what} did not come within {WAIT_TIMEOUT_S:g} s")
            await asyncio.sleep(_POLL_S)
        return time.monotonic() - began

    async def leader(self, *, other_than: DevnetNode | None = None) -> DevnetNode:
        """Who leads in the newest term, once somebody (else) does. Raises TrialError."""
        found: list[DevnetNode] = []

        async def leads() -> bool:
            leader = await self.call(self.network.leader)
            if leader is not None and leader != other_than:
                found.append(leader)
            return bool(found)

        await self.until("a leader", leads)
        return found[-1]

    async def caught_up(self, node: DevnetNode, height: int) -> float:
        """Until `node` has executed the block at `height`; the seconds that took."""

        async def there() -> bool:
            return (await view_of(self.network, node)).heights.executed >= height

        return await self.until(f"block {height} at {node.id}", there)

    def facts(self) -> list[Answer]:
        """The oldest answers of the load: committed and sealed everywhere long ago."""
        return self.load.answers[:FACTS]

    def probe(self, node: DevnetNode) -> Probe:
        return Probe(node, self.network.genesis, self._wallets[node.id])

    async def resolved(self, probes: Sequence[Probe]) -> list[Stranded]:
        """What the probes found, once everything that they handed over is in the chain or can never be."""

        async def settled_all() -> bool:
            await self.chain.read(self.voters[0].url)
            return not any(probe.open(self.chain) for probe in probes)

        await self.until("the end of what was accepted without a majority", settled_all)
        return [probe.result(self.chain) for probe in probes]

    async def check(self) -> list[Finding]:
        """The findings of a check of every store. No node runs."""
        return await asyncio.to_thread(check_stores, self.network)

    async def _rest(self, fault: Fault) -> None:
        try:
            await self.load.rest()
        except TimeoutError:
            raise TrialError(f"{fault.name}: the writers did not come to rest") from None

    async def _agree(self) -> tuple[int, bool, list[NetworkStatus]]:
        """The newest term; whether all nodes have one head, which the chain leads to from genesis up; their views."""
        try:
            views = await settled(self.network)
        except TimeoutError:
            views = [view for node in await self.call(self.network.status) if (view := node.network) is not None]
        await self.chain.read(self.voters[0].url)
        return max(view.term for view in views), _one_head(views, len(self.nodes), self.chain), views


def has_wires(backend: str) -> bool:
    """Whether nodes of this backend have wires of their own that can be broken."""
    return backend_named(backend).has_wires


def _sample(committed: Sequence[Committed]) -> list[Committed]:
    """RECEIPTS of them, spread over the whole."""
    return [*committed[:: max(1, len(committed) // RECEIPTS)]][:RECEIPTS]


def _one_head(views: Sequence[NetworkStatus], nodes: int, chain: Chain) -> bool:
    """Whether so many nodes have one head (hash and roots), and the chain as it was read leads to it."""
    heads = {view.head for view in views}
    if len(views) != nodes or len(heads) != 1:
        return False
    head = views[0].head
    return head.height <= chain.height and chain.hashes[head.height].hex() == head.hash


def _told(view: NetworkStatus) -> str:
    """One node's view, for who has to find out why it is not that of the others."""
    heights = view.heights
    places = f"last {heights.last}, committed {heights.committed}, executed {heights.executed}"
    lags = ", ".join(f"{each.id} {each.lag_blocks}" for each in view.members if each.lag_blocks)
    return f"{view.node}: {view.role} of {view.leader} in term {view.term}, {places}" + (
        f", lags {lags}" if lags else ""
    )


def check_stores(network: Devnet) -> list[Finding]:
    """Every finding of `carequorum check` in every store of a network that does not run. Raises DevnetError."""
    with ThreadPoolExecutor(CHECKS_AT_ONCE) as pool:
        reports = list(pool.map(network.check, network.nodes))
    found: list[Finding] = []
    for node, report in zip(network.nodes, reports, strict=True):
        for problem in report["problems"]:
            place = ", ".join(str(problem[key]) for key in ("record", "file") if problem.get(key))
            found.append(Finding(node.id, problem["height"], f"{place}: {problem['fault']}"))
        if report.get("problems_beyond"):
            found.append(Finding(node.id, None, f"and {report['problems_beyond']} more"))
        if not report["ok"] and not report["problems"]:
            found.append(Finding(node.id, None, "the check is not clean, and does not say why"))
    return found


async def enrol_probers(network: Devnet, folder: Path) -> dict[str, Wallet]:
    """A clinician of every organisation who writes nothing but what a probe writes."""
    wallets = await asyncio.gather(
        *(enrol(network, node, folder, f"prober-{node.id}", "clinician") for node in network.nodes)
    )
    return {node.id: wallet for node, wallet in zip(network.nodes, wallets, strict=True)}
