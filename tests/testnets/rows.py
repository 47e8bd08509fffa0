"""The faults: what is broken, for how long, and when it is mended.

A wait is for something that must come, and is bounded; only where the fault itself has a duration is there a sleep.
"""

import asyncio
import time
from collections.abc import Collection, Sequence

from carequorum.devnet import DevnetNode
from tests.testnets.figures import Limits, windows_share
from tests.testnets.trial import RATE_PER_S, Extra, Fault, Trial
from tests.testnets.wires import Pair, cut, lost_share, round_trip_ms, segments

GAP_S_MAX = 3.0
PAUSE_S = 10.0
MINORITY_S = 30.0
LOSS_S = 30.0
LOSS_PERCENT = 10.0
DELAY_MS, JITTER_MS = 200, 50
OFFLINE_TRANSACTIONS = 2_000
CLOCK_OFFSET_MS = 10_000
# While a fault lasts that has no duration of its own, and after its end: this many answers.
HELD = 75
BREATH = 20
LOSS_TERMS_MAX = 10
WINDOWS_SHARE_MIN = 0.8
# From the start of all daemons, interpreters included, to the first commit.
RECOVERY_S_MAX = 15.0
# From a learner's launch, interpreter included, until it has what was committed while it was down.
LEVEL_S_MAX = 30.0
# Half of what is asked for at least; at most, what a busy machine adds.
LONGER_MS_BOUNDS = (100.0, 600.0)
LOST_SHARE_BOUNDS = (0.05, 0.15)
# Some are acknowledged by a later one, and more than data is sent: not all that is lost is sent again.
AGAIN_SHARE_BOUNDS = (0.01, 0.4)
# How exactly a clock is read over HTTP.
CLOCK_S = 1.0
# Submissions that may be in a block below the height that the learner was killed at, when the counting began.
AT_ONCE = 100
LEADER = "leader"


# By these names a fault shows, see `figures.Row.shown`.
NOT_KILLED = "nodes not ended by SIGKILL"
NOT_CHECKED = "stores not checked while down"
TOO_FEW = "acknowledged blocks in too few of them"
NEWER_TERMS = "newer terms when another led"
STILL_LEADING = "old leaders that still led"
LEADING = "nodes that led"
OTHER_WIRES = "wires not as asked for"
NOT_PAUSED = "nodes not paused"
ALL_SEEING = "nodes that saw all others"
QUORUM_SPARE = "voters beyond a quorum that its leader saw"
LONGER_MS = "ms that a round trip with it took longer"
ELSEWHERE_MS = "ms that others took longer"
LOST_SHARE = "share of datagrams lost"
AGAIN_SHARE = "share of the nodes' TCP segments sent again"
LEVEL_S = "s from launch to level"
AHEAD_S = "s that its clock was ahead"
OTHERS_OFF_S = "s that any other clock was off"


async def all_killed(trial: Trial) -> Extra:
    """SIGKILL to all at once; their stores are checked as they lie; all are started."""
    settled = trial.chain.height
    not_killed = await trial.kill(trial.nodes)
    checked = await trial.check()
    # What was acknowledged was on the disks of a quorum before.
    newest = max(answer.committed.height for answer in trial.load.answers)
    holding = sum(checked.heights[node.id] >= newest for node in trial.voters)
    started_at = time.monotonic()
    known = len(trial.load.answers)
    await trial.call(trial.network.start, trial.nodes)
    await trial.more(BREATH)
    recovery_s = trial.load.answers[known].at_s - started_at
    return Extra(
        recovery_s=round(recovery_s, 2),
        shown={
            NOT_KILLED: not_killed,
            NOT_CHECKED: len(trial.nodes) - checked.reaching(settled),
            TOO_FEW: int(holding < trial.quorum),
        },
        found_down=len(checked.findings),
        note=f"stores checked while all were down; a commit {recovery_s:.1f} s after the start",
    )


