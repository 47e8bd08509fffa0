"""Each message that a node sent: may a node that holds what this one holds send it?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.tracecheck import raft
from tests.tracecheck.lines import Json, blocks, certificate

if TYPE_CHECKING:
    from tests.tracecheck.member import Member, Moment


def judge(member: Member, before: Moment, receiver: str, message: Json) -> None:
    """Raises Forbidden."""
    kind, held = message["kind"], member.holdings
    if kind == "PreVote":
        _pre_vote(member, message)
        return
    if not (kind == "PreVoteReply" and message["granted"]):
        member.require(message["term"] <= held.disk_term, "a term is spoken of before it is durable")
    _JUDGES[kind](member, before, receiver, message)


def _pre_vote(member: Member, message: Json) -> None:
    member.require(message["term"] == member.holdings.disk_term + 1, "a pre-vote for another than the next term")
    own = member.wondered
    claim = (message["last_height"], message["last_term"])
    member.require(
        claim in own or (claim[0], None) in own, "a pre-vote with another log than it thought of standing with"
    )


def _vote(member: Member, before: Moment, receiver: str, message: Json) -> None:
    held = member.holdings
    # Its disk may have answered only after it gave up: then it asks in vain.
    durable = (held.disk_term, held.disk_vote) == (message["term"], member.name)
    member.require(durable, "a candidate's vote is not durable")
    member.facts.votes_for(member.line, member.name, message["term"], member.name)
    height, term = member.stood
    member.require(message["last_height"] == height, "a candidate claims another log than it stood with")
    member.require(term in (None, message["last_term"]), "a candidate claims another term than it stood with")
    voters = raft.members(held.configuration)
    member.require(receiver in voters, "a vote is asked of a stranger")


def _vote_reply(member: Member, before: Moment, receiver: str, message: Json) -> None:
    held = member.holdings
    member.require((receiver, message["term"]) in member.asked or not message["granted"], "a vote nobody asked for")
    if message["granted"]:
        durable = (held.disk_term, held.disk_vote) == (message["term"], receiver)
        member.require(durable, "a vote that the disk does not hold")
        member.facts.votes_for(member.line, member.name, message["term"], receiver)


def _pre_vote_reply(member: Member, before: Moment, receiver: str, message: Json) -> None:
    if not message["granted"]:
        return
    key = receiver, message["term"]
    member.require(member.asked.get(key, False), "a pre-vote that nobody asked for, or for a log that is behind")
    member.require(message["term"] > member.holdings.disk_term, "a pre-vote for a term that has begun")
    member.require(member.may_vote, "a pre-vote of who must not vote")
    member.require("leader" not in (before.role, member.role), "a leader would elect another")


def _append(member: Member, before: Moment, receiver: str, message: Json) -> None:
    held = member.holdings
    member.require("leader" in (before.role, member.role), "who does not lead sends blocks")
    member.require(message["term"] == held.disk_term, "a leader speaks of another term")
    height, term, block = message["prev"]
    member.require(height <= held.last, "a leader names a block above its log")
    member.require(held.hash_at(height) in (None, block), "a leader names a block that is not its own")
    member.require(held.term_at(height) in (None, term), "a leader names another term than its block's")
    for sent in blocks(message["blocks"]):
        own = held.log.get(sent.height)
        member.require(sent.height == height + 1, "a leader leaves out a block")
        member.require(sent.height <= held.last, "a leader sends a block it does not have")
        member.require(own is None or own == sent, "a leader sends another block than its own")
        height = sent.height
    found = certificate(message["certificate"])
    if found is not None:
        member.require(found.height <= member.commit, "a leader sends a certificate above its commit")
        member.see(found)
    member.round_sent = max(member.round_sent, message["round"])


def _leads(member: Member, receiver: str, message: Json) -> bool:
    """What waited for the disk may leave after its leader was given up as silent."""
    return receiver == (member.leader or member.facts.leaders.get(message["term"]))


def _append_reply(member: Member, before: Moment, receiver: str, message: Json) -> None:
    held = member.holdings
    member.require(message["term"] == held.disk_term, "an answer in another term")
    member.require(message["round"] <= member.round_heard, "an echo of a round that was not heard")
    member.require(member.may_vote or not message["binding"], "an answer of who must not vote claims to bind")
    if message["answer"] == "conflict":
        if message["rejected"]:
            member.require(message["height"] < message["rejected"], "a conflict points upwards")
            known = held.term_at(message["height"])
            member.require(known in (None, message["hint"]), "a conflict hints at a wrong term")
        return
    member.require(_leads(member, receiver, message), "blocks are answered for to who does not lead")
    if message["answer"] == "refused":
        return
    verified = max(member.verified, member.commit)
    member.require(message["height"] <= verified, "more is accepted than was verified")
    member.require(message["height"] <= held.durable(member.told), "more is accepted than is durable")
    for height, block in message["acknowledges"]:
        member.require(height <= message["height"], "an acknowledgement above what is accepted")
        member.require(held.hash_at(height) == block, "an acknowledgement of another block")
        member.require(held.term_at(height) == held.disk_term, "an acknowledgement of an older block")
        voters = raft.electorate(held.configuration_at(height))
        member.require(member.name in voters and member.may_vote, "an acknowledgement of who has no vote")
        member.facts.signs(member.line, member.name, held.disk_term, height, block)


def _timeout_now(member: Member, before: Moment, receiver: str, message: Json) -> None:
    held = member.holdings
    member.require("leader" in (before.role, member.role), "who does not lead hands over")
    member.require(receiver in held.configuration["voters"], "leadership is handed to who has no vote")
    removed = member.name not in raft.electorate(held.configuration)
    holds_all = member.matched.get(receiver, 0) == held.last
    member.require(removed or holds_all, "leadership is handed to who lacks blocks")
    member.require(receiver not in member.stopping, "leadership is handed to who is stopping")


def _read_index(member: Member, before: Moment, receiver: str, message: Json) -> None:
    member.require(_leads(member, receiver, message), "a read is asked of who does not lead")


def _read_index_reply(member: Member, before: Moment, receiver: str, message: Json) -> None:
    key = receiver, message["request"]
    member.require(key in member.requests, "a read is answered that nobody asked for")
    term, floor, since = member.requests[key]
    if message["height"] is not None:
        member.require(term == message["term"], "a read is answered that another leader was asked for")
        member.require("leader" in (before.role, member.role), "who does not lead answers a read")
        member.require(message["height"] >= floor, "a read of the past")
        member.judge_read(message["height"], since)


_JUDGES = {
    "Vote": _vote,
    "VoteReply": _vote_reply,
    "PreVoteReply": _pre_vote_reply,
    "Append": _append,
    "AppendReply": _append_reply,
    "TimeoutNow": _timeout_now,
    "ReadIndex": _read_index,
    "ReadIndexReply": _read_index_reply,
}
