"""Election timeouts: pseudo-random, so that nodes rarely campaign together, and a function of the seed alone."""

from consensus.messages import NodeId

_MASK = 2**64 - 1


class Timeouts:
    """SplitMix64 (Steele, Lea and Flood, 2014) over a seed and the node id, so that equal seeds differ by node."""

    def __init__(self, seed: int, node_id: NodeId, ticks_min: int, ticks_max: int) -> None:
        self._ticks_min = ticks_min
        self._span = ticks_max - ticks_min + 1
        self._state = seed & _MASK
        for byte in node_id.encode():
            self._state = self._state ^ byte
            self._state = self._next()

    def _next(self) -> int:
        self._state = (self._state + 0x9E3779B97F4A7C15) & _MASK
        mixed = self._state
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
        return mixed ^ (mixed >> 31)

    def draw_ticks(self) -> int:
        """The next timeout, both ends of the range included."""
        return self._ticks_min + self._next() % self._span