async def leader_killed(trial: Trial) -> Extra:
    leader, term = await leading(trial)
    not_killed = await trial.kill([leader])
    follows, newer = await leading(trial, other_than=leader)
    await trial.more(BREATH)
    await trial.call(trial.network.start, [leader])
    await trial.more(BREATH)
    shown = {NOT_KILLED: not_killed, NEWER_TERMS: newer - term}
    return Extra(shown=shown, note=f"{leader.id}, then {follows.id} led")


async def leader_paused(trial: Trial) -> Extra:
    leader, term = await leading(trial)
    paused_at = time.monotonic()
    await trial.call(trial.network.pause, [leader])
    follows, newer = await leading(trial, other_than=leader)
    await asyncio.sleep(max(0.0, paused_at + PAUSE_S - time.monotonic()))
    not_paused = not await trial.call(trial.network.paused, leader)
    await trial.call(trial.network.resume, [leader])
    await trial.more(BREATH)
    shown = {NOT_PAUSED: int(not_paused), NEWER_TERMS: newer - term}
    return Extra(shown=shown, note=f"{leader.id}; {follows.id} led before it was resumed")


async def leader_in_minority(trial: Trial) -> Extra:
    """The leader, and as many as may be with it without a majority, are cut off; it is asked meanwhile."""
    leader, term = await leading(trial)
    others = [node for node in trial.voters if node != leader]
    companions = others[: len(trial.voters) - trial.quorum - 1]
    minority = [leader, *companions]
    majority = [node for node in trial.nodes if node not in minority]
    probe, facts = trial.probe(leader), trial.facts()
    cut_at = time.monotonic()
    await trial.call(trial.network.partition, _names([minority, majority]))
    await probe.ask(facts)
    shown: dict[str, float] = {OTHER_WIRES: len(cut(await trial.wires()) ^ between([minority, majority]))}
    follows, newer = await leading(trial, other_than=leader)
    await asyncio.sleep(max(0.0, cut_at + MINORITY_S - time.monotonic()))
    shown |= {NEWER_TERMS: newer - term, STILL_LEADING: await count_leading(trial, minority)}
    await trial.call(trial.network.heal)
    stranded = await trial.resolved([probe])
    await trial.more(BREATH)
    note = f"{' and '.join(node.id for node in minority)} cut off, {follows.id} led"
    return Extra(stranded=stranded, shown=shown, note=note)


async def leader_deaf(trial: Trial) -> Extra:
    """What all others send the leader is dropped; what it sends them is not."""
    leader, term = await leading(trial)
    cuts = {(node.id, leader.id) for node in trial.nodes if node != leader}
    for source, target in sorted(cuts):
        await trial.call(trial.network.oneway, source, target)
    follows, newer = await leading(trial, other_than=leader)
    await trial.more(HELD)
    shown: dict[str, float] = {OTHER_WIRES: len(cut(await trial.wires()) ^ cuts), NEWER_TERMS: newer - term}
    shown[STILL_LEADING] = await count_leading(trial, [leader])
    await trial.call(trial.network.heal)
    await trial.more(BREATH)
    return Extra(shown=shown, note=f"{leader.id} hears nobody, {follows.id} leads")


async def ring(trial: Trial) -> Extra:
    """Each node is cut from its two neighbours on a ring, see `ring_of`."""
    leader = await trial.leader()
    order = ring_of(trial.voters, trial.learners, leader)
    cuts = ring_cuts(order)
    for one, other in cuts:
        await trial.call(trial.network.oneway, one, other)
    await trial.more(HELD)
    leads = await trial.leader()
    found = cut(await trial.wires())
    await trial.call(trial.network.heal)
    await trial.more(BREATH)
    seeing = [one for one in order if not any((other.id, one.id) in found for other in order)]
    shown = {
        OTHER_WIRES: len(found ^ set(cuts)),
        ALL_SEEING: len(seeing),
        QUORUM_SPARE: seen_voters(order, found, leads) - trial.quorum,
    }
    return Extra(shown=shown, note=f"{' - '.join(node.id for node in order)} - ; {leads.id} leads")


