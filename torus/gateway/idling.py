"""What a connection gives back when its client is quiet.

Decides after how long a receive buffer shrinks and freed memory returns to the system.
"""

import asyncio

from torus._fast.frame import RequestBatch
from torus._fast.reply import return_memory
from torus.limits import KIB

IDLE_S = 5.0
IDLE_BUFFER_BYTES = 64 * KIB


class Idling:
    """Watches one connection; ``touch`` is called for every batch and costs two attributes."""

    __slots__ = ("_active", "_batch", "_loop", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, batch: RequestBatch) -> None:
        self._loop = loop
        self._batch = batch
        self._active = False
        self._timer: asyncio.TimerHandle | None = None

    def touch(self) -> None:
        """Something came."""
        self._active = True
        if self._timer is None:
            self._timer = self._loop.call_later(IDLE_S, self._on_time)

    def cancel(self) -> None:
        """Watch no longer; idempotent."""
        if self._timer is not None:
            self._timer.cancel()

    def _on_time(self) -> None:
        self._timer = None
        if self._active:
            self._active = False
        else:
            return_memory()
            if self._batch.relax() <= IDLE_BUFFER_BYTES:
                return
        self._timer = self._loop.call_later(IDLE_S, self._on_time)
