"""Nodes come and go under load: three voters become five and three again, and no commit waits for it.

    python -m tests.processes.membership_trial [--keep DIR]        `make membership-trial`

Real daemons. Clinicians add records without a pause while admins vote: two nodes join, learn, and are promoted; the
leader removes itself; another voter is removed; one that was killed is replaced; one is to be promoted before it even
runs. For each step: how long it took from the first vote to its last block, how many transactions were committed
meanwhile, and the longest time without one.

That time must be within one election timeout, the longest that the configuration allows: where nobody fails, no
election has to wait for a silence. The step in which a node is killed may need one election first.
"""

import argparse
import asyncio
import itertools
import json
import os
import re
import secrets
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from carequorum.client import Client
from carequorum.devnet import Devnet, DevnetNode, create, free_ports
from carequorum.submission import Committed
from carequorum.views import NetworkStatus
from ledger.contracts.network import AddNode, Promote, Proposed, Remove
from ledger.errors import Rejection
from ledger.node_cert import key_pem, make_certificate
from ledger.receipt import verify_receipt
from node.config import ConsensusSection
from tests.processes.hospitals import admin_of, missing, settled, urls_from, view_of
from tests.processes.load import Load, writing

NODES = 3
WRITERS = 3
STEP_TIMEOUT_S = 60.0
POLL_S = 0.02
# Between two steps, for the gap of one not to count for the next.
BREATH = 10
RECEIPTS_EVERY = 20
EXIT_REMOVED = 5


@dataclass(frozen=True, slots=True)
class Row:
    """`seconds` from the first vote to the step's last block, `commits` in them, `gap_s` the longest without one."""

    step: str
    voters: int
    seconds: float
    commits: int
    gap_s: float


@dataclass(slots=True)
class Figures:
    rows: list[Row] = field(default_factory=list)
    committed: int = 0
    steps: int = 0
    unproven: list[str] = field(default_factory=list)
    waits: list[str] = field(default_factory=list)
    removed_codes: list[int | None] = field(default_factory=list)
    equal_heads: bool = False

    @property
    def longest_gap_s(self) -> float:
        """Of the steps in which no node died."""
        return max(row.gap_s for row in self.rows if "dies" not in row.step)


