"""Leaves of the map that come before they are asked for, and reads of files in threads."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from torus import limits
from torus.clock import SystemClock
from torus.cluster.local import LocalChunks
from torus.errors import Corruption
from torus.format.identity import DiskIdentity
from torus.format.segment import Geometry
from torus.store.disk import PosixDisk
from torus.store.pool import ThreadPool
from torus.store.store import Store
from torus.testing.world import CLUSTER_ID, DISK_ID, World
from torus.volume import leaves, reads
from torus.volume.read_ahead import LEAVES_FIRST, ReadAhead
from torus.volume.volume import Volume

LEAF_BYTES = limits.LEAF_ENTRIES * limits.BLOCK_BYTES
LEAVES = 40


async def _cold(rng: random.Random, cache_bytes: int) -> tuple[World, Volume, dict[int, bytes]]:
    """Return a volume with a block in each leaf, none of which is in memory."""
    world = World(rng, geometry=Geometry(256 * limits.KIB, 16), slots=400, cache_bytes=cache_bytes)
    world.store.open()
    await world.catalog.init_cluster()
    await world.catalog.create("v", LEAVES * LEAF_BYTES)
    attachment = await world.attach("v")
    content = {}
    for leaf in range(LEAVES):
        content[leaf] = rng.randbytes(4096)
        await attachment.volume.write(leaf * LEAF_BYTES, content[leaf], durable=False)
    await attachment.detach()
    return world, (await world.attach("v")).volume, content


def _count(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """Count the leaves that each load brings."""
    loads: Counter[int] = Counter()
    real = leaves._read_pages

    async def counted(chunks, reads, crcs):  # type: ignore[no-untyped-def]
        loads[len(reads)] += 1
        return await real(chunks, reads, crcs)

    monkeypatch.setattr(leaves, "_read_pages", counted)
    return loads


def test_one_who_reads_on_waits_for_few_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four, eight, sixteen leaves at once, as far as the volume goes."""

    async def scenario() -> None:
        world, volume, content = await _cold(random.Random(1), 16 * limits.MIB)
        loads = _count(monkeypatch)
        for leaf in range(LEAVES):
            assert await volume.read(leaf * LEAF_BYTES, 4096) == content[leaf]
        assert sorted(loads.elements()) == [4, 8, 12, 16]
        await world.stop()

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_eight_at_once_wait_for_the_same_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a client that keeps its queue full does."""

    async def scenario() -> None:
        world, volume, content = await _cold(random.Random(2), 16 * limits.MIB)
        loads = _count(monkeypatch)
        for first in range(0, LEAVES, 8):
            found = await asyncio.gather(
                *(volume.read(leaf * LEAF_BYTES, 4096) for leaf in range(first, first + 8))
            )
            assert found == [content[leaf] for leaf in range(first, first + 8)]
        assert sum(size * times for size, times in loads.items()) < 1.5 * LEAVES
        assert sum(loads.values()) <= 12, loads
        await world.stop()

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_random_reads_and_small_caches_load_what_they_need(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is read ahead for one who jumps, nor where it would push out what is in use."""

    async def scenario() -> None:
        world, volume, _ = await _cold(random.Random(3), 16 * limits.MIB)
        loads = _count(monkeypatch)
        for leaf in range(LEAVES - 1, 1, -2):
            await volume.read(leaf * LEAF_BYTES, 4096)
        assert set(loads) == {1}
        await world.stop()
        loads.clear()
        world, volume, _ = await _cold(random.Random(4), 64 * limits.KIB)
        loads = _count(monkeypatch)
        for leaf in range(LEAVES):
            await volume.read(leaf * LEAF_BYTES, 4096)
        assert set(loads) == {1}
        await world.stop()

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_a_damaged_leaf_ahead_is_no_error_of_who_reads_before_it() -> None:
    """Only those whose own leaf it is are told."""

    async def scenario() -> None:
        world, volume, content = await _cold(random.Random(5), 16 * limits.MIB)
        view = volume.core
        [place] = view.blocks.missing(2 * limits.LEAF_ENTRIES, 1)
        slot = world.store.find(view.chunk(place[1], place[5]))
        assert slot is not None
        address = slot.address + place[2] * limits.RECORD_ALIGN_BYTES + 20
        world.disk.write(address, bytes([world.disk.read(address, 1)[0] ^ 1]))
        assert LEAVES_FIRST > 2

        for leaf in (0, 1, 3, 4):
            assert await volume.read(leaf * LEAF_BYTES, 4096) == content[leaf]
        with pytest.raises(Corruption, match="map leaf page 2"):
            await volume.read(2 * LEAF_BYTES, 4096)
        await world.stop()

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_whoever_waits_may_give_up() -> None:
    """The others still get the leaves that are on their way."""

    async def scenario() -> None:
        world, volume, content = await _cold(random.Random(6), 16 * limits.MIB)
        ahead = ReadAhead(volume.core)
        waiting = [asyncio.ensure_future(ahead.load(leaf * 1024, 1)) for leaf in (0, 1, 1, 2)]
        await asyncio.sleep(0)
        waiting[1].cancel()
        done = await asyncio.gather(*waiting, return_exceptions=True)
        assert [isinstance(one, asyncio.CancelledError) for one in done] == [
            False, True, False, False,
        ]  # fmt: skip
        assert not volume.core.blocks.missing(0, 3 * 1024)
        assert await volume.read(LEAF_BYTES, 4096) == content[1]
        await world.stop()

    asyncio.run(asyncio.wait_for(scenario(), 60))


