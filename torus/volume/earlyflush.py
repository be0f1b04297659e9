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

    def __init__(self, core: Core) -> None:
        self._core = core
        self._task: asyncio.Task[None] | None = None

    def consider(self) -> None:
        """Start a flush when enough was appended since the last; cheap."""
        journal = self._core.journal
        if (
            journal.appended_bytes - journal.sync_begun_bytes >= limits.EARLY_FLUSH_BYTES
            and self._task is None
            and self._core.failure is None
        ):
            self._task = asyncio.ensure_future(journal.sync())
            self._task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if task.cancelled() or (error := task.exception()) is None:
            return
        if not isinstance(error, TorusError):
            error = LocalProtocolError(f"a background flush failed: {error!r}")
        self._core.fail(error)

    async def stop(self) -> None:
        """Wait for the flush under way; idempotent."""
        if self._task is not None:
            await asyncio.wait([self._task])
