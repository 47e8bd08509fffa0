"""One mutant of the core, or of what keeps its promises on the disk."""

from dataclasses import dataclass

SIMULATOR = "simulator"


@dataclass(frozen=True)
class Mutant:
    """`old` stands exactly once in `file`, as a test sees to; a neighbouring line is quoted only to tell two apart.

    `killer`: the scenario that must fail, or SIMULATOR. `assertions`: whether the core's own ones stay on.
    `room`: where `file` is.
    """

    id: str
    hazard: str
    file: str
    old: str
    new: str
    killer: str
    assertions: bool = False
    room: str = "consensus"
