"""The client: what a provider's software does with a network, over any of its nodes.

    async with Client(["http://127.0.0.1:8080"], genesis, wallet) as client:
        added = await client.add_record(data, fhir.CONTENT_TYPE, subject=handle, readers=[patient_key])
        opened = await client.open_record(added.record)

It trusts the genesis file and, for `committed`, the node that says so. Receipts and state are verified before they
are returned; a node whose answer does not verify is passed over for the next.

Reads are at the *sealed height*, where proofs exist, a moment behind what is committed. A client waits until that
height covers its own writes, so it always sees them; with `linearizable=True` it waits until it covers everybody's.
"""

import secrets
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TypeVar

from carequorum import submission
from carequorum.events import Event, Following
from carequorum.sealing import Content, Label, open_record, seal_record
from carequorum.submission import Committed, Level, TxStatus
from carequorum.transport import JSON, MSGPACK, OCTETS, Authorise, Node, Settings, Transport
from carequorum.views import NetworkStatus, decode_records, decode_view
from carequorum.wallet import Wallet
from ledger.block import Block, decode_block, verify_header
from ledger.contracts import Action, identity, network
from ledger.contracts.records import Add, Amend, Record, Subject, record_path, subject_path, version_path
from ledger.encoding import decode_as, encode
from ledger.errors import Rejection
from ledger.events import EventId
from ledger.genesis import Genesis
from ledger.membership import Configuration
from ledger.receipt import VerifiedState, verify_receipt, verify_state_answer
from ledger.request import sign_request
from ledger.transaction import (
    FORMAT,
    NONCE_BYTES,
    Envelope,
    Transaction,
    body_commitment,
    body_reference,
    sign_transaction,
)

VALID_MS = 120_000
RECORD_ID_BYTES = 32
PROPOSAL_ID_BYTES = 32
RECORDS_PAGE = 100
# More than anyone adds for one subject between a proof and the list that follows it.
NEWER_RECORDS_MAX = 1_000
# What a header, a signature and lengths may add to the transactions, which alone the network's limit counts.
BLOCK_OVERHEAD_BYTES = 64 * 1024
_STATE_BYTES_MAX = 64 * 1024

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class AddedRecord:
    """`record` is the record's id, 32 bytes; `committed` says where its transaction is."""

    record: bytes
    committed: Committed


@dataclass(frozen=True, slots=True)
class OpenedRecord:
    """`content` is what the author sealed, `record` what the ledger proves about it."""

    content: Content
    record: Record


def wall_clock_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


