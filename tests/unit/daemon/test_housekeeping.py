"""What one node does for all: interrupted deletions, rings that nobody names."""

import asyncio
from collections.abc import Awaitable, Callable

from torus.clock import SystemClock
from torus.cluster.chunks import chunks_of
from torus.daemon import housekeeping as module
from torus.daemon.housekeeping import Housekeeping
from torus.daemon.reach import Reach
from torus.limits import RINGS_KEPT
from torus.metadata.base import Put
from torus.metadata.keys import RING_HEAD, RING_VERSIONS, head_key, ring_key
from torus.metadata.loop import AsyncMetadata
from torus.metadata.memory import MemoryMetadata
from torus.metadata.schema import Head, RingHead, RingVersion, Span
from torus.volume.catalog import Catalog
from torus.volume.catalog_async import AsyncCatalog


class NoChunks:
    """The chunks of volumes that have none."""

    async def fence(self, _volume: int, _epoch: int) -> None: ...

    async def list(self, _volume: int) -> list[object]:
        return []

    async def delete(self, _volume: int, _epoch: int, _chunks: object) -> int:
        return 0

    async def stop(self) -> None: ...


def run(test: Callable[[MemoryMetadata, AsyncCatalog, Housekeeping], Awaitable[None]]) -> None:
    async def scenario() -> None:
        store = MemoryMetadata()
        metadata, clock = AsyncMetadata(store), SystemClock()
        catalog = AsyncCatalog(metadata, clock)
        reached = Reach(metadata, catalog, chunks_of(NoChunks()), clock)  # type: ignore[arg-type]
        try:
            await test(store, catalog, Housekeeping(reached, lambda: True))
        finally:
            await metadata.close()

    asyncio.run(scenario())


def test_deletion_that_stands_still_is_finished_and_one_that_just_began_is_not() -> None:
    async def test(store: MemoryMetadata, catalog: AsyncCatalog, house: Housekeeping) -> None:
        await catalog.init_cluster()
        Catalog(store, SystemClock()).create("left", 1 << 20)
        await catalog.mark_deleting("left", force=True)

        for _ in range(module._LOOKS):
            assert await house.finish_deletions() == 0
        assert await house.finish_deletions() == 1
        assert await catalog.list() == []

    run(test)


def test_rings_that_a_span_names_are_kept() -> None:
    async def test(store: MemoryMetadata, catalog: AsyncCatalog, house: Housekeeping) -> None:
        await catalog.init_cluster()
        number = Catalog(store, SystemClock()).create("vm", 1 << 20).volume
        spans = (Span(1, 0, 0, 3, 99, ring=0), Span(1, 1, 4, 5, 99, ring=7), Span(1, 2, 6, ring=9))
        store.commit((), (Put(head_key(number), Head(1, None, spans, None).to_bytes()),))
        last = RINGS_KEPT + 4
        for version in range(1, last + 1):
            value = RingVersion(version, 1, "test", "")
            store.commit((), (Put(ring_key(version), value.to_bytes()),))
        store.commit((), (Put(RING_HEAD, RingHead(last).to_bytes()),))

        removed = await house.prune_rings()

        left = {
            int(one.key.removeprefix(RING_VERSIONS), 16)
            for one in store.list(RING_VERSIONS).entries
        }
        assert left == {1, 7, 9, last - 1, last}
        assert set(removed) == set(range(1, last + 1)) - left
        assert await house.prune_rings() == []

    run(test)


def test_rings_that_held_a_while_ago_are_kept_though_nobody_names_them() -> None:
    """A writer that could not reach the store may publish a span under one of them yet."""

    async def test(store: MemoryMetadata, catalog: AsyncCatalog, house: Housekeeping) -> None:
        await catalog.init_cluster()
        last, old = RINGS_KEPT + 4, 5
        now_ns = SystemClock().wall_ns()
        for version in range(1, last + 1):
            value = RingVersion(version, 1 if version <= old else now_ns - 10**12, "test", "")
            store.commit((), (Put(ring_key(version), value.to_bytes()),))
        store.commit((), (Put(RING_HEAD, RingHead(last).to_bytes()),))

        assert await house.prune_rings() == list(range(1, old))

    run(test)
