"""What a node that lost its power says before it has executed again what it had acknowledged."""

import time
from collections import Counter

import pytest

from carequorum import submission
from consensus.messages import Certificate
from ledger.contracts import identity
from ledger.errors import Rejection
from ledger.execution import DUPLICATE
from ledger.keys import sha256
from ledger.request import ReadRequest
from node import executor
from node.readiness import BY_STATE, Readiness, withheld
from tests.node.cluster import Cluster
from tests.node.members import account_of, addition, key_of, register, registration, transact

BEHIND_BLOCKS = 64


class Chain:
    """A log of blocks named by a letter each, by height; a new leader's are of another letter."""

    def __init__(self, blocks: str, executed: int) -> None:
        self.blocks = blocks
        self.executed_height = executed
        self.leader: str | None = None
        self.certified = executed

    @property
    def known_certificate(self) -> Certificate | None:
        return Certificate(1, self.certified, b"", ()) if self.certified else None

    def term_hash(self, height: int) -> tuple[int, bytes] | None:
        return (1, self.blocks[height - 1].encode()) if 1 <= height <= len(self.blocks) else None

    def readiness(self) -> Readiness:
        return Readiness(self, self, len(self.blocks), behind_blocks=BEHIND_BLOCKS)


class TestReadiness:
    def test_what_the_log_held_at_the_start_is_executed_first(self) -> None:
        chain = Chain("aaa", executed=1)
        readiness = chain.readiness()
        assert readiness.why_not() == "no leader is known"
        chain.leader, chain.blocks = "north-1", "aaab"
        for executed, why in ((1, "executing its log"), (2, "executing its log"), (3, None)):
            chain.executed_height = executed
            assert readiness.why_not() == why
        # What comes later is the ordinary lag of a node.
        chain.blocks = "aaabbbb"
        assert readiness.why_not() is None

    @pytest.mark.parametrize(
        ("blocks", "executed"),
        [("ab", 1), ("a", 1), ("aabbb", 2)],
        ids=["replaced", "cut off, and nothing there yet", "partly replaced, the rest executed"],
    )
    def test_what_was_replaced_is_not_waited_for(self, blocks: str, executed: int) -> None:
        """The new leader's log may be shorter, and end for good below where this one ended."""
        chain = Chain("aaaa", executed=1)
        readiness = chain.readiness()
        chain.leader, chain.blocks = "north-1", blocks
        chain.executed_height = executed
        assert readiness.why_not() is None

    def test_what_is_left_of_it_is_waited_for(self) -> None:
        chain = Chain("aaaa", executed=1)
        readiness = chain.readiness()
        chain.leader, chain.blocks = "north-1", "aabb"
        assert readiness.why_not() == "executing its log"
        chain.executed_height = 2
        assert readiness.why_not() is None

    def test_after_a_clean_stop_there_is_nothing_to_wait_for(self) -> None:
        chain = Chain("aaa", executed=3)
        chain.leader = "north-1"
        assert chain.readiness().why_not() is None

    def test_who_is_far_behind_is_catching_up(self) -> None:
        chain = Chain("aaa", executed=3)
        readiness = chain.readiness()
        chain.leader = "north-1"
        for certified, why in ((3 + BEHIND_BLOCKS, None), (4 + BEHIND_BLOCKS, "catching up")):
            chain.certified = certified
            assert readiness.why_not() == why
        readiness.stopping = True
        assert readiness.why_not() == "stopping"


def test_only_refusals_by_the_state_are_withheld_and_only_while_not_ready() -> None:
    for code in BY_STATE:
        rejection = Rejection(code, "detail")
        assert withheld(rejection, None) is rejection
        assert withheld(rejection, "catching up").code == "not_ready"
    for code in ("bad_signature", "not_canonical", "wrong_chain", "pool_full", "body_mismatch"):
        assert withheld(Rejection(code, ""), "catching up").code == code


def test_the_client_knows_the_same_refusals_as_those_of_one_node() -> None:
    # A duplicate shows in a block's results only.
    assert BY_STATE | {DUPLICATE} == submission._DEPENDS


def read_by(name: str, node_id: str) -> ReadRequest:
    return ReadRequest(
        body_hash=sha256(b""),
        by=account_of(name),
        format=1,
        key=key_of(name).public,
        method="GET",
        node=node_id,
        path="/v1/records",
        time=0,
    )


@pytest.mark.asyncio
async def test_nobody_is_denied_who_was_enrolled_before_all_lost_their_power(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "WRITE_BEHIND_S", 60.0)
    async with Cluster() as cluster:
        await register(cluster, "ada")
        await cluster.kill(*cluster.members)
        said: Counter[tuple[str | None, str]] = Counter()
        transaction, body = addition(cluster, "ada", time.time_ns() // 1_000_000)

        def submit(node_id: str) -> str:
            backend = cluster.members[node_id].running.backend
            why = backend.ready()
            (answer,) = backend.submit([(transaction.data, [body])])
            code = "" if answer.rejection is None else answer.rejection.code
            said[why, code] += 1
            return code

        for number, node_id in enumerate(cluster.members):
            await cluster.start(node_id)
            backend = cluster.members[node_id].running.backend
            if number == 0:
                assert backend.state(identity.account_path(account_of("ada"))) is None, "it lost what it had executed"
                assert submit(node_id) == "not_ready"
                with pytest.raises(Rejection, match="not_ready"):
                    backend.check_reader(read_by("ada", node_id))
        await cluster.until(lambda: [submit(node_id) for node_id in cluster.members] == [""] * 4)
        print(said)
        assert {code for _, code in said} == {"", "not_ready"}
        # Somebody asked a node that heard a leader, and had not executed yet what it once acknowledged.
        assert said["executing its log", "not_ready"] > 0
        assert not [why for why, code in said if why is None and code]
        for node_id in cluster.members:
            assert await transact(cluster, node_id, transaction, [body]) == "ok"
            cluster.members[node_id].running.backend.check_reader(read_by("ada", node_id))


@pytest.mark.asyncio
async def test_a_log_that_is_replaced_keeps_nobody_waiting() -> None:
    """A leader that was cut off has blocks that nobody certified; the next leader's take their place."""
    async with Cluster(size=3) as cluster:
        await register(cluster, "ada")
        lost = await cluster.led()
        member = cluster.members[lost]
        cluster.cut = {frozenset((lost, other)) for other in cluster.members if other != lost}
        vain = registration(cluster, "vain", "patient", 0, time.time_ns() // 1_000_000)
        assert member.running.backend.submit([(vain.data, [])])[0].rejection is None
        core, store = member.running.driver.core, member.store
        assert store is not None
        await cluster.until(lambda: store.last_height() == core.last_height > core.commit_height)
        held = core.term_hash(core.last_height)
        await cluster.kill(lost)
        await cluster.led(lost)
        await cluster.start(lost)
        backend = member.running.backend
        assert member.running.driver.core.term_hash(member.running.driver.core.last_height) == held
        assert backend.ready() is not None
        cluster.cut.clear()
        await cluster.until(lambda: backend.ready() is None)
        assert backend.status(vain.id).status == "unknown"
