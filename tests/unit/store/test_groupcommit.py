"""Group commit: who is covered by which sync."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from torus.errors import DiskFailed
from torus.store.groupcommit import GroupCommit
from torus.testing.clock import ManualClock


class Syncs:
    """Syncs that end when the test says so."""

    def __init__(self) -> None:
        self.running: list[tuple[int, asyncio.Future[None]]] = []
        self.begun: list[int] = []
        self.commits = GroupCommit(self.begin, self.failed, ManualClock())

    def begin(self, segment: int) -> asyncio.Future[None]:
        """Begin a sync."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.running.append((segment, future))
        self.begun.append(segment)
        return future

    def failed(self, exc: OSError | None) -> DiskFailed | None:
        """Say what the end of a sync means."""
        return DiskFailed(str(exc)) if exc else None

    async def end(self, error: OSError | None = None) -> None:
        """End the sync that began first."""
        _, future = self.running.pop(0)
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
        for _ in range(3):
            await asyncio.sleep(0)


def _run(scenario: Callable[[Syncs], Awaitable[None]]) -> None:
    async def run() -> None:
        await scenario(Syncs())

    asyncio.run(run())


def test_running_sync_is_never_joined() -> None:
    """It may have begun before the caller's write."""

    async def scenario(syncs: Syncs) -> None:
        first = syncs.commits.request(0)
        second = syncs.commits.request(0)
        third = syncs.commits.request(0)
        assert syncs.begun == [0]
        await syncs.end()
        assert first.done()
        assert not second.done()
        assert syncs.begun == [0, 0]
        await syncs.end()
        assert second.done()
        assert third.done()
        assert syncs.begun == [0, 0]

    _run(scenario)


def test_files_do_not_wait_for_each_other() -> None:
    """One sync runs for each file."""

    async def scenario(syncs: Syncs) -> None:
        waits = [syncs.commits.request(segment) for segment in (0, 1, 0, 1)]
        assert syncs.begun == [0, 1]
        await syncs.end()
        assert waits[0].done()
        assert not waits[1].done()
        await syncs.end()
        await syncs.end()
        await syncs.end()
        assert all(wait.done() for wait in waits)

    _run(scenario)


def test_failure_reaches_all_who_waited() -> None:
    """And only them: what came later has a sync of its own."""

    async def scenario(syncs: Syncs) -> None:
        first = syncs.commits.request(0)
        others = [syncs.commits.request(0) for _ in range(3)]
        await syncs.end()
        await first
        await syncs.end(OSError(5, "EIO"))
        for wait in others:
            with pytest.raises(DiskFailed):
                await wait

    _run(scenario)


def test_cancelled_waiter_stops_nothing() -> None:
    """The others still get their answer."""

    async def scenario(syncs: Syncs) -> None:
        syncs.commits.request(0)
        gone, stays = syncs.commits.request(0), syncs.commits.request(0)
        gone.cancel()
        await syncs.end()
        await syncs.end()
        await stays

    _run(scenario)
