"""How fast a disk's upkeep may go beside clients.  Pure: a budget of bytes and of operations.

Decides that the rate is halved with every step that finds clients slow, comes back slowly, and
never gets to nothing: a copy that is missing may be the last but one.  Implements
docs/upkeep.md, "Budget".
"""

from torus import limits

_SHARE_MIN = 1 / 16
_OPERATIONS_SHARE_MIN = 1 / 4  # questions cost clients little, and copies wait for them
_RECOVER = 1.05


class Budget:
    """The budget of one disk.  Times are monotonic nanoseconds."""

    def __init__(
        self,
        rate_bytes: int = limits.REPAIR_RATE_BYTES_DEFAULT,
        operations: int = limits.REPAIR_OPERATIONS,
        slow_ns: int = limits.REPAIR_SLOW_US * 1000,
    ) -> None:
        """``rate_bytes`` and ``operations``: per second, when nobody is slowed down."""
        self.rate_bytes = rate_bytes
        self._operations = operations
        self._slow_ns = slow_ns
        self._next_ns = 0
        self.share = 1.0  # of the rate that is used now

    def delay_ns(self, now_ns: int) -> int:
        """Return how long the next step has to wait."""
        return max(0, self._next_ns - now_ns)

    def spent(self, count: int, operations: int, now_ns: int) -> None:
        """Note a step of ``count`` bytes and so many operations."""
        bytes_ns = count * 1e9 / (self.rate_bytes * self.share)
        share = max(self.share, _OPERATIONS_SHARE_MIN)
        operations_ns = operations * 1e9 / (self._operations * share)
        self._next_ns = max(self._next_ns, now_ns) + int(max(bytes_ns, operations_ns))

    def waited(self, waited_ns: int, *, slow: bool = False) -> None:
        """Note how long a step waited for its turn; ``slow``: somebody says that clients are."""
        if slow or waited_ns > self._slow_ns:
            self.share = max(_SHARE_MIN, self.share / 2)
        else:
            self.share = min(1.0, self.share * _RECOVER)
