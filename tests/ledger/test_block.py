"""Blocks: what is bound by the hash and the signature, and what a decoder refuses."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from ledger.block import (
    FORMAT,
    HEADER_BYTES_MAX,
    Block,
    Header,
    block_hash,
    decode_block,
    decode_header,
    seal_block,
    tx_root,
    verify_header,
)
from ledger.encoding import decode, encode
from ledger.errors import Rejection
from ledger.keys import sha256
from ledger.transaction import Transaction
from tests.ledger.founding import CHAIN, GENESIS, NOW_MS, addition, sign, signing_key

BLOCK_BYTES_MAX = GENESIS.parameters.block_bytes_max
PROPOSER = signing_key("proposer")


def make_header(transactions: list[Transaction], **fields: object) -> Header:
    header = Header(
        chain=CHAIN,
        change=None,
        configuration=GENESIS.configuration().digest(),
        count=len(transactions),
        executed_height=1,
        format=FORMAT,
        height=3,
        history_root=sha256(b"history"),
        parent=sha256(b"parent"),
        proof=None,
        proposer="north-1",
        state_root=sha256(b"state"),
        term=2,
        time=NOW_MS,
        tx_root=tx_root(transactions),
    )
    return msgspec.structs.replace(header, **fields)


def some_transactions(count: int = 2) -> list[Transaction]:
    return [sign([addition(f"r{index}")], by="doctor", bodies=[b"x"]) for index in range(count)]


def make_block(count: int = 2) -> Block:
    transactions = some_transactions(count)
    return seal_block(make_header(transactions), transactions, PROPOSER)


def code_of(data: bytes, bytes_max: int = BLOCK_BYTES_MAX) -> str:
    with pytest.raises(Rejection) as caught:
        decode_block(data, bytes_max)
    return caught.value.code


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_a_block_comes_back_as_it_was(count: int) -> None:
    block = make_block(count)
    again = decode_block(block.data, BLOCK_BYTES_MAX)
    assert again == block
    assert again.hash == block_hash(block.header.encode())
    assert verify_header(again.hash, again.signature, PROPOSER.public)
    assert not verify_header(again.hash, again.signature, signing_key("other").public)


def test_the_hash_leaves_the_signature_out() -> None:
    transactions = some_transactions()
    header = make_header(transactions)
    one, two = (seal_block(header, transactions, key) for key in (PROPOSER, signing_key("other")))
    assert one.hash == two.hash
    assert one.data != two.data


def test_every_field_of_a_header_is_in_the_hash() -> None:
    header = make_header([])
    hashes = {block_hash(header.encode())}
    for name in Header.__struct_fields__:
        value = getattr(header, name)
        other = value + 1 if isinstance(value, int) else sha256(b"other")
        hashes.add(block_hash(msgspec.structs.replace(header, **{name: other}).encode()))
    assert len(hashes) == 1 + len(Header.__struct_fields__)


def test_the_root_binds_order_and_signatures() -> None:
    first, second = some_transactions()
    assert tx_root([first, second]) != tx_root([second, first])
    assert tx_root([first]) != tx_root([first, first])
    assert tx_root([]) == sha256(b"")  # RFC 9162: the root of the empty tree


def rewired(edit: Callable[[dict[str, Any]], None], block: Block | None = None) -> bytes:
    wire = decode((block or make_block()).data, BLOCK_BYTES_MAX)
    edit(wire)
    return encode(wire)


def test_a_block_whose_transactions_are_not_the_header_s() -> None:
    assert code_of(rewired(lambda wire: wire["transactions"].reverse())) == "bad_block"
    assert code_of(rewired(lambda wire: wire["transactions"].pop())) == "bad_block"
    assert code_of(rewired(lambda wire: wire["transactions"].append(wire["transactions"][0]))) == "bad_block"
    transactions = some_transactions()
    for fields in ({"count": 1}, {"tx_root": tx_root(transactions[:1])}):
        block = seal_block(make_header(transactions, **fields), transactions, PROPOSER)
        assert code_of(block.data) == "bad_block"


def test_a_malformed_transaction_spoils_its_block_with_its_own_code() -> None:
    assert code_of(rewired(lambda wire: wire["transactions"].append(b""))) == "not_canonical"
    unsigned = encode({"body": b"", "signature": b""})
    assert code_of(rewired(lambda wire: wire["transactions"].append(unsigned))) == "unsigned"


def test_malformed_wrappers() -> None:
    block = make_block()
    assert code_of(block.data, len(block.data) - 1) == "too_large"
    assert code_of(block.data + b"\0") == "not_canonical"
    assert code_of(rewired(lambda wire: wire.update(extra=1))) == "bad_structure"
    assert code_of(rewired(lambda wire: wire.update(signature=bytes(63)))) == "bad_structure"
    assert code_of(rewired(lambda wire: wire.pop("transactions"))) == "bad_structure"


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"format": 1}, "unknown_format"),
        ({"format": 3}, "unknown_format"),
        ({"executed_height": 3}, "bad_block"),
        ({"executed_height": 4}, "bad_block"),
        ({"height": 0}, "bad_structure"),
        ({"height": 2**53 + 1}, "bad_structure"),
        ({"term": 0}, "bad_structure"),
        ({"time": -1}, "bad_structure"),
        ({"time": True}, "bad_structure"),
        ({"proposer": "North"}, "bad_structure"),
        ({"chain": bytes(31)}, "bad_structure"),
        ({"count": 10_001}, "bad_structure"),
        ({"change": 1}, "bad_structure"),
        ({"proposer": "n" * HEADER_BYTES_MAX}, "too_large"),
    ],
)
def test_headers_that_do_not_fit(fields: dict[str, object], code: str) -> None:
    data = make_header([], **fields).encode()
    with pytest.raises(Rejection) as caught:
        decode_header(data)
    assert caught.value.code == code
    assert code_of(rewired(lambda wire: wire.update(header=data))) == code


def test_the_longest_header_fits_its_limit() -> None:
    most = 2**53
    header = make_header(
        [], count=10_000, executed_height=most - 1, height=most, term=most, time=most, proposer="n" * 32
    )
    assert decode_header(header.encode()) == header


def test_a_transaction_already_known_is_not_decoded_again() -> None:
    block = make_block()
    known = {transaction.hash: transaction for transaction in block.transactions[:1]}
    again = decode_block(block.data, BLOCK_BYTES_MAX, known.get)
    assert again.transactions[0] is block.transactions[0]
    assert again.transactions[1] is not block.transactions[1]
    assert again == block


def test_every_single_bit_of_an_empty_block_is_bound() -> None:
    block = make_block(0)
    for bit in range(len(block.data) * 8):
        data = bytearray(block.data)
        data[bit // 8] ^= 1 << bit % 8
        try:
            changed = decode_block(bytes(data), BLOCK_BYTES_MAX)
        except Rejection:
            continue
        assert not verify_header(changed.hash, changed.signature, PROPOSER.public)
