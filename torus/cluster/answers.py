"""Questions to many disks at once: who answered, who failed, who was silent."""

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

from torus.errors import Fenced, TimedOut, TorusError

T = TypeVar("T")


async def ask_all(
    jobs: Mapping[str, Coroutine[Any, Any, T]],
    silence_s: float,
    *,
    enough: int = 0,
    grace_s: float = 0.0,
) -> dict[str, T | TorusError]:
    """Run a job for each disk and return what came of each; who takes longer than ``silence_s``
    is given up with TimedOut.

    With ``enough``, the others have only ``grace_s`` more once so many have answered.

    Raises: Fenced when any disk says so; what is no TorusError.
    """
    tasks = {asyncio.ensure_future(job): disk for disk, job in jobs.items()}
    try:
        await _wait(tasks, silence_s, enough, grace_s)
        found: dict[str, T | TorusError] = {}
        for task, disk in tasks.items():
            if not task.done():
                found[disk] = TimedOut(f"disk {disk} did not answer in {silence_s:g} s")
            elif (error := task.exception()) is None:
                found[disk] = task.result()
            elif isinstance(error, TorusError) and not isinstance(error, Fenced):
                found[disk] = error
        for task in tasks:
            if task.done() and (error := task.exception()) is not None:
                if isinstance(error, Fenced) or not isinstance(error, TorusError):
                    raise error
        return found
    finally:
        await cancel(*tasks)


async def _wait(
    tasks: Mapping[asyncio.Task[T], str], silence_s: float, enough: int, grace_s: float
) -> None:
    loop = asyncio.get_running_loop()
    give_up_s = loop.time() + silence_s
    pending = set(tasks)
    answered = 0
    while pending:
        began_s = loop.time()
        wait_s = max(give_up_s - began_s, 0.0)
        when = asyncio.FIRST_COMPLETED if enough else asyncio.ALL_COMPLETED
        done, pending = await asyncio.wait(pending, timeout=wait_s, return_when=when)
        now_s = loop.time()
        answered += sum(1 for task in done if not task.cancelled() and task.exception() is None)
        if enough and answered >= enough:
            give_up_s, enough = min(give_up_s, now_s + grace_s), 0
        elif pending and now_s >= give_up_s:
            if now_s - began_s < wait_s + 0.5 * silence_s:
                return
            give_up_s = now_s + silence_s  # it was this process that was asleep


async def cancel(*tasks: asyncio.Future[Any]) -> None:
    """Cancel what is not done, and wait until it is."""
    left = [task for task in tasks if not task.done()]
    for task in left:
        task.cancel()
    if left:
        await asyncio.wait(left)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # seen


def ready(result: T) -> asyncio.Future[T]:
    """Return a future that is done: an answer that needed no question."""
    future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    future.set_result(result)
    return future


def seen(answer: asyncio.Future[Any]) -> None:
    """Take note of an error that nobody may be there to hear: a callback of a future."""
    if not answer.cancelled():
        answer.exception()
