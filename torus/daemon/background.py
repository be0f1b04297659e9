"""What runs beside everything else, from `start` to `close`."""

import asyncio
from abc import ABC, abstractmethod


class Background(ABC):
    """A task of its own; made and used on one event loop."""

    def __init__(self) -> None:
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """End it; idempotent."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])

    @abstractmethod
    async def _run(self) -> None:
        """Run until it is cancelled."""
