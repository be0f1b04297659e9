"""Long operations that another process asked this one for: they go on while it looks.

Decides how many there may be, which exclude each other, and how long an outcome is kept.  A
task belongs to this process, not to who asked for it: it goes on when the asker is gone, and
ends early only when it is cancelled or the process stops.  It ends where it reports how far it
is, never in the middle of a step: a swap of a head that is neither known to have happened nor
known not to would cost the volume.  What a task does is the caller's.

Implements docs/protocol.md, "Tasks".
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from torus import limits
from torus.clock import Clock
from torus.errors import Busy, Interrupted, NotFound, ShuttingDown, TorusError
from torus.log import get_logger

log = get_logger("torus.tasks")

Report = Callable[[int, int], None]
"""Called with (done, total), usually bytes; cheap, may be called often.

Raises: ShuttingDown when the task is to end here.
"""
Work = Callable[[Report], Awaitable[dict[str, Any]]]
"""Does the work and returns what becomes ``result``.  Raises: TorusError."""


@dataclass(slots=True)
class _Progress:
    done: int = 0
    total: int = 0
    cancelled: str = ""  # why

    def report(self, done: int, total: int) -> None:
        self.done, self.total = done, total
        if self.cancelled:
            raise ShuttingDown(self.cancelled)


@dataclass(slots=True)
class _Task:
    number: int
    kind: str
    volume: str
    progress: _Progress
    running: asyncio.Task[dict[str, Any]]
    ended_ns: int | None = None

    def state(self) -> dict[str, Any]:
        """Return the JSON form of docs/protocol.md."""
        state: dict[str, Any] = {
            "id": self.number,
            "task": self.kind,
            "volume": self.volume,
            "done": self.progress.done,
            "total": self.progress.total,
        }
        if not self.running.done():
            return {**state, "state": "running"}
        error = _error_of(self)
        if error is None:
            return {**state, "state": "done", "result": self.running.result()}
        body = {"code": error.code, "message": error.message, "hint": error.hint}
        return {**state, "state": "failed", "error": body}


class Tasks:
    """The long operations of one process."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._tasks: dict[int, _Task] = {}
        self._numbers = 0
        self._stopped = False

    def start(self, kind: str, volume: str, work: Work, *, alone: bool = True) -> int:
        """Begin ``work`` and return its number; ``alone``: one of that kind for a volume.

        Raises: Busy when such a task runs already or there are too many, ShuttingDown.
        """
        if self._stopped:
            raise ShuttingDown("this process is stopping")
        self._forget_old()
        running = [one for one in self._tasks.values() if one.ended_ns is None]
        for one in running:
            if alone and (one.kind, one.volume) == (kind, volume):
                raise Busy(
                    f"a {kind} of volume {volume!r} is running already, as task {one.number}",
                    hint="wait for its end",
                )
        if len(running) >= limits.TASKS_MAX:
            raise Busy(
                f"{len(running)} tasks are running already, no more are taken", hint="try again"
            )
        self._numbers += 1
        number = self._numbers
        progress = _Progress()
        running_task = asyncio.get_running_loop().create_task(_do(work, progress.report))
        self._tasks[number] = _Task(number, kind, volume, progress, running_task)
        running_task.add_done_callback(lambda _ended: self._on_end(number))
        return number

    async def state(self, number: int, wait_s: float = 0.0) -> dict[str, Any]:
        """Return how far a task is; waits for its end at most ``wait_s`` seconds.

        Raises: NotFound for one that never was, or ended too long ago.
        """
        found = self._find(number)
        if wait_s > 0 and not found.running.done():
            await asyncio.wait([found.running], timeout=min(wait_s, limits.CONTROL_WAIT_S_MAX))
        return found.state()

    def cancel(self, number: int) -> None:
        """Ask a task to end where it reports next.  Raises: NotFound."""
        found = self._find(number)
        found.progress.cancelled = f"the {found.kind} of volume {found.volume!r} was cancelled"

    async def end_all_of(self, volume: str, *, but: asyncio.Task[Any] | None) -> None:
        """End all tasks of one volume except ``but``, and wait until they have ended."""
        await self._end(
            [
                one
                for one in self._tasks.values()
                if one.volume == volume and not one.running.done() and one.running is not but
            ],
            "the volume is taken away",
        )

    async def stop(self) -> None:
        """End what runs and wait for that; idempotent."""
        self._stopped = True
        running = [one for one in self._tasks.values() if not one.running.done()]
        await self._end(running, "this process is stopping")

    async def _end(self, tasks: list[_Task], why: str) -> None:
        """End tasks where they report next; one that does not report is cut off in the end."""
        if not tasks:
            return
        for one in tasks:
            one.progress.cancelled = why
        _, late = await asyncio.wait([one.running for one in tasks], timeout=limits.TASK_END_S)
        for running in late:
            running.cancel()
        if late:
            await asyncio.wait(late)

    def _find(self, number: int) -> _Task:
        self._forget_old()
        found = self._tasks.get(number)
        if found is None:
            raise NotFound(f"this process has no task {number}: it ended, or the process did")
        return found

    def _on_end(self, number: int) -> None:
        task = self._tasks[number]
        task.ended_ns = self._clock.monotonic_ns()
        error = _error_of(task)
        if error is None:
            log.info("task.done", task=task.kind, volume=task.volume)
            return
        crash = None if task.running.cancelled() else task.running.exception()
        if crash is error or crash is None:
            log.info("task.failed", task=task.kind, volume=task.volume, error=str(error))
        else:
            log.error("task.crashed", task=task.kind, volume=task.volume, exception=crash)

    def _forget_old(self) -> None:
        ended = [one for one in self._tasks.values() if one.ended_ns is not None]
        oldest_ns = self._clock.monotonic_ns() - int(limits.TASK_KEPT_S * 1e9)
        surplus = max(len(ended) - limits.TASKS_KEPT_MAX, 0)
        for index, one in enumerate(ended):
            if index < surplus or (one.ended_ns or 0) < oldest_ns:
                del self._tasks[one.number]


async def _do(work: Work, report: Report) -> dict[str, Any]:
    return await work(report)


def _error_of(task: _Task) -> TorusError | None:
    """Return why a task that ended failed; a bug in it is told as one."""
    if task.running.cancelled():
        return Interrupted(f"the {task.kind} of volume {task.volume!r} was cancelled")
    error = task.running.exception()
    if error is None or isinstance(error, TorusError):
        return error
    return TorusError(f"the {task.kind} failed: {type(error).__name__}: {error}")
