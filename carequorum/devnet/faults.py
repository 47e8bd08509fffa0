"""What is wrong with the wires of a development network, as a value.

Each command makes a new one of the last (`partition`, `oneway`, `delay`, `loss`, `heal`), and each node's wire does
its part of it: it drops what comes from those it is cut from, and delays or loses packets one way (which one, see
`wire`). So a cut holds for packets under way and for connections that exist, and lasts when a node is started again.

    partition a,b | c      a -x-> c, c -x-> a, b -x-> c, c -x-> b
    oneway a c             a -x-> c: c hears nothing of a, a hears c
    delay a 100ms 20ms     every round trip with a takes 80 to 120 ms more
    loss a 5%              one packet of twenty between a and anybody is lost, in one direction
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from decimal import Decimal
from itertools import combinations

import msgspec

from carequorum.devnet.errors import DevnetError

DELAY_MS_MAX = 60_000

_DURATION = re.compile(r"(-?[0-9]{1,8}(?:\.[0-9]{1,3})?)(ms|s)")
_PERCENT = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,2})?)%")
_MS = {"ms": 1, "s": 1_000}


class Wire(msgspec.Struct, frozen=True):
    """What one node's wire does: `dropped` are the addresses from which nothing comes through, sorted."""

    dropped: tuple[str, ...] = ()
    delay_ms: int = 0
    jitter_ms: int = 0
    loss_percent: float = 0.0

    @property
    def shapes(self) -> bool:
        """Whether packets are delayed or lost."""
        return self.delay_ms > 0 or self.loss_percent > 0


class Faults(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`cuts` are pairs of node ids, packets from the first to the second are dropped; sorted, each once.
    `delays_ms` are (delay, jitter) and `losses_percent` the share of lost packets, by node id.
    """

    cuts: tuple[tuple[str, str], ...] = ()
    delays_ms: dict[str, tuple[int, int]] = {}
    losses_percent: dict[str, float] = {}

    def partition(self, groups: Sequence[Iterable[str]]) -> "Faults":
        """Cut every two groups from each other, instead of all cuts before. Who is in no group is cut from nobody.

        Raises DevnetError for fewer than two groups, an empty one, or a node named twice.
        """
        parts = [list(group) for group in groups]
        named = [node for part in parts for node in part]
        if len(parts) < 2 or not all(parts):
            raise DevnetError("a partition has two groups or more, none of them empty: A,B | C,D")
        if len(set(named)) < len(named):
            twice = next(node for node in named if named.count(node) > 1)
            raise DevnetError(f"{twice!r} is named twice")
        pairs = [(a, b) for one, other in combinations(parts, 2) for a in one for b in other]
        return msgspec.structs.replace(self, cuts=_sorted([*pairs, *((b, a) for a, b in pairs)]))

    def oneway(self, source: str, target: str) -> "Faults":
        """Cut one direction, beside what is cut already. Raises DevnetError."""
        if source == target:
            raise DevnetError(f"{source!r} has no wire to itself")
        return msgspec.structs.replace(self, cuts=_sorted([*self.cuts, (source, target)]))

    def delay(self, node: str, delay_ms: int, jitter_ms: int = 0) -> "Faults":
        """Delay a node's packets, one way, by delay_ms ± jitter_ms; 0 ends that. Raises DevnetError."""
        _check_delay(delay_ms, jitter_ms)
        delays = {**self.delays_ms, node: (delay_ms, jitter_ms)}
        return msgspec.structs.replace(self, delays_ms={each: both for each, both in delays.items() if both[0]})

    def loss(self, node: str, percent: float) -> "Faults":
        """Lose a share of a node's packets, one way; 0 ends that. Raises DevnetError."""
        _check_loss(percent)
        losses = {**self.losses_percent, node: percent}
        return msgspec.structs.replace(self, losses_percent={each: part for each, part in losses.items() if part})

    def wire(self, node: str, hosts: Mapping[str, str]) -> Wire:
        """A node's part. `hosts` are the peer addresses by node id."""
        delay_ms, jitter_ms = self.delays_ms.get(node, (0, 0))
        dropped = sorted(hosts[source] for source, target in self.cuts if target == node)
        return Wire(tuple(dropped), delay_ms, jitter_ms, self.losses_percent.get(node, 0.0))

    def check(self, nodes: Collection[str]) -> None:
        """Raises DevnetError where it is not about `nodes` alone, or asks for what cannot be."""
        for node in sorted(self.nodes() - set(nodes)):
            raise DevnetError(f"no node {node[:40]!r}; there are {', '.join(sorted(nodes))}")
        for delay_ms, jitter_ms in self.delays_ms.values():
            _check_delay(delay_ms, jitter_ms)
        for percent in self.losses_percent.values():
            _check_loss(percent)

    def nodes(self) -> set[str]:
        """Everybody who is named."""
        return {node for cut in self.cuts for node in cut} | self.delays_ms.keys() | self.losses_percent.keys()

    def __str__(self) -> str:
        """One line for people; "none" without faults."""
        cuts = set(self.cuts)
        both = [(source, target) for source, target in self.cuts if source < target and (target, source) in cuts]
        said = [f"{source} <-x-> {target}" for source, target in both]
        single = [(source, target) for source, target in self.cuts if (target, source) not in cuts]
        said += [f"{source} -x-> {target}" for source, target in single]
        said += [f"{node} delayed {delay} ms ± {jitter} ms" for node, (delay, jitter) in self.delays_ms.items()]
        said += [f"{node} loses {percent:g}%" for node, percent in self.losses_percent.items()]
        return ", ".join(said) or "none"


def parse_groups(text: str) -> list[list[str]]:
    """`A,B | C,D` as groups of node ids, which are not looked up here. Raises DevnetError."""
    return [[node for node in (part.strip() for part in group.split(",")) if node] for group in text.split("|")]


def parse_duration_ms(text: str) -> int:
    """`100ms`, `0.2s` or `-10s` as milliseconds. Raises DevnetError."""
    found = _DURATION.fullmatch(text)
    if found is None:
        raise DevnetError(f"{text[:40]!r} is no duration like 100ms or 2s")
    duration_ms = Decimal(found[1]) * _MS[found[2]]
    if duration_ms != int(duration_ms):
        raise DevnetError(f"{text[:40]!r} is no whole number of milliseconds")
    return int(duration_ms)


def parse_percent(text: str) -> float:
    """`5%` or `0.5%` as percent. Raises DevnetError."""
    found = _PERCENT.fullmatch(text)
    if found is None:
        raise DevnetError(f"{text[:40]!r} is no share like 5%")
    return float(found[1])


def _check_delay(delay_ms: int, jitter_ms: int) -> None:
    if not 0 <= jitter_ms <= delay_ms <= DELAY_MS_MAX:
        limits = f"0 <= jitter <= delay <= {DELAY_MS_MAX} ms"
        raise DevnetError(f"a delay of {delay_ms} ms ± {jitter_ms} ms; possible is {limits}")


def _check_loss(percent: float) -> None:
    if not 0 <= percent <= 100:
        raise DevnetError(f"a loss of {percent:g}%; possible is 0% to 100%")


def _sorted(cuts: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(set(cuts)))
