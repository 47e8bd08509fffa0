"""Whether this node can serve clients, and what it leaves unsaid while it cannot.

| why it is not ready | until                                                                                       |
|---------------------|---------------------------------------------------------------------------------------------|
| stopping            | it ends                                                                                     |
| no leader is known  | it hears one, so there is a majority                                                        |
| catching up         | it has executed to within half of `replicate_gap_blocks` of the newest certificate it knows |
| executing its log   | each block that its log held at the start is executed here, or replaced                     |

The last is of nodes that lost their power. What blocks leave is written behind the answers, so such a node has
executed less than it had acknowledged. The rest is in its log, to be executed again once a certificate covers it. No
block is ever replaced of which something was acknowledged: it is certified, and in the log of every later leader.

That phase ends wherever there is a majority. A leader begins its term with a block of its own above its log. Once
this node has that one, every block that its log held at the start is below it, to be executed when it is certified,
or was replaced.

A node that is not ready knows its state to be old, or cannot know it to be new. What it would refuse by that state
another may take, and itself a moment later: so it says `not_ready` in the place of such a refusal.
"""

from typing import Protocol

from consensus.messages import Certificate
from ledger.errors import Rejection

# Refusals of a submission or a signed read that depend on what this node has executed, what it keeps, or the time.
BY_STATE = frozenset({"expired", "pruned", "revoked", "unregistered", "until_too_far", "wrong_signer"})


def withheld(rejection: Rejection, why: str | None) -> Rejection:
    """The refusal as it may be given; `why` says why the node is not ready, None that it is."""
    if why is None or rejection.code not in BY_STATE:
        return rejection
    return Rejection("not_ready", f"{why}: the state here may be too old to judge this by")


class Log(Protocol):
    """What is asked of the consensus core."""

    @property
    def leader(self) -> str | None: ...
    @property
    def known_certificate(self) -> Certificate | None: ...
    def term_hash(self, height: int) -> tuple[int, bytes] | None: ...


class Executed(Protocol):
    """What is asked of the store."""

    @property
    def executed_height(self) -> int: ...


class Readiness:
    """Made at the start, when the log ends at `last_height`. More than `behind_blocks` to execute is catching up."""

    def __init__(self, log: Log, executed: Executed, last_height: int, *, behind_blocks: int) -> None:
        self.stopping = False
        self._log = log
        self._executed = executed
        self._behind_blocks = behind_blocks
        # (height, hash) of the blocks of that log, ascending, but for those known to be executed or replaced.
        self._held: list[tuple[int, bytes]] = []
        for height in range(executed.executed_height + 1, last_height + 1):
            found = log.term_hash(height)
            assert found is not None, "the log reaches to its end"
            self._held.append((height, found[1]))

    def why_not(self) -> str | None:
        """None when clients can be served, else why not."""
        if self.stopping:
            return "stopping"
        if self._log.leader is None:
            return "no leader is known"
        # A node that has to catch up from peers would answer about the past.
        known = self._log.known_certificate
        if known is not None and known.height - self._executed.executed_height > self._behind_blocks:
            return "catching up"
        if self._executing_log():
            return "executing its log"
        return None

    def _executing_log(self) -> bool:
        """Whether a block that the log held at the start is there still, and not executed."""
        while self._held:
            height, block_hash = self._held[-1]
            if height > self._executed.executed_height:
                found = self._log.term_hash(height)
                if found is not None and found[1] == block_hash:
                    return True
            self._held.pop()
        return False
