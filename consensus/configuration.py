"""Who votes at which height: quorums, and the configuration as a function of the log prefix."""

from collections.abc import Collection, Iterable

from consensus.errors import InvariantViolation, require
from consensus.messages import Configuration, NodeId


def quorum(voters: int) -> int:
    """How many of `voters` elect a leader or certify a block: a majority. The only place that says so."""
    return voters // 2 + 1


def has_quorum(configuration: Configuration, members: Collection[NodeId]) -> bool:
    """Whether `members` hold a quorum. Counts voters of the configuration, never the members given."""
    return sum(voter in members for voter in configuration.voters) >= quorum(len(configuration.voters))


class ConfigurationHistory:
    """The configurations along the log, each in effect from the height that appended it.

    Invariant: heights ascend strictly, and one is at or below the log's base, so that every height has an answer.
    """

    def __init__(self, history: Iterable[tuple[int, Configuration]], base_height: int) -> None:
        self._history = list(history)
        heights = [height for height, _ in self._history]
        require(heights == sorted(set(heights)), "configuration heights ascend")
        require(bool(heights) and heights[0] <= base_height, "a configuration is in effect at the log's base")

    @property
    def current(self) -> Configuration:
        return self._history[-1][1]

    def at(self, height: int) -> Configuration:
        """The configuration in effect at `height`, which must not be below the first one kept."""
        for start, configuration in reversed(self._history):
            if start <= height:
                return configuration
        raise InvariantViolation(f"no configuration is known at height {height}")

    def append(self, height: int, configuration: Configuration) -> None:
        require(height > self._history[-1][0], "a configuration is appended above the newest")
        self._history.append((height, configuration))

    def truncate_from(self, height: int) -> None:
        """Forget what blocks at `height` and above brought: a configuration goes with its block."""
        while len(self._history) > 1 and self._history[-1][0] >= height:
            self._history.pop()
        require(self._history[-1][0] < height, "truncation leaves a configuration")
