"""A clock that stands still until a test moves it."""


class ManualClock:
    """A `torus.clock.Clock` whose two times move only by `advance`."""

    def __init__(self, wall_ns: int = 1_700_000_000_000_000_000) -> None:
        self._monotonic_ns = 0
        self._wall_ns = wall_ns

    def monotonic_ns(self) -> int:
        """Return the time since the clock was made."""
        return self._monotonic_ns

    def wall_ns(self) -> int:
        """Return the time of day."""
        return self._wall_ns

    def advance(self, nanoseconds: int) -> None:
        """Let time go by."""
        self._monotonic_ns += nanoseconds
        self._wall_ns += nanoseconds
