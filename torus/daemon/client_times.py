"""The p99 of clients' requests over a moving window, and whether they are slow by any standard.

Decides how a p99 is read off histograms that only ever grow: the window is the difference
between two looks at them.  Implements docs/upkeep.md, "Budget".
"""

from collections import deque
from collections.abc import Callable, Sequence

from torus import limits
from torus._fast.stats import Histogram
from torus.clock import Clock
from torus.gateway.counters import GatewayStats

_LOOKS = 4  # in a window
_QUANTILE = 0.99

Look = dict[int, int]  # requests by the upper edge of their bucket in nanoseconds


class Window:
    """The requests that some histograms counted in the last looks at them."""

    def __init__(self, looks: int) -> None:
        self._looks: deque[Look] = deque(maxlen=looks + 1)

    def look(self, histograms: Sequence[Histogram]) -> None:
        """Move on."""
        counts: Look = {}
        for histogram in histograms:
            for edge, count in histogram.snapshot():
                counts[edge] = counts.get(edge, 0) + count
        self._looks.append(counts)

    def clear(self) -> None:
        """Forget everything."""
        self._looks.clear()

    def p99_ns(self) -> float | None:
        """Return the p99, as if a bucket's requests lay evenly between its edges; None where
        there were fewer than `limits.CLIENT_REQUESTS_MIN`."""
        if len(self._looks) < 2:
            return None
        before, now = self._looks[0], self._looks[-1]
        came = [(edge, count - before.get(edge, 0)) for edge, count in sorted(now.items())]
        total = sum(count for _, count in came)
        if total < limits.CLIENT_REQUESTS_MIN:
            return None
        wanted, below_ns = _QUANTILE * total, 0
        for edge_ns, count in came:
            if count >= wanted:
                return below_ns + (edge_ns - below_ns) * wanted / count
            wanted -= count
            below_ns = edge_ns
        return float(below_ns)


def client_histograms(counters: GatewayStats) -> list[Histogram]:
    """Return how long the reads, writes and flushes of a server's clients took."""
    commands = counters.by_name()
    return [commands[name].latency for name in ("read", "write", "flush")]


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
        self._window = Window(_LOOKS)
        self._next_ns = 0
        self._slow = False

    def slow(self) -> bool:
        """Say whether clients are slow now."""
        now_ns = self._clock.monotonic_ns()
        if now_ns >= self._next_ns:
            if now_ns > self._next_ns + self._step_ns * _LOOKS:
                self._window.clear()  # nobody asked for so long: what was then does not count
            self._next_ns = now_ns + self._step_ns
            self._window.look(self._histograms())
            p99_ns = self._window.p99_ns()
            self._slow = p99_ns is not None and p99_ns > self._slow_ns
        return self._slow
