"""Answers to this node's own reads, on their way to the shell."""

from collections.abc import Iterable

from consensus.messages import ReadState

READS_MAX = 1024


class Answers:
    """Answers to this node's own reads, on their way to the shell. Outlives every role.

    Invariant: every token given to `opened` comes out of `take` exactly once; at most READS_MAX are open.
    """

    def __init__(self) -> None:
        self._open = 0
        self._answered: list[ReadState] = []

    @property
    def pending(self) -> bool:
        return bool(self._answered)

    def opened(self, token: int) -> bool:
        """Whether the read may wait; if not, it is answered None."""
        if self._open >= READS_MAX:
            self._answered.append(ReadState(token, None))
            return False
        self._open += 1
        return True

    def refuse(self, token: int) -> None:
        """The answer to a read that was never opened: there is nobody to ask."""
        self._answered.append(ReadState(token, None))

    def answer(self, tokens: Iterable[int], height: int | None) -> None:
        states = [ReadState(token, height) for token in tokens]
        self._open -= len(states)
        self._answered += states

    def take(self) -> tuple[ReadState, ...]:
        taken = tuple(self._answered)
        self._answered.clear()
        return taken
