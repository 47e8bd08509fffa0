"""Roots of the state that no header of a snapshot carries, as after changes of leaders: unknown where the snapshot
was installed, and no damage. The same said of any other height is damage.
"""

from pathlib import Path

import pytest

from ledger.keys import sha256
from ledger.state_tree import EMPTY
from storage import schema
from storage.boot import check_newest
from storage.check import check_store
from storage.report import DamageError, Problem
from storage.schema import Roots
from storage.store import Store
from tests.fakes.disk import PowerLossDisk
from tests.ledger.founding import GENESIS, NOW_MS
from tests.storage.spans import MINUTE_MS, Span, installed, timed_record

# How far below its own height each further block's header says that execution had come. The last one seals the
# snapshot's height; the one before it carries a height that no header in the snapshot does.
BEHIND = (1, 2, 3, 2, 2, 3, 2, 2, 2)
UNCARRIED = (1, 4, 6)
SNAPSHOT = 7


class Lagging:
    """A span of `minutes`, and then blocks whose headers leave out heights, the first of them at `first`."""

    def __init__(self, minutes: int) -> None:
        self.source = Span(minutes=minutes)
        self.first = self.source.store.executed_height + 1
        for height, behind in enumerate(BEHIND, self.first):
            self.source.minute += 1
            minute = self.source.minute
            self.source.chain.add(
                timed_record(f"minute {minute}", minute),
                executed=height - behind,
                time_ms=NOW_MS + minute * MINUTE_MS,
            )
        self.uncarried = [self.first - 1 + at for at in UNCARRIED]
        self.height = self.first - 1 + SNAPSHOT

    def join(self, folder: Path) -> PowerLossDisk:
        """A node that begins with its snapshot, and takes some blocks more, as does the source."""
        shelf, kept = self.source.take(folder)
        assert kept.manifest.height == self.height
        disk = PowerLossDisk()
        installed(self.source, shelf, kept, disk)
        joined = self.source
        joined.disk, joined.chain.store = disk, Store(disk, GENESIS)
        joined.run(3)
        return disk


def roots(disk: PowerLossDisk, height: int) -> Roots:
    return schema.decode_roots(disk.get(schema.roots_key(height)) or b"", height)


def problems(disk: PowerLossDisk) -> list[Problem]:
    return check_store(disk, GENESIS, PowerLossDisk(), lambda *_: None).problems


def changed(disk: PowerLossDisk, height: int, other: Roots) -> list[Problem]:
    """What the check says of other, soundly written roots of this height. They are put back."""
    key = schema.roots_key(height)
    value = disk.get(key)
    disk.damage(key, other.encode())
    found = problems(disk)
    disk.damage(key, value)
    return found


def refused_at_start(disk: PowerLossDisk, height: int, other: Roots) -> bool:
    key = schema.roots_key(height)
    value = disk.get(key)
    disk.damage(key, other.encode())
    try:
        check_newest(disk, GENESIS)
    except DamageError as error:
        return error.problem.record == schema.name_of(key)
    finally:
        disk.damage(key, value)
    return False


# With the base at genesis everything is executed again, else only what lies above the sealed height.
@pytest.mark.parametrize(("minutes", "at_genesis"), [(0, True), (30, False)])
def test_what_no_header_carries_is_no_damage(tmp_path: Path, minutes: int, at_genesis: bool) -> None:
    lagging = Lagging(minutes)
    disk = lagging.join(tmp_path)
    base = Store(disk, GENESIS).base
    assert (base.height == 0, base.installed) == (at_genesis, lagging.height)
    kept = range(base.height + 1, lagging.height + 1)
    assert [height for height in kept if roots(disk, height).state == EMPTY] == lagging.uncarried
    assert problems(disk) == []
    assert check_newest(disk, GENESIS) == Store(disk, GENESIS).executed_height - base.height


@pytest.mark.parametrize("minutes", [0, 30])
def test_the_rest_of_such_roots_must_be_right(tmp_path: Path, minutes: int) -> None:
    lagging = Lagging(minutes)
    disk = lagging.join(tmp_path)
    for height in lagging.uncarried:
        sound = roots(disk, height)
        for other in (sound._replace(history=sha256(b"another")), sound._replace(time_ms=sound.time_ms + 1)):
            found = [(problem.height, problem.record) for problem in changed(disk, height, other)]
            assert (height, f"roots {height}") in found
            assert refused_at_start(disk, height, other)


def test_a_wrong_state_or_certificate_is_found_by_execution(tmp_path: Path) -> None:
    lagging = Lagging(0)
    disk = lagging.join(tmp_path)
    for height in lagging.uncarried:
        sound = roots(disk, height)
        for other in (sound._replace(state=sha256(b"another")), sound._replace(certified=height - 1)):
            found = changed(disk, height, other)
            assert [(problem.height, problem.record) for problem in found] == [(height, f"roots {height}")]


@pytest.mark.parametrize("minutes", [0, 30])
def test_from_the_snapshot_s_height_on_a_root_must_stand(tmp_path: Path, minutes: int) -> None:
    lagging = Lagging(minutes)
    disk = lagging.join(tmp_path)
    for height in range(lagging.height, Store(disk, GENESIS).executed_height + 1):
        other = roots(disk, height)._replace(state=EMPTY)
        assert (height, f"roots {height}") in [
            (problem.height, problem.record) for problem in changed(disk, height, other)
        ]
        assert refused_at_start(disk, height, other)


def test_without_a_snapshot_every_root_must_stand() -> None:
    disk = Lagging(0).source.disk
    store = Store(disk, GENESIS)
    assert (store.base.installed, problems(disk)) == (0, [])
    for height in range(store.executed_height + 1):
        other = roots(disk, height)._replace(state=EMPTY)
        found = changed(disk, height, other)
        assert (height, f"roots {height}") in [(problem.height, problem.record) for problem in found]
        assert refused_at_start(disk, height, other) or height == 0
