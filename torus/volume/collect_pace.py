"""How fast collection may go beside clients.  Pure: a budget of bytes, told the time.

Clients are slow when a step of the collection had to wait for its turn in the write queue, or
when the process is so busy that it came late: both are one measured time.  Then the budget is
halved, step by step; it comes back slowly.  It never gets to nothing: what waits to be freed
may be what slows the clients down.
"""

from torus import limits

_SHARE_MIN = 1 / 64
_RECOVER = 1.05


class Pacer:
    """The budget of one volume's background collection."""

    def __init__(self, rate_bytes: int, slow_ns: int = limits.GC_SLOW_US * 1000) -> None:
        """``rate_bytes``: per second, when nobody is slowed down; more than 0."""
        self._rate_bytes = rate_bytes
        self._slow_ns = slow_ns
        self._next_ns = 0
        self.share = 1.0  # of the rate that is used now

    def delay_ns(self, now_ns: int) -> int:
        """Return how long the next step has to wait."""
        return max(0, self._next_ns - now_ns)

    def moved(self, count: int, waited_ns: int, now_ns: int) -> None:
        """Note a step that moved ``count`` bytes and waited so long for its turn."""
        if waited_ns > self._slow_ns:
            self.share = max(_SHARE_MIN, self.share / 2)
        else:
            self.share = min(1.0, self.share * _RECOVER)
        spent_ns = int(count * 1e9 / (self._rate_bytes * self.share))
        self._next_ns = max(self._next_ns, now_ns) + spent_ns
