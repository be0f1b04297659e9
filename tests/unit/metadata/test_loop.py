"""The metadata store on an event loop."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import pytest

from torus.errors import ForeignData, ShuttingDown, Unavailable
from torus.limits import METADATA_CLOSE_S, METADATA_HISTORY_CHANGES_MAX
from torus.metadata.base import Delete, Entry, Event, Expect, Listing, Put
from torus.metadata.loop import AsyncMetadata, AsyncWatch
from torus.metadata.memory import MemoryMetadata

WAIT_S = 20.0


@contextlib.asynccontextmanager
async def opened(store: MemoryMetadata | None = None) -> AsyncIterator[AsyncMetadata]:
    metadata = AsyncMetadata(store or MemoryMetadata())
    try:
        yield metadata
    finally:
        await metadata.close()


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(WAIT_S):
            await test()

    asyncio.run(bounded())
    assert [t.name for t in threading.enumerate() if t.name.startswith("metadata")] == []


def test_every_method_is_there() -> None:
    async def test() -> None:
        async with opened() as metadata:
            lease = await metadata.grant(10.0)
            revision = await metadata.commit([Expect("a/1", 0)], [Put("a/1", b"x", lease)])

            assert revision == 1
            assert await metadata.get("a/1") == Entry("a/1", b"x", 1)
            assert await metadata.list("a/") == Listing(1, (Entry("a/1", b"x", 1),))
            assert await metadata.commit([Expect("a/1", 0)], [Delete("a/1")]) is None
            assert await metadata.renew(lease)
            await metadata.revoke(lease)
            assert await metadata.get("a/1") is None

    run(test)


def test_a_watch_is_iterated_while_others_commit() -> None:
    async def test() -> None:
        async with opened() as metadata:
            watch = await metadata.watch("a/", 0)
            first = asyncio.ensure_future(anext(watch))
            await metadata.commit([], [Put("a/1", b"1")])
            assert await first == [Event("a/1", b"1", 1)]
            await metadata.commit([], [Put("a/1", b"2")])
            await metadata.commit([], [Put("a/1", b"3")])
            seen: list[Event] = []
            async for events in watch:
                seen.extend(events)
                if len(seen) == 2:
                    break
            assert [event.value for event in seen] == [b"2", b"3"]

    run(test)


def test_a_waiting_watch_does_not_stop_operations() -> None:
    async def test() -> None:
        async with opened() as metadata:
            watches = [await metadata.watch("a/", 0) for _ in range(4)]
            waiting = [asyncio.ensure_future(anext(watch)) for watch in watches]
            await metadata.commit([], [Put("b/1", b"")])
            assert not any(future.done() for future in waiting)
            await metadata.commit([], [Put("a/1", b"")])
            for future in waiting:
                assert await future == [Event("a/1", b"", 2)]

    run(test)


def test_a_cancelled_wait_loses_no_event() -> None:
    async def test() -> None:
        async with opened() as metadata:
            watch = await metadata.watch("a/", 0)
            for number in range(20):
                waiting = asyncio.ensure_future(anext(watch))
                await asyncio.sleep(0)
                if number % 2:
                    await metadata.commit([], [Put("a/1", b"%d" % number)])
                waiting.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await waiting
                if number % 2:
                    assert await anext(watch) == [Event("a/1", b"%d" % number, (number + 1) // 2)]

    run(test)


def test_closing_a_watch_ends_its_iteration() -> None:
    async def test() -> None:
        async with opened() as metadata, await metadata.watch("a/", 0) as watch:
            iteration = asyncio.ensure_future(_collect(watch))
            await asyncio.sleep(0)
            await watch.close()
            await watch.close()
            assert await iteration == []

    run(test)


def test_closing_the_store_ends_everything() -> None:
    async def test() -> None:
        metadata = AsyncMetadata(MemoryMetadata())
        watch = await metadata.watch("a/", 0)
        iteration = asyncio.ensure_future(_collect(watch))
        last = asyncio.ensure_future(metadata.commit([], [Put("b/1", b"")]))
        await asyncio.sleep(0)
        await metadata.close()
        await metadata.close()

        assert await iteration == []
        assert await last == 1, "an operation that was asked for before the end is done"
        with pytest.raises(ShuttingDown):
            await metadata.get("a/1")
        with pytest.raises(ShuttingDown):
            await metadata.watch("a/", 0)

    run(test)


def test_a_watch_that_missed_changes_raises() -> None:
    async def test() -> None:
        store = MemoryMetadata()
        async with opened(store) as metadata:
            watch = await metadata.watch("a/", 0)
            for begin in range(0, METADATA_HISTORY_CHANGES_MAX + 100, 100):
                store.commit([], [Put(f"a/{begin + n}", b"") for n in range(100)])
            with pytest.raises(Unavailable):
                await anext(watch)

    run(test)


async def _collect(watch: AsyncWatch) -> list[Sequence[Event]]:
    return [events async for events in watch]


# --- a store behind a network ---------------------------------------------------------------


class FarMemory(MemoryMetadata):
    """A store of several threads, of which some operations wait until it is closed."""

    threads_max = 3

    def __init__(self) -> None:
        super().__init__()
        self.ended = threading.Event()

    def commit(self, expect: Sequence[Expect], changes: Sequence[Put | Delete]) -> int | None:
        if any(change.key == "hang" for change in changes):
            assert self.ended.wait(WAIT_S)
            raise ShuttingDown("closed")
        return super().commit(expect, changes)

    def close(self) -> None:
        self.ended.set()
        super().close()


def test_one_that_waits_does_not_keep_back_the_others() -> None:
    async def test() -> None:
        async with opened(FarMemory()) as metadata:
            lease = await metadata.grant(10.0)
            hanging = asyncio.ensure_future(metadata.commit([], [Put("hang", b"")]))
            for _ in range(10):
                assert await metadata.renew(lease)
            assert not hanging.done()
            await metadata.close()
            with pytest.raises(ShuttingDown):
                await hanging

    run(test)


def test_its_threads_are_bounded_and_closing_ends_what_waits() -> None:
    async def test() -> None:
        metadata = AsyncMetadata(FarMemory())
        watch = await metadata.watch("a/", 0)
        waiting = [asyncio.ensure_future(anext(watch))]
        waiting += [
            asyncio.ensure_future(metadata.commit([], [Put("hang", b"")])) for _ in range(20)
        ]
        await asyncio.sleep(0)
        assert len([one for one in threading.enumerate() if one.name.startswith("metadata_")]) <= 3
        async with asyncio.timeout(METADATA_CLOSE_S + 2):
            await metadata.close()
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert isinstance(outcomes[0], StopAsyncIteration)
        assert all(isinstance(outcome, ShuttingDown) for outcome in outcomes[1:])

    run(test)


def test_commits_of_one_key_keep_their_order() -> None:
    """Also behind one whose caller has gone; those of other keys do not wait."""

    class SlowMemory(FarMemory):
        def commit(self, expect: Sequence[Expect], changes: Sequence[Put | Delete]) -> int | None:
            if any(change.key == "slow" for change in changes):
                assert self.ended.wait(WAIT_S)
            return MemoryMetadata.commit(self, expect, changes)

    async def test() -> None:
        store = SlowMemory()
        async with opened(store) as metadata:
            first = asyncio.ensure_future(metadata.commit([], [Put("slow", b""), Put("a", b"1")]))
            await asyncio.sleep(0)
            first.cancel()
            second = asyncio.ensure_future(metadata.commit([Expect("a", 0)], [Put("b", b"")]))
            assert await metadata.commit([], [Put("c", b"")]) == 1
            assert not second.done()
            store.ended.set()
            assert await second is None
            entry = await metadata.get("a")
            assert entry is not None
            assert entry.revision == 2

    run(test)


def test_a_store_without_history_needs_no_token() -> None:
    async def test() -> None:
        async with opened() as metadata:
            assert await metadata.history_token() == ""
            await metadata.check_not_older("")
            with pytest.raises(ForeignData, match="is on etcd"):
                await metadata.check_not_older("token")

    run(test)
