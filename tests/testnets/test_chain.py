"""The chain that the fault table reads: only what links, and nothing that is not there."""

import msgspec
import pytest

from carequorum.submission import Committed
from ledger.block import Block, Header, seal_block
from ledger.keys import SigningKey
from ledger.merkle import root_of
from ledger.transaction import Transaction
from tests.ledger.founding import GENESIS
from tests.storage.chains import doctor
from tests.testnets.chain import Chain, ChainError

KEY = SigningKey(bytes(32))


def block(chain: Chain, transactions: list[Transaction], later_ms: int = 1) -> Block:
    header = Header(
        chain=GENESIS.chain_id(),
        change=None,
        configuration=bytes(32),
        count=len(transactions),
        executed_height=chain.height,
        format=2,
        height=chain.height + 1,
        history_root=bytes(32),
        parent=chain.hashes[-1],
        proof=None,
        proposer="north-1",
        state_root=bytes(32),
        term=1,
        time=chain.time_ms + later_ms,
        tx_root=root_of([transaction.hash for transaction in transactions]),
    )
    return seal_block(header, transactions, KEY)


def test_what_was_answered_is_found_at_its_height_or_lost() -> None:
    chain, (first, second, third) = Chain(GENESIS), (doctor(), doctor(), doctor())
    chain.add(block(chain, [first]))
    chain.add(block(chain, [second]))
    there = [Committed(first.id, 1, 0), Committed(second.id, 2, 0)]
    elsewhere, absent = Committed(first.id, 2, 0), Committed(third.id, 2, 1)
    assert chain.lost(there) == []
    assert chain.lost([*there, elsewhere, absent]) == [elsewhere, absent]
    assert (chain.height, chain.twice, chain.falls) == (2, [], [])


def test_a_transaction_that_comes_again_and_a_time_that_does_not_rise_are_noted() -> None:
    chain, transaction = Chain(GENESIS), doctor()
    chain.add(block(chain, [transaction]))
    chain.add(block(chain, [transaction], later_ms=0))
    assert (chain.twice, chain.falls) == ([2], [2])
    assert chain.places == {transaction.id: 1}


def test_a_block_that_does_not_link_is_refused() -> None:
    chain = Chain(GENESIS)
    good = block(chain, [doctor()])
    other = msgspec.structs.replace(good.header, parent=bytes(32))
    with pytest.raises(ChainError, match="does not follow"):
        chain.add(seal_block(other, list(good.transactions), KEY))
    chain.add(good)
    with pytest.raises(ChainError, match="does not follow"):
        chain.add(good)
