"""What anyone can check offline, with the genesis file alone: receipts and state answers.

Both hang from one *seal*: a header, its proposer's signature, and the certificate of its block. As the header
carries the roots after `executed_height`, the sealed height, one seal proves every earlier result and every
value of the state at that height:

    genesis -> voters' keys -> certificate -> header -> history root -> history leaf -> results root -> result
                                                     -> state root   -> value, or absence

Every field is under one of these signatures or hashes, or decides which of them is computed, so that no bit
can change and the whole still verify. What may differ between two valid receipts of one transaction is the
seal. One thing is the asker's to compare: that it is the transaction, or the key, that was asked about. An
absence above all needs it, as one empty place proves absent every key that would stand there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta

from ledger import state_tree
from ledger.block import Header, Height, block_hash, decode_header, verify_header
from ledger.encoding import decode_as, encode
from ledger.errors import Rejection
from ledger.execution import TxResult
from ledger.finality import decode_certificate, verify_certificate
from ledger.genesis import Genesis
from ledger.keys import Hash, Signature
from ledger.merkle import PATH_LENGTH_MAX, verify_inclusion
from ledger.state_tree import StateProof

FORMAT = 1
RECEIPT_BYTES_MAX = 32 * 1024
STATE_ANSWER_BYTES_MAX = 128 * 1024

Path = Annotated[list[Hash], Meta(max_length=PATH_LENGTH_MAX)]
Count = Annotated[int, Meta(ge=0, le=2**53)]


class Seal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A certified header: the canonical bytes of both, and the proposer's signature."""

    certificate: bytes
    header: bytes
    signature: Signature


class HistoryLeaf(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the history log says of a block: its hash, its number of transactions, their results' root."""

    block: Hash
    count: Count
    height: Height
    results: Hash


class Receipt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """That transaction `index` of block `leaf.height` had this result."""

    format: int
    history_path: Path
    index: Count
    leaf: HistoryLeaf
    result: TxResult
    result_path: Path
    seal: Seal


class StateAnswer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """That the state at the sealed height holds `value` at `key`; nothing, where `value` is None."""

    format: int
    key: str
    proof: StateProof
    seal: Seal
    value: bytes | None


@dataclass(frozen=True, slots=True)
class VerifiedSeal:
    """`certified_*` tell of the block whose certificate it is; the roots are those after `sealed_height`."""

    sealed_height: int
    history_root: bytes
    state_root: bytes
    certified_height: int
    certified_term: int
    certified_time_ms: int


@dataclass(frozen=True, slots=True)
class VerifiedReceipt:
    """Transaction `id`, number `index` of the block `block` at `height`, ended with `code`; `envelope` is the
    hash of its signed bytes. It is final, and was by `seal.certified_time_ms` of block time."""

    id: bytes
    envelope: bytes
    code: str
    height: int
    index: int
    block: bytes
    seal: VerifiedSeal


@dataclass(frozen=True, slots=True)
class VerifiedState:
    """At `seal.sealed_height` the state held the canonical bytes `value` at `key`, or with None nothing."""

    key: str
    value: bytes | None
    seal: VerifiedSeal


def make_receipt(
    seal: Seal,
    leaf: bytes,
    history_path: Sequence[bytes],
    result: TxResult,
    result_path: Sequence[bytes],
    index: int,
) -> bytes:
    """The receipt of transaction `index` of a block.

    `leaf` is the block's history leaf, `history_path` its path in the log as long as the seal's history root
    says: `executed_height` + 1 leaves; `result_path` is the path of `result` among the block's results.
    """
    receipt = Receipt(
        format=FORMAT,
        history_path=list(history_path),
        index=index,
        leaf=decode_as(HistoryLeaf, leaf, RECEIPT_BYTES_MAX),
        result=result,
        result_path=list(result_path),
        seal=seal,
    )
    return encode(receipt)


def make_state_answer(seal: Seal, key: str, value: bytes | None, proof: StateProof) -> bytes:
    """The answer for `key`, from a proof in the tree as it was at the seal's `executed_height`."""
    return encode(StateAnswer(format=FORMAT, key=key, proof=proof, seal=seal, value=value))


def verify_receipt(data: bytes, genesis: Genesis) -> VerifiedReceipt:
    """What a receipt proves on the network of this genesis.

    Raises Rejection: "bad_receipt" where its parts do not fit together, else as `verify_seal` and
    `decode_as`.
    """
    receipt = decode_as(Receipt, data, RECEIPT_BYTES_MAX)
    _require_format(receipt.format, "receipt")
    leaf, result = receipt.leaf, receipt.result
    header = decode_header(receipt.seal.header)
    log_size = header.executed_height + 1
    if not verify_inclusion(result.encode(), receipt.index, leaf.count, receipt.result_path, leaf.results):
        raise Rejection("bad_receipt", "the result is not among the block's results")
    if not verify_inclusion(encode(leaf), leaf.height, log_size, receipt.history_path, header.history_root):
        raise Rejection("bad_receipt", "the block is not in the sealed history")
    return VerifiedReceipt(
        id=result.id,
        envelope=result.envelope,
        code=result.code,
        height=leaf.height,
        index=receipt.index,
        block=leaf.block,
        seal=verify_seal(receipt.seal, header, genesis),
    )


def verify_state_answer(data: bytes, genesis: Genesis) -> VerifiedState:
    """What a state answer proves on the network of this genesis. Compare the key with the one asked for.

    Raises Rejection: "bad_state_answer" where its parts do not fit together, else as `verify_seal` and
    `decode_as`.
    """
    answer = decode_as(StateAnswer, data, STATE_ANSWER_BYTES_MAX)
    _require_format(answer.format, "state answer")
    header = decode_header(answer.seal.header)
    if not state_tree.verify_proof(header.state_root, answer.key, answer.value, answer.proof):
        raise Rejection("bad_state_answer", "the proof does not lead to the sealed state root")
    return VerifiedState(key=answer.key, value=answer.value, seal=verify_seal(answer.seal, header, genesis))


def verify_seal(seal: Seal, header: Header, genesis: Genesis) -> VerifiedSeal:
    """Check a seal, of which `header` is the decoded header, against the voters that genesis names.

    Raises Rejection: "wrong_chain", "bad_certificate", or "bad_seal" where header and certificate disagree,
    another configuration is claimed, or the proposer's signature does not verify.
    """
    chain = genesis.chain_id()
    configuration = genesis.configuration()
    certificate = decode_certificate(seal.certificate)
    digest = block_hash(seal.header)
    if header.chain != chain:
        raise Rejection("wrong_chain", "the header is of another network")
    if header.configuration != configuration.digest():
        raise Rejection("bad_seal", "the header names another configuration than genesis")
    if (certificate.hash, certificate.height, certificate.term) != (digest, header.height, header.term):
        raise Rejection("bad_seal", "the certificate is of another block")
    keys = genesis.node_keys()
    voter_keys = {voter: keys[voter] for voter in configuration.voters}
    if header.proposer not in voter_keys:
        raise Rejection("bad_seal", "the proposer is no voter")
    if not verify_header(digest, seal.signature, voter_keys[header.proposer]):
        raise Rejection("bad_seal", "the proposer's signature does not verify")
    verify_certificate(certificate, chain, voter_keys)
    return VerifiedSeal(
        sealed_height=header.executed_height,
        history_root=header.history_root,
        state_root=header.state_root,
        certified_height=header.height,
        certified_term=header.term,
        certified_time_ms=header.time,
    )


def _require_format(number: int, what: str) -> None:
    if number != FORMAT:
        raise Rejection("unknown_format", f"{what} format {number}")