class Client:
    """One member's way to the network; with `wallet=None`, an observer's. Use it inside `async with`.

    `urls` are provider ports, http://host:port, in order of preference. Every method raises Rejection; of its
    subclasses, reads raise Refused and Unreachable, transactions also TransactionFailed, TransactionExpired and
    OutcomeUnknown (modules `transport` and `submission`). For one event loop; any number of calls may be in flight.

    `linearizable`: every read knows of all that any node had acknowledged when it began, at the price of a question
    to a quorum. A node that cannot say so is passed over for the next; in the end the code is "not_confirmed".
    """

    def __init__(
        self,
        urls: Sequence[str],
        genesis: Genesis,
        wallet: Wallet | None = None,
        *,
        settings: Settings | None = None,
        linearizable: bool = False,
        now_ms: Callable[[], int] = wall_clock_ms,
    ) -> None:
        self.genesis = genesis
        self.chain = genesis.chain_id()
        self._node_keys = genesis.node_keys()
        self._wallet = wallet
        self._transport = Transport(urls, settings or Settings())
        self._linearizable = linearizable
        self._now_ms = now_ms
        self._written_height = 0

    async def __aenter__(self) -> "Client":
        await self._transport.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._transport.__aexit__(kind, error, traceback)

    @property
    def wallet(self) -> Wallet:
        """The member's wallet, or Rejection("no_wallet")."""
        if self._wallet is None:
            raise Rejection("no_wallet", "this needs a member's wallet")
        return self._wallet

    # Transactions

    def sign(
        self, actions: Sequence[Action], bodies: Sequence[bytes] = (), *, valid_ms: int = VALID_MS
    ) -> Transaction:
        """A transaction with a fresh nonce, good for `valid_ms` from now; the ledger allows up to 600,000."""
        return sign_transaction(
            Envelope(
                actions=list(actions),
                bodies=[body_reference(body) for body in bodies],
                by=self.wallet.account,
                chain=self.chain,
                format=FORMAT,
                key=self.wallet.public_key,
                nonce=secrets.token_bytes(NONCE_BYTES),
                until=self._now_ms() + valid_ms,
            ),
            self.wallet.signing_key,
        )

    async def transact(
        self,
        actions: Sequence[Action],
        bodies: Sequence[bytes] = (),
        *,
        wait: Level = "committed",
        valid_ms: int = VALID_MS,
    ) -> Committed:
        """Sign once, then submit the same bytes until they are committed ("sealed": have a receipt) or expired.

        All actions happen, or none. Each body belongs to the one action that names it.
        """
        return await self.submit_signed(self.sign(actions, bodies, valid_ms=valid_ms).data, bodies, wait=wait)

    async def submit_signed(
        self, data: bytes, bodies: Sequence[bytes] = (), *, wait: Level = "committed"
    ) -> Committed:
        """As `transact`, for a transaction signed before. Submitting one again is harmless."""
        committed = await submission.submit(self._transport, data, bodies, wait, self._now_ms)
        self._written_height = max(self._written_height, committed.height)
        return committed

    async def status(self, tx_id: bytes) -> TxStatus:
        """How far a transaction came, by the word of the first node that answers."""
        return await self._read_json(f"/v1/transactions/{tx_id.hex()}", TxStatus)

    async def receipt(self, tx_id: bytes) -> bytes:
        """The verified receipt of a transaction: it proves the result to anyone who has the genesis file."""

        def check(data: bytes) -> bytes:
            if verify_receipt(data, self.genesis).id != tx_id:
                raise Rejection("bad_receipt", "it is of another transaction")
            return data

        return await self._read(f"/v1/transactions/{tx_id.hex()}/receipt", MSGPACK, check)

    async def extend_receipt(self, receipt: bytes) -> bytes:
        """A saved receipt under a newer seal, verified. Any node can make it, though it may have pruned the block."""
        before = verify_receipt(receipt, self.genesis)

        def check(data: bytes) -> bytes:
            after = verify_receipt(data, self.genesis)
            if replace(after, seal=before.seal) != before or after.seal.sealed_height < before.seal.sealed_height:
                raise Rejection("bad_receipt", "it is not the saved one under a newer seal")
            return data

        body = encode({"receipt": receipt})
        return await self._transport.read("/v1/receipts/extend", MSGPACK, check, body=body)

    # Members

    async def account(self, account: bytes) -> identity.Account:
        """The proven entry of an account: its current key, role, organisation, status and version.

        Before sealing to a key, ask here, never the node's unproven word: whoever lies about it reads the record.
        """
        found = await self.state(identity.account_path(account))
        if found.value is None:
            raise Rejection("no_such_account", "no such account")
        return decode_as(identity.Account, found.value, _STATE_BYTES_MAX)

    async def register_member(
        self, key: bytes, proof: bytes, role: identity.Role, *, wait: Level = "committed"
    ) -> Committed:
        """As an admin, make the holder of `key` a member of one's own organisation.

        `proof` is the new member's `Wallet.possession_proof` for this chain and this admin's account.
        """
        return await self.transact([identity.Register(key=key, proof=proof, role=role)], wait=wait)

    async def rotate(self, *, wait: Level = "committed") -> Committed:
        """Replace the wallet's key by a new one, which is in the wallet's file before anything is sent.

        After a crash or an unknown outcome, call it again: it first adopts whichever key the ledger names.
        """
        wallet = self.wallet
        account = await self.account(wallet.account)
        wallet.adopt(account.key)
        key = wallet.prepare_rotation()
        action = identity.Rotate(
            account=wallet.account,
            new_key=key.public,
            proof=identity.possession_proof(key, self.chain, wallet.account),
            version=account.version,
        )
        committed = await self.transact([action], wait=wait)
        wallet.adopt(key.public)
        return committed

    async def revoke(self, account: bytes, *, wait: Level = "committed") -> Committed:
        """As an admin, end an account of one's own organisation, for ever."""
        version = (await self.account(account)).version
        return await self.transact([identity.Revoke(account=account, version=version)], wait=wait)

    # Organisations and nodes

    async def propose(
        self, change: network.Proposed, *, vote: bool = True, wait: Level = "committed"
    ) -> tuple[bytes, Committed]:
        """As an admin, put a change of organisations or nodes to the vote: the proposal's id, 32 bytes.

        `vote`: approve it too, in the same transaction.
        """
        proposal = secrets.token_bytes(PROPOSAL_ID_BYTES)
        actions: list[Action] = [network.Propose(change=change, proposal=proposal)]
        if vote:
            actions.append(network.Vote(approve=True, proposal=proposal))
        return proposal, await self.transact(actions, wait=wait)

    async def vote(self, proposal: bytes, *, approve: bool, wait: Level = "committed") -> Committed:
        """As an admin, give one's organisation's vote. It counts once and is not taken back."""
        return await self.transact([network.Vote(approve=approve, proposal=proposal)], wait=wait)

    async def proposal(self, proposal: bytes) -> network.Proposal:
        """A proven proposal and the votes on it, or Rejection("no_such_proposal") where absence is proven."""
        found = await self.state(network.proposal_path(proposal))
        if found.value is None:
            raise Rejection("no_such_proposal", "no proposal has this id")
        return decode_as(network.Proposal, found.value, _STATE_BYTES_MAX)

    async def pending_change(self) -> network.Pending | None:
        """What a vote has left for the leader to do, proven; None where there is proven to be nothing."""
        found = await self.state(network.PENDING_PATH)
        return None if found.value is None else decode_as(network.Pending, found.value, _STATE_BYTES_MAX)

    async def configuration(self) -> Configuration:
        """Who votes and who follows, proven."""
        found = await self.state(network.CONFIGURATION_PATH)
        if found.value is None:
            raise Rejection("bad_answer", "a network has a configuration")
        return decode_as(Configuration, found.value, _STATE_BYTES_MAX)

    async def node(self, node: str) -> network.Node:
        """A proven node, removed ones included, or Rejection("no_such_node") where absence is proven."""
        found = await self.state(network.node_path(node))
        if found.value is None:
            raise Rejection("no_such_node", "there never was a node of this id")
        return decode_as(network.Node, found.value, _STATE_BYTES_MAX)

    # Records

    async def add_record(
        self,
        content: bytes,
        content_type: str,
        *,
        subject: bytes,
        readers: Sequence[bytes],
        wait: Level = "committed",
        valid_ms: int = VALID_MS,
    ) -> AddedRecord:
        """Seal `content` to `readers` (public keys, such as the patient's) and to the author, and add it as a record.

        `subject` is the 32-byte handle that the patient gave this organisation (`Wallet.subject_handle`).
        """
        wallet = self.wallet
        record = secrets.token_bytes(RECORD_ID_BYTES)
        label = Label(author=wallet.account, chain=self.chain, record=record, subject=subject, version=1)
        body = seal_record(content, content_type, label, [wallet.public_key, *readers])
        action = Add(body=0, record=record, subject=subject)
        return AddedRecord(record, await self.transact([action], [body], wait=wait, valid_ms=valid_ms))

    async def amend_record(
        self,
        record: bytes,
        content: bytes,
        content_type: str,
        *,
        version: int,
        readers: Sequence[bytes],
        wait: Level = "committed",
        valid_ms: int = VALID_MS,
    ) -> Committed:
        """Seal `content` as a record's next version, in place of `version`: the newest, which the caller has seen.

        For clinicians of the record's organisation. `readers` as for `add_record`: those of the version before are
        not taken over. That version stays and opens as before. Raises Rejection also as `record`, and
        "stale_version" where somebody amended it since.
        """
        wallet = self.wallet
        entry = await self.record(record)
        # Versions only grow, so what is proven to be stale is so for ever.
        if entry.version > version:
            raise Rejection("stale_version", f"the record is at version {entry.version}, not {version}")
        label = Label(
            author=wallet.account, chain=self.chain, record=record, subject=entry.subject, version=version + 1
        )
        body = seal_record(content, content_type, label, [wallet.public_key, *readers])
        action = Amend(body=0, record=record, subject=entry.subject, version=version)
        return await self.transact([action], [body], wait=wait, valid_ms=valid_ms)

    async def record(self, record: bytes, *, version: int | None = None) -> Record:
        """The proven entry of a record: the newest version, or `version`. A signed read.

        Raises Rejection: "no_such_record", "no_such_version" where absence is proven.
        """
        found = await self.state(record_path(record))
        if found.value is None:
            raise Rejection("no_such_record", "no such record")
        newest = decode_as(Record, found.value, _STATE_BYTES_MAX)
        if version is None or version == newest.version:
            return newest
        if not 1 <= version < newest.version:
            raise Rejection("no_such_version", f"the newest version is {newest.version}")
        # Not lower: there, another node may hold `version` as the newest still, and prove that none replaced it.
        kept = await self.state(version_path(record, version), min_height=found.seal.sealed_height)
        if kept.value is None:
            raise Rejection("bad_answer", "a version that was replaced is not kept")
        return decode_as(Record, kept.value, _STATE_BYTES_MAX)

    async def records(self, subject: bytes, *, limit: int = 10_000) -> dict[bytes, Record]:
        """The newest `limit` records of a subject by record id, newest first. A signed read.

        The head and the number are proven. The entries are a node's word, but each must link to the next, and all
        of them must be as many as proven: none is left out unnoticed. `open_record` proves what it opens.
        """
        proven = await self.state(subject_path(subject))
        if proven.value is None:
            return {}
        head = decode_as(Subject, proven.value, _STATE_BYTES_MAX)
        found: dict[bytes, Record] = {}
        expected: bytes | None = head.head
        before: bytes | None = None
        newer = 0
        while expected is not None and len(found) < min(limit, head.count):
            page = await self._records_page(subject, before)
            for record, entry in page:
                before = record
                if record == expected:
                    found[record] = entry
                    expected = entry.previous
                elif found:
                    raise Rejection("bad_answer", "the subject's records do not link")
                else:
                    # Added since the proof was made: they come first, and are the next call's.
                    newer += 1
            if not page or newer > NEWER_RECORDS_MAX:
                raise Rejection("bad_answer", "the subject's records are not listed down from the proven head")
        if limit >= head.count and (expected is not None or len(found) != head.count):
            raise Rejection("bad_answer", f"{len(found)} records are listed, {head.count} are proven")
        return dict(list(found.items())[:limit])

    async def body(self, commitment: bytes) -> bytes:
        """A sealed body, checked against its commitment. A signed read."""

        def check(data: bytes) -> bytes:
            if body_commitment(data) != commitment:
                raise Rejection("body_mismatch", "not the body of this commitment")
            return data

        return await self._read(f"/v1/bodies/{commitment.hex()}", OCTETS, check, self._authorise)

    async def open_record(self, record: bytes, *, version: int | None = None) -> OpenedRecord:
        """Prove the record's newest version, or `version`, fetch its body, open it with the wallet's keys.

        Raises Rejection also as `sealing.open_record`: "not_a_reader", "bad_body".
        """
        entry = await self.record(record, version=version)
        body = await self.body(entry.body.commitment)
        label = Label(
            author=entry.author, chain=self.chain, record=record, subject=entry.subject, version=entry.version
        )
        return OpenedRecord(open_record(body, label, self.wallet.seeds), entry)

    # The ledger and its network

    async def state(self, key: str, *, min_height: int | None = None) -> VerifiedState:
        """The proven value, or proven absence, of a state key such as "identity/account/<hex>".

        At a sealed height of at least `min_height`; by default, of this client's last write. A signed read for keys
        that begin with "records/".
        """
        least = self._written_height if min_height is None else min_height

        def check(data: bytes) -> VerifiedState:
            found = verify_state_answer(data, self.genesis)
            if found.key != key:
                raise Rejection("bad_state_answer", "it is of another key")
            if found.seal.sealed_height < least:
                raise Rejection("stale_answer", f"proven at height {found.seal.sealed_height}, not {least}")
            return found

        authorise = self._authorise if key.startswith("records/") else None
        return await self._read(f"/v1/state/{key}?proof=1", MSGPACK, check, authorise)

    async def block(self, height: int) -> Block:
        """The block at a height from 1, its proposer's signature checked. That it is final, receipts prove."""
        bytes_max = self.genesis.parameters.block_bytes_max + BLOCK_OVERHEAD_BYTES

        def check(data: bytes) -> Block:
            block = decode_block(data, bytes_max)
            header = block.header
            if header.chain != self.chain or header.height != height:
                raise Rejection("bad_block", "it is another block")
            known = self._node_keys.get(header.proposer)
            if known is not None and not verify_header(block.hash, block.signature, known):
                raise Rejection("bad_block", "the proposer's signature does not verify")
            return block

        block = await self._read(f"/v1/blocks/{height}", MSGPACK, check)
        proposer = block.header.proposer
        if proposer not in self._node_keys:
            # It came after genesis. A node's key never changes.
            self._node_keys[proposer] = (await self.node(proposer)).key
            if not verify_header(block.hash, block.signature, self._node_keys[proposer]):
                raise Rejection("bad_block", "the proposer's signature does not verify")
        return block

    def events(
        self,
        from_: int | None = None,
        *,
        after: EventId | None = None,
        contract: str | None = None,
        subject: bytes | None = None,
        member: bytes | None = None,
    ) -> AsyncGenerator[Event, None]:
        """What happens, in order, for ever: from height `from_` on, or what follows `after`, or from now on.

        Only events that fit all of `contract`, `subject` (a handle; a signed read) and `member` (an account that
        signed, or is made or changed). Each comes once: when a node ends the stream or fails, another goes on with
        it. Ends by an exception only, see `events.Following`; to go on later, remember the last event's id.
        """
        query = {
            "from": None if from_ is None else str(from_),
            "contract": contract,
            "subject": None if subject is None else subject.hex(),
            "member": None if member is None else member.hex(),
        }
        given = "&".join(f"{name}={value}" for name, value in query.items() if value is not None)
        target = f"/v1/events?{given}" if given else "/v1/events"
        authorise = self._authorise if subject is not None else None
        return Following(self._transport, target, after, authorise).events()

    async def network(self) -> NetworkStatus:
        """Members, leader, heights and evidence, as the first node that answers sees them."""
        return await self._read_json("/v1/network", NetworkStatus)

    async def _records_page(self, subject: bytes, before: bytes | None) -> list[tuple[bytes, Record]]:
        after = f"&before={before.hex()}" if before is not None else ""
        target = f"/v1/records?subject={subject.hex()}{after}&limit={RECORDS_PAGE}"
        return await self._read(target, JSON, decode_records, self._authorise)

    async def _read_json(self, target: str, shape: type[_T]) -> _T:
        return await self._read(target, JSON, lambda data: decode_view(shape, data))

    async def _read(
        self, target: str, accept: str, check: Callable[[bytes], _T], authorise: Authorise | None = None
    ) -> _T:
        if self._linearizable:
            target += ("&" if "?" in target else "?") + "consistency=linearizable"
        return await self._transport.read(target, accept, check, authorise)

    async def _authorise(self, node: Node, target: str) -> str:
        """The Authorization header of a signed read at one node, which is asked its id the first time."""
        if node.id is None:
            answer = await self._transport.request(node, "GET", "/v1/network", {"Accept": JSON})
            view = decode_view(NetworkStatus, answer)
            if view.chain != self.chain.hex():
                raise Rejection("wrong_chain", f"{node.url} serves another network")
            node.id = view.node
        wallet = self.wallet
        return sign_request(wallet.signing_key, wallet.account, node.id, "GET", target, b"", self._now_ms())
