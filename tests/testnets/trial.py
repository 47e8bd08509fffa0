"""What a row needs of the network, and how a row is measured."""

import asyncio
import signal
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import aiohttp
import msgspec

from carequorum.devnet import Devnet, DevnetError, DevnetNode
from carequorum.devnet.backends import backend_named
from carequorum.submission import Committed
from carequorum.views import NetworkStatus, decode_view
from carequorum.wallet import Wallet
from ledger.errors import Rejection
from tests.processes.hospitals import enrol, missing, settled
from tests.testnets.chain import Chain, ChainError
from tests.testnets.figures import Finding, Limits, Row, Stranded, longest_gap_s
from tests.testnets.load import Answer, Load, Tally
from tests.testnets.stranded import FACTS, Probe
from tests.testnets.wires import End, Pair, Through, WiresError, measure

# Resources a second over all nodes, of which two cores carry several times as many.
RATE_PER_S = 25.0
# Answers before a fault begins: everybody writes.
WARM = 20
# For the next answers, a leader, a learner that has caught up: far above what is promised, so that a gap is measured
# and not only found to be too long.
WAIT_TIMEOUT_S = 60.0
# For what was accepted without a majority, once there is one.
RESOLVED_S = 30.0
VIEW_TIMEOUT_S = 3.0
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
    shown: Mapping[str, float] = field(default_factory=dict)
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
        self.unmeasured: dict[str, str] = {}
        self.nodes = list(network.nodes)
        self.voters = [node for node in network.nodes if node.role == "voter"]
        self.learners = [node for node in network.nodes if node.role == "learner"]
        self.quorum = len(self.voters) // 2 + 1
        self.has_wires = has_wires(network.backend_name)
        self._wallets = wallets
        self._term = 0
        # Of transactions that were refused or expired: they are in no block, then or later.
        self._never: list[bytes] = []

    async def run(self, fault: Fault) -> bool:
        """Go through one row, as far as it goes: it is in `rows`, or why not in `unmeasured`.

        False where the network could not be mended, and no other row has a sense.
        """
        begun, first_height = time.monotonic(), self.chain.height + 1
        broken_at, reason, mended = begun, "", True
        tally = self.load.tally = Tally()
        extra = Extra()
        try:
            self.load.go(RATE_PER_S)
            await self.more(WARM)
            broken_at = time.monotonic()
            extra = await fault.act(self)
            mended_at = time.monotonic()
            await self._rest()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the row's result, and the others' turn
            reason, mended_at = why(error), time.monotonic()
            mended = await self._mend()
        try:
            row = await self._measured(fault, extra, tally, first_height)
        except Exception as error:  # noqa: BLE001 - as above
            self.unmeasured[fault.name] = "; ".join(filter(None, (reason, why(error))))
            return mended and await self._mend()
        gap_s = longest_gap_s([answer.at_s for answer in tally.answers], broken_at, mended_at)
        seconds = time.monotonic() - begun
        self.rows.append(
            msgspec.structs.replace(row, gap_s=round(gap_s, 3), seconds=round(seconds, 1), broke_down=reason)
        )
        return mended

    async def _measured(self, fault: Fault, extra: Extra, tally: Tally, first_height: int) -> Row:
        """What became of the row, now that everybody rests; but for how long it took."""
        before = self._term
        self._term, heads_equal, seen = await self._agree()
        sample = _sample([answer.committed for answer in tally.answers])
        places = self.chain.places
        self._never += [*tally.refused, *tally.expired]
        return Row(
            name=fault.name,
            limits=fault.limits,
            seconds=0.0,
            gap_s=0.0,
            terms=self._term - before,
            acknowledged=len(tally.answers),
            lost=len(self.chain.lost(answer.committed for answer in tally.answers)),
            expired=len(tally.expired),
            refused=dict(tally.refusals),
            failed=dict(tally.failures),
            undead=sum(places.get(tx_id, 0) >= first_height for tx_id in self._never),
            unresolved=sum(tx_id not in places for tx_id in tally.unknown),
            twice=sum(height >= first_height for height in self.chain.twice),
            falls=sum(height >= first_height for height in self.chain.falls),
            heads_equal=heads_equal,
            receipts=len(sample) * len(self.nodes),
            unproven=len(await missing(self.network, sample)),
            first_height=first_height,
            last_height=self.chain.height,
            windows_share=extra.windows_share,
            recovery_s=extra.recovery_s,
            offline_transactions=extra.offline_transactions,
            shown={name: round(value, 3) for name, value in extra.shown.items()},
            found_down=extra.found_down,
            stranded=extra.stranded,
            note=extra.note if heads_equal else f"{extra.note} - {'; '.join(map(_told, seen))}",
        )

    async def _mend(self) -> bool:
        """Whether nothing is broken any more, every node runs and the writers rest."""
        try:
            if self.has_wires:
                await self.call(self.network.heal)
            for node in self.nodes:
                if await self.call(self.network.paused, node):
                    await self.call(self.network.resume, [node])
            await self.call(self.network.start, self.nodes)
            await self._rest()
        except (TrialError, DevnetError, OSError) as error:
            print(f"the network could not be mended: {why(error)}", file=sys.stderr)
            return False
        return True

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

    async def view(self, node: DevnetNode) -> NetworkStatus | None:
        """The network as `node` sees it, None while it does not say."""
        timeout = aiohttp.ClientTimeout(total=VIEW_TIMEOUT_S)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.get(f"{node.url}/v1/network") as answer,
            ):
                return decode_view(NetworkStatus, await answer.read()) if answer.status == 200 else None
        except (aiohttp.ClientError, TimeoutError, OSError, Rejection):
            return None

    async def seen(self, node: DevnetNode) -> NetworkStatus:
        """As `view`, of a node that runs. Raises TrialError."""
        view = await self.view(node)
        if view is None:
            raise TrialError(f"{node.id} does not say how it sees the network")
        return view

    async def kill(self, nodes: Sequence[DevnetNode]) -> int:
        """SIGKILL; how many of them have not ended by it."""
        ended = await self.call(self.network.kill, nodes)
        killed = [how for how in ended.values() if how is not None and how.code == -signal.SIGKILL]
        return len(nodes) - len(killed)

    async def caught_up(self, node: DevnetNode, height: int) -> float:
        """Until `node` has executed the block at `height`; the seconds that took."""

        async def there() -> bool:
            view = await self.view(node)
            return view is not None and view.heights.executed >= height

        return await self.until(f"block {height} at {node.id}", there)

    def ends(self) -> list[End]:
        """Every node's end of its wires; all run. Raises TrialError."""
        found = [(node, self.network.pid(node)) for node in self.nodes]
        ends = [End(node.id, node.peer_host, pid) for node, pid in found if pid is not None]
        if len(ends) < len(found):
            raise TrialError(f"only {len(ends)} of {len(found)} nodes run")
        return ends

    async def wires(self) -> dict[Pair, Through]:
        """What comes through between every two nodes. Raises TrialError, WiresError."""
        return await measure(await self.call(self.ends))

    def facts(self) -> list[Answer]:
        """The oldest answers of the load: committed and sealed everywhere long ago."""
        return self.load.answers[:FACTS]

    def probe(self, node: DevnetNode) -> Probe:
        return Probe(node, self.network.genesis, self._wallets[node.id])

    async def resolved(self, probes: Sequence[Probe]) -> list[Stranded]:
        """What the probes found, once everything that they handed over is in the chain, or RESOLVED_S are over."""
        deadline = time.monotonic() + RESOLVED_S
        await self.chain.read(self.voters[0].url)
        while any(probe.open(self.chain) for probe in probes) and time.monotonic() < deadline:
            await asyncio.sleep(_POLL_S)
            await self.chain.read(self.voters[0].url)
        return [probe.result(self.chain) for probe in probes]

    async def check(self) -> "Checked":
        """What a check of every store says. No node runs."""
        return await asyncio.to_thread(check_stores, self.network)

    async def _rest(self) -> None:
        try:
            await self.load.rest()
        except TimeoutError:
            raise TrialError("the writers did not come to rest") from None

    async def _agree(self) -> tuple[int, bool, list[NetworkStatus]]:
        """The newest term; whether all nodes have one head, which the chain leads to from genesis up; their views."""
        try:
            views = await settled(self.network)
        except (TimeoutError, Rejection):
            views = [view for node in await self.call(self.network.status) if (view := node.network) is not None]
        await self._read_anywhere()
        return (
            max((view.term for view in views), default=self._term),
            _one_head(views, len(self.nodes), self.chain),
            views,
        )

    async def _read_anywhere(self) -> None:
        """The chain, from the first voter that serves it. Raises ChainError."""
        for place, voter in enumerate(self.voters, 1):
            try:
                return await self.chain.read(voter.url)
            except ChainError:
                if place == len(self.voters):
                    raise
        return None


def why(error: Exception) -> str:
    """Why something broke down, in one line. What nobody foresaw is told with its place, too."""
    if not isinstance(error, TrialError | ChainError | WiresError | DevnetError | Rejection | TimeoutError | OSError):
        traceback.print_exception(error)
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


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


@dataclass(frozen=True, slots=True)
class Checked:
    """What the checks of all stores found, and up to which height each of them, by node id, was read and checked."""

    findings: list[Finding]
    heights: dict[str, int]

    def reaching(self, height: int) -> int:
        """How many stores were checked at least up to there."""
        return sum(reached >= height for reached in self.heights.values())


def check_stores(network: Devnet) -> Checked:
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
    heights = {
        node.id: report["last_height"] if report["opened"] else -1
        for node, report in zip(network.nodes, reports, strict=True)
    }
    return Checked(found, heights)


async def enrol_probers(network: Devnet, folder: Path) -> dict[str, Wallet]:
    """A clinician of every organisation who writes nothing but what a probe writes."""
    wallets = await asyncio.gather(
        *(enrol(network, node, folder, f"prober-{node.id}", "clinician") for node in network.nodes)
    )
    return {node.id: wallet for node, wallet in zip(network.nodes, wallets, strict=True)}
