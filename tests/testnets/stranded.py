"""What a node answers that is without a majority, asked over plain HTTP, and what became of what it accepted."""

import asyncio
import secrets
import time
from collections.abc import Sequence

import aiohttp
import msgspec

from carequorum.client import Client
from carequorum.devnet import DevnetNode
from carequorum.sealing import Label, seal_record
from carequorum.transport import Settings
from carequorum.wallet import Wallet
from ledger.contracts.records import Add
from ledger.encoding import encode
from ledger.errors import Rejection
from ledger.genesis import Genesis
from tests.testnets.chain import Chain
from tests.testnets.figures import Stranded
from tests.testnets.load import Answer

CONTENT, CONTENT_TYPE = b'{"resourceType":"Basic"}', "application/fhir+json"
ASKED = 4
DEADLINE_MS = 1_000
# Longer than any row: nothing that was accepted has an excuse.
VALID_MS = 300_000
# Until the pool has no room for this member: of POOL_TRANSACTIONS it may hold a quarter.
POOL_TRANSACTIONS = 600
BATCH, BATCHES_MAX = 50, 30
FACTS = 3
REQUEST_TIMEOUT_S = 15.0
MSGPACK = "application/msgpack"


class _Result(msgspec.Struct, frozen=True):
    status: str
    code: str = ""


class _Results(msgspec.Struct, frozen=True):
    results: list[_Result]


class _Problem(msgspec.Struct, frozen=True):
    code: str = ""


class _Signed(msgspec.Struct, frozen=True):
    """One submission: the id of its transaction, and what is sent."""

    id: bytes
    item: dict[str, object]


class Probe:
    """Asks one node. `wallet` is a clinician's who writes nothing else, so that all of the share is the probe's."""

    def __init__(self, node: DevnetNode, genesis: Genesis, wallet: Wallet) -> None:
        self._node = node
        self._client = Client([node.url], genesis, wallet, settings=Settings(read_timeout_s=5.0))
        self._accepted: list[_Signed] = []
        self._said: dict[str, object] = {}

    async def ask(self, facts: Sequence[Answer]) -> None:
        """Ask everything, while the node is cut off. `facts` were committed and sealed before that."""
        timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout) as session, self._client:
            unconfirmed = asyncio.create_task(self._linearizable(session, facts[0].committed.id))
            pending, answer_ms_max = await self._wait(session)
            taken, refusal = await self._fill(session)
            proven = [await self._proves(fact) for fact in facts]
            self._said = {
                "asked": ASKED,
                "pending": pending,
                "deadline_ms": DEADLINE_MS,
                "answer_ms_max": round(answer_ms_max, 1),
                "taken": taken,
                "refusal": refusal,
                "unconfirmed": await unconfirmed,
                "read": 2 * len(facts),
                "proven": sum(proven),
            }

    def open(self, chain: Chain) -> int:
        """How many of those accepted are not in the chain."""
        return sum(each.id not in chain.places for each in self._accepted)

    def result(self, chain: Chain) -> Stranded:
        """What was said, and what became of it by the chain as it is now."""
        committed = len(self._accepted) - self.open(chain)
        return msgspec.convert({**self._said, "node": self._node.id, "committed": committed}, Stranded)

    async def _wait(self, session: aiohttp.ClientSession) -> tuple[int, float]:
        """How many submissions that wait for a commit are answered 202 and `pending`; the slowest, in ms."""
        query = f"wait=committed&wait_ms={DEADLINE_MS}"
        asked = await asyncio.gather(*(self._timed(session, query) for _ in range(ASKED)))
        return sum(pending for pending, _ in asked), max(took_ms for _, took_ms in asked)

    async def _timed(self, session: aiohttp.ClientSession, query: str) -> tuple[bool, float]:
        signed, began = self._sign(), time.monotonic()
        status, body = await self._post(session, query, signed.item)
        took_ms = (time.monotonic() - began) * 1_000
        results = [] if status != 202 else msgspec.json.decode(body, type=_Results).results
        pending = [each.status for each in results] == ["pending"]
        if pending:
            self._accepted.append(signed)
        return pending, took_ms

    async def _fill(self, session: aiohttp.ClientSession) -> tuple[int, tuple[int, str]]:
        """How many are taken until there is no more room; how one more is refused."""
        before = len(self._accepted)
        for _ in range(BATCHES_MAX):
            batch = [self._sign() for _ in range(BATCH)]
            status, body = await self._post(session, "wait=accepted", [each.item for each in batch])
            results = [] if status != 200 else msgspec.json.decode(body, type=_Results).results
            self._accepted += [
                each for each, result in zip(batch, results, strict=False) if result.status == "pending"
            ]
            if status != 200 or any(result.status == "refused" for result in results):
                break
        status, body = await self._post(session, "wait=committed&wait_ms=1", self._sign().item)
        return len(self._accepted) - before, (status, _code(body))

    async def _linearizable(self, session: aiohttp.ClientSession, tx_id: bytes) -> tuple[int, str]:
        target = f"{self._node.url}/v1/transactions/{tx_id.hex()}?consistency=linearizable"
        async with session.get(target) as answer:
            return answer.status, _code(await answer.read())

    async def _proves(self, fact: Answer) -> int:
        """How many of its receipt and its record's entry the node proves."""
        proven = 0
        try:
            await self._client.receipt(fact.committed.id)
            proven += 1
            entry = await self._client.record(fact.record)
            proven += entry.transaction == fact.committed.id
        except Rejection:
            pass
        return proven

    async def _post(self, session: aiohttp.ClientSession, query: str, content: object) -> tuple[int, bytes]:
        target, headers = f"{self._node.url}/v1/transactions?{query}", {"Content-Type": MSGPACK}
        async with session.post(target, data=encode(content), headers=headers) as answer:
            return answer.status, await answer.read()

    def _sign(self) -> _Signed:
        wallet = self._client.wallet
        record, subject = secrets.token_bytes(32), secrets.token_bytes(32)
        label = Label(author=wallet.account, chain=self._client.chain, record=record, subject=subject, version=1)
        body = seal_record(CONTENT, CONTENT_TYPE, label, [wallet.public_key])
        signed = self._client.sign([Add(body=0, record=record, subject=subject)], [body], valid_ms=VALID_MS)
        return _Signed(signed.id, {"bodies": [body], "envelope": signed.data})


def _code(body: bytes) -> str:
    try:
        return msgspec.json.decode(body, type=_Problem).code
    except msgspec.DecodeError:
        return ""
