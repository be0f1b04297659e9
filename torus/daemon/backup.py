"""What exporting and importing backup streams share: the report and the handling of tasks."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torus.errors import TorusError
from torus.format.diffstream import StreamHeader

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class BackupReport:
    """The result of an export or an import of a stream."""

    header: StreamHeader
    frames: int
    data_bytes: int
    zero_bytes: int
    seconds: float
    resumed_at: int = 0  # where in the volume an export went on
    present: bool = False  # the target of an import had the snapshot already
    made: bool = False  # the import made the volume


async def all_of(work: Sequence[Coroutine[Any, Any, _T]]) -> list[_T]:
    """Return what all of it returns; when one fails the others are ended first."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def in_thread(work: Callable[..., _T], *arguments: Any) -> _T:
    """Return what blocking work returns, done beside the event loop."""
    return await asyncio.get_running_loop().run_in_executor(None, work, *arguments)


def add_hint(error: TorusError, hint: str) -> None:
    """Say one thing more that can be done."""
    error.hint = "; ".join(filter(None, (error.hint, hint))) or None
