"""An event loop in virtual time for many simulated processes at once, all chosen by a seed.

A callback belongs to the process whose context it was made in: what a process starts, timers and
tasks alike, is its own.  So a process can be stopped like by SIGSTOP or ended like by SIGKILL:
its callbacks wait, or never run again.  Callbacks of one process run in the order in which
asyncio promises; which process goes next is chance.

Time stands still while callbacks run, and jumps to the next timer when there are none.  The loop
opens no socket: connections go through ``network`` (torus.testing.simnet).
"""

import asyncio
import contextlib
import contextvars
import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from torus.clock import Clock

if TYPE_CHECKING:
    from torus.testing.simnet import SimNetwork

PROCESS: contextvars.ContextVar["SimProcess"] = contextvars.ContextVar("sim_process")
_TURN_S = 2e-6  # what one turn of one process takes at least: nobody is infinitely fast
_TURNS_WITHOUT_TIME_MAX = 200_000
WALL_NS = 1_700_000_000_000_000_000


class Stuck(AssertionError):
    """Nothing is left that could happen, or a process spins without waiting."""


class SimProcess:
    """One process: ``kill`` it once, ``pause`` it as often as you like."""

    def __init__(self, loop: "SimLoop", name: str, machine: str) -> None:
        self.loop = loop
        self.name = name
        self.machine = machine  # processes of one machine lose power together
        self.alive = True
        self.resumes_s = 0.0
        self.ready: deque[asyncio.Handle] = deque()
        self.tasks: list[asyncio.Task[Any]] = []
        self._prune_at = 64
        self.on_kill: list[Callable[[bool], None]] = []
        self.context = contextvars.copy_context()
        self.context.run(PROCESS.set, self)

    @property
    def paused(self) -> bool:
        """True while its callbacks wait."""
        return self.resumes_s > self.loop._now_s

    def may_run(self) -> bool:
        """Say whether its callbacks are run now."""
        return self.alive and self.resumes_s <= self.loop._now_s

    def run(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        """Start a task of this process."""
        task: asyncio.Task[Any] = self.loop.create_task(work, context=self.context.copy())
        return task

    def call_at(self, when_s: float, callback: Callable[..., object], *arguments: object) -> None:
        """Call back in this process, unless it is dead by then."""
        self.loop.call_at(when_s, callback, *arguments, context=self.context)

    def call_soon(self, callback: Callable[..., object], *arguments: object) -> None:
        """Call back in this process in its next turn, unless it is dead by then."""
        self.loop.call_soon(callback, *arguments, context=self.context)

    def pause(self, seconds: float) -> None:
        """Stop it, as SIGSTOP does; its kernel goes on."""
        self.resumes_s = max(self.resumes_s, self.loop.time() + seconds)
        self.loop.wake_at(self.resumes_s, self)

    def resume(self) -> None:
        """Let it go on now."""
        self.resumes_s = 0.0
        self.loop.wake_at(self.loop.time(), self)

    def kill(self, *, power: bool = False) -> None:
        """End it at once; nothing of it runs any more.  ``power``: the machine is gone too, and
        tells nobody."""
        if not self.alive:
            return
        self.alive = False
        self.ready.clear()
        for callback in self.on_kill:
            callback(power)

    def keep(self, task: "asyncio.Task[Any]") -> None:
        """Hold a task: a dead process's tasks must not be collected while others run."""
        if len(self.tasks) >= self._prune_at:
            self.tasks = [one for one in self.tasks if not one.done()]
            self._prune_at = 2 * len(self.tasks) + 64
        self.tasks.append(task)


class SimLoop(asyncio.BaseEventLoop):
    """The loop.  Everything that happens in it depends on ``rng`` alone."""

    _stopping: bool  # asyncio's own

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self.rng = rng
        self.network: SimNetwork | None = None
        self._now_s = 0.0
        self._timers: list[tuple[float, int, asyncio.Handle | SimProcess]] = []
        self._count = itertools.count()
        self._runnable: list[SimProcess] = []
        self._turns_at_now = 0
        self.turns = 0
        self.errors: list[str] = []
        self.processes: list[SimProcess] = []
        self.outside = self.process("outside", "outside")
        self.set_exception_handler(_on_error)

    def process(self, name: str, machine: str) -> SimProcess:
        """Return a new process."""
        process = SimProcess(self, name, machine)
        self.processes.append(process)
        return process

    def time(self) -> float:
        """Return virtual seconds since the loop was made."""
        return self._now_s

    # --- callbacks ----------------------------------------------------------------------

    def _call_soon(
        self,
        callback: Callable[..., object],
        args: tuple[object, ...],
        context: contextvars.Context | None,
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._enqueue(handle)
        return handle

    def _owner(self, handle: asyncio.Handle) -> SimProcess:
        return handle._context.get(PROCESS, self.outside)  # type: ignore[attr-defined,no-any-return]

    def _enqueue(self, handle: asyncio.Handle) -> None:
        process = self._owner(handle)
        if not process.alive:
            return
        if not process.ready:
            self._runnable.append(process)
        process.ready.append(handle)

    def call_at(
        self,
        when: float,
        callback: Callable[..., object],
        *args: object,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        """Call ``callback`` at virtual time ``when``."""
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self._count), timer))
        return timer

    def wake_at(self, when_s: float, process: SimProcess) -> None:
        """Look at ``process`` again at that time: its pause ends."""
        heapq.heappush(self._timers, (when_s, next(self._count), process))

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        return

    def _run_once(self) -> None:
        if not self._runnable and not self._stopping:
            self._sleep()
        while self._timers and self._timers[0][0] <= self._now_s:
            _, _, due = heapq.heappop(self._timers)
            if isinstance(due, SimProcess):
                if due.alive and due.ready and due not in self._runnable:
                    self._runnable.append(due)
            elif not due.cancelled():
                self._enqueue(due)
        if self._runnable:
            self._turn()

    def _sleep(self) -> None:
        while self._timers:
            when_s, _, due = self._timers[0]
            if isinstance(due, asyncio.Handle) and due.cancelled():
                heapq.heappop(self._timers)
                continue
            if when_s > self._now_s:
                self._now_s = when_s
                self._turns_at_now = 0
            return
        raise Stuck("nothing is left that could happen")

    def _turn(self) -> None:
        """Let one process run what is ready there, as one turn of its own loop does."""
        place = self.rng.randrange(len(self._runnable)) if len(self._runnable) > 1 else 0
        process = self._runnable.pop(place)
        if not process.may_run():
            return  # `wake_at` brings it back
        self.turns += 1
        self._turns_at_now += 1
        if self._turns_at_now > _TURNS_WITHOUT_TIME_MAX:
            raise Stuck(f"process {process.name} spins")
        self._now_s += _TURN_S
        ready, now_s = process.ready, self._now_s
        for _ in range(len(ready)):
            if not ready:
                break  # it died
            handle = ready.popleft()
            if not handle.cancelled():
                handle._run()
            if process.resumes_s > now_s:
                break
        if ready and process.may_run() and process not in self._runnable:
            self._runnable.append(process)

    def _process_events(self, event_list: object) -> None:
        return

    def _write_to_self(self) -> None:
        return

    # --- what asyncio asks of a loop ----------------------------------------------------

    def create_task(self, coro: Any, *, name: Any = None, context: Any = None) -> Any:
        """Start a task of the process that asks."""
        task = super().create_task(coro, name=name, context=context)
        found = context if context is not None else contextvars.copy_context()
        found.get(PROCESS, self.outside).keep(task)
        return task

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Any, *args: Any
    ) -> Any:
        """Run ``func`` in this thread a little later."""
        future = self.create_future()

        def run() -> None:
            if future.done():
                return
            try:
                future.set_result(func(*args))
            except Exception as exc:  # noqa: BLE001 - whatever the call raises is the caller's
                future.set_exception(exc)

        self.call_later(self.rng.expovariate(5_000), run)
        return future

    async def getaddrinfo(self, host: Any, port: Any, **_: Any) -> Any:
        """Names are addresses here."""
        return [(0, 0, 0, "", (host, port))]

    def _net(self) -> "SimNetwork":
        assert self.network is not None, "this loop has no network"
        return self.network

    async def create_connection(
        self, protocol_factory: Any, host: Any = None, port: Any = None, **_: Any
    ) -> Any:
        """Connect over the simulated network."""
        return await self._net().connect(f"{host}:{port}", protocol_factory)

    async def create_unix_connection(
        self, protocol_factory: Any, path: Any = None, **_: Any
    ) -> Any:
        """Connect over the simulated network."""
        return await self._net().connect(f"unix:{path}", protocol_factory)

    async def create_server(
        self, protocol_factory: Any, host: Any = None, port: Any = None, **_: Any
    ) -> Any:
        """Listen on the simulated network."""
        return self._net().listen(f"{host}:{port}", protocol_factory)

    async def create_unix_server(self, protocol_factory: Any, path: Any = None, **_: Any) -> Any:
        """Listen on the simulated network."""
        return self._net().listen(f"unix:{path}", protocol_factory)

    async def shutdown_default_executor(self, timeout: Any = None) -> None:
        """There is none."""

    def close(self) -> None:
        """End every task that is left without letting it run on; idempotent."""
        if self.is_closed():
            return
        for process in self.processes:
            process.alive = False
            for task in process.tasks:
                if not task.done():
                    task._log_destroy_pending = False  # type: ignore[attr-defined]
                    with contextlib.suppress(RuntimeError):  # it wants to wait even now
                        task.get_coro().close()
            process.tasks.clear()
        super().close()


class SimClock:
    """The clocks of one process; the time of day may jump."""

    def __init__(self, loop: SimLoop, wall_ns: int = WALL_NS) -> None:
        self._loop = loop
        self.wall_offset_ns = wall_ns

    def monotonic_ns(self) -> int:
        """Return virtual nanoseconds."""
        return int(self._loop.time() * 1e9)

    def wall_ns(self) -> int:
        """Return the time of day as this machine has it."""
        return self.wall_offset_ns + self.monotonic_ns()


def this_process() -> SimProcess:
    """Return the process that the caller runs in."""
    return PROCESS.get()


def _on_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    assert isinstance(loop, SimLoop)
    error = context.get("exception")
    loop.errors.append(f"{context.get('message')}: {error!r}")


_CLOCK: type[Clock] = SimClock
