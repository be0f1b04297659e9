"""A pause of scrubbing stands in the metadata, and every node obeys what stands there."""

import asyncio
from collections.abc import Awaitable, Callable

from torus.clock import SystemClock
from torus.daemon.scrub_pause import PauseWatch, end_pause, set_pause
from torus.metadata.base import Delete, Put
from torus.metadata.keys import SCRUB_PAUSE
from torus.metadata.loop import AsyncMetadata
from torus.metadata.memory import MemoryMetadata
from torus.metadata.schema import ScrubPause

Test = Callable[[AsyncMetadata], Awaitable[None]]


def run(test: Test) -> None:
    """Run a test on an empty store."""

    async def scenario() -> None:
        metadata = AsyncMetadata(MemoryMetadata())
        try:
            async with asyncio.timeout(60):
                await test(metadata)
        finally:
            await metadata.close()

    asyncio.run(scenario())


def test_a_pause_is_heard_at_the_start_and_at_each_change() -> None:
    async def test(metadata: AsyncMetadata) -> None:
        heard: asyncio.Queue[ScrubPause | None] = asyncio.Queue()
        watch = PauseWatch(metadata, heard.put_nowait)
        await watch.start()
        assert await heard.get() is None
        await set_pause(metadata, SystemClock())
        first = await heard.get()
        assert first is not None
        assert "@" in first.by
        await set_pause(metadata, SystemClock())  # it holds already: its time stays
        await end_pause(metadata)
        assert await heard.get() is None
        await end_pause(metadata)
        await set_pause(metadata, SystemClock())
        second = await heard.get()
        late: asyncio.Queue[ScrubPause | None] = asyncio.Queue()
        other = PauseWatch(metadata, late.put_nowait)
        await other.start()
        assert await late.get() == second
        await watch.stop()
        await other.stop()

    run(test)


def test_who_looks_learns_at_once_what_holds() -> None:
    """Without having started to follow: the answer is not older than the question."""

    async def test(metadata: AsyncMetadata) -> None:
        heard: list[ScrubPause | None] = []
        watch = PauseWatch(metadata, heard.append)
        await set_pause(metadata, SystemClock())
        await watch.look()
        await end_pause(metadata)
        await watch.look()
        assert [one is None for one in heard] == [False, True]

    run(test)


def test_a_pause_that_cannot_be_read_holds() -> None:
    """A newer torus may have written it."""

    async def test(metadata: AsyncMetadata) -> None:
        heard: list[ScrubPause | None] = []
        watch = PauseWatch(metadata, heard.append)
        for value in (b"?", b'{"format":2}', b'{"format":1,"until_ns":5}'):
            await metadata.commit((), (Put(SCRUB_PAUSE, value),))
            await watch.look()
        await metadata.commit((), (Delete(SCRUB_PAUSE),))
        await watch.look()
        assert [one is None for one in heard] == [False, False, False, True]

    run(test)
