"""The oracle finds what is broken: lying disks, and whatever a node might say or store against a promise.

Broken cores are the business of the mutants.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import msgspec
import pytest

from consensus.messages import Answer, AppendReply, Vote, VoteReply
from ledger.encoding import encode
from storage import schema
from storage.port import StorageFailure
from storage.schema import Link, LogRecord
from tests.sim.disk import SimDisk
from tests.sim.oracle import Violation
from tests.sim.run import in_simulation
from tests.sim.simulation import Simulation

SEEDS_MAX = 10


def test_a_disk_that_ignores_syncs_is_found() -> None:
    with in_simulation():
        assert any(_breaks(Simulation(seed, 3, sync_ignored=True)) for seed in range(SEEDS_MAX))


def test_a_disk_that_loses_its_newest_batch_is_found() -> None:
    """Of what was synced: whoever restarts has forgotten a vote, or a block that it acknowledged."""

    class Forgetful(SimDisk):
        def lose_power(self, chance: object) -> int:
            kept = dict(self.durable)
            kept[schema.LOG_KEY] = _record(kept[schema.LOG_KEY], vote=None)
            self.durable = kept
            return super().lose_power(chance)  # type: ignore[arg-type]

    def broken(seed: int) -> Simulation:
        run = Simulation(seed, 3)
        for disk in run.disks.values():
            disk.__class__ = Forgetful
        return run

    with in_simulation():
        assert any(_breaks(broken(seed)) for seed in range(SEEDS_MAX))


@pytest.fixture
def run() -> Iterator[Simulation]:
    """A cluster that has committed something."""
    with in_simulation():
        run = Simulation(1, 3)
        run.heal(run.names)
        for _ in range(3):
            run.settle(run.names)
        yield run


Deed = Callable[[Simulation], object]


def _another_block(run: Simulation) -> None:
    medium = run.watch.media["n1"]
    link = medium.links[medium.last_height]
    forged = Link(link.term, bytes(32), link.parent)
    run.watch.durable("n1", [(schema.link_key(medium.last_height), forged.encode())])


def _removal(run: Simulation) -> None:
    """A committed block leaves one disk after the other."""
    height = run.watch.commit_height
    for name in run.names:
        end = run.watch.media[name].links[height - 1]
        old = run.disks[name].durable[schema.LOG_KEY]
        cut = _record(old, height=height - 1, hash=end.hash)
        run.watch.durable(name, [(schema.link_key(height), None), (schema.LOG_KEY, cut)])


def _two_votes(run: Simulation) -> None:
    old = run.disks["n1"].durable[schema.LOG_KEY]
    term = run.watch.media["n1"].hard_state.term + 1
    for vote in ("n2", "n3"):
        run.watch.durable("n1", [(schema.LOG_KEY, _record(old, term=term, vote=vote))])


def _older_term(run: Simulation) -> None:
    old = run.disks["n1"].durable[schema.LOG_KEY]
    run.watch.durable("n1", [(schema.LOG_KEY, _record(old, term=0, vote=None))])


def _other_roots(run: Simulation) -> None:
    height = max(run.watch.roots)
    forged = run.watch.media["n1"].roots[height]._replace(state=b"\1" * 32)
    run.watch.durable("n1", [(schema.roots_key(height), forged.encode())])


def _other_results(run: Simulation) -> None:
    height = max(run.watch.results)
    run.watch.durable("n1", [(schema.results_key(height), encode([b"forged"]))])


def _executed_too_far(run: Simulation) -> None:
    height = run.watch.commit_height
    run.watch.durable("n1", [(schema.roots_key(height + 1), run.watch.media["n1"].roots[height].encode())])


def _early_vote(run: Simulation) -> None:
    node = run.nodes["n1"]
    run.watch.sends(node, "n2", VoteReply(node.core.term + 1, granted=True, signature=b""))


def _early_candidacy(run: Simulation) -> None:
    node = run.nodes["n1"]
    run.watch.sends(node, "n2", Vote(node.core.term + 1, 0, 0))


def _early_acceptance(run: Simulation) -> None:
    node = run.nodes["n1"]
    run.watch.sends(node, "n2", AppendReply(node.core.term, Answer.ACCEPTED, node.core.last_height + 1))


def _early_acknowledgement(run: Simulation) -> None:
    medium = run.watch.media["n1"]
    run.watch.acknowledges("n1", medium.hard_state.term, medium.last_height + 1, bytes(32))


def _thin_certificate(run: Simulation) -> None:
    """Signed by all, and on one disk alone."""
    node = run.nodes["n1"]
    certificate = node.core.certificate
    assert certificate is not None
    for name in ("n2", "n3"):
        run.watch.media[name].links.clear()
    run.watch._certified.clear()
    run.watch.certificate(certificate)


def _forged_certificate(run: Simulation) -> None:
    certificate = run.nodes["n1"].core.certificate
    assert certificate is not None
    run.watch._certified.clear()
    run.watch.certificate(replace(certificate, signatures=certificate.signatures[:1]))


def _stale_read(run: Simulation) -> None:
    run.watch.acknowledged(bytes(32), run.watch.commit_height)
    run.watch.asks(1_000_000)
    run.watch.answered(1_000_000, run.watch.commit_height - 1)


def _lost_acknowledgement(run: Simulation) -> None:
    run.watch.acknowledged(bytes(32), run.watch.commit_height)
    run.watch.final()


def _another_snapshot(run: Simulation) -> None:
    run.watch.snapshot(8, bytes(32))
    run.watch.snapshot(8, b"\1" * 32)


DEEDS: tuple[Deed, ...] = (
    _another_block,
    _removal,
    _two_votes,
    _older_term,
    _other_roots,
    _other_results,
    _executed_too_far,
    _early_vote,
    _early_candidacy,
    _early_acceptance,
    _early_acknowledgement,
    _thin_certificate,
    _forged_certificate,
    _stale_read,
    _lost_acknowledgement,
    _another_snapshot,
)


@pytest.mark.parametrize("deed", DEEDS, ids=[deed.__name__.strip("_") for deed in DEEDS])
def test_a_broken_promise_is_found(run: Simulation, deed: Deed) -> None:
    with pytest.raises(Exception, match=r".+") as caught:
        deed(run)
    assert type(caught.value).__name__ in ("Violation", "Rejection"), caught.value


def test_a_flipped_record_is_noticed_when_it_is_read(run: Simulation) -> None:
    disk = run.disks["n1"]
    disk.damage(schema.LOG_KEY)
    with pytest.raises(StorageFailure, match="checksum"):
        disk.get(schema.LOG_KEY)


def _breaks(run: Simulation) -> bool:
    try:
        run.run(4_000)
        run.end(0)
    except Violation:
        return True
    return False


def _record(data: bytes, **changes: object) -> bytes:
    record = schema.unseal(LogRecord, data, "record of the log's end")
    return schema.seal(msgspec.structs.replace(record, **changes))