async def leader_delayed(trial: Trial) -> Extra:
    leader = await trial.leader()
    pairs = [(one.id, other.id) for one in trial.nodes for other in trial.nodes if one.id < other.id]
    its = [pair for pair in pairs if leader.id in pair]
    elsewhere = [pair for pair in pairs if leader.id not in pair]
    before = await trial.wires()
    await trial.call(trial.network.delay, leader.id, DELAY_MS, JITTER_MS)
    await trial.more(HELD)
    after = await trial.wires()
    await trial.call(trial.network.heal)
    await trial.more(BREATH)
    shown = {
        LONGER_MS: round_trip_ms(after, its) - round_trip_ms(before, its),
        ELSEWHERE_MS: round_trip_ms(after, elsewhere) - round_trip_ms(before, elsewhere),
    }
    return Extra(shown=shown, note=f"{leader.id}, the leader")


async def loss_everywhere(trial: Trial) -> Extra:
    ends = await trial.call(trial.ends)
    for node in trial.nodes:
        await trial.call(trial.network.loss, node.id, LOSS_PERCENT)
    sent_before, again_before = segments(ends)
    began = time.monotonic()
    lost = lost_share(await trial.wires())
    await asyncio.sleep(max(0.0, began + LOSS_S - time.monotonic()))
    ended = time.monotonic()
    sent, again = segments(ends)
    await trial.call(trial.network.heal)
    share = windows_share((answer.at_s for answer in trial.load.answers), began, ended)
    count = sum(began <= answer.at_s <= ended for answer in trial.load.answers)
    await trial.more(BREATH)
    shown = {LOST_SHARE: lost, AGAIN_SHARE: (again - again_before) / max(1, sent - sent_before)}
    note = f"commits in {share:.0%} of 5 s windows, {count} in {ended - began:.0f} s"
    return Extra(windows_share=share, shown=shown, note=note)


async def no_majority(trial: Trial) -> Extra:
    """The voters in parts none of which is a majority; without wires so many are paused. Those left are asked."""
    size = trial.quorum - 1
    parts = [trial.voters[at : at + size] for at in range(0, len(trial.voters), size)]
    parts[0] = parts[0] + trial.learners
    asked = [part[0] for part in parts[:2]] if trial.has_wires else [parts[0][0]]
    probes, facts = [trial.probe(node) for node in asked], trial.facts()
    paused = [node for part in parts[1:] for node in part]
    if trial.has_wires:
        await trial.call(trial.network.partition, _names(parts))
    else:
        await trial.call(trial.network.pause, paused)
    await asyncio.gather(*(probe.ask(facts) for probe in probes))
    shown: dict[str, float] = {LEADING: await count_leading(trial, trial.nodes if trial.has_wires else parts[0])}
    if trial.has_wires:
        shown[OTHER_WIRES] = len(cut(await trial.wires()) ^ between(parts))
        await trial.call(trial.network.heal)
    else:
        shown[OTHER_WIRES] = len([node for node in paused if not await trial.call(trial.network.paused, node)])
        await trial.call(trial.network.resume, paused)
    stranded = await trial.resolved(probes)
    await trial.more(BREATH)
    note = " | ".join(",".join(node.id for node in part) for part in parts)
    return Extra(stranded=stranded, shown=shown, note=note)


