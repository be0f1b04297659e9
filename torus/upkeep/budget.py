"""How fast a disk's upkeep may go beside clients.  Pure: a budget of bytes and of operations.

Decides that the rate is halved while clients are slow, doubles again while they are not, and
never gets to nothing: a copy that is missing may be the last but one.  That is decided a few
times a second, not at every step: steps run side by side, and on a busy machine a turn of the
event loop is late now and then whatever is done here.  What has all its copies and merely moves
has more time: it begins slowly, and gives way as soon as clients feel it.  Implements
docs/upkeep.md, "Budget".
"""

from torus import limits

_SHARE_MIN = 1 / 16
_OPERATIONS_SHARE_MIN = 1 / 4  # questions cost clients little, and copies wait for them
_LOOK_NS = 250_000_000  # between two looks at how steps waited, at least
_DOUBLE_NS = 1_000_000_000  # in which the share doubles, and what one look may count at most
_LATE_SHARE = 1 / 8  # of the steps since the last look: more that were late say "slow"
MOVING_SHARE_MIN = 1 / 16
_MOVING_RAISE_NS = 3_000_000_000  # in which the share of what moves doubles
_MOVING_HOLD_NS = 2_000_000_000  # after it was halved: until clients can have felt that
_MOVING_IDLE_NS = 10_000_000_000  # without a step: it begins anew


class MovingShare:
    """The share of the rate for what moves with all its copies elsewhere.

    Clients tell a second or two late that they feel it: so it rises slowly, and is halved once
    for what they say within that time.
    """

    def __init__(self) -> None:
        self._share = MOVING_SHARE_MIN
        self._step_ns: int | None = None  # when the last step was
        self._held_ns = 0  # until then it neither rises nor falls
        self._alone = True  # no clients: it begins at the least when they come

    def step(self, now_ns: int, hurt: bool | None) -> float:
        """Return the share for a step; ``hurt``: clients are slower than they are used to; None:
        there are none."""
        passed_ns = 0 if self._step_ns is None else now_ns - self._step_ns
        self._step_ns = now_ns
        if hurt is None or passed_ns > _MOVING_IDLE_NS:
            self._share = MOVING_SHARE_MIN
        elif now_ns < self._held_ns:
            pass
        elif hurt:
            self._share = max(MOVING_SHARE_MIN, self._share / 2)
            self._held_ns = now_ns + _MOVING_HOLD_NS
        else:
            self._share = min(1.0, self._share * 2.0 ** (passed_ns / _MOVING_RAISE_NS))
        self._alone = hurt is None
        return 1.0 if self._alone else self._share

    def now(self, now_ns: int) -> float:
        """Return the share that is in use; 0.0 while nothing moves."""
        if self._step_ns is None or now_ns - self._step_ns > _MOVING_HOLD_NS:
            return 0.0
        return 1.0 if self._alone else self._share


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
        self._look_ns: int | None = None  # when the last look was
        self._turns = self._late = 0  # steps since then, and those of them that were late
        self._late_ns = -1  # until when the last late turn of the event loop went
        self._slow = False  # somebody said so since then
        self.share = 1.0  # of the rate that is used now
        self.moving = MovingShare()

    def delay_ns(self, now_ns: int) -> int:
        """Return how long the next step has to wait."""
        return max(0, self._next_ns - now_ns)

    def spent(self, count: int, operations: int, now_ns: int, share: float = 1.0) -> None:
        """Note a step of ``count`` bytes and so many operations; ``share``: at most of the rate."""
        bytes_ns = count * 1e9 / (self.rate_bytes * min(self.share, share))
        share = max(min(self.share, share), _OPERATIONS_SHARE_MIN)
        operations_ns = operations * 1e9 / (self._operations * share)
        self._next_ns = max(self._next_ns, now_ns) + int(max(bytes_ns, operations_ns))

    def waited(self, waited_ns: int, now_ns: int, *, slow: bool = False) -> None:
        """Note how long a step waited for its turn; ``slow``: somebody says that clients are."""
        self._slow |= slow
        if now_ns - waited_ns >= self._late_ns:  # else it waited for a turn that was counted
            self._turns += 1
            if waited_ns > self._slow_ns:
                self._late += 1
                self._late_ns = now_ns
        passed_ns = _DOUBLE_NS if self._look_ns is None else now_ns - self._look_ns
        if passed_ns < _LOOK_NS:
            return
        if self._slow or self._late > self._turns * _LATE_SHARE:
            self.share = max(_SHARE_MIN, self.share / 2)
        else:
            passed_ns = min(passed_ns, _DOUBLE_NS)
            self.share = min(1.0, self.share * 2.0 ** (passed_ns / _DOUBLE_NS))
        self._look_ns = now_ns
        self._turns = self._late = 0
        self._slow = False
