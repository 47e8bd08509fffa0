"""Promises on disk: votes held from others, and a node's own that it may have broken."""

import pytest

from storage import promises, schema
from storage.port import StorageFailure
from storage.promises import FORMAT, Forsworn, Promises
from tests.fakes.disk import PowerLossDisk

SIGNATURE = b"s" * 64
BROKEN = Forsworn(
    content=b"west-1", format=FORMAT, height=0, kind="vote", shown_by="west-1", signature=SIGNATURE, term=7
)


def test_the_newest_vote_of_each_node_is_kept() -> None:
    disk = PowerLossDisk()
    kept = Promises(disk)
    kept.keep_vote("south-1", 3, "north-1", SIGNATURE)
    kept.keep_vote("south-1", 2, "north-1", SIGNATURE)
    kept.keep_vote("south-1", 5, "north-1", SIGNATURE)
    kept.keep_vote("west-1", 4, "north-1", SIGNATURE)
    assert {(vote.node, vote.term) for vote in Promises(disk).votes()} == {("south-1", 5), ("west-1", 4)}


def test_a_vote_is_on_the_disk_with_whatever_is_synced_next() -> None:
    disk = PowerLossDisk(only_synced=True)
    Promises(disk).keep_vote("south-1", 3, "north-1", SIGNATURE)
    disk.write([(b"other", b"")], sync=True)
    disk.power_loss()
    assert len(Promises(disk.open()).votes()) == 1


def test_the_number_of_nodes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(promises, "VOTES_MAX", 2)
    kept = Promises(PowerLossDisk())
    for node in ("a", "b", "c"):
        kept.keep_vote(node, 1, "x", SIGNATURE)
    kept.keep_vote("a", 2, "x", SIGNATURE)
    assert [(vote.node, vote.term) for vote in kept.votes()] == [("a", 2), ("b", 1)]


def test_forswearing_outlives_a_power_loss_and_is_not_taken_back() -> None:
    disk = PowerLossDisk(only_synced=True)
    kept = Promises(disk)
    assert kept.forsworn is None
    kept.forswear(BROKEN)
    kept.forswear(Forsworn(b"", FORMAT, 1, "header", "south-1", SIGNATURE, 9))
    disk.power_loss()
    assert Promises(disk.open()).forsworn == BROKEN


def test_all_of_it_moves_to_another_database() -> None:
    kept = Promises(PowerLossDisk())
    kept.keep_vote("south-1", 3, "north-1", SIGNATURE)
    kept.forswear(BROKEN)
    other = PowerLossDisk()
    other.write(kept.records(), sync=True)
    assert (Promises(other).votes(), Promises(other).forsworn) == (kept.votes(), BROKEN)


@pytest.mark.parametrize("key", [schema.vote_key("south-1"), schema.FORSWORN_KEY])
def test_a_changed_record_is_damage(key: bytes) -> None:
    disk = PowerLossDisk()
    kept = Promises(disk)
    kept.keep_vote("south-1", 3, "north-1", SIGNATURE)
    kept.forswear(BROKEN)
    value = disk.get(key)
    assert value is not None
    disk.damage(key, value[:-1] + bytes([value[-1] ^ 1]))
    with pytest.raises(StorageFailure, match="is not what was written"):
        Promises(disk)


def test_a_vote_under_the_name_of_another_is_damage() -> None:
    disk = PowerLossDisk()
    Promises(disk).keep_vote("south-1", 3, "north-1", SIGNATURE)
    disk.damage(schema.vote_key("west-1"), disk.get(schema.vote_key("south-1")))
    with pytest.raises(StorageFailure, match="vote held from west-1"):
        Promises(disk)
