"""What a check finds: each problem by height, record and file."""

from dataclasses import dataclass, field

from storage.port import StorageFailure

# Further problems are only counted: one damaged block can be the cause of very many.
PROBLEMS_MAX = 100


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong, with which record ("" where a whole file is), its height and its file, where they are known."""

    height: int | None
    record: str
    fault: str
    file: str | None = None

    def __str__(self) -> str:
        known = [] if self.height is None else [f"height {self.height}"]
        known += [self.record] if self.record else []
        known += [f"file {self.file}"] if self.file else []
        return ", ".join(known) + f": {self.fault}"


@dataclass(slots=True)
class CheckReport:
    """What was read, and what is wrong. `unreferenced_bodies` came with blocks that never became final: no
    fault.

    Of a folder also: the bytes of its files, all of them verified; `files_unread`, of which nothing reads a
    byte; and `cut_off`, the bytes at the end of a log that a crash left unfinished, which is no fault either.
    `opened` is False where damage kept the records from being read at all.
    """

    last_height: int = 0
    executed_height: int = 0
    transactions: int = 0
    bodies: int = 0
    unreferenced_bodies: int = 0
    opened: bool = True
    files_read: int = 0
    file_bytes: int = 0
    files_unread: list[str] = field(default_factory=list)
    cut_off: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    problems_beyond: int = 0

    @property
    def ok(self) -> bool:
        return not self.problems

    def add(self, problem: Problem) -> None:
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(problem)
        else:
            self.problems_beyond += 1


class DamageError(StorageFailure):
    """The store must not be used. `problem` is the first of `count`."""

    def __init__(self, problem: Problem, count: int) -> None:
        more = f" (and {count - 1} more: `carequorum check` lists them)" if count > 1 else ""
        super().__init__(f"{problem}{more}")
        self.problem = problem
        self.count = count
