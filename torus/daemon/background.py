"""What runs beside everything else, from `start` to `close`."""

import asyncio
from abc import ABC, abstractmethod

from torus.log import get_logger

log = get_logger("torus.background")


class Background(ABC):
    """A task of its own; made and used on one event loop.

    An error of the program ends it, not the process: the log says so at once.
    """

    def __init__(self) -> None:
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.get_running_loop().create_task(self._run())
        self._task.add_done_callback(self._ended)

    async def close(self) -> None:
        """End it; idempotent."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])

    @abstractmethod
    async def _run(self) -> None:
        """Run until it is cancelled."""

    def _ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log.error("background.crashed", task=type(self).__name__, exception=error)
