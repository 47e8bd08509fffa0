"""The faults: what is broken, for how long, and when it is mended.

A wait is for something that must come, and is bounded; only where the fault itself has a duration is there a sleep.
"""

import asyncio
import time
from collections.abc import Sequence

from carequorum.devnet import DevnetNode
from tests.testnets.figures import Limits, windows_share
from tests.testnets.trial import RATE_PER_S, Extra, Fault, Trial

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
LOSS_TERMS_MAX = 20
WINDOWS_SHARE_MIN = 0.8
# From the start of all daemons, interpreters included, to the first commit.
RECOVERY_S_MAX = 15.0


async def all_killed(trial: Trial) -> Extra:
    """SIGKILL to all at once; their stores are checked as they lie; all are started."""
    await trial.call(trial.network.kill, trial.nodes)
    found = await trial.check()
    started_at = time.monotonic()
    known = len(trial.load.answers)
    await trial.call(trial.network.start, trial.nodes)
    await trial.more(BREATH)
    recovery_s = trial.load.answers[known].at_s - started_at
    return Extra(
        recovery_s=round(recovery_s, 2),
        checked_down=len(trial.nodes),
        found_down=len(found),
        note=f"stores checked while all were down; a commit {recovery_s:.1f} s after the start",
    )


async def leader_killed(trial: Trial) -> Extra:
    leader = await trial.leader()
    await trial.call(trial.network.kill, [leader])
    await trial.more(BREATH)
    await trial.call(trial.network.start, [leader])
    await trial.more(BREATH)
    return Extra(note=leader.id)


async def leader_paused(trial: Trial) -> Extra:
    leader = await trial.leader()
    await trial.call(trial.network.pause, [leader])
    await asyncio.sleep(PAUSE_S)
    await trial.call(trial.network.resume, [leader])
    await trial.more(BREATH)
    return Extra(note=leader.id)


async def leader_in_minority(trial: Trial) -> Extra:
    """The leader, and as many as may be with it without a majority, are cut off; it is asked meanwhile."""
    leader = await trial.leader()
    others = [node for node in trial.voters if node != leader]
    companions = others[: len(trial.voters) - trial.quorum - 1]
    minority = [leader, *companions]
    majority = [node for node in trial.nodes if node not in minority]
    probe, facts = trial.probe(leader), trial.facts()
    cut_at = time.monotonic()
    await trial.call(trial.network.partition, _names([minority, majority]))
    await probe.ask(facts)
    await asyncio.sleep(max(0.0, cut_at + MINORITY_S - time.monotonic()))
    await trial.call(trial.network.heal)
    stranded = await trial.resolved([probe])
    await trial.more(BREATH)
    return Extra(stranded=stranded, note=f"{' and '.join(node.id for node in minority)} cut off")


async def leader_deaf(trial: Trial) -> Extra:
    """What all others send the leader is dropped; what it sends them is not."""
    leader = await trial.leader()
    for node in trial.nodes:
        if node != leader:
            await trial.call(trial.network.oneway, node.id, leader.id)
    follows = await trial.leader(other_than=leader)
    await trial.more(HELD)
    await trial.call(trial.network.heal)
    await trial.more(BREATH)
    return Extra(note=f"{leader.id} hears nobody, {follows.id} leads")


async def ring(trial: Trial) -> Extra:
    """Each node is cut from its two neighbours on a ring, see `ring_of`."""
    leader = await trial.leader()
    order = ring_of(trial.voters, trial.learners, leader)
    for one, other in ring_cuts(order):
        await trial.call(trial.network.oneway, one, other)
    await trial.more(HELD)
    leads = await trial.leader()
    await trial.call(trial.network.heal)
    await trial.more(BREATH)
    return Extra(note=f"{' - '.join(node.id for node in order)} - ; {leads.id} leads")


async def leader_delayed(trial: Trial) -> Extra:
    leader = await trial.leader()
    await trial.call(trial.network.delay, leader.id, DELAY_MS, JITTER_MS)
    await trial.more(HELD)
    await trial.call(trial.network.heal)
    await trial.more(BREATH)
    return Extra(note=f"{leader.id}, the leader")


async def loss_everywhere(trial: Trial) -> Extra:
    for node in trial.nodes:
        await trial.call(trial.network.loss, node.id, LOSS_PERCENT)
    began = time.monotonic()
    await asyncio.sleep(LOSS_S)
    ended = time.monotonic()
    await trial.call(trial.network.heal)
    share = windows_share((answer.at_s for answer in trial.load.answers), began, ended)
    count = sum(began <= answer.at_s <= ended for answer in trial.load.answers)
    await trial.more(BREATH)
    return Extra(windows_share=share, note=f"commits in {share:.0%} of 5 s windows, {count} in {ended - began:.0f} s")


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
    if trial.has_wires:
        await trial.call(trial.network.heal)
    else:
        await trial.call(trial.network.resume, paused)
    stranded = await trial.resolved(probes)
    await trial.more(BREATH)
    return Extra(stranded=stranded, note=" | ".join(",".join(node.id for node in part) for part in parts))


