"""What time it is: the only door to the machine's clocks."""

import time
from typing import Protocol


class Clock(Protocol):
    """A source of time that tests and the simulator replace."""

    def monotonic_ns(self) -> int:
        """Return nanoseconds that never go back; only differences mean anything."""

    def wall_ns(self) -> int:
        """Return nanoseconds since 1970 UTC; may jump, so safety never rests on it."""


class SystemClock:
    """The machine's own clocks."""

    def monotonic_ns(self) -> int:
        """Return ``CLOCK_MONOTONIC``."""
        return time.monotonic_ns()

    def wall_ns(self) -> int:
        """Return ``CLOCK_REALTIME``."""
        return time.time_ns()
