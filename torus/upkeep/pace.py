"""Waiting for the budget of a disk's upkeep, and finding out how its clients are."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from torus.clock import Clock
from torus.upkeep.budget import Budget


def nobody_is_slow() -> bool:
    """Say that clients are well."""
    return False


def no_clients() -> None:
    """Say that there are none."""


class Pace:
    """Lets steps go on when the budget allows it."""

    def __init__(
        self,
        budget: Budget,
        clock: Clock,
        clients_slow: Callable[[], bool] = nobody_is_slow,
        clients_hurt: Callable[[], bool | None] = no_clients,
    ) -> None:
        """Both are cheap, and asked at every step; ``clients_hurt``: slower than they are used
        to; None: there are none."""
        self.budget = budget
        self._clock = clock
        self._clients_slow = clients_slow
        self._clients_hurt = clients_hurt

    async def turn(self, count: int, operations: int = 1, *, moving: bool = False) -> None:
        """Return when a step of ``count`` bytes may begin; ``moving``: nothing lacks."""
        now_ns, share = self._clock.monotonic_ns(), 1.0
        if moving:
            share = self.budget.moving.step(now_ns, self._clients_hurt())
        delay_ns = self.budget.delay_ns(now_ns)
        self.budget.spent(count, operations, now_ns, share)
        if delay_ns:
            await asyncio.sleep(delay_ns / 1e9)
        came_ns = self._clock.monotonic_ns()
        await asyncio.sleep(0)  # clients first; how long that takes tells how they are
        now_ns = self._clock.monotonic_ns()
        self.budget.waited(now_ns - came_ns, now_ns, slow=self._clients_slow())


async def side_by_side(parts: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run coroutines side by side; the first error ends them all."""
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
