"""Collection of a volume on a simulated disk: nothing is lost, space comes back."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import pytest

from torus import limits
from torus._fast.record import find_header
from torus.errors import Corruption, PoolFull
from torus.ids import ChunkId
from torus.testing.crash import Examiner, check_space, moments
from torus.testing.simdisk import SECTOR
from torus.testing.workload import Recorder
from torus.testing.world import World
from torus.volume.attachment import Attachment

BLOCK = limits.BLOCK_BYTES
SIZE = limits.MIB
COUNT = SIZE // BLOCK
POISON = b"\xdb"


def _poison(world: World, attachment: Attachment) -> None:
    """Overwrite chunks when they are deleted: whoever still reads them is found out."""
    chunks = attachment.volume.core.chunks
    delete = chunks.delete

    async def poisoned(volume: int, epoch: int, gone: Iterable[ChunkId]) -> int:
        gone = list(gone)
        for chunk in gone:
            place = chunks.place(chunk)
            assert place is not None
            segment, offset = divmod(place, world.disk.geometry.segment_bytes)
            size = chunks.slot_bytes - limits.SLOT_HEADER_BYTES
            start = offset + limits.SLOT_HEADER_BYTES
            world.disk.image.segments[segment][start : start + size] = POISON * size
        return await delete(volume, epoch, gone)

    chunks.delete = poisoned  # type: ignore[method-assign,assignment]


class _Disk:
    """What a test does with one volume, and what the volume must hold."""

    def __init__(self, world: World, attachment: Attachment) -> None:
        self.world = world
        self.attachment = attachment
        self.volume = attachment.volume
        self.collector = attachment.volume.collector
        self.content = bytearray(self.volume.size_bytes)
        self.blocks = self.volume.size_bytes // BLOCK
        _poison(world, attachment)

    async def write(self, block: int) -> None:
        data = self.world.rng.randbytes(BLOCK)
        self.content[block * BLOCK : (block + 1) * BLOCK] = data
        await self.volume.write(block * BLOCK, data, durable=False)

    async def overwrite(self, times: int) -> None:
        for _ in range(times):
            await self.write(self.world.rng.randrange(self.blocks))

    async def fill(self) -> None:
        for block in range(self.blocks):
            await self.write(block)

    async def check(self) -> None:
        assert await self.volume.read(0, len(self.content)) == self.content
        self.volume.core.blocks.verify()
        check_space(self.world)


Scenario = Callable[[_Disk], Awaitable[None]]


def _run(scenario: Scenario, *, seed: int = 3, size: int = SIZE, **options: object) -> None:
    async def run() -> None:
        world = World(random.Random(seed), **options)  # type: ignore[arg-type]
        world.store.open()
        await world.catalog.init_cluster()
        await world.catalog.create("v", size)
        await scenario(_Disk(world, await world.attach("v")))
        await world.stop()

    asyncio.run(asyncio.wait_for(run(), 60))


def test_collection_frees_half_empty_chunks_and_keeps_every_byte() -> None:
    """To the target, with the map's own pages moved along."""

    async def scenario(disk: _Disk) -> None:
        await disk.fill()
        await disk.overwrite(2 * disk.blocks)
        before = disk.collector.dry_run()
        assert before.victims
        assert before.utilisation < 0.7
        done = await disk.collector.collect()
        assert done.problem == ""
        assert done.chunks_after < done.chunks_before
        assert done.utilisation_before < 0.7 <= done.utilisation_after + 0.1
        assert 0 < done.moved_bytes < SIZE
        await disk.check()
        assert not disk.collector.dry_run().victims

    _run(scenario)


def test_map_pages_that_nobody_changes_are_moved_out_of_victims() -> None:
    """A leaf written long ago would keep its chunk for ever."""

    async def scenario(disk: _Disk) -> None:
        blocks = disk.volume.core.blocks
        for block in range(limits.LEAF_ENTRIES, limits.LEAF_ENTRIES + 40):
            await disk.write(block)
        for block in range(20):  # in whose chunk the leaf's page is written
            await disk.write(block)
        await disk.volume.checkpointer.write()
        old = disk.volume.core.journal.chunk.sequence
        for _ in range(3):
            for block in range(20):
                await disk.write(block)
            await disk.volume.checkpointer.write()
        await disk.collector.collect(target=0.63)
        held = {run[2] for run in blocks.runs(limits.LEAF_ENTRIES, 40)}
        left = {chunk.sequence for chunk in disk.world.store.chunks() if chunk.sequence <= old}
        assert min(held) < old, "the leaf was to keep its blocks"
        assert left <= held
        await disk.check()

    _run(scenario, size=5 * limits.MIB)


