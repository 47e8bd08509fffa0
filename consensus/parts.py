"""What every role works with: the log, the commit, what goes out, this node's signature, and the settings."""

from dataclasses import dataclass

from consensus.answers import Answers
from consensus.caution import Caution
from consensus.commit import Acknowledger, Commit
from consensus.log import Log
from consensus.outbox import Outbox
from consensus.ports import CoreSettings, Signer


@dataclass(frozen=True, slots=True)
class Parts:
    """Outlives every role; a role is made anew whenever this node takes it."""

    settings: CoreSettings
    log: Log
    commit: Commit
    outbox: Outbox
    answers: Answers
    caution: Caution
    acknowledger: Acknowledger
    signer: Signer

    @property
    def term(self) -> int:
        return self.log.writes.hard_state.term
