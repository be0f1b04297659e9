"""Syncs for an event loop: a future for each, and its own error."""

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import uvloop

from torus.errors import LocalProtocolError
from torus.store.syncing import Syncs

Scenario = Callable[[Syncs], Awaitable[None]]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Scenario], None]:
    """Run a scenario on one of the loops, close the syncs, and fail on what the loop reports."""
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    def run_scenario(scenario: Scenario) -> None:
        reported: list[object] = []

        async def guarded() -> None:
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _, context: reported.append(context))
            syncs = Syncs()
            try:
                await asyncio.wait_for(scenario(syncs), 30)
            finally:
                syncs.close()

        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(guarded())
        assert reported == []

    return run_scenario


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"x" * 8192)
    yield fd
    os.close(fd)


def test_a_sync_is_awaited(run: Callable[[Scenario], None], file: int) -> None:
    """Again and again."""

    async def scenario(syncs: Syncs) -> None:
        for _ in range(5):
            os.write(file, b"y")
            assert await syncs.request(file) is None

    run(scenario)


def test_an_error_goes_to_who_asked(run: Callable[[Scenario], None], file: int) -> None:
    """With its errno; those asked for before and after are not concerned."""

    async def scenario(syncs: Syncs) -> None:
        receiver, sender = os.pipe()
        futures = [syncs.request(fd) for fd in (file, sender, file, -1)]
        results = await asyncio.gather(*futures, return_exceptions=True)
        os.close(receiver)
        os.close(sender)

        assert [getattr(result, "errno", None) for result in results] == [
            None, errno.EINVAL, None, errno.EBADF,
        ]  # fmt: skip
        assert all(result is None or type(result) is OSError for result in results)

    run(scenario)


def test_many_at_once(run: Callable[[Scenario], None]) -> None:
    """As many as fit; one more is a bug that is told, and leaves the others as they are."""

    async def scenario(syncs: Syncs) -> None:
        futures = [syncs.request(-1) for _ in range(256)]

        def ask_for_more() -> None:
            for _ in range(256):
                futures.append(syncs.request(-1))

        with pytest.raises(LocalProtocolError):
            ask_for_more()
        done = await asyncio.gather(*futures, return_exceptions=True)

        assert {type(result) for result in done} == {OSError}
        assert isinstance(await asyncio.gather(syncs.request(-1), return_exceptions=True), list)

    run(scenario)


def test_a_cancelled_wait_harms_nobody(run: Callable[[Scenario], None], file: int) -> None:
    """The sync happens all the same, and its answer is dropped."""

    async def scenario(syncs: Syncs) -> None:
        first, second = syncs.request(file), syncs.request(file)
        first.cancel()
        await second

        assert first.cancelled()
        await syncs.request(file)

    run(scenario)


def test_close_with_syncs_outstanding_ends_their_waits(
    run: Callable[[Scenario], None], file: int
) -> None:
    """Nobody waits for ever, and close() comes back when the thread is done."""

    async def scenario(syncs: Syncs) -> None:
        futures = [syncs.request(file) for _ in range(20)]
        syncs.close()
        syncs.close()

        assert all(future.done() for future in futures)
        assert {future.cancelled() for future in futures} == {True}

    run(scenario)


def test_close_after_the_loop_has_ended(file: int) -> None:
    """A daemon that was torn down in the wrong order still ends."""
    syncs = Syncs()

    async def scenario() -> None:
        await syncs.request(file)

    asyncio.run(scenario())
    syncs.close()
    syncs.close()


def test_another_loop_is_refused(file: int) -> None:
    """Its futures would never be woken."""
    syncs = Syncs()

    async def scenario() -> None:
        await syncs.request(file)

    asyncio.run(scenario())
    with pytest.raises(LocalProtocolError, match="one event loop"):
        asyncio.run(scenario())
    syncs.close()