@pytest.mark.parametrize("seed", range(8))
def test_writes_between_all_steps_of_a_collection_win(seed: int) -> None:
    """Reads and writes run at every await; a block that moved meanwhile is not copied back."""

    async def scenario(disk: _Disk) -> None:
        await disk.fill()
        await disk.overwrite(disk.blocks)
        await disk.volume.checkpointer.write()
        collecting = asyncio.ensure_future(disk.collector.collect(target=0.9))
        steps = 0
        while not collecting.done():
            block = disk.world.rng.randrange(disk.blocks)
            if disk.world.rng.random() < 0.3:
                await disk.write(block)
            else:
                found = await disk.volume.read(block * BLOCK, BLOCK)
                assert found == disk.content[block * BLOCK : (block + 1) * BLOCK]
            if disk.world.rng.random() < 0.1:
                await disk.volume.trim(block * BLOCK, BLOCK, durable=False)
                disk.content[block * BLOCK : (block + 1) * BLOCK] = bytes(BLOCK)
            await asyncio.sleep(0)
            steps += 1
        assert (await collecting).moved_bytes > 0
        assert steps > 20
        await disk.check()

    _run(scenario, seed=seed, slots=200, cache_bytes=64 * limits.KIB)


@pytest.mark.slow
def test_crash_after_every_step_of_a_collection() -> None:
    """The image that any crash leaves is one that the writes alone could have left."""

    async def run(seed: int) -> int:
        rng = random.Random(f"collect:{seed}")
        world = World(rng)
        world.store.open()
        await world.catalog.init_cluster()
        await world.catalog.create("v", 256 * limits.KIB)
        recorder = Recorder(world, "v", 256 * limits.KIB)
        await recorder.attach()
        for at in range(0, recorder.size, BLOCK):
            await recorder.write(at, rng.randbytes(BLOCK))
        for _ in range(70):
            await recorder.write(rng.randrange(64) * BLOCK, rng.randbytes(BLOCK))
        await recorder.flush()
        first = len(world.history)
        collector = recorder.attachment.volume.collector
        collecting = asyncio.ensure_future(collector.collect(target=0.95))
        while not collecting.done():
            await recorder.write(rng.randrange(64) * BLOCK, rng.randbytes(BLOCK))
            if rng.random() < 0.2:
                await recorder.flush()
            for _ in range(20):
                await asyncio.sleep(0)
        assert collecting.result().moved_bytes > 0
        await world.stop()
        examiner = Examiner({"v": recorder.history}, rng)
        for moment in moments(world, first):
            try:
                await examiner.killed(moment)
                await examiner.cut(moment)
            except Exception as exc:
                exc.add_note(f"seed {seed}, before event {moment.number}: {moment.current!s:.60}")
                raise
        return examiner.points

    points = sum(asyncio.run(run(seed)) for seed in range(3))
    assert points > 150


def test_two_rounds_never_run_at_once() -> None:
    """The second waits for the first and finds little left to do."""

    async def scenario(disk: _Disk) -> None:
        await disk.fill()
        await disk.overwrite(disk.blocks)
        running, most = 0, 0
        round_ = disk.collector._round

        async def counted(*arguments: Any, **options: Any) -> None:
            nonlocal running, most
            running += 1
            most = max(most, running)
            try:
                await round_(*arguments, **options)
            finally:
                running -= 1

        disk.collector._round = counted  # type: ignore[method-assign]
        first, second = await asyncio.gather(disk.collector.collect(), disk.collector.collect())
        assert most == 1
        assert first.moved_bytes > 4 * second.moved_bytes
        await disk.check()

    _run(scenario)


def _places(world: World) -> list[tuple[bytearray, int, ChunkId, int]]:
    """Return (segment bytes, offset of the header, chunk, lsn) of every record."""
    found = []
    for segment, data in sorted(world.disk.image.segments.items()):
        at = 0
        while (hit := find_header(data, at)) is not None:
            chunk = ChunkId(*hit[1][:4])
            slot = world.store.find(chunk)
            if slot is not None and slot.segment == segment:
                found.append((data, hit[0], chunk, hit[1][4]))
            at = hit[0] + SECTOR
    return sorted(found, key=lambda entry: entry[3])


