"""Group commit: one fdatasync at a time for each segment file, shared by all who wait.

Decides only when a sync starts: at once when none runs for that file, otherwise right after
the running one, which is never joined, because it may have begun before the caller's write.
"""

import asyncio
from collections.abc import Callable

from torus.clock import Clock
from torus.errors import ShuttingDown


class GroupCommit:
    """The syncs of one disk, by segment."""

    def __init__(
        self,
        start: Callable[[int], asyncio.Future[None]],
        outcome: Callable[[OSError | None], Exception | None],
        clock: Clock,
    ) -> None:
        """``start(segment)`` begins a sync of the segment's file; ``outcome`` says what its
        error, or its success, means to those who wait."""
        self._begin = start
        self._outcome = outcome
        self._clock = clock
        self._running: dict[int, asyncio.Future[None]] = {}
        self._waiting: dict[int, list[asyncio.Future[None]]] = {}
        self.syncs = 0
        self.requests = 0
        self.observe: Callable[[int], None] = lambda _ns: None

    def request(self, segment: int) -> asyncio.Future[None]:
        """Return a future that resolves once a sync that begins after now has ended.

        The future is the caller's own: cancelling it stops nothing.
        """
        self.requests += 1
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.get(segment)
        if waiting is not None:
            waiting.append(future)
            return future
        self._waiting[segment] = [future]
        if segment not in self._running:
            self._start(segment)
        return future

    def _start(self, segment: int) -> None:
        waiting = self._waiting.pop(segment)
        self.syncs += 1
        began = self._clock.monotonic_ns()
        running = self._begin(segment)
        self._running[segment] = running

        def done(ended: asyncio.Future[None]) -> None:
            del self._running[segment]
            self.observe(self._clock.monotonic_ns() - began)
            error = ShuttingDown("the disk was closed") if ended.cancelled() else ended.exception()
            if error is None or isinstance(error, OSError):
                error = self._outcome(error)
            for future in waiting:
                if future.done():
                    continue
                if error is None:
                    future.set_result(None)
                else:
                    future.set_exception(error)
            if segment in self._waiting:
                self._start(segment)

        running.add_done_callback(done)
