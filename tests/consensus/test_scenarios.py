"""Stories of whole clusters: the network behaves as told, and everything else goes well."""

import pytest

from consensus.messages import Entry, NodeId, Ready, Role
from tests.consensus.cluster import Cluster
from tests.consensus.nodes import Disk

ELECTION_TICKS_MAX = 20


def quiet(voters: int, learners: int = 0, seed: int = 1) -> Cluster:
    """A cluster with a leader and one committed block beyond its first."""
    cluster = Cluster(seed, voters, learners)
    cluster.settle(200)
    return cluster


def the_leader(cluster: Cluster) -> NodeId:
    leader = cluster.leader()
    assert leader is not None
    return leader


def commits(cluster: Cluster, ticks: int) -> bool:
    """Whether a block proposed now is committed by whoever leads within `ticks`."""
    before = max(cluster.oracle.committed)
    for _ in range(ticks):
        leader = cluster.leader()
        if leader is not None and cluster.nodes[leader].core.can_propose:
            cluster.propose(leader)
        cluster.pass_time(1)
        if max(cluster.oracle.committed) > before + 1:
            return True
    return False


def isolate(cluster: Cluster, *names: NodeId) -> None:
    for name in names:
        for other in cluster.names:
            if other not in names:
                cluster.cut |= {(name, other), (other, name)}


@pytest.mark.parametrize("voters", [1, 2, 3, 4, 5, 7])
def test_an_idle_cluster_keeps_its_leader_and_makes_no_blocks(voters: int) -> None:
    cluster = quiet(voters)
    leader, term = the_leader(cluster), cluster.nodes[the_leader(cluster)].core.term
    heights = {node.core.last_height for node in cluster.nodes.values()}
    cluster.pass_time(500)
    assert (the_leader(cluster), cluster.nodes[leader].core.term) == (leader, term)
    assert {node.core.last_height for node in cluster.nodes.values()} == heights


@pytest.mark.parametrize("seed", range(10))
def test_a_dead_leader_is_replaced_within_a_few_timeouts(seed: int) -> None:
    cluster = quiet(4, seed=seed)
    for _ in range(5):
        victim = the_leader(cluster)
        cluster.crash(victim)
        assert commits(cluster, 4 * ELECTION_TICKS_MAX)
        cluster.start(victim)
        cluster.settle(200)


def test_a_joint_start_with_equal_seeds_finds_a_leader() -> None:
    for seed in range(30):
        cluster = Cluster(seed, 5)
        assert cluster.settle(6 * ELECTION_TICKS_MAX) < 6 * ELECTION_TICKS_MAX


def test_the_whole_cluster_restarts_and_no_term_is_used_again() -> None:
    cluster = quiet(3)
    for _ in range(5):
        terms = max(cluster.oracle.leaders)
        for name in cluster.names:
            cluster.crash(name)
        for name in cluster.names:
            cluster.start(name)
        cluster.settle(200)
        assert max(cluster.oracle.leaders) > terms


def test_a_leader_cut_off_from_its_quorum_steps_down_and_its_blocks_are_replaced() -> None:
    cluster = quiet(5)
    old = the_leader(cluster)
    isolate(cluster, old)
    lost = cluster.propose(old)
    assert lost is not None
    assert commits(cluster, 4 * ELECTION_TICKS_MAX)
    cluster.pass_time(ELECTION_TICKS_MAX)
    assert cluster.nodes[old].core.role is not Role.LEADER
    assert cluster.nodes[old].core.term_hash(lost) != (1, cluster.oracle.committed[lost])
    cluster.settle(200)
    assert cluster.disks[old].blocks[lost].hash == cluster.oracle.committed[lost]


def test_a_node_that_was_cut_off_does_not_disturb_on_its_return() -> None:
    cluster = quiet(4)
    leader, term = the_leader(cluster), cluster.nodes[the_leader(cluster)].core.term
    other = next(name for name in cluster.names if name != leader)
    isolate(cluster, other)
    cluster.pass_time(300)
    assert cluster.nodes[other].core.term == term, "a question that nobody hears raises no term"
    cluster.cut.clear()
    cluster.settle(100)
    assert (the_leader(cluster), cluster.nodes[leader].core.term) == (leader, term)


@pytest.mark.parametrize("seed", range(5))
def test_partial_connectivity_leaves_a_stable_leader(seed: int) -> None:
    """Links 1-2, 1-3, 2-3, 2-4, 3-5 only: 4 and 5 hear no leader that is 1, and must not depose it for ever."""
    cluster = quiet(5, seed=seed)
    links = {("n1", "n2"), ("n1", "n3"), ("n2", "n3"), ("n2", "n4"), ("n3", "n5")}
    links |= {(to, by) for by, to in links}
    cluster.cut = {(by, to) for by in cluster.names for to in cluster.names if by != to} - links
    cluster.pass_time(10 * ELECTION_TICKS_MAX)
    terms = len(cluster.oracle.leaders)
    for _ in range(5):
        assert commits(cluster, 2 * ELECTION_TICKS_MAX)
    assert len(cluster.oracle.leaders) <= terms + 1


def test_a_leader_with_a_hung_disk_is_replaced() -> None:
    cluster = quiet(3)
    old = the_leader(cluster)
    cluster.hung.add(old)
    cluster.propose(old)
    for _ in range(4 * ELECTION_TICKS_MAX):
        cluster.pass_time(1)
        if cluster.leader() not in (None, old):
            break
    assert the_leader(cluster) != old
    assert commits(cluster, 4 * ELECTION_TICKS_MAX)


def test_a_learner_follows_and_counts_for_nothing() -> None:
    cluster = quiet(3, learners=1)
    assert cluster.nodes["n4"].core.commit_height == max(cluster.oracle.committed)
    followers = [name for name in cluster.configuration.voters if name != the_leader(cluster)]
    for name in followers:
        isolate(cluster, name)
    assert not commits(cluster, 2 * ELECTION_TICKS_MAX), "one voter and one learner are no quorum of three"


def test_a_node_that_was_down_for_long_fetches_and_joins_again() -> None:
    cluster = quiet(4)
    absent = next(name for name in cluster.names if name != the_leader(cluster))
    cluster.crash(absent)
    for _ in range(40):
        assert commits(cluster, ELECTION_TICKS_MAX)
    cluster.start(absent)
    fetched = cluster.counts["fetch"]
    cluster.settle(100)
    assert cluster.counts["fetch"] > fetched


class ForgetfulDisk(Disk):
    """Answers before it writes: what it was told last is lost with the power."""

    def __init__(self) -> None:
        super().__init__()
        self.unsynced: Ready | None = None

    def write(self, batch: Ready) -> None:
        if self.unsynced is not None:
            super().write(self.unsynced)
        self.unsynced = batch

    def term_hash(self, height: int) -> tuple[int, bytes] | None:
        late = [entry for entry in (self.unsynced.entries if self.unsynced else ()) if entry.height == height]
        return (late[0].term, late[0].hash) if late else super().term_hash(height)

    def entries(self, first: int, last: int, bytes_max: int) -> tuple[Entry, ...]:
        late = {entry.height: entry for entry in (self.unsynced.entries if self.unsynced else ())}
        return tuple((self.blocks | late)[height] for height in range(first, last + 1))


def test_the_checker_finds_out_a_disk_that_answers_before_it_writes() -> None:
    """A test of the tests: were this not found, no run here would prove anything about durability."""
    cluster = Cluster(1, 3, disk=ForgetfulDisk)
    with pytest.raises(AssertionError, match="durable"):
        cluster.settle(200)