def test_rot_in_a_victim_is_told_and_never_copied() -> None:
    """The rotten block stays unreadable, its chunk stays; its neighbours are moved."""

    async def scenario(disk: _Disk) -> None:
        await disk.fill()
        for block in range(disk.blocks):
            if block % 4:
                await disk.write(block)
        await disk.volume.flush()
        data, at, chunk, _ = _places(disk.world)[9]  # the head record, then block 0..
        data[at + 1024] ^= 1
        done = await disk.collector.collect(target=0.95)
        assert done.rotten == [8 * BLOCK]
        assert disk.world.store.find(chunk) is not None
        assert disk.volume.core.blocks.get(8)[0] == chunk.sequence  # type: ignore[index]
        with pytest.raises(Corruption):
            await disk.volume.read(8 * BLOCK, BLOCK)
        await disk.write(8)
        await disk.collector.collect(target=0.95)
        await disk.check()

    _run(scenario)


def test_damaged_header_in_a_victim_keeps_the_chunk() -> None:
    """What stands behind the damage is not found, so it is not moved, so it stays."""

    async def scenario(disk: _Disk) -> None:
        await disk.fill()
        for block in range(disk.blocks):
            if block % 4:
                await disk.write(block)
        await disk.volume.flush()
        await disk.volume.checkpointer.write()
        data, at, chunk, _ = _places(disk.world)[3]
        data[at + 30] ^= 1
        done = await disk.collector.collect(target=0.95)
        assert done.chunks_after < done.chunks_before
        assert disk.world.store.find(chunk) is not None
        await disk.check()

    _run(scenario)


def test_full_pool_is_collected_from_the_reserve() -> None:
    """No ordinary slot is left, everything is half empty: collection frees space all the same."""

    async def scenario(disk: _Disk) -> None:
        await disk.fill()
        with pytest.raises(PoolFull):
            await disk.overwrite(100_000)
        disk.content[:] = await disk.volume.read(0, SIZE)  # without the write that was refused
        for _ in range(6):
            done = await disk.collector.collect()
            assert done.problem == ""
            await disk.check()
        await disk.overwrite(20)
        await disk.check()

    _run(scenario, slots=28, pause_when_full=False)


def test_chunks_that_a_snapshot_pins_are_no_victims() -> None:
    """Nothing up to the newest snapshot's root is touched."""

    async def scenario(disk: _Disk) -> None:
        await disk.fill()
        await disk.overwrite(disk.blocks)
        made = await disk.attachment.snapshot("s", 1)
        assert made.root is not None
        before = set(disk.world.store.chunks())
        assert not disk.collector.dry_run().victims
        await disk.overwrite(disk.blocks)
        done = await disk.collector.collect(target=0.95)
        assert done.moved_bytes > 0
        kept = {chunk for chunk in before if chunk.sequence <= made.root.sequence}
        live = {chunk for chunk in kept if disk.volume.core.blocks.live(chunk.sequence)}
        assert live <= set(disk.world.store.chunks())
        await disk.check()

    _run(scenario, slots=200)


def test_defragmentation_writes_everything_in_the_order_of_addresses() -> None:
    """One pass, all of it, also what is full."""

    async def scenario(disk: _Disk) -> None:
        for block in disk.world.rng.sample(range(disk.blocks), disk.blocks):
            await disk.write(block)
        done = await disk.collector.defragment()
        assert done.moved_bytes >= SIZE - 32 * BLOCK
        runs = disk.volume.core.blocks.runs(0, disk.blocks)
        assert len(runs) < disk.blocks // 5  # seven and eight blocks fit beside two headers
        await disk.check()

    _run(scenario)


def test_stop_ends_a_collection_at_its_next_step() -> None:
    """And nothing is put into the queue afterwards."""

    async def scenario(disk: _Disk) -> None:
        await disk.fill()
        await disk.overwrite(disk.blocks)
        collecting = asyncio.ensure_future(disk.collector.collect())
        for _ in range(30):
            await asyncio.sleep(0)
        await disk.collector.stop()
        assert collecting.done()
        records = disk.volume.core.journal.records
        await asyncio.sleep(0)
        assert disk.volume.core.journal.records == records
        await disk.check()

    _run(scenario)
