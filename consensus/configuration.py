"""Who votes at which height: quorums, and the configuration as a function of the log prefix.

A change of voters is joint consensus (Ongaro, section 4.3), one voter at a time:

    height   .. 40   41 c               42 .. 44        45 p
    voters   1 2 3   joint: 1 2 3 4     joint           1 2 3 4      45 carries the certificate of 44
                     and 1 2 3
"""

from collections.abc import Collection, Iterable

from consensus.errors import InvariantViolation, require
from consensus.messages import Configuration, NodeId


def quorum(voters: int) -> int:
    """How many of `voters` elect a leader or certify a block: a majority. The only place that says so."""
    return voters // 2 + 1


def has_quorum(configuration: Configuration, members: Collection[NodeId]) -> bool:
    """Whether `members` hold a quorum: of the voters, and while joint of the old voters too.

    Counts voters of the configuration, never the members given.
    """
    sides = (configuration.voters, configuration.old_voters) if configuration.joint else (configuration.voters,)
    return all(sum(voter in members for voter in side) >= quorum(len(side)) for side in sides)


def can_block(configuration: Configuration, refusers: Collection[NodeId]) -> bool:
    """Whether no quorum is left without `refusers`."""
    return not has_quorum(configuration, [voter for voter in configuration.electorate if voter not in refusers])


def joint_step(before: Configuration, target: Configuration) -> Configuration:
    """What the first block of the change from `before` to `target` brings: joint where the voters differ."""
    old_voters = before.voters if before.voters != target.voters else ()
    return Configuration(target.voters, target.learners, old_voters)


def after_joint(joint: Configuration) -> Configuration:
    return Configuration(joint.voters, joint.learners)


def is_one_step(before: Configuration, after: Configuration) -> bool:
    """Whether a block may bring `after` where `before` was in effect.

    | before    | after                                                              |
    |-----------|--------------------------------------------------------------------|
    | joint     | its voters and learners alone                                      |
    | not joint | one learner more or fewer                                          |
    | not joint | joint with the voters before: one fewer, or one more, a learner so far |
    """
    if before.joint:
        return after == after_joint(before)
    if not after.voters or not _well_formed(after):
        return False
    if after.voters == before.voters:
        return not after.joint and len({*before.learners} ^ {*after.learners}) == 1
    moved = {*before.voters} ^ {*after.voters}
    promoted = {*after.voters} - {*before.voters}
    return (
        after.old_voters == before.voters
        and len(moved) == 1
        and promoted <= {*before.learners}
        and after.learners == tuple(learner for learner in before.learners if learner not in promoted)
    )


def _well_formed(configuration: Configuration) -> bool:
    ascending = all(tuple(sorted(set(nodes))) == nodes for nodes in (configuration.voters, configuration.learners))
    return ascending and not {*configuration.learners} & {*configuration.electorate}


class ConfigurationHistory:
    """The configurations along the log, each in effect from the height that appended it.

    Invariant: heights ascend strictly, one is at or below the log's base, so that every height from there on has an
    answer, and each is one step from the one before it. Bounded by the changes above the base.
    """

    def __init__(self, history: Iterable[tuple[int, Configuration]], base_height: int) -> None:
        self._history = list(history)
        heights = [height for height, _ in self._history]
        require(heights == sorted(set(heights)), "configuration heights ascend")
        require(bool(heights) and heights[0] <= base_height, "a configuration is in effect at the log's base")
        steps = zip(self._history, self._history[1:], strict=False)
        require(
            all(is_one_step(one, two) for (_, one), (_, two) in steps), "a configuration is one step from the last"
        )

    @property
    def current(self) -> Configuration:
        return self._history[-1][1]

    @property
    def newest_height(self) -> int:
        """Where the current configuration was appended."""
        return self._history[-1][0]

    @property
    def previous(self) -> Configuration:
        """The one before the current; the current one where none is known before it."""
        return self._history[-2 if len(self._history) > 1 else -1][1]

    @property
    def all(self) -> tuple[tuple[int, Configuration], ...]:
        """(height, configuration) pairs, ascending; the first is in effect at the log's base."""
        return tuple(self._history)

    def at(self, height: int) -> Configuration:
        """The configuration in effect at `height`, which must not be below the first one kept."""
        for start, configuration in reversed(self._history):
            if start <= height:
                return configuration
        raise InvariantViolation(f"no configuration is known at height {height}")

    def append(self, height: int, configuration: Configuration) -> None:
        require(height > self._history[-1][0], "a configuration is appended above the newest")
        require(is_one_step(self.current, configuration), "a configuration is one step from the last")
        self._history.append((height, configuration))

    def truncate_from(self, height: int) -> None:
        """Forget what blocks at `height` and above brought: a configuration goes with its block."""
        while len(self._history) > 1 and self._history[-1][0] >= height:
            self._history.pop()
        require(self._history[-1][0] < height, "truncation leaves a configuration")

    def compact(self, base_height: int) -> None:
        """Forget what was replaced at or below the new base."""
        while len(self._history) > 1 and self._history[1][0] <= base_height:
            del self._history[0]
