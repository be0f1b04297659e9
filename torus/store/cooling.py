"""Freed slots on their way back to the file system.

Decides how long a freed slot is kept as it is: one that is reused soon needs no new blocks,
no metadata in its flushes, and its pages are still cached.  One that stays free is punched.
"""

import asyncio
import errno
from collections.abc import Callable, Sequence

from torus.clock import Clock
from torus.log import get_logger
from torus.store.disk import Disk
from torus.store.pool import Pool
from torus.store.space import Space

log = get_logger("torus.store")


class Cooling:
    """The free slots of one disk that still hold blocks of the file system."""

    def __init__(
        self,
        space: Space,
        disk: Disk,
        pool: Pool,
        clock: Clock,
        delay_s: float | None,
        on_failure: Callable[[OSError], None],
    ) -> None:
        """``delay_s`` None: slots are never punched."""
        self._space = space
        self._disk = disk
        self._pool = pool
        self._clock = clock
        self._delay_s = delay_s
        self._on_failure = on_failure
        self._punching: set[asyncio.Future[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, addresses: Sequence[int]) -> None:
        """Free used slots; they may be taken again at once."""
        now_ns = self._clock.monotonic_ns()
        for address in addresses:
            self._space.release_warm(address, now_ns)
        self._later()

    async def close(self, *, punch: bool) -> None:
        """Punch what is left, if wanted, and wait for it; idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if punch and self._delay_s is not None:
            self._delay_s = 0.0
            self._cool()
        self._delay_s = None
        if self._punching:
            await asyncio.wait(self._punching)

    def _later(self) -> None:
        if self._delay_s is None or self._timer is not None or not self._space.warm:
            return
        self._timer = asyncio.get_running_loop().call_later(self._delay_s, self._cool)

    def _cool(self) -> None:
        self._timer = None
        if self._delay_s is None:
            return
        addresses = self._space.cool(self._clock.monotonic_ns() - int(self._delay_s * 1e9))
        if addresses:
            punching = self._pool.submit(self._punch, addresses)
            self._punching.add(punching)
            punching.add_done_callback(lambda future: self._cooled(future, addresses))
        self._later()

    def _punch(self, addresses: Sequence[int]) -> None:
        for address in addresses:
            self._disk.punch(address, self._space.slot_bytes)

    def _cooled(self, future: asyncio.Future[None], addresses: Sequence[int]) -> None:
        self._punching.discard(future)
        error = future.exception()
        if isinstance(error, OSError):
            if error.errno in (errno.EOPNOTSUPP, errno.ENOSYS):
                self._delay_s = None
                log.info("store.punch.unsupported")
            else:
                self._on_failure(error)
        elif error is not None:
            raise error
        for address in addresses:
            self._space.add_cooled(address)
