"""Traces of whole clusters of cores under every fault of their simulation are accepted."""

from collections import defaultdict
from functools import partial

import pytest

from consensus.core import RaftCore
from consensus.ports import CoreSettings, LogReader, Restored, Signer
from tests.consensus import nodes
from tests.consensus.cluster import Cluster
from tests.sim import node as simulated
from tests.sim.run import run_seed
from tests.tracecheck.check import check
from tests.tracecheck.lines import Forbidden, Json
from tests.tracecheck.traced import TracedCore

SEEDS = 12
WHOLE_SEEDS = range(1, 9)
STEPS = 2_500


def traced(
    traces: dict[str, list[Json]], settings: CoreSettings, restored: Restored, reader: LogReader, signer: Signer
) -> RaftCore:
    return TracedCore(settings, restored, reader, signer, traces[settings.node_id].append)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_whatever_goes_wrong_it_is_raft(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    traces: dict[str, list[Json]] = defaultdict(list)
    monkeypatch.setattr(nodes, "RaftCore", partial(traced, traces))
    cluster = Cluster(seed, (3, 4, 5, 7)[seed % 4], learners=seed % 2)
    cluster.run(1_500)
    cluster.settle(400)
    report = check(list(traces.values()))
    assert report.leaders >= 1
    assert report.lines >= 200


def test_so_it_is_over_the_real_store_while_members_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of these seeds put an older disk in a node's place: that is no Raft, and must be what is found."""
    judged = 0
    for seed in WHOLE_SEEDS:
        traces: dict[str, list[Json]] = defaultdict(list)
        monkeypatch.setattr(simulated, "RaftCore", partial(traced, traces))
        run_seed(seed, steps=STEPS)
        try:
            judged += check(list(traces.values())).certificates > 0
        except Forbidden as error:
            if "not handed to it" not in error.rule:
                raise
    assert judged >= len(WHOLE_SEEDS) // 2
