"""Handing leadership on (Ongaro, section 3.10): the leader proposes nothing until the target holds its whole log.

propose stops -> target's match == last height -> TimeoutNow -> Vote(transfer) -> this node follows
       '-> not led by another after election_ticks_max: proposals go on
"""

from collections.abc import Iterable
from dataclasses import dataclass

from consensus.messages import Configuration, NodeId
from consensus.progress import FollowerView


@dataclass(slots=True)
class Transfer:
    """One attempt. `told`: TimeoutNow left since the last heartbeat."""

    target: NodeId
    deadline: int
    told: bool = False


def may_succeed(view: FollowerView, configuration: Configuration, silent_ticks_max: int) -> bool:
    """Whether leadership may go to that follower: a voter that may vote, heard lately, and not about to stop."""
    return view.node_id in configuration.voters and view.counts(silent_ticks_max)


def best_successor(
    followers: Iterable[FollowerView], configuration: Configuration, silent_ticks_max: int
) -> NodeId | None:
    """Of those that may succeed the one that holds most; of equals the one heard last, then the first by name."""
    eligible = [view for view in followers if may_succeed(view, configuration, silent_ticks_max)]
    eligible.sort(key=lambda view: (-view.match, view.silent_ticks, view.node_id))
    return eligible[0].node_id if eligible else None