class Trial:
    """The network as it is meant to be: `founders` have the votes, `network.nodes` are those that run now."""

    def __init__(self, network: Devnet, load: Load, figures: Figures) -> None:
        self.network = network
        self.founders = list(network.nodes)
        self.every = list(network.nodes)
        self._load = load
        self._figures = figures

    async def step(self, name: str, act: Callable[[], Awaitable[None]]) -> None:
        begun, before = time.monotonic(), len(self._load.answers)
        async with asyncio.timeout(STEP_TIMEOUT_S):
            await act()
        seconds, count = time.monotonic() - begun, len(self._load.answers) - before
        await self._load.more(BREATH)
        times = [at for at, _ in self._load.answers if at >= begun - 1.0]
        gaps = [after - at for at, after in itertools.pairwise(times) if after > begun]
        view = await view_of(self.network, self.network.nodes[0])
        voters = sum(member.role == "voter" for member in view.members)
        self._figures.rows.append(Row(name, voters, round(seconds, 2), count, round(max(gaps), 3)))

    async def decide(self, change: Proposed) -> None:
        """Two of the founding hospitals propose and approve."""
        first, second = self.founders[:2]
        running = urls_from(self.network, self.network.nodes[0])
        async with (
            Client(running, self.network.genesis, admin_of(self.network, first)) as proposer,
            Client(running, self.network.genesis, admin_of(self.network, second)) as approver,
        ):
            proposal, _ = await proposer.propose(change)
            await approver.vote(proposal, approve=True)

    async def join(self, letter: str) -> None:
        """A new node on this machine, a learner in the end."""
        await self.launch(await self.offer(letter))

    async def launch(self, node: DevnetNode) -> None:
        await asyncio.to_thread(self.network.start, [node])
        self.network.nodes.append(node)

    async def offer(self, letter: str) -> DevnetNode:
        """Its key, its configuration, the vote; its daemon does not run yet."""
        peer_port, provider_port = free_ports(2)
        name = f"Hospital {letter.upper()}"
        node = DevnetNode(f"hospital-{letter}", name, peer_port=peer_port, provider_port=provider_port)
        folder, seed = self.network.folder(node), secrets.token_bytes(32)
        folder.mkdir(mode=0o700)
        key_file = folder / "node.key"
        key_file.touch(mode=0o600)
        key_file.write_bytes(key_pem(seed, None))
        tables: dict[str, dict[str, str | int]] = {
            "node": {"genesis": "../genesis.json", "data_dir": "data", "key_file": "node.key", "id": node.id},
            "peers": {"listen_host": "127.0.0.1", "listen_port": node.peer_port},
            "provider": {"host": "127.0.0.1", "port": node.provider_port},
        }
        lines = ['preset = "machine"']
        for table, values in tables.items():
            lines += [f"[{table}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
        (folder / "node.toml").write_text("\n".join(lines) + "\n")
        address = f"127.0.0.1:{node.peer_port}"
        await self.decide(AddNode(address, make_certificate(seed, node.id), node.id, self.founders[0].id))
        self.every.append(node)
        await self.until(lambda view: role_in(view, node.id) == "learner")
        return node

    async def promote_late(self, letter: str) -> None:
        """Its promotion is voted while its daemon does not run; it is started a while later. What the leader says."""
        node = await self.offer(letter)
        await self.decide(Promote(node.id))
        starting: asyncio.Task[None] | None = None
        while True:
            view = await view_of(self.network, await self.leader())
            if role_in(view, node.id) == "voter":
                break
            sentence = re.sub(r"[0-9]+", "N", view.pending.waits_for) if view.pending is not None else ""
            if sentence not in ("", *self._figures.waits):
                self._figures.waits.append(sentence)
            unreachable = any(node.id in sentence for sentence in self._figures.waits)
            if unreachable and starting is None:
                await self._load.more(BREATH)
                starting = asyncio.create_task(self.launch(node))
            await asyncio.sleep(POLL_S)
        assert starting is not None, "it was no voter before its daemon ran"
        await starting

    async def promote(self, letter: str) -> None:
        await self.decide(Promote(f"hospital-{letter}"))
        await self.until(lambda view: role_in(view, f"hospital-{letter}") == "voter")

    async def remove(self, node: DevnetNode, *, runs: bool = True) -> None:
        """Vote it out, and see its daemon end by itself."""
        await self.decide(Remove(node.id))
        if runs:
            self.network.nodes.remove(node)
        await self.until(lambda view: role_in(view, node.id) is None)
        if runs:
            self._figures.removed_codes.append(await asyncio.to_thread(exit_code, self.network, node))

    async def until(self, condition: Callable[[NetworkStatus], bool]) -> None:
        """Until every running node sees it."""
        for node in self.network.nodes:
            while not condition(await view_of(self.network, node)):  # noqa: ASYNC110 - daemons are asked over HTTP
                await asyncio.sleep(POLL_S)

    async def leader(self) -> DevnetNode:
        while (found := await asyncio.to_thread(self.network.leader)) is None:  # noqa: ASYNC110 - as above
            await asyncio.sleep(POLL_S)
        return found


def role_in(view: NetworkStatus, node_id: str) -> str | None:
    return next((member.role for member in view.members if member.id == node_id), None)


def exit_code(network: Devnet, node: DevnetNode, timeout_s: float = 10.0) -> int | None:
    """How a daemon that ends by itself ended, by the last line of its log; None if it still runs."""
    deadline = time.monotonic() + timeout_s
    while network.pid(node) is not None:
        if time.monotonic() > deadline:
            return None
        time.sleep(POLL_S)
    last = json.loads(network.log(node).read_bytes().splitlines()[-1])
    code: int | None = last.get("code")
    return code


async def run(folder: Path) -> Figures:
    """The whole trial in a new folder."""
    figures = Figures()
    network = create(folder / "net", NODES)
    trial: Trial | None = None
    try:
        await asyncio.to_thread(network.start, network.nodes)
        async with writing(network, folder, WRITERS) as load:
            trial = Trial(network, load, figures)
            await load.more(BREATH)
            await grow_and_shrink(trial)
            await replace(trial)
        figures.committed = len(load.answers)
        views = await settled(network)
        figures.equal_heads = len({view.head for view in views}) == 1
        figures.steps = views[0].steps
        figures.unproven = await missing(network, load.committed[::RECEIPTS_EVERY])
        figures.unproven += await unproven_offline(network, load.committed[-RECEIPTS_EVERY:])
    finally:
        await asyncio.to_thread(network.kill, trial.every if trial is not None else network.nodes)
    return figures


async def grow_and_shrink(trial: Trial) -> None:
    for letter in ("d", "e"):
        await trial.step(f"{letter} joins", lambda letter=letter: trial.join(letter))  # type: ignore[misc]
        await trial.step(f"{letter} is promoted", lambda letter=letter: trial.promote(letter))  # type: ignore[misc]
    leader = await trial.leader()
    await trial.step("the leader removes itself", lambda: trial.remove(leader))
    leads = await trial.leader()
    other = next(node for node in trial.network.nodes if node != leads)
    await trial.step("a follower is removed", lambda: trial.remove(other))


async def replace(trial: Trial) -> None:
    leads = await trial.leader()
    dead = next(node for node in trial.network.nodes if node != leads)

    async def die() -> None:
        trial.network.nodes.remove(dead)
        await asyncio.to_thread(trial.network.kill, [dead])

    await trial.step("a follower dies", die)
    await trial.step("f joins", lambda: trial.join("f"))
    await trial.step("f is promoted", lambda: trial.promote("f"))
    await trial.step("the dead one is removed", lambda: trial.remove(dead, runs=False))
    await trial.step("g is promoted before it runs", lambda: trial.promote_late("g"))


async def unproven_offline(network: Devnet, committed: list[Committed]) -> list[str]:
    """What a receipt, with genesis alone, does not prove of the newest transactions, after all changes."""
    lines: list[str] = []
    async with Client([network.nodes[0].url], network.genesis) as client:
        for each in committed:
            receipt = await client.receipt(each.id)
            with suppress(Rejection):
                if verify_receipt(receipt, network.genesis).id == each.id:
                    continue
            lines.append(each.id.hex())
    return lines


def table(figures: Figures) -> str:
    lines = [f"{'step':28} {'voters':>6} {'seconds':>8} {'commits':>8} {'longest gap, ms':>16}"]
    for row in figures.rows:
        lines.append(f"{row.step:28} {row.voters:6} {row.seconds:8.2f} {row.commits:8} {row.gap_s * 1000:16.0f}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--keep", type=Path, help="keep the network's folder here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="membership-trial-", ignore_cleanup_errors=True) as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        os.chmod(folder, 0o700)
        figures = asyncio.run(run(folder))
    bound_s = ConsensusSection().election_timeout_max_ms / 1000
    print(table(figures))
    print(f"{figures.committed} transactions committed, {figures.steps} changes of the voters")
    print(
        f"longest gap where no node died: {figures.longest_gap_s * 1000:.0f} ms, "
        f"one election timeout: {bound_s * 1000:.0f} ms"
    )
    for sentence in figures.waits:
        print(f"the promotion of g waited for {sentence}")
    print(f"removed daemons ended with {figures.removed_codes}; receipts not proven: {len(figures.unproven)}")
    return 0 if sound(figures) and figures.longest_gap_s <= bound_s else 1


def sound(figures: Figures) -> bool:
    ends = set(figures.removed_codes) == {EXIT_REMOVED}
    said = any("to answer" in sentence for sentence in figures.waits)
    return ends and said and not figures.unproven and figures.equal_heads


if __name__ == "__main__":
    sys.exit(main())
