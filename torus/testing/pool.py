"""A pool for simulations: calls take some turns of the event loop, chosen by a seed.

A sync covers what was written before it began, and nothing that came while it ran: the least
that fdatasync promises.
"""

import asyncio
import random
from collections.abc import Callable
from typing import Any, TypeVar

from torus.errors import TorusError
from torus.testing.simdisk import SimDisk

Result = TypeVar("Result")
_TURNS_MAX = 4


class SimPool:
    """A `torus.store.pool.Pool` without threads."""

    def __init__(self, disk: SimDisk, rng: random.Random) -> None:
        self._disk = disk
        self._rng = rng

    def submit(self, call: Callable[..., Result], *arguments: Any) -> asyncio.Future[Result]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        began = len(self._disk.history)
        turns = self._rng.randint(0, _TURNS_MAX)

        def turn() -> None:
            nonlocal turns
            if turns:
                turns -= 1
                loop.call_soon(turn)
                return
            carry_out(self._disk, began, future, call, arguments)

        loop.call_soon(turn)
        return future

    def close(self) -> None:
        return


def carry_out(
    disk: SimDisk,
    began: int,
    future: asyncio.Future[Result],
    call: Callable[..., Result],
    arguments: tuple[Any, ...],
) -> None:
    """Make a submitted call; a sync in it covers ``began`` events of the disk's history."""
    disk.sync_before = began
    try:
        result = call(*arguments)
    except (OSError, RuntimeError, TorusError, ValueError) as exc:
        if not future.done():
            future.set_exception(exc)
    else:
        if not future.done():
            future.set_result(result)
    finally:
        disk.sync_before = None
