"""Organisations and nodes come by votes: the client's side of it, and what it believes about a new node."""

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from carequorum.client import Client
from carequorum.submission import TransactionFailed
from carequorum.wallet import Wallet
from ledger.block import Block, seal_block
from ledger.contracts.network import NewAdmin, Promote, node_path
from ledger.errors import Rejection
from ledger.finality import NodeId
from tests.carequorum.ports import Hospital, Port, answers, client_of, make_wallet, open_port
from tests.ledger.founding import CHAIN, GENESIS, new_node, new_organisation, node_key

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def port() -> AsyncIterator[Port]:
    async with open_port(Hospital()) as port:
        yield port


@pytest.fixture
def north(port: Port, tmp_path: Path) -> Client:
    return client_of([port], admin_of(port, tmp_path, "north"))


@pytest.fixture
def south(port: Port, tmp_path: Path) -> Client:
    return client_of([port], admin_of(port, tmp_path, "south"))


def admin_of(port: Port, folder: Path, organisation: NodeId) -> Wallet:
    wallet = make_wallet(folder, organisation)
    assert isinstance(port.backend, Hospital)
    port.backend.register(wallet, "admin", organisation)
    return wallet


async def test_two_hospitals_promote_a_learner(north: Client, south: Client) -> None:
    async with north, south:
        which, committed = await north.propose(Promote("zone-1"))
        found = await north.proposal(which)
        assert (found.status, found.approvals, found.height) == ("open", ["north"], committed.height)
        assert await south.pending_change() is None
        voted = await south.vote(which, approve=True)
        assert (await south.proposal(which)).status == "passed"
        pending = await south.pending_change()
        assert pending is not None
        assert (pending.node, pending.kind, pending.height) == ("zone-1", "promote", voted.height)
        # Until a leader appends it, nobody votes who did not.
        assert await south.configuration() == GENESIS.configuration()
        assert (await south.node("zone-1")).role == "learner"


async def test_proposing_without_voting_and_voting_against(north: Client, south: Client) -> None:
    async with north, south:
        which, _ = await north.propose(Promote("zone-1"), vote=False)
        assert (await north.proposal(which)).approvals == []
        await south.vote(which, approve=False)
        assert (await north.proposal(which)).status == "rejected"
        with pytest.raises(TransactionFailed, match="proposal_closed"):
            await north.vote(which, approve=True)


async def test_a_new_organisation_registers_its_own_members(
    port: Port, north: Client, south: Client, tmp_path: Path
) -> None:
    chief, nurse = make_wallet(tmp_path, "chief"), make_wallet(tmp_path, "nurse")
    admin = NewAdmin(chief.public_key, chief.possession_proof(CHAIN, north.wallet.account))
    change = msgspec.structs.replace(new_organisation("east"), admins=[admin])
    async with north, south, client_of([port], chief) as east:
        which, _ = await north.propose(change)
        await south.vote(which, approve=True)
        await east.register_member(nurse.public_key, nurse.possession_proof(CHAIN, chief.account), "clinician")
        assert (await east.account(nurse.account)).organisation == "east"


async def test_what_is_not_there_is_proven_not_to_be(north: Client) -> None:
    async with north:
        with pytest.raises(Rejection, match="no_such_proposal"):
            await north.proposal(bytes(32))
        with pytest.raises(Rejection, match="no_such_node"):
            await north.node("ghost-1")


async def test_a_block_by_a_node_that_came_later_is_checked_by_its_proven_key(
    port: Port, north: Client, south: Client
) -> None:
    async with north, south:
        which, _ = await north.propose(new_node("north-2"))
        await south.vote(which, approve=True)
        first = await north.block(1)
        by_it, not_by_it = sealed_by(first, "north-2"), sealed_by(first, "west-1")
        port.faults.append(answers(by_it.data))
        assert (await north.block(1)).header.proposer == "north-2"
        assert f"GET /v1/state/{node_path('north-2')}?proof=1" in port.requests
        for client in (north, south):
            port.faults.append(answers(not_by_it.data))
            with pytest.raises(Rejection, match="bad_block"):
                await client.block(1)


async def test_events_tell_of_votes(north: Client, south: Client) -> None:
    async with north, south:
        which, _ = await north.propose(new_node("north-2"))
        await south.vote(which, approve=True)
        events = north.events(1, contract="network")
        told = [(await anext(events)).actions[0] for _ in range(3)]
        await events.aclose()
    assert [action["do"] for action in told] == ["network.propose", "network.vote", "network.vote"]
    assert (told[0]["change"]["do"], told[0]["change"]["id"]) == ("add_node", "north-2")
    assert {action["proposal"] for action in told} == {which.hex()}


def sealed_by(block: Block, signer: NodeId) -> Block:
    """The same block, said to be by north-2."""
    header = msgspec.structs.replace(block.header, proposer="north-2")
    return seal_block(header, list(block.transactions), node_key(signer))
