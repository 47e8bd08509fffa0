"""The fake disk itself: what it may forget, and what it must not."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.disk import PowerLossDisk

Batches = st.lists(st.booleans(), max_size=12)


def written(syncs: list[bool], seed: int, **switches: bool) -> tuple[PowerLossDisk, int, int]:
    """A disk after one numbered batch for each entry of `syncs`; how many it lost, and the last synced
    number.
    """
    disk = PowerLossDisk(seed, **switches)
    for number, sync in enumerate(syncs, start=1):
        disk.write([(b"last", b"%d" % number), (b"%d" % number, b"")], sync=sync)
    lost = disk.power_loss()
    disk.open()
    return disk, lost, max((number for number, sync in enumerate(syncs, start=1) if sync), default=0)


@settings(deadline=None, max_examples=60)
@given(Batches, st.integers(0, 1000))
def test_a_prefix_survives_no_shorter_than_the_last_sync(syncs: list[bool], seed: int) -> None:
    disk, lost, synced = written(syncs, seed)
    last = int(disk.get(b"last") or b"0")
    assert last == len(syncs) - lost >= synced
    assert [disk.get(b"%d" % number) is not None for number in range(1, len(syncs) + 1)] == [
        number <= last for number in range(1, len(syncs) + 1)
    ]


@settings(deadline=None, max_examples=30)
@given(Batches, st.integers(0, 1000))
def test_only_synced_keeps_exactly_that(syncs: list[bool], seed: int) -> None:
    disk, _, synced = written(syncs, seed, only_synced=True)
    assert int(disk.get(b"last") or b"0") == synced


def test_the_seed_chooses_what_survives() -> None:
    kept = {int(written([False] * 8, seed)[0].get(b"last") or b"0") for seed in range(100)}
    assert kept == set(range(9))


def test_a_disk_that_ignores_syncs_loses_them() -> None:
    disk, lost, _ = written([True] * 5, 0, only_synced=True, sync_ignored=True)
    assert lost == 5
    assert disk.get(b"last") is None