# --- files ------------------------------------------------------------------------------


def _on_files(folder: Path, work: Callable[[World, Volume], object]) -> None:
    """Run ``work`` on a volume whose store is a directory."""

    async def scenario() -> None:
        world = World(random.Random(1))
        disk = PosixDisk(folder)
        geometry = Geometry(256 * limits.KIB, 16)
        disk.use_geometry(geometry)
        identity = DiskIdentity(DISK_ID, CLUSTER_ID, geometry.slot_bytes, geometry.segment_slots, 1)
        pool = ThreadPool(2, "disk")
        world.store = Store(
            disk, identity, pool, SystemClock(), 1, size_bytes=100 * geometry.slot_bytes
        )
        world.store.open()
        await world.catalog.init_cluster()
        await world.catalog.create("v", 8 * limits.MIB)
        attachment = await world.attach("v")
        try:
            await work(world, attachment.volume)  # type: ignore[misc]
        finally:
            await attachment.detach()
            await world.store.close()
            pool.close()

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_reads_of_files_wait_in_a_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large, small and unaligned ones; nothing of it takes the long way."""

    async def work(world: World, volume: Volume) -> None:
        rng = random.Random(8)
        content = bytearray(8 * limits.MIB)
        for _ in range(60):
            size = rng.choice([4096, 8192, 65536, 300 * 512])
            at = rng.randrange((len(content) - size) // 512) * 512
            content[at : at + size] = data = rng.randbytes(size)
            await volume.write(at, data, durable=False)
        monkeypatch.setattr(reads.Reads, "blocks", None)  # the long way
        soon = 0
        for _ in range(60):
            size = rng.choice([512, 4096, 70000 // 512 * 512, limits.MIB])
            at = rng.randrange((len(content) - size) // 512) * 512
            assert await volume.read(at, size) == content[at : at + size]
            block = rng.randrange(len(content) // 4096 - 100)
            end = block + 1 + rng.randrange(4)
            sent = volume.read_soon(block * 4096, (end - block) * 4096)
            mapped = sum(run[1] for run in volume.core.blocks.runs(block, end - block))
            # A client that can be told of holes is not sent zeroes in their place.
            assert (sent is None) == (mapped < end - block)
            assert sent is None or await sent == content[block * 4096 : end * 4096]
            soon += sent is not None
        monkeypatch.undo()
        assert soon > 5

    _on_files(tmp_path / "data", work)


def test_a_wrong_block_in_a_file_is_told_by_the_long_way(tmp_path: Path) -> None:
    """It names the block; the neighbours can be read."""

    async def work(world: World, volume: Volume) -> None:
        data = random.Random(9).randbytes(32768)
        await volume.write(0, data, durable=True)
        [(_, _, sequence, offset, base)] = volume.core.blocks.runs(0, 8)
        slot = world.store.find(volume.core.chunk(sequence, base))
        assert slot is not None
        wrong = slot.address + offset * 512 + 3 * 4096 + 100
        byte = world.store.disk.read(wrong, 1)
        world.store.disk.write(wrong, bytes([byte[0] ^ 4]))
        sent = volume.read_soon(0, 32768)
        assert sent is not None
        assert await sent is None
        with pytest.raises(Corruption, match="block at byte 12288"):
            await volume.read(0, 32768)
        assert await volume.read(4 * 4096, 4 * 4096) == data[4 * 4096 :]

    _on_files(tmp_path / "data", work)


def test_chunks_of_one_store_are_read_in_its_threads() -> None:
    """Where others may have the bytes sooner, nobody waits for this disk."""
    world = World(random.Random(1))
    assert LocalChunks(world.store).in_thread == world.store.in_pool
