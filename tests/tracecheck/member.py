"""One node, replayed. Each line is judged by what the node held before it and by its input alone."""

from collections import defaultdict
from typing import NamedTuple

from tests.tracecheck import outgoing, raft
from tests.tracecheck.holdings import Holdings, Write
from tests.tracecheck.lines import Block, Certificate, Forbidden, Json, blocks, certificate
from tests.tracecheck.network import Facts

# Inputs after which a log may change: what the new blocks must have come from.
TAKEN_FROM = {"message", "refuse", "certified"}


class Moment(NamedTuple):
    """What is compared across a line."""

    role: str
    term: int
    vote: str | None
    leader: str | None
    last: int
    commit: int


class Member:
    """Replays one trace; what other nodes must agree with goes to `facts`."""

    def __init__(self, name: str, facts: Facts) -> None:
        self.name = name
        self.facts = facts
        self.line: Json = {}
        self._lines = 0
        self.held: Holdings | None = None
        self.role = "follower"
        self.leader: str | None = None
        self.failed = False
        self.commit = 0

    def forbid(self, rule: str) -> Forbidden:
        return Forbidden(self.line, rule)

    def require(self, condition: bool, rule: str) -> None:
        if not condition:
            raise self.forbid(rule)

    @property
    def holdings(self) -> Holdings:
        if self.held is None:
            raise self.forbid("a trace begins with a start")
        return self.held

    def replay(self, line: Json) -> None:
        """Judge one line. Raises Forbidden."""
        self.line = line
        given, left, state = line["input"], line["left"], line["state"]
        self.require(line["node"] == self.name, "the line is of another node")
        self._lines = 1 if given["kind"] == "start" else self._lines + 1
        self.require(line["line"] == self._lines, "a line is missing, doubled, or out of order")
        if given["kind"] == "start":
            self._start(given)
        before = Moment(
            self.role, self.holdings.term, self.holdings.vote, self.leader, self.holdings.last, self.commit
        )
        self._compact(state["base"])
        if self.failed:
            self.require(not any(left.values()), "a node whose disk failed does something")
        self._hear(given)
        self._write(given, left["writes"], state)
        self._judge_term(before, given, state)
        self._judge_role(before, given, state)
        self._judge_commit(left["committed"], state)
        self._judge_log(given, state)
        for receiver, message in left["messages"]:
            self.require(receiver != self.name, "a node sends something to itself")
            outgoing.judge(self, before, receiver, message)
            self.facts.sends(self.name, receiver, message)
        self._judge_reads(given, left["reads"])
        self._trust()
        if given["kind"] == "disk_failed":
            self.failed = True

    # start

    def _start(self, given: Json) -> None:
        if self.held is None or self._is_snapshot(given):
            # What lies below is taken as it is said.
            self.held = Holdings(given)
        else:
            states = self.held.possible_disks()
            found = (given["last_height"], given["term"], given["vote"])
            self.require(found in states, f"its disk holds {found}, which was not handed to it: {states}")
            batches = [n for n, state in enumerate(states) if state == found and self._agrees(given, n)]
            self.require(bool(batches), "its disk holds other blocks than were handed to it")
            self.held.restart(given, batches[0])
        self.role, self.leader, self.failed = "follower", None, False
        self.must_compare, self.forsworn = given["must_compare"], given["forsworn"]
        self.compared: dict[str, int] = {}
        self.known: dict[int, Certificate] = {}
        stored = certificate(given["certificate"])
        self.commit = given["base"][0]
        if stored is not None:
            self.see(stored)
            self.commit = max(self.commit, stored.height)
        self.told = self.commit
        self.asked: dict[tuple[str, int], bool] = {}
        self.stood: tuple[int, int | None] = (0, None)
        self.tokens: dict[int, tuple[int, int]] = {}
        self.requests: dict[tuple[str, int], tuple[int, int, int]] = {}
        self.foreseen_last: set[str] = set()
        self._forget_role()
        self._forget_term()

    def _agrees(self, given: Json, batches: int) -> bool:
        disk = self.holdings.disk_after(batches)
        return all(disk.get(block.height, block) == block for block in blocks(given["blocks"]))

    def _is_snapshot(self, given: Json) -> bool:
        """Whether the disk was replaced by a snapshot: beyond all that was handed to it, and certified whole."""
        found = certificate(given["certificate"])
        furthest = max(last for last, _, _ in self.holdings.possible_disks())
        return found is not None and found.height == given["last_height"] > furthest

    def _forget_role(self) -> None:
        self.granted: set[str] = set()
        self.foreseen: set[str] = set()
        self.matched: dict[str, int] = {}
        self.stopping: set[str] = set()
        self.verified = 0
        self.refused: set[int] = set()

    def _forget_term(self) -> None:
        self.round_heard = 0
        self.round_sent = 0
        self.echoes: dict[str, int] = {}
        self.acknowledged: dict[tuple[int, str], set[str]] = defaultdict(set)
        self.first_block = 0
        self.wondered: set[tuple[int, int | None]] = set()

    @property
    def may_vote(self) -> bool:
        self._trust()
        return not self.must_compare and not self.forsworn

    def _trust(self) -> None:
        """Once it compared with a quorum, what it forgot was said before: no later configuration asks for more, and
        no peer that names a greater height when it connects again.
        """
        reached = {peer for peer, height in self.compared.items() if height <= self.commit} | {self.name}
        if self.must_compare and raft.quorum(self.holdings.configuration, reached):
            self.must_compare = False

    # what an input says

    def see(self, seen: Certificate) -> None:
        """Take note of a certificate that this node met."""
        self.known[seen.height] = seen
        at = self.holdings.configuration_at(seen.height) if seen.height <= self.holdings.last else None
        same = self.holdings.hash_at(seen.height) == seen.hash
        self.facts.sees(self.line, seen, at if same else None)

    def _hear(self, given: Json) -> None:
        kind = given["kind"]
        if kind == "persisted":
            self.holdings.persisted(given["seq"])
            self._sign_own()
        elif kind == "compared":
            self.compared[given["peer"]] = given["height"]
        elif kind == "forswear":
            self.forsworn = True
        elif kind == "read":
            self.require(given["token"] not in self.tokens, "a token is used twice")
            self.tokens[given["token"]] = (self.commit, self.round_sent)
        elif kind == "certified":
            found = certificate(given["blocks"]["certificate"])
            assert found is not None
            self.see(found)
        elif kind in ("message", "refuse"):
            self._hear_message(given["from"], given["message"])

    def _compact(self, height: int) -> None:
        """The shell moves the base up between two inputs."""
        if height != self.holdings.base[0]:
            self.require(self.holdings.base[0] < height <= self.commit, "what is not committed is compacted")
            self.require(height <= self.holdings.durable(self.told), "what is not durable is compacted")
            self.holdings.compact(height)

    def _hear_message(self, sender: str, message: Json) -> None:
        self.facts.received.append((self.line, sender, self.name, message))
        term, kind = self.holdings.term, message["kind"]
        if kind in ("PreVote", "Vote"):
            self.asked[sender, message["term"]] = self._up_to_date(message)
        elif kind == "VoteReply" and message["granted"] and message["term"] == term and self.role == "candidate":
            self.granted.add(sender)
        elif kind == "PreVoteReply" and message["granted"] and self.role == "pre_candidate":
            if message["term"] == term + 1:
                self.foreseen.add(sender)
        elif kind == "ReadIndex":
            # The same may arrive twice: what held when it came first still holds.
            self.requests.setdefault((sender, message["request"]), (message["term"], self.commit, self.round_sent))
        elif kind == "Append" and message["term"] >= term:
            found = certificate(message["certificate"])
            if found is not None:
                self.see(found)
        elif kind == "AppendReply" and message["term"] == term and self.role == "leader":
            self._hear_reply(sender, message)

    def _up_to_date(self, message: Json) -> bool:
        own = (self.holdings.term_at(self.holdings.last), self.holdings.last)
        return own[0] is None or (message["last_term"], message["last_height"]) >= own

    def _hear_reply(self, sender: str, message: Json) -> None:
        if message["answer"] == "accepted":
            self.matched[sender] = max(self.matched.get(sender, 0), message["height"])
        if message["binding"]:
            self.echoes[sender] = max(self.echoes.get(sender, 0), message["round"])
        (self.stopping.add if message["stopping"] else self.stopping.discard)(sender)
        for height, block in message["acknowledges"]:
            self.facts.heard.append((self.line, sender, message["term"], height, block))
            self._count(sender, height, block)

    def _count(self, voter: str, height: int, block: str) -> None:
        """A quorum under a block of the leader's own term and log is a certificate."""
        held = self.holdings
        if held.hash_at(height) != block or held.term_at(height) != held.term:
            return
        voters = self.acknowledged[height, block]
        voters.add(voter)
        if raft.quorum(held.configuration_at(height), voters):
            entitled = raft.electorate(held.configuration_at(height))
            self.known[height] = Certificate(held.term, height, block, tuple(sorted(voters & entitled)))

    def _sign_own(self) -> None:
        """A leader signs its own blocks, once they are durable."""
        if self.role != "leader" or not self.may_vote:
            return
        held = self.holdings
        for height in range(max(self.first_block, self.commit + 1), held.durable(self.commit) + 1):
            block = held.hash_at(height)
            votes = self.name in raft.electorate(held.configuration_at(height))
            if block and votes and held.term_at(height) == held.term:
                self.facts.signs(self.line, self.name, held.term, height, block)
                self._count(self.name, height, block)

    # what it wrote

    def _write(self, given: Json, writes: list[Json], state: Json) -> None:
        for value in writes:
            hard_state = tuple(value["hard_state"]) if value["hard_state"] else None
            write = Write(value["seq"], value["truncate_from"], blocks(value["blocks"]), hard_state)
            self.require(write.seq == self.holdings.seq + 1, "a batch is missing, doubled, or out of order")
            self._judge_blocks(given, write, state)
            self.holdings.put(write)

    def _judge_blocks(self, given: Json, write: Write, state: Json) -> None:
        held, cut = self.holdings, write.truncate_from
        if cut is None and not write.blocks:
            return
        if cut is not None:
            self.require(self.commit < cut <= held.last, "what is committed, or not there, is removed")
        if state["role"] == "leader":
            self.require(cut is None, "a leader removes blocks of its own log")
            self.require(all(b.term == state["term"] for b in write.blocks), "a leader makes a block of another term")
        else:
            self.require(given["kind"] in TAKEN_FROM, "a follower's log changes out of nothing")
            self._judge_taken(given, write)
        height = cut - 1 if cut is not None else held.last
        parent, term, in_effect = held.hash_at(height), held.term_at(height), held.configuration_at(height)
        for block in write.blocks:
            self.require(block.height == height + 1, "a log has a hole")
            self.require(parent is None or block.parent == parent, "a block does not link to the one below it")
            self.require(block.term >= (term or 1), "terms fall along a log")
            self._judge_configuration(block, in_effect, state)
            self.facts.holds(self.line, block)
            height, parent, term = block.height, block.hash, block.term
            in_effect = block.configuration or in_effect

    def _judge_taken(self, given: Json, write: Write) -> None:
        """Exactly what was sent, from the first block that differs or is new."""
        source = given["blocks"]["blocks"] if given["kind"] == "certified" else given["message"].get("blocks", [])
        offered = blocks(source)
        if given["kind"] == "refuse":
            offered = [block for block in offered if block.height < given["height"]]
        held = self.holdings
        first = next((at for at, sent in enumerate(offered) if self._is_new(sent)), None)
        wanted = offered[first:] if first is not None else []
        self.require(write.blocks == wanted, "a follower's blocks are not those it was sent")
        expected = wanted[0].height if wanted and wanted[0].height <= held.last else None
        self.require(write.truncate_from == expected, "blocks are removed from elsewhere than the first difference")

    def _is_new(self, sent: Block) -> bool:
        return sent.height > self.commit and self.holdings.hash_at(sent.height) != sent.hash

    def _judge_configuration(self, block: Block, before: Json, state: Json) -> None:
        held = self.holdings
        leads = state["role"] == "leader"
        if leads and self.first_block == 0:
            self.first_block = block.height
        if block.configuration is None:
            first = not leads or block.height == self.first_block
            self.require(first or not before["old_voters"], "a leader goes on with blocks while it is joint")
            return
        why = raft.why_not_after(before, block.configuration)
        self.require(not why, why)
        if before["old_voters"]:
            self.facts.proofs.append((self.line, block.parent))
        elif leads:
            newest = next((start for start, _ in reversed(held.configurations) if start < block.height), 0)
            self.require(newest <= self.commit, "a change of membership before the last one is committed")
            certified = held.term_at(self.commit) == held.term
            self.require(certified, "a change of membership before a block of the own term is committed")

    # what it became

    def _judge_term(self, before: Moment, given: Json, state: Json) -> None:
        held = self.holdings
        self.require((state["term"], state["vote"]) == (held.term, held.vote), "term or vote is not what was written")
        self.require(held.term >= before.term, "the term falls")
        if held.term == before.term:
            self.require(before.vote in (None, held.vote), "a vote is taken back or changed within its term")
        if (held.term, held.vote) == (before.term, before.vote):
            return
        if held.vote == self.name:
            self.require(held.term == before.term + 1, "a candidate skips a term")
            self.require(state["role"] in ("candidate", "leader"), "a node votes for itself and does not stand")
        else:
            said = self._said_term(given)
            self.require(held.term in (before.term, said), "a term comes from nowhere")
        if held.vote not in (None, self.name):
            self._judge_vote(given)
        if held.term > before.term:
            self.foreseen_last = self.foreseen
            self._forget_term()
            self._forget_role()

    def _said_term(self, given: Json) -> int | None:
        if given["kind"] in ("message", "refuse"):
            term: int = given["message"]["term"]
            return term
        found = certificate(given["blocks"]["certificate"]) if given["kind"] == "certified" else None
        return found.term if found else None

    def _judge_vote(self, given: Json) -> None:
        held = self.holdings
        asked = given["kind"] == "message" and given["message"]["kind"] == "Vote" and given["from"] == held.vote
        self.require(asked, "a vote for who did not ask")
        self.require(given["message"]["term"] == held.term, "a vote in another term than was asked")
        self.require(self._up_to_date(given["message"]), "a vote for a log that is behind")
        self.require(self.may_vote, "a vote of who must not vote")

    def _judge_role(self, before: Moment, given: Json, state: Json) -> None:
        role, leader, held = state["role"], state["leader"], self.holdings
        changed = role != before.role or held.term != before.term
        if role == "candidate" and changed:
            self.require(
                held.vote == self.name and held.term == before.term + 1, "a candidacy begins with a new term"
            )
            told = given["kind"] == "message" and given["message"]["kind"] == "TimeoutNow"
            foreseen = raft.quorum(held.configuration, self.foreseen_last | {self.name})
            self.require(told or foreseen, "a candidate whom no quorum would elect")
            self.stood = (held.last, held.term_at(held.last))
        if role == "pre_candidate" and changed:
            self.require(given["kind"] == "tick", "an election timeout without a tick")
        if role == "pre_candidate" and given["kind"] == "tick":
            self.wondered.add((held.last, held.term_at(held.last)))
            if self.line["left"]["messages"]:
                self.foreseen = set()
        if role in ("pre_candidate", "candidate"):
            self.require(self._has_a_say(), "who has no vote campaigns")
            self.require(self.may_vote, "who must not vote campaigns")
            self.require(leader is None, "a candidate follows a leader")
        if role == "leader":
            self._judge_leader(before, changed, leader)
        if role == "follower":
            self._judge_follower(before, given, leader)
        self.role, self.leader = role, leader

    def _has_a_say(self) -> bool:
        """A voter; or one whose removal is not known to be committed, who may be needed to commit it."""
        *older, (height, current) = self.holdings.configurations
        before = older[-1][1] if older and height > self.commit else current
        return self.name in raft.electorate(current) | raft.electorate(before)

    def _judge_leader(self, before: Moment, changed: bool, leader: str | None) -> None:
        held = self.holdings
        self.require(leader == self.name, "a leader follows another")
        if not changed:
            return
        self.require(before.role == "candidate" and before.term == held.term, "who did not stand leads")
        own = {self.name} if (held.disk_term, held.disk_vote) == (held.term, self.name) else set()
        self.require(raft.quorum(held.configuration, self.granted | own), "a leader without a quorum of votes")
        self.facts.leads(self.line, held.term, self.name)
        self.facts.elected.append((self.line, held.term, {h: b.hash for h, b in held.log.items()}, held.last))

    def _judge_follower(self, before: Moment, given: Json, leader: str | None) -> None:
        same = before.role == "follower" and before.term == self.holdings.term
        if leader is None:
            # Who may not campaign forgets, as an election timeout passes, a leader that it hears no more.
            may_forget = given["kind"] in ("disk_failed", "tick")
            self.require(not same or before.leader is None or may_forget, "a leader is forgotten")
        elif not same or leader != before.leader:
            heard = given["kind"] in ("message", "refuse") and given["message"]["kind"] == "Append"
            self.require(heard and given["from"] == leader, "a leader is followed who was not heard")
            self.require(given["message"]["term"] == self.holdings.term, "a leader of another term is followed")
            self.facts.leads(self.line, self.holdings.term, leader)

    def _judge_log(self, given: Json, state: Json) -> None:
        held = self.holdings
        last, term, block = state["last"]
        self.require(last == held.last, "the log ends elsewhere than was written")
        self.require(held.term_at(last) in (None, term), "the newest block has another term")
        self.require(held.hash_at(last) in (None, block), "the newest block is another")
        self.require(state["durable"] == held.durable(self.told), "what counts as durable is not what the disk holds")
        self.require(state["configuration"] == held.configuration, "the configuration is not that of the log")
        heard = given["kind"] in ("message", "refuse") and given["message"]["kind"] == "Append"
        if heard and given["message"]["term"] == held.term and given["from"] == self.leader:
            self._verify(given["message"])

    def _verify(self, message: Json) -> None:
        """Up to where this Append shows that the log is its leader's."""
        self.round_heard = max(self.round_heard, message["round"])
        held = self.holdings
        height, _, block = message["prev"]
        if height > self.commit and (height > held.last or held.hash_at(height) not in (None, block)):
            return
        for sent in blocks(message["blocks"]):
            if sent.height > held.last or held.hash_at(sent.height) not in (None, sent.hash):
                break
            height = sent.height
        self.verified = max(self.verified, height)

    def _judge_commit(self, committed: list[list[object]], state: Json) -> None:
        held, height = self.holdings, state["commit"]
        self.require(height >= self.commit, "the commit falls")
        if height != self.commit:
            found = self.known.get(height)
            if found is None or height > held.last:
                raise self.forbid("a commit without a certificate")
            self.require(held.hash_at(height) in (None, found.hash), "the commit is of another block than the log's")
            self.see(found)
            self.commit = height
        for value in committed:
            told = certificate(value)
            assert told is not None
            self.see(told)
            self.require(self.told < told.height <= self.commit, "what is told committed is not, or was told before")
            self.require(told.height <= state["durable"], "what is told committed is not on this disk")
            self.require(held.hash_at(told.height) in (None, told.hash), "what is told committed is another block")
            self.told = told.height

    def _judge_reads(self, given: Json, reads: list[tuple[int, int | None]]) -> None:
        """A read shows at least what was committed here when it was asked, by a leader that still led since."""
        for token, height in reads:
            self.require(token in self.tokens, "an answer to what was not asked, or a second one")
            floor, since = self.tokens.pop(token)
            if height is None:
                continue
            self.require(height >= floor, "a read of the past")
            if self.role == "leader":
                self.judge_read(height, since)
            else:
                self.require(given["kind"] == "message", "a follower answers a read by itself")
                self.require(given["message"].get("height") == height, "a read at another height than its leader's")
                self.require(given["from"] == self.leader, "a read answered by who is not the leader")

    def judge_read(self, height: int, since: int) -> None:
        """The leader may answer at `height`, for a question asked after its round `since` had begun."""
        held = self.holdings
        self.require(height <= self.commit, "a read above the commit")
        self.require(held.term_at(self.commit) == held.term, "a read before a block of the term is committed")
        echoed = {peer for peer, round_ in self.echoes.items() if round_ > since} | {self.name}
        self.require(raft.quorum(held.configuration, echoed), "a read without a quorum's word that it still leads")
