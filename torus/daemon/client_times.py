"""Whether a node's clients are slow now: the p99 of their requests over a moving window.

Decides which requests count (reads, writes and flushes of NBD clients) and from when on they are
slow.  The histograms only ever grow: the window is the difference between two looks at them.

Implements docs/upkeep.md, "Budget".
"""

from collections import deque
from collections.abc import Callable, Sequence

from torus import limits
from torus._fast.stats import Histogram
from torus.clock import Clock

_LOOKS = 4  # in a window
_REQUESTS_MIN = 20  # fewer say nothing about a p99
_QUANTILE = 0.99

Look = dict[int, int]  # requests by the upper edge of their bucket in nanoseconds


class ClientTimes:
    """Says whether clients are slow; asked at every step of the upkeep, so it looks seldom."""

    def __init__(
        self,
        histograms: Callable[[], Sequence[Histogram]],
        clock: Clock,
        *,
        slow_ns: int = limits.CLIENT_SLOW_US * 1000,
        window_s: float = limits.CLIENT_WINDOW_S,
    ) -> None:
        """``slow_ns``: a p99 above it is slow; ``window_s``: of so long."""
        self._histograms = histograms
        self._clock = clock
        self._slow_ns = slow_ns
        self._step_ns = int(window_s * 1e9 / _LOOKS)
        self._looks: deque[Look] = deque(maxlen=_LOOKS + 1)
        self._next_ns = 0
        self._slow = False

    def slow(self) -> bool:
        """Say whether clients are slow now."""
        now_ns = self._clock.monotonic_ns()
        if now_ns >= self._next_ns:
            if now_ns > self._next_ns + self._step_ns * _LOOKS:
                self._looks.clear()  # nobody asked for so long: what was then does not count
            self._next_ns = now_ns + self._step_ns
            self._looks.append(self._counts())
            self._slow = self.p99_ns() > self._slow_ns
        return self._slow

    def p99_ns(self) -> int:
        """Return an upper bound of the p99 in the window; 0 where too few requests were made."""
        if len(self._looks) < 2:
            return 0
        before, now = self._looks[0], self._looks[-1]
        came = {edge: count - before.get(edge, 0) for edge, count in sorted(now.items())}
        total = sum(came.values())
        if total < _REQUESTS_MIN:
            return 0
        seen = 0
        for edge, count in came.items():
            seen += count
            if seen >= _QUANTILE * total:
                return edge
        return 0

    def _counts(self) -> Look:
        counts: Look = {}
        for histogram in self._histograms():
            for edge, count in histogram.snapshot():
                counts[edge] = counts.get(edge, 0) + count
        return counts
