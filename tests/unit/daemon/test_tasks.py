"""Long operations of a process: they go on alone, exclude each other, end where they report."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from torus import limits
from torus.daemon.tasks import Report, Tasks
from torus.errors import AlreadyExists, Busy, NotFound, ShuttingDown
from torus.testing.clock import ManualClock


class Steps:
    """A work that reports one step each time it is let on."""

    def __init__(self) -> None:
        self.turn = asyncio.Semaphore(0)
        self.started = asyncio.Event()
        self.steps = 0

    async def __call__(self, report: Report) -> dict[str, Any]:
        self.started.set()
        for step in range(3):
            await self.turn.acquire()
            self.steps += 1
            report(step + 1, 3)
        return {"steps": 3}


@pytest.fixture
def run() -> Callable[[Callable[[Tasks, ManualClock], Awaitable[None]]], None]:
    """Run a scenario with the tasks of one process; none may be left behind."""

    def run_scenario(scenario: Callable[[Tasks, ManualClock], Awaitable[None]]) -> None:
        async def guarded() -> None:
            clock = ManualClock()
            tasks = Tasks(clock)
            async with asyncio.timeout(20):
                await scenario(tasks, clock)
                await tasks.stop()
                await tasks.stop()
            assert asyncio.all_tasks() == {asyncio.current_task()}

        asyncio.run(guarded())

    return run_scenario


async def failing(_report: Report) -> dict[str, Any]:
    """Fail like an operation."""
    raise AlreadyExists("it is there", hint="take another")


async def broken(_report: Report) -> dict[str, Any]:
    """Fail like a bug."""
    raise ZeroDivisionError("bug")


def test_task_tells_how_far_it_is_and_what_came_of_it(run: Any) -> None:
    """Running with its progress, then done with its result, for whoever asks."""

    async def scenario(tasks: Tasks, _clock: ManualClock) -> None:
        work = Steps()
        number = tasks.start("gc", "disk", work)
        await work.started.wait()
        work.turn.release()
        while work.steps < 1:  # noqa: ASYNC110 - it is let on, nothing signals that it went
            await asyncio.sleep(0)
        state = await tasks.state(number)
        assert (state["state"], state["done"], state["total"]) == ("running", 1, 3)
        assert (state["task"], state["volume"]) == ("gc", "disk")
        work.turn.release()
        work.turn.release()
        state = await tasks.state(number, wait_s=1.0)
        assert (state["state"], state["result"]) == ("done", {"steps": 3})

    run(scenario)


def test_failure_is_told_as_the_error_it_is(run: Any) -> None:
    """Code, message and hint of an error; a bug is named as one, and the process goes on."""

    async def scenario(tasks: Tasks, _clock: ManualClock) -> None:
        state = await tasks.state(tasks.start("a", "disk", failing), wait_s=1.0)
        assert state["state"] == "failed"
        assert state["error"] == {
            "code": "exists", "message": "it is there", "hint": "take another",
        }  # fmt: skip
        state = await tasks.state(tasks.start("b", "disk", broken), wait_s=1.0)
        assert state["error"]["message"] == "the b failed: ZeroDivisionError: bug"

    run(scenario)


def test_tasks_of_one_kind_exclude_each_other(run: Any) -> None:
    """One gc for a volume; another volume's, and another kind, are not in its way."""

    async def scenario(tasks: Tasks, _clock: ManualClock) -> None:
        first = tasks.start("gc", "disk", Steps())
        with pytest.raises(Busy, match=f"running already, as task {first}"):
            tasks.start("gc", "disk", Steps())
        tasks.start("gc", "other", Steps())
        tasks.start("flatten", "disk", Steps())
        tasks.start("snapshot", "disk", Steps(), alone=False)
        tasks.start("snapshot", "disk", Steps(), alone=False)
        for number in range(1, 6):
            tasks.cancel(number)

    run(lambda tasks, clock: _let_end(scenario, tasks, clock))


async def _let_end(scenario: Any, tasks: Tasks, clock: ManualClock) -> None:
    """Run a scenario whose works wait for ever: they are cut off at the end."""
    await scenario(tasks, clock)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "TASK_END_S", 0.01)
        await tasks.stop()


def test_tasks_are_bounded(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than so many run; when one ends there is room again."""
    monkeypatch.setattr(limits, "TASKS_MAX", 2)

    async def scenario(tasks: Tasks, _clock: ManualClock) -> None:
        work = Steps()
        first = tasks.start("a", "disk", work)
        tasks.start("b", "disk", Steps())
        with pytest.raises(Busy, match="2 tasks are running"):
            tasks.start("c", "disk", Steps())
        for _ in range(3):
            work.turn.release()
        await tasks.state(first, wait_s=1.0)
        tasks.start("c", "disk", Steps())

    run(lambda tasks, clock: _let_end(scenario, tasks, clock))


def test_outcome_is_kept_a_while(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a minute, and not more than so many of them."""
    monkeypatch.setattr(limits, "TASKS_KEPT_MAX", 3)

    async def scenario(tasks: Tasks, clock: ManualClock) -> None:
        numbers = []
        for _ in range(5):
            numbers.append(tasks.start("a", "disk", failing))
            await tasks.state(numbers[-1], wait_s=1.0)
        with pytest.raises(NotFound, match=f"no task {numbers[1]}"):
            await tasks.state(numbers[1])
        assert (await tasks.state(numbers[4]))["state"] == "failed"
        clock.advance(int((limits.TASK_KEPT_S + 1) * 1e9))
        with pytest.raises(NotFound):
            await tasks.state(numbers[4])
        with pytest.raises(NotFound):
            tasks.cancel(999)

    run(scenario)


def test_cancelled_task_ends_where_it_reports(run: Any) -> None:
    """Not before: what it is in the middle of is finished."""

    async def scenario(tasks: Tasks, _clock: ManualClock) -> None:
        work = Steps()
        number = tasks.start("gc", "disk", work)
        await work.started.wait()
        tasks.cancel(number)
        assert (await tasks.state(number, wait_s=0.01))["state"] == "running"
        work.turn.release()
        state = await tasks.state(number, wait_s=1.0)
        assert state["error"]["message"] == "the gc of volume 'disk' was cancelled"
        assert work.steps == 1

    run(scenario)


def test_tasks_of_a_volume_are_ended_together(run: Any) -> None:
    """Before it is taken away; other volumes' go on."""

    async def scenario(tasks: Tasks, _clock: ManualClock) -> None:
        works = [Steps() for _ in range(3)]
        for work, (kind, volume) in zip(
            works, [("a", "disk"), ("b", "disk"), ("a", "other")], strict=True
        ):
            tasks.start(kind, volume, work)
            work.turn.release()
        await tasks.end_all_of("disk", but=None)
        assert [(await tasks.state(number))["state"] for number in (1, 2)] == ["failed"] * 2
        assert (await tasks.state(3))["state"] == "running"

    run(lambda tasks, clock: _let_end(scenario, tasks, clock))


def test_stopping_process_takes_no_tasks(run: Any) -> None:
    """What runs is ended, even if it never reports."""

    async def scenario(tasks: Tasks, clock: ManualClock) -> None:
        await _let_end(lambda *_: _started(tasks), tasks, clock)
        with pytest.raises(ShuttingDown):
            tasks.start("a", "disk", Steps())
        assert (await tasks.state(1))["error"]["code"] == "interrupted"

    run(scenario)


async def _started(tasks: Tasks) -> None:
    work = Steps()
    tasks.start("a", "disk", work)
    await work.started.wait()
