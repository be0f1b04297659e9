"""The flush that nobody asked for: bounds how much of a log is not on disk yet.

Decides when the writer flushes by itself (design section 4, "Append").  The disk then works
while data come in, and the flush that a client asks for at the end finds little left to do.
"""

import asyncio

from torus import limits
from torus.errors import LocalProtocolError, TorusError
from torus.volume.core import Core


class EarlyFlush:
    """Flushes one volume's log in the background, one flush at a time."""

    def __init__(self, core: Core, after_s: float | None = None) -> None:
        """``after_s``: what was appended so long ago is flushed, however little it is; None: it
        may wait for ever."""
        self._core = core
        self._after_s = after_s
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._marked_bytes = 0  # of the log, that were there when the timer was set
        self._stopped = False

    def consider(self) -> None:
        """Start a flush when enough was appended since the last, and see to it that one comes
        for what is left; cheap."""
        journal = self._core.journal
        waiting = journal.appended_bytes - journal.sync_begun_bytes
        if waiting >= limits.EARLY_FLUSH_BYTES:
            self._flush()
        elif waiting and self._timer is None and self._after_s is not None and not self._stopped:
            self._marked_bytes = journal.appended_bytes
            self._timer = asyncio.get_running_loop().call_later(self._after_s, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if self._core.journal.sync_begun_bytes < self._marked_bytes:
            self._flush()
        else:  # a client's flush was first; what came since has its own time
            self.consider()

    def _flush(self) -> None:
        if self._task is None and self._core.failure is None and not self._stopped:
            self._task = asyncio.ensure_future(self._core.journal.sync())
            self._task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if task.cancelled():
            return
        if (error := task.exception()) is None:
            self.consider()
            return
        if not isinstance(error, TorusError):
            error = LocalProtocolError(f"a background flush failed: {error!r}")
        self._core.fail(error)

    async def stop(self) -> None:
        """Begin no more, and wait for the flush under way; idempotent."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._task is not None:
            await asyncio.wait([self._task])