async def learner_offline(trial: Trial) -> Extra:
    """A learner is down while the others commit as fast as they are asked to; then it catches up under load."""
    learner = trial.learners[0]
    not_killed = await trial.kill([learner])
    # It holds no more than anybody had by then.
    known = max([view.heights.last for node in trial.voters if (view := await trial.view(node))], default=0)
    began, answered = time.monotonic(), len(trial.load.answers)
    trial.load.go(None)
    await trial.more(OFFLINE_TRANSACTIONS + AT_ONCE)
    rate = (len(trial.load.answers) - answered) / (time.monotonic() - began)
    trial.load.go(RATE_PER_S)
    await trial.chain.read(trial.voters[0].url)
    offline = sum(height > known for height in trial.chain.places.values())
    level = trial.chain.height
    launched_at = time.monotonic()
    starting = asyncio.create_task(trial.call(trial.network.start, [learner]))
    try:
        await trial.caught_up(learner, level)
        level_s = time.monotonic() - launched_at
    finally:
        await starting
    await trial.more(BREATH)
    return Extra(
        offline_transactions=offline,
        shown={NOT_KILLED: not_killed, LEVEL_S: level_s},
        note=f"{offline} at {rate:.0f} a second; {learner.id} was level {level_s:.1f} s after its launch",
    )


async def clock_off(trial: Trial) -> Extra:
    """A follower's clock is put ahead; then the leader dies, and perhaps that follower leads. It stays ahead."""
    leader = await trial.leader()
    odd = next(node for node in trial.voters if node != leader)
    not_killed = await trial.kill([odd])
    await trial.call(trial.network.configure, odd, {"devnet": {"clock_offset_ms": CLOCK_OFFSET_MS}})
    await trial.call(trial.network.start, [odd])
    await trial.more(BREATH)
    offsets_s = {node: await offset_s(trial, node) for node in trial.nodes}
    leader, term = await leading(trial)
    not_killed += await trial.kill([leader])
    leads, newer = await leading(trial, other_than=leader)
    await trial.more(BREATH)
    await trial.call(trial.network.start, [leader])
    await trial.more(BREATH)
    shown = {
        AHEAD_S: offsets_s[odd],
        OTHERS_OFF_S: max(abs(offset) for node, offset in offsets_s.items() if node != odd),
        NOT_KILLED: not_killed,
        NEWER_TERMS: newer - term,
    }
    note = f"{odd.id} {CLOCK_OFFSET_MS // 1_000} s ahead; {leads.id} led after {leader.id}"
    return Extra(shown=shown, note=note)


NONE: tuple[float, float] = (0, 0)
SOME: tuple[float, None] = (1, None)

# In this order: the stores that are checked while all are down are small at the beginning, and the clock stays wrong.
FAULTS: tuple[Fault, ...] = (
    Fault(
        "all killed at once",
        all_killed,
        Limits(recovery_s=RECOVERY_S_MAX, shown={NOT_KILLED: NONE, NOT_CHECKED: NONE, TOO_FEW: NONE}),
        wire=False,
    ),
    Fault(
        "leader killed",
        leader_killed,
        Limits(gap_s=GAP_S_MAX, shown={NOT_KILLED: NONE, NEWER_TERMS: SOME}),
        wire=False,
    ),
    Fault(
        "leader paused 10 s",
        leader_paused,
        Limits(gap_s=GAP_S_MAX, shown={NOT_PAUSED: NONE, NEWER_TERMS: SOME}),
        wire=False,
    ),
    Fault(
        "leader in minority 30 s",
        leader_in_minority,
        Limits(gap_s=GAP_S_MAX, stranded=1, shown={OTHER_WIRES: NONE, NEWER_TERMS: SOME, STILL_LEADING: NONE}),
    ),
    Fault(
        "one-way cut to leader",
        leader_deaf,
        Limits(gap_s=GAP_S_MAX, shown={OTHER_WIRES: NONE, NEWER_TERMS: SOME, STILL_LEADING: NONE}),
    ),
    Fault(
        "ring of cuts",
        ring,
        Limits(gap_s=GAP_S_MAX, shown={OTHER_WIRES: NONE, ALL_SEEING: NONE, QUORUM_SPARE: (0, None)}),
    ),
    Fault(
        "200 ms +- 50 ms on one",
        leader_delayed,
        Limits(gap_s=GAP_S_MAX, shown={LONGER_MS: LONGER_MS_BOUNDS, ELSEWHERE_MS: (None, LONGER_MS_BOUNDS[0])}),
    ),
    Fault("no majority", no_majority, Limits(stranded=1, shown={OTHER_WIRES: NONE, LEADING: NONE}), wire=False),
    Fault(
        "10 % loss everywhere",
        loss_everywhere,
        Limits(
            terms=LOSS_TERMS_MAX,
            windows_share=WINDOWS_SHARE_MIN,
            shown={LOST_SHARE: LOST_SHARE_BOUNDS, AGAIN_SHARE: AGAIN_SHARE_BOUNDS},
        ),
    ),
    Fault(
        "learner offline",
        learner_offline,
        Limits(
            gap_s=GAP_S_MAX,
            offline_transactions=OFFLINE_TRANSACTIONS,
            shown={NOT_KILLED: NONE, LEVEL_S: (None, LEVEL_S_MAX)},
        ),
        wire=False,
    ),
    Fault(
        "clock 10 s off",
        clock_off,
        Limits(
            gap_s=GAP_S_MAX,
            shown={
                AHEAD_S: (CLOCK_OFFSET_MS / 1_000 - CLOCK_S, CLOCK_OFFSET_MS / 1_000 + CLOCK_S),
                OTHERS_OFF_S: (None, CLOCK_S),
                NOT_KILLED: NONE,
                NEWER_TERMS: SOME,
            },
        ),
        wire=False,
    ),
)


