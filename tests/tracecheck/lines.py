"""Trace lines, as plain JSON values with a little shape."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Json = dict[str, Any]


class Forbidden(Exception):  # noqa: N818 - a verdict on a trace, not an error of the checker
    """A line says what Raft forbids."""

    def __init__(self, line: Json, rule: str) -> None:
        super().__init__(f"{line.get('node')}, line {line.get('line')}: {rule}")
        self.rule = rule


@dataclass(frozen=True)
class Block:
    height: int
    term: int
    parent: str
    hash: str
    configuration: Json | None


@dataclass(frozen=True)
class Certificate:
    term: int
    height: int
    hash: str
    signers: tuple[str, ...]


def block(value: list[Any]) -> Block:
    return Block(*value)


def blocks(values: list[list[Any]]) -> list[Block]:
    return [block(value) for value in values]


def certificate(value: list[Any] | None) -> Certificate | None:
    return None if value is None else Certificate(value[0], value[1], value[2], tuple(value[3]))


def read(paths: Iterable[Path]) -> list[Json]:
    """All lines of one node's files, the oldest file first. A torn last line is left out: power may fail."""
    lines: list[Json] = []
    for path in paths:
        raw = path.read_bytes().split(b"\n")
        whole, torn = raw[:-1], raw[-1]
        lines.extend(json.loads(text) for text in whole)
        if torn:
            try:
                lines.append(json.loads(torn))
            except ValueError:
                continue
    return lines


def from_start(lines: list[Json]) -> tuple[list[Json], bool]:
    """The lines from the first start on, and whether that is all of them."""
    for position, line in enumerate(lines):
        if line["input"]["kind"] == "start":
            return lines[position:], position == 0 and line["line"] == 1
    return [], False