async def learner_offline(trial: Trial) -> Extra:
    """A learner is down while the others commit as fast as they are asked to; then it catches up under load."""
    learner = trial.learners[0]
    await trial.call(trial.network.kill, [learner])
    began, known = time.monotonic(), len(trial.load.answers)
    trial.load.go(None)
    await trial.more(OFFLINE_TRANSACTIONS)
    rate = (len(trial.load.answers) - known) / (time.monotonic() - began)
    trial.load.go(RATE_PER_S)
    offline = len(trial.load.answers) - known
    height = max(answer.committed.height for answer in trial.load.answers[known:])
    await trial.call(trial.network.start, [learner])
    caught_up_s = await trial.caught_up(learner, height)
    await trial.more(BREATH)
    return Extra(
        offline_transactions=offline,
        note=f"{offline} at {rate:.0f} a second; {learner.id} was ready, then level after {caught_up_s:.1f} s",
    )


async def clock_off(trial: Trial) -> Extra:
    """A follower's clock is put ahead; then the leader dies, and perhaps that follower leads. It stays ahead."""
    leader = await trial.leader()
    odd = next(node for node in trial.voters if node != leader)
    await trial.call(trial.network.kill, [odd])
    await trial.call(trial.network.configure, odd, {"devnet": {"clock_offset_ms": CLOCK_OFFSET_MS}})
    await trial.call(trial.network.start, [odd])
    await trial.more(BREATH)
    leader = await trial.leader()
    await trial.call(trial.network.kill, [leader])
    leads = await trial.leader(other_than=leader)
    await trial.more(BREATH)
    await trial.call(trial.network.start, [leader])
    await trial.more(BREATH)
    return Extra(note=f"{odd.id} {CLOCK_OFFSET_MS // 1_000} s ahead; {leads.id} led after {leader.id}")


GAP = Limits(gap_s=GAP_S_MAX)

# In this order: the stores that are checked while all are down are small at the beginning, and the clock stays wrong.
FAULTS: tuple[Fault, ...] = (
    Fault("all killed at once", all_killed, Limits(recovery_s=RECOVERY_S_MAX), wire=False),
    Fault("leader killed", leader_killed, GAP, wire=False),
    Fault("leader paused 10 s", leader_paused, GAP, wire=False),
    Fault("leader in minority 30 s", leader_in_minority, Limits(gap_s=GAP_S_MAX, stranded=1)),
    Fault("one-way cut to leader", leader_deaf, GAP),
    Fault("ring of cuts", ring, GAP),
    Fault("200 ms +- 50 ms on one", leader_delayed, GAP),
    Fault("no majority", no_majority, Limits(stranded=1), wire=False),
    Fault("10 % loss everywhere", loss_everywhere, Limits(terms=LOSS_TERMS_MAX, windows_share=WINDOWS_SHARE_MIN)),
    Fault(
        "learner offline",
        learner_offline,
        Limits(gap_s=GAP_S_MAX, offline_transactions=OFFLINE_TRANSACTIONS),
        wire=False,
    ),
    Fault("clock 10 s off", clock_off, GAP, wire=False),
)


def ring_of(voters: Sequence[DevnetNode], learners: Sequence[DevnetNode], leader: DevnetNode) -> list[DevnetNode]:
    """The nodes in a ring, the leader between two voters: where there are few, it then has no majority left."""
    first, *others = [node for node in voters if node != leader]
    return [first, leader, *others, *learners]


def ring_cuts(order: Sequence[DevnetNode]) -> list[tuple[str, str]]:
    """Both directions between every two neighbours, as (source, target)."""
    pairs = list(zip(order, [*order[1:], order[0]], strict=True))
    return [cut for one, other in pairs for cut in ((one.id, other.id), (other.id, one.id))]


def able_to_lead(order: Sequence[DevnetNode], cuts: Sequence[tuple[str, str]]) -> list[DevnetNode]:
    """The voters whom a majority of the voters, themselves included, is connected to in both directions."""
    voters = [node for node in order if node.role == "voter"]
    cut = set(cuts)
    return [
        one
        for one in voters
        if 2 * sum((one.id, other.id) not in cut and (other.id, one.id) not in cut for other in voters) > len(voters)
    ]


def _names(parts: Sequence[Sequence[DevnetNode]]) -> list[list[str]]:
    return [[node.id for node in part] for part in parts]
