"""`carequorum events`: what happens on the ledger, line by line, as it happens."""

import asyncio
import json
from collections.abc import Mapping
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from carequorum.cli.options import AsJson, MemberOptions, parse_hex, shared_options
from carequorum.cli.output import USAGE, CommandError
from carequorum.events import Event
from carequorum.wallet import Wallet
from ledger.events import CONTRACTS, EventId, parse_event_id

TRANSACTION_DIGITS = 16


@shared_options
def run(
    from_: Annotated[
        int | None, typer.Option("--from", min=1, metavar="HEIGHT", help="Begin at this block; by default, now.")
    ] = None,
    after: Annotated[
        str | None, typer.Option("--after", metavar="ID", help="Go on after the event of this id instead.")
    ] = None,
    contract: Annotated[
        str | None, typer.Option("--contract", metavar="NAME", help=f"Only of {' or '.join(sorted(CONTRACTS))}.")
    ] = None,
    subject: Annotated[
        str | None, typer.Option("--subject", metavar="HEX", help="Only about this handle; signed by the wallet.")
    ] = None,
    member: Annotated[
        str | None, typer.Option("--member", metavar="HEX", help="Only signed by this account, or changing it.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, metavar="N", help="End after so many; by default, never.")
    ] = None,
    *,
    options: MemberOptions,
    as_json: AsJson = False,
) -> None:
    """Show what takes effect, and what fails, as it is committed. With --json, one document a line.

    A node's word. When one ends, another goes on with it: nothing is left out, nothing comes twice.
    """
    if contract is not None and contract not in CONTRACTS:
        raise CommandError(f"--contract is {' or '.join(sorted(CONTRACTS))}, not {contract[:80]!r}", USAGE)
    if from_ is not None and after is not None:
        raise CommandError("--from or --after, not both", USAGE)
    last = None if after is None else parse_event_id(after)
    handle = None if subject is None else parse_hex(subject, 32, "--subject")
    account = None if member is None else parse_hex(member, 32, "--member")
    found = options.access()
    reader = found.open_wallet() if handle is not None else None

    async def follow(reader: Wallet | None, last: EventId | None) -> None:
        shown = 0
        async with found.client(reader) as client:
            wanted = client.events(from_, after=last, contract=contract, subject=handle, member=account)
            async with aclosing(wanted) as events:
                async for event in events:
                    print(json.dumps(_document(event)) if as_json else _line(event), flush=True)
                    shown += 1
                    if shown == limit:
                        return

    asyncio.run(follow(reader, last))


def _line(event: Event) -> str:
    fields = [str(event.id), _time(event), event.code, f"by={event.by.hex()[:TRANSACTION_DIGITS]}"]
    for action in event.actions:
        fields.append(action["do"])
        fields += _facts(action)
    return " ".join(fields)


def _facts(action: Mapping[str, Any], within: str = "") -> list[str]:
    """name=value; of a value that is a map of its own, outer.inner=value."""
    facts: list[str] = []
    for name, value in action.items():
        if isinstance(value, Mapping):
            facts += _facts(value, f"{within}{name}.")
        elif within or name != "do":
            facts.append(f"{within}{name}={value}")
    return facts


def _document(event: Event) -> dict[str, object]:
    return {
        "id": str(event.id),
        "height": event.id.height,
        "time": _time(event),
        "transaction": event.transaction.hex(),
        "by": event.by.hex(),
        "code": event.code,
        "accounts": [account.hex() for account in event.accounts],
        "actions": list(event.actions),
        "bodies": [{"commitment": body.commitment.hex(), "size": body.size} for body in event.bodies],
    }


def _time(event: Event) -> str:
    return datetime.fromtimestamp(event.time / 1000, UTC).isoformat(timespec="milliseconds")
