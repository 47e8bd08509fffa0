"""What anyone can check offline, with the genesis file alone: receipts and state answers.

Both hang from one *seal*: a header, its proposer's signature, and the certificate of its block. As the header
carries the roots after `executed_height`, the sealed height, one seal proves every earlier result and every
value of the state at that height:

    genesis -> steps -> voters' keys -> certificate -> header
        header -> history root -> history leaf -> results root -> result
               -> state root   -> value, or absence

The steps lead from the voters of genesis to those of the seal, one change after the other, see `membership`.

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
from ledger.finality import Seal, decode_certificate, verify_certificate
from ledger.genesis import Genesis
from ledger.keys import Hash, sha256
from ledger.membership import STEPS_MAX, Step, check_one_voter, configuration_digest
from ledger.merkle import PATH_LENGTH_MAX, verify_inclusion
from ledger.state_tree import StateProof

FORMAT = 2
# A step at its largest: 64 voters with their keys, and again in the header, and their signatures. Most have a tenth.
STEP_BYTES_MAX = 20 * 1024
STEPS_BYTES_MAX = STEPS_MAX * STEP_BYTES_MAX
RECEIPT_BYTES_MAX = 64 * 1024 + STEPS_BYTES_MAX
STATE_ANSWER_BYTES_MAX = 128 * 1024 + STEPS_BYTES_MAX

# Steps that were verified: whoever verifies much is shown the same ones again and again. The oldest goes.
WALKS_MAX = 16
_walks: dict[bytes, "_Walk"] = {}
_encode_steps = msgspec.msgpack.Encoder().encode

Path = Annotated[list[Hash], Meta(max_length=PATH_LENGTH_MAX)]
Steps = Annotated[list[Step], Meta(max_length=STEPS_MAX)]
Count = Annotated[int, Meta(ge=0, le=2**53)]


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
    steps: Steps


class StateAnswer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """That the state at the sealed height holds `value` at `key`; nothing, where `value` is None."""

    format: int
    key: str
    proof: StateProof
    seal: Seal
    steps: Steps
    value: bytes | None


@dataclass(frozen=True, slots=True)
class VerifiedSeal:
    """`certified_*` tell of the block whose certificate it is; the roots are those after `sealed_height`. The voters
    who certified it are `steps` changes away from those of genesis."""

    sealed_height: int
    history_root: bytes
    state_root: bytes
    certified_height: int
    certified_term: int
    certified_time_ms: int
    steps: int


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
    steps: Sequence[Step],
    leaf: bytes,
    history_path: Sequence[bytes],
    result: TxResult,
    result_path: Sequence[bytes],
    index: int,
) -> bytes:
    """The receipt of transaction `index` of a block. `steps` are those before the seal's block.

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
        steps=list(steps),
    )
    return encode(receipt)


def make_state_answer(seal: Seal, steps: Sequence[Step], key: str, value: bytes | None, proof: StateProof) -> bytes:
    """The answer for `key`, from a proof in the tree as it was at the seal's `executed_height`. `steps` are those
    before the seal's block."""
    return encode(StateAnswer(format=FORMAT, key=key, proof=proof, seal=seal, steps=list(steps), value=value))


def decode_receipt(data: bytes) -> Receipt:
    """A receipt whose result is among its block's. Its seal and history are not looked at. Raises Rejection."""
    receipt = decode_as(Receipt, data, RECEIPT_BYTES_MAX)
    _require_format(receipt.format, "receipt")
    leaf, result = receipt.leaf, receipt.result
    if not verify_inclusion(result.encode(), receipt.index, leaf.count, receipt.result_path, leaf.results):
        raise Rejection("bad_receipt", "the result is not among the block's results")
    return receipt