# what rows ask of the network


async def leading(trial: Trial, *, other_than: DevnetNode | None = None) -> tuple[DevnetNode, int]:
    """Who leads, once somebody (else) does and says so itself, and its term. Raises TrialError."""
    found: list[tuple[DevnetNode, int]] = []

    async def leads() -> bool:
        leader = await trial.leader(other_than=other_than)
        view = await trial.view(leader)
        if view is not None and view.role == LEADER:
            found.append((leader, view.term))
        return bool(found)

    await trial.until("a leader", leads)
    return found[-1]


async def count_leading(trial: Trial, nodes: Sequence[DevnetNode]) -> int:
    """How many of them say that they lead. All run."""
    return sum([(await trial.seen(node)).role == LEADER for node in nodes])


async def offset_s(trial: Trial, node: DevnetNode) -> float:
    """How far its clock is ahead of the machine's."""
    view = await trial.seen(node)
    return view.time / 1_000 - time.time()


# what is cut, and who then sees whom


def between(parts: Sequence[Sequence[DevnetNode]]) -> set[Pair]:
    """Both directions between every two parts, as (source, target)."""
    return {
        (one.id, other.id) for part in parts for rest in parts if rest is not part for one in part for other in rest
    }


def ring_of(voters: Sequence[DevnetNode], learners: Sequence[DevnetNode], leader: DevnetNode) -> list[DevnetNode]:
    """The nodes in a ring, the leader between two voters: where there are few, it then has no majority left."""
    first, *others = [node for node in voters if node != leader]
    return [first, leader, *others, *learners]


def ring_cuts(order: Sequence[DevnetNode]) -> list[tuple[str, str]]:
    """Both directions between every two neighbours, as (source, target)."""
    pairs = list(zip(order, [*order[1:], order[0]], strict=True))
    return [cut for one, other in pairs for cut in ((one.id, other.id), (other.id, one.id))]


def seen_voters(order: Sequence[DevnetNode], cuts: Collection[Pair], one: DevnetNode) -> int:
    """The voters, itself included, that `one` is connected to in both directions."""
    voters = [node for node in order if node.role == "voter"]
    return sum((one.id, other.id) not in cuts and (other.id, one.id) not in cuts for other in voters)


def able_to_lead(order: Sequence[DevnetNode], cuts: Collection[Pair]) -> list[DevnetNode]:
    """The voters whom a majority of the voters is connected to."""
    voters = [node for node in order if node.role == "voter"]
    return [one for one in voters if 2 * seen_voters(order, cuts, one) > len(voters)]


def _names(parts: Sequence[Sequence[DevnetNode]]) -> list[list[str]]:
    return [[node.id for node in part] for part in parts]
