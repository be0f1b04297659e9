"""Whether clients feel what moves in the cluster: their p99 beside what it was while nothing did.

Decides what is usual: the median of the last looks in which nothing moved, or as little as can.
What is usual changes with the load, so it is forgotten within a minute; then clients count as
hurt until it is known again, which makes that little.  Pure.  Implements docs/upkeep.md, "Clients
that feel it".
"""

import statistics
from collections import deque
from collections.abc import Sequence

from torus import limits
from torus.upkeep.budget import MOVING_SHARE_MIN

_LOOKS = 30
_LOOKS_MIN = 4
_MEMORY_NS = 60 * 1_000_000_000
_HURT = 1.5  # times what is usual
_FLOOR_NS = limits.CLIENT_FEELS_US * 1000


class Usual:
    """What requests of one kind are used to."""

    def __init__(self) -> None:
        self._calm: deque[tuple[int, float]] = deque(maxlen=_LOOKS)

    def look(self, now_ns: int, p99_ns: float, share: float) -> bool:
        """Note a p99, and at which share of its rate the fastest disk moved something; say
        whether that is too slow."""
        while self._calm and now_ns - self._calm[0][0] > _MEMORY_NS:
            self._calm.popleft()
        if share <= MOVING_SHARE_MIN:
            self._calm.append((now_ns, p99_ns))
        if len(self._calm) < _LOOKS_MIN:
            return share > 0.0
        usual_ns = statistics.median(p99 for _, p99 in self._calm)
        return p99_ns > max(_HURT * usual_ns, _FLOOR_NS)


class Feeling:
    """What the clients of one process feel."""

    def __init__(self, kinds: int) -> None:
        """``kinds`` of requests, judged one by one: a flush takes longer than a read."""
        self._usual = [Usual() for _ in range(kinds)]

    def look(self, now_ns: int, p99s_ns: Sequence[float | None], share: float) -> bool | None:
        """Say whether some kind of request is too slow; None: there are too few of all kinds.

        ``p99s_ns``: None for a kind of which there were too few.
        """
        if all(p99_ns is None for p99_ns in p99s_ns):
            return None
        found = [
            usual.look(now_ns, p99_ns, share)
            for usual, p99_ns in zip(self._usual, p99s_ns, strict=True)
            if p99_ns is not None
        ]
        return any(found)
