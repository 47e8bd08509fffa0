"""A row that breaks down is a row of the table, and the next one begins with a whole network."""

import asyncio
from collections.abc import Sequence
from typing import cast

import pytest

from carequorum.devnet import Devnet, DevnetError, DevnetNode
from carequorum.submission import Committed
from carequorum.views import NetworkStatus
from ledger.genesis import Genesis
from tests.ledger.founding import GENESIS
from tests.testnets import trial as module
from tests.testnets.chain import ChainError
from tests.testnets.figures import Limits
from tests.testnets.load import Answer, Load
from tests.testnets.trial import Checked, Extra, Fault, Trial, TrialError, check_stores


class Network:
    """Notes what is asked of it. `starts`: whether its nodes do."""

    backend_name = "netns"

    def __init__(self, *, starts: bool = True) -> None:
        self.nodes = [DevnetNode(f"v{number}", f"Voter {number}") for number in range(3)]
        self.genesis: Genesis = GENESIS
        self.starts = starts
        self.verbs: list[str] = []

    def heal(self) -> None:
        self.verbs.append("heal")

    def paused(self, node: DevnetNode) -> bool:
        return node.id == "v1"

    def resume(self, nodes: Sequence[DevnetNode]) -> None:
        self.verbs.append(f"resume {' '.join(node.id for node in nodes)}")

    def start(self, _: Sequence[DevnetNode]) -> None:
        self.verbs.append("start")
        if not self.starts:
            raise DevnetError("not ready within 60 s: v1")


class Answering(Load):
    """Whatever a row waits for has come."""

    async def more(self, count: int, timeout_s: float) -> float:
        answers = [Answer(0.0, Committed(bytes([place] * 32), 1, place), bytes(32)) for place in range(count)]
        self.tally.answers += answers
        return 0.0


class Agreeing(Trial):
    """Over a network that has one head, and a chain with nothing in it."""

    unread = False

    async def _agree(self) -> tuple[int, bool, list[NetworkStatus]]:
        if self.unread:
            raise ChainError("v0 serves no blocks")
        return 1, True, []


@pytest.fixture(autouse=True)
def _nothing_is_asked_of_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    async def missing(*_: object) -> list[str]:
        return []

    monkeypatch.setattr(module, "missing", missing)


def over(network: Network) -> Agreeing:
    return Agreeing(cast("Devnet", network), Answering(3), {})


async def broken(_: Trial) -> Extra:
    raise TrialError("a leader did not come within 60 s")


async def held(_: Trial) -> Extra:
    return Extra(shown={"wires": 0.12345}, note="it held")


def fault(name: str, act: object) -> Fault:
    return Fault(name, act, Limits())  # type: ignore[arg-type]


def test_a_row_that_breaks_down_is_mended_and_measured_and_the_next_is_run() -> None:
    network = Network()
    trial = over(network)
    assert asyncio.run(trial.run(fault("bad", broken)))
    assert network.verbs == ["heal", "resume v1", "start"]
    assert asyncio.run(trial.run(fault("good", held)))
    bad, good = trial.rows
    assert (bad.name, bad.broke_down) == ("bad", "TrialError: a leader did not come within 60 s")
    # What was acknowledged before is still asked for.
    assert bad.acknowledged == bad.lost > 0
    assert (good.broke_down, good.shown, good.note) == ("", {"wires": 0.123}, "it held")
    assert trial.unmeasured == {}


def test_what_nobody_foresaw_breaks_one_row_and_is_told_with_its_place(capsys: pytest.CaptureFixture[str]) -> None:
    async def buggy(_: Trial) -> Extra:
        raise KeyError("hospital-z")

    trial = over(Network())
    assert asyncio.run(trial.run(fault("bad", buggy)))
    assert trial.rows[0].broke_down == "KeyError: 'hospital-z'"
    assert "in buggy" in capsys.readouterr().err


def test_a_row_whose_end_cannot_be_read_is_unmeasured_and_the_next_is_run() -> None:
    trial = over(Network())
    trial.unread = True
    assert asyncio.run(trial.run(fault("bad", held)))
    assert trial.unmeasured == {"bad": "ChainError: v0 serves no blocks"}
    assert trial.rows == []


def test_where_the_network_cannot_be_mended_no_other_row_is_run(capsys: pytest.CaptureFixture[str]) -> None:
    trial = over(Network(starts=False))
    assert not asyncio.run(trial.run(fault("bad", broken)))
    assert "could not be mended" in capsys.readouterr().err


def test_what_was_refused_or_expired_and_is_in_a_block_all_the_same_is_counted() -> None:
    trial = over(Network())

    async def refusing(trial: Trial) -> Extra:
        trial.load.tally.refused.append(b"r" * 32)
        trial.load.tally.expired.append(b"e" * 32)
        return Extra()

    async def appearing(trial: Trial) -> Extra:
        trial.chain.places |= {b"r" * 32: 1, b"e" * 32: 1}
        return Extra()

    assert asyncio.run(trial.run(fault("refused", refusing)))
    assert asyncio.run(trial.run(fault("later", appearing)))
    assert [row.undead for row in trial.rows] == [0, 2]


def test_a_store_is_checked_as_far_as_it_was_read() -> None:
    class Stopped(Network):
        def check(self, node: DevnetNode) -> dict[str, object]:
            opened, last_height = {"v0": (True, 9), "v1": (True, 7), "v2": (False, 0)}[node.id]
            return {"problems": [], "ok": opened, "opened": opened, "last_height": last_height}

    checked = check_stores(cast("Devnet", Stopped()))
    assert checked.heights == {"v0": 9, "v1": 7, "v2": -1}
    assert [checked.reaching(height) for height in (0, 7, 8, 10)] == [2, 2, 1, 0]
    assert [str(finding) for finding in checked.findings] == ["v2: the check is not clean, and does not say why"]
    assert Checked([], {}).reaching(0) == 0