def verify_receipt(data: bytes, genesis: Genesis) -> VerifiedReceipt:
    """What a receipt proves on the network of this genesis.

    Raises Rejection: "bad_receipt" where its parts do not fit together, else as `verify_seal` and
    `decode_as`.
    """
    receipt = decode_receipt(data)
    leaf, result = receipt.leaf, receipt.result
    header = decode_header(receipt.seal.header)
    log_size = header.executed_height + 1
    if not verify_inclusion(encode(leaf), leaf.height, log_size, receipt.history_path, header.history_root):
        raise Rejection("bad_receipt", "the block is not in the sealed history")
    return VerifiedReceipt(
        id=result.id,
        envelope=result.envelope,
        code=result.code,
        height=leaf.height,
        index=receipt.index,
        block=leaf.block,
        seal=verify_seal(receipt.seal, header, receipt.steps, genesis),
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
    seal = verify_seal(answer.seal, header, answer.steps, genesis)
    return VerifiedState(key=answer.key, value=answer.value, seal=seal)


def verify_seal(seal: Seal, header: Header, steps: Sequence[Step], genesis: Genesis) -> VerifiedSeal:
    """Check a seal, of which `header` is the decoded header, against the voters to which `steps` lead from those
    that genesis names.

    Raises Rejection: "wrong_chain", "bad_certificate"; "bad_step" where a step does not follow on the one before;
    "bad_seal" where header and certificate disagree, another configuration is claimed, or the proposer's signature
    does not verify.
    """
    chain = genesis.chain_id()
    walk = _walk(steps, genesis.configuration().voters, chain)
    digest = configuration_digest(walk.voters, None, len(steps))
    _verify_signed(seal, header, chain, walk.voters, walk.left, digest)
    if header.height <= walk.height:
        raise Rejection("bad_seal", "the block is below the newest step")
    verify_certificate(decode_certificate(seal.certificate), chain, walk.voters)
    return VerifiedSeal(
        sealed_height=header.executed_height,
        history_root=header.history_root,
        state_root=header.state_root,
        certified_height=header.height,
        certified_term=header.term,
        certified_time_ms=header.time,
        steps=len(steps),
    )


@dataclass(frozen=True, slots=True)
class _Walk:
    """Where steps lead: the voters, those before them if there is a step, and the height of the newest step."""

    voters: dict[str, bytes]
    left: dict[str, bytes] | None
    height: int


def _walk(steps: Sequence[Step], voters: dict[str, bytes], chain: bytes) -> _Walk:
    """From the voters of genesis. Steps that were verified before are known again, by all their bytes."""
    name = sha256(chain, _encode_steps(steps))
    walk = _walks.get(name)
    if walk is None:
        walk = _Walk(voters, None, 0)
        for number, step in enumerate(steps):
            height = _verify_step(step, walk.voters, number, chain)
            if height <= walk.height:
                raise Rejection("bad_step", "the steps do not ascend")
            walk = _Walk(step.voters, walk.voters, height)
        while len(_walks) >= WALKS_MAX:
            _walks.pop(next(iter(_walks)), None)
        _walks[name] = walk
    return walk


def _verify_step(step: Step, voters: dict[str, bytes], number: int, chain: bytes) -> int:
    """The height of the joint block whose certificate proves that `step.voters` follow on `voters`."""
    try:
        check_one_voter(voters, step.voters)
    except Rejection as error:
        raise Rejection("bad_step", error.detail) from None
    header = decode_header(step.seal.header)
    try:
        _verify_signed(
            step.seal, header, chain, step.voters, voters, configuration_digest(step.voters, voters, number)
        )
        verify_certificate(decode_certificate(step.seal.certificate), chain, step.voters, voters)
    except Rejection as error:
        raise Rejection("bad_step", f"step {number}: {error}") from None
    return header.height


def _verify_signed(
    seal: Seal,
    header: Header,
    chain: bytes,
    voters: dict[str, bytes],
    left: dict[str, bytes] | None,
    configuration: bytes,
) -> None:
    """What header, signature and certificate say of each other. One of the voters before may have proposed the
    block, hence `left`; see `Configuration.proposers`."""
    certificate = decode_certificate(seal.certificate)
    digest = block_hash(seal.header)
    if header.chain != chain:
        raise Rejection("wrong_chain", "the header is of another network")
    if header.configuration != configuration:
        raise Rejection("bad_seal", "the header names another configuration than genesis and the steps lead to")
    if (certificate.hash, certificate.height, certificate.term) != (digest, header.height, header.term):
        raise Rejection("bad_seal", "the certificate is of another block")
    proposer_key = voters.get(header.proposer) or (left or {}).get(header.proposer)
    if proposer_key is None:
        raise Rejection("bad_seal", "the proposer is no voter")
    if not verify_header(digest, seal.signature, proposer_key):
        raise Rejection("bad_seal", "the proposer's signature does not verify")


def _require_format(number: int, what: str) -> None:
    if number != FORMAT:
        raise Rejection("unknown_format", f"{what} format {number}")
