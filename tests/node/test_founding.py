"""The only voter of a genesis begins a network when it is told to, and never by itself on an emptied disk."""

import asyncio
from pathlib import Path

import pytest

from consensus.messages import HardState
from ledger.genesis import Genesis
from node.config import ConfigError
from node.daemon import EXIT_CONFIGURATION, main
from node.founding import check_founding
from storage.store import Store
from tests.fakes.disk import PowerLossDisk
from tests.node.cluster import hospital, make_genesis, node_seed
from tests.node.test_identity import write_identity

ONE, TWO = make_genesis(1), make_genesis(2)


def must_be_told(genesis: Genesis, node_id: str, store: Store) -> bool:
    """Whether this node does not start of itself."""
    try:
        check_founding(genesis, node_id, store, found=False)
    except ConfigError:
        return True
    return False


def test_an_empty_store_of_the_only_voter_needs_to_be_told() -> None:
    store = Store(PowerLossDisk().open(), ONE)
    with pytest.raises(ConfigError, match="vote it out") as caught:
        check_founding(ONE, hospital(0), store, found=False)
    assert caught.value.path == "node.found"
    check_founding(ONE, hospital(0), store, found=True)


def test_nobody_else_does() -> None:
    assert not must_be_told(TWO, hospital(0), Store(PowerLossDisk().open(), TWO))
    assert not must_be_told(ONE, "joiner", Store(PowerLossDisk().open(), ONE))


def test_what_it_has_begun_it_goes_on_with() -> None:
    store = Store(PowerLossDisk().open(), ONE)
    store.persist(None, (), {}, HardState(1, hospital(0)))
    assert not must_be_told(ONE, hospital(0), store)


def test_the_daemon_ends_with_2_and_says_why(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write_identity(tmp_path, ONE, node_seed(0))
    assert main(path, asyncio.run) == EXIT_CONFIGURATION
    assert "node.found" in capfd.readouterr().err
