"""One module a contract; this table is the one place where an action's name meets its rules.

A contract module shows its state, its actions and its rules as a table at the top. Its actions are msgspec
Structs tagged by the name that the wire carries under "do"; its handlers take a `Context` and the action,
read and write state through the context, and raise Rejection(code) to fail the whole transaction.
"""

from collections.abc import Callable
from typing import Any

from ledger.contracts import identity, network, records
from ledger.contracts.context import Context

Action = (
    identity.Register
    | identity.Rotate
    | identity.Revoke
    | network.Propose
    | network.Vote
    | records.Add
    | records.Amend
)

# What runs an action, by the class that the wire decoded to.
HANDLERS: dict[type[Any], Callable[[Context, Any], None]] = {
    identity.Register: identity.register,
    identity.Rotate: identity.rotate,
    identity.Revoke: identity.revoke,
    network.Propose: network.propose,
    network.Vote: network.vote,
    records.Add: records.add,
    records.Amend: records.amend,
}

ACTION_NAMES = frozenset(str(kind.__struct_config__.tag) for kind in HANDLERS)
