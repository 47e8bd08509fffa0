"""Quorums and configurations as the dissertation has them (Ongaro, chapter 4), and their joint form (section 4.3)."""

from collections.abc import Collection

from tests.tracecheck.lines import Json


def majority(members: Collection[str], of: Collection[str]) -> bool:
    return 2 * len(set(members) & set(of)) > len(set(of))


def quorum(configuration: Json, members: Collection[str]) -> bool:
    """A majority of the voters, and while joint one of the old voters too."""
    old = configuration["old_voters"]
    return majority(members, configuration["voters"]) and (not old or majority(members, old))


def electorate(configuration: Json) -> set[str]:
    return {*configuration["voters"], *configuration["old_voters"]}


def members(configuration: Json) -> set[str]:
    return electorate(configuration) | set(configuration["learners"])


def why_not_after(before: Json, after: Json) -> str:
    """Why `after` may not follow `before` in a log; empty if it may."""
    old, new = set(before["voters"]), set(after["voters"])
    if after["old_voters"]:
        if before["old_voters"]:
            return "one joint configuration follows on another"
        if set(after["old_voters"]) != old:
            return "the old voters of a joint configuration are not the voters before"
        if not new - old <= set(before["learners"]):
            return "who was no learner becomes a voter"
        return "" if len(old ^ new) == 1 else "a joint configuration changes more than one voter"
    if before["old_voters"]:
        return "" if old == new else "what leaves a joint configuration changes the voters"
    return "" if old == new else "the voters change without a joint configuration"
