"""Traces of whole clusters of cores under every fault of their simulation are accepted."""

from collections import defaultdict
from functools import partial

import pytest

from consensus.core import RaftCore
from consensus.ports import CoreSettings, LogReader, Restored, Signer
from tests.consensus import nodes
from tests.consensus.cluster import Cluster
from tests.tracecheck.check import check
from tests.tracecheck.lines import Json
from tests.tracecheck.traced import TracedCore

SEEDS = 16


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
