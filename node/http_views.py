"""From what the ledger holds to what the provider port shows: the JSON views, built in one place."""

from ledger.block import HEADER_BYTES_MAX, Block
from ledger.contracts.context import VALUE_BYTES_MAX
from ledger.contracts.records import Record
from ledger.encoding import convert, decode
from ledger.events import Event
from ledger.finality import CERTIFICATE_BYTES_MAX
from ledger.receipt import RECEIPT_BYTES_MAX, STATE_ANSWER_BYTES_MAX
from node.http_types import (
    BlockView,
    BodyView,
    EventView,
    HeaderView,
    ReceiptView,
    RecordView,
    StateProofView,
    StateView,
    StoredBlock,
    TransactionResult,
    TransactionView,
    TxStatus,
    json_view,
)


def status_view(tx_id: bytes, status: TxStatus) -> TransactionResult:
    return TransactionResult(
        id=tx_id.hex(),
        status=status.status,
        code=status.code,
        height=status.height,
        index=status.index,
        known_since=status.known_since,
    )


def receipt_view(tx_id: bytes, receipt: bytes) -> ReceiptView:
    return ReceiptView(id=tx_id.hex(), receipt=receipt, content=_opened(receipt, RECEIPT_BYTES_MAX))


def state_proof_view(contract: str, key: str, answer: bytes) -> StateProofView:
    return StateProofView(contract=contract, key=key, answer=answer, content=_opened(answer, STATE_ANSWER_BYTES_MAX))


def block_view(stored: StoredBlock) -> BlockView:
    block = stored.block
    certificate = stored.certificate
    return BlockView(
        height=block.header.height,
        hash=block.hash.hex(),
        header=convert(HeaderView, json_view(_opened_header(block.header_data))),
        signature=block.signature.hex(),
        transactions=_transaction_views(block),
        certificate=json_view(decode(certificate, CERTIFICATE_BYTES_MAX)) if certificate else None,
    )


def state_view(contract: str, key: str, height: int, value: bytes) -> StateView:
    return StateView(contract=contract, key=key, height=height, value=json_view(_opened_value(value)))


def record_view(record_id: bytes, record: Record) -> RecordView:
    return convert(RecordView, {"record": record_id.hex(), **json_view(record)})


def event_view(event: Event) -> EventView:
    return EventView(
        id=str(event.id),
        height=event.id.height,
        time=event.time_ms,
        transaction=event.transaction.hex(),
        by=event.by.hex(),
        code=event.code,
        accounts=[account.hex() for account in event.accounts],
        actions=[json_view(action) for action in event.actions],
        bodies=[BodyView(commitment=body.commitment.hex(), size=body.size) for body in event.bodies],
    )


def _transaction_views(block: Block) -> list[TransactionView]:
    return [
        TransactionView(
            id=transaction.id.hex(),
            hash=transaction.hash.hex(),
            signature=transaction.signature.hex(),
            envelope=json_view(transaction.envelope),
        )
        for transaction in block.transactions
    ]


def _opened(data: bytes, bytes_max: int) -> dict[str, object]:
    """The JSON view of a receipt or state answer, the header and certificate of every seal opened, its value too."""
    content = decode(data, bytes_max)
    content["seal"] = _opened_seal(content["seal"])
    for step in content["steps"]:
        step["seal"] = _opened_seal(step["seal"])
    if isinstance(content.get("value"), bytes):
        content["value"] = _opened_value(content["value"])
    view: dict[str, object] = json_view(content)
    return view


def _opened_value(data: bytes) -> object:
    """A state value; of a change of voters, the seal opened."""
    value = decode(data, VALUE_BYTES_MAX)
    if isinstance(value, dict) and isinstance(value.get("seal"), dict):
        value["seal"] = _opened_seal(value["seal"])
    return value


def _opened_seal(seal: dict[str, bytes]) -> dict[str, object]:
    return {
        "certificate": decode(seal["certificate"], CERTIFICATE_BYTES_MAX),
        "header": _opened_header(seal["header"]),
        "signature": seal["signature"],
    }


def _opened_header(data: bytes) -> dict[str, object]:
    header: dict[str, object] = decode(data, HEADER_BYTES_MAX)
    proof = header["proof"]
    return header | {"proof": decode(proof, CERTIFICATE_BYTES_MAX) if isinstance(proof, bytes) else None}
