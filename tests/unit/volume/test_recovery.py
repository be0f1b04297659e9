"""What recovery makes of damaged logs: torn tails are dropped, rot is told, nothing is cut off."""

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from torus import limits
from torus._fast.record import find_header
from torus.errors import Corruption
from torus.ids import ChunkId
from torus.store.appender import Slot
from torus.testing.simdisk import SECTOR, PowerLoss
from torus.testing.world import World

BLOCK = limits.BLOCK_BYTES
SIZE = 512 * limits.KIB
Scenario = Callable[[World], Awaitable[None]]


def _run(scenario: Scenario, **options: object) -> None:
    async def run() -> None:
        world = World(random.Random(7), **options)  # type: ignore[arg-type]
        world.store.open()
        await world.catalog.init_cluster()
        await world.catalog.create("v", SIZE)
        await scenario(world)
        await world.stop()

    asyncio.run(run())


def _again(world: World) -> World:
    """Open the same disk once more, as after the death of the process."""
    image = PowerLoss(world.disk.geometry, world.disk.image).killed()
    again = World(random.Random(8), image=image, snapshot=world.metadata.snapshot())
    again.store.open()
    return again


async def _write(world: World, count: int, flush_at: int) -> None:
    """Write blocks 0.. with content of their own; flush after ``flush_at`` of them."""
    volume = (await world.attach("v")).volume
    for number in range(count):
        await volume.write(number * BLOCK, _content(number), durable=False)
        if number + 1 == flush_at:
            await volume.flush()


def _content(number: int) -> bytes:
    return random.Random(number).randbytes(BLOCK)


def _places(world: World) -> list[tuple[bytearray, int, ChunkId]]:
    """Return (segment bytes, offset of the header, chunk) of every record, in log order."""
    found = []
    for segment, data in sorted(world.disk.image.segments.items()):
        at = 0
        while (hit := find_header(data, at)) is not None:
            chunk = ChunkId(*hit[1][:4])
            slot = world.store.find(chunk)
            if slot is not None and slot.segment == segment:
                found.append((hit[1][4], data, hit[0], chunk))
            at = hit[0] + SECTOR
    return [entry[1:] for entry in sorted(found, key=lambda entry: entry[0])]


def _slot(world: World, chunk: ChunkId) -> Slot:
    slot = world.store.find(chunk)
    assert slot is not None
    return slot


def test_torn_last_record_is_dropped() -> None:
    """Bytes missing at the end of what was never flushed: the log ends before them."""

    async def scenario(world: World) -> None:
        await _write(world, 4, flush_at=2)
        data, at, _ = _places(world)[-1]
        data[at + 1024] ^= 1
        again = _again(world)
        volume = (await again.attach("v")).volume
        assert await volume.read(0, 3 * BLOCK) == b"".join(map(_content, range(3)))
        assert not any(await volume.read(3 * BLOCK, BLOCK))
        await again.stop()

    _run(scenario)


def test_rot_in_a_flushed_payload_fails_that_block_alone() -> None:
    """The volume attaches; the block raises Corruption, its neighbours are right."""

    async def scenario(world: World) -> None:
        await _write(world, 6, flush_at=4)  # later records say that the first four were durable
        data, at, _ = _places(world)[2]  # the head record, block 0, block 1
        data[at + 1024] ^= 1
        again = _again(world)
        volume = (await again.attach("v")).volume
        assert await volume.read(0, BLOCK) == _content(0)
        with pytest.raises(Corruption, match="checksum"):
            await volume.read(BLOCK, BLOCK)
        assert await volume.read(2 * BLOCK, 4 * BLOCK) == b"".join(map(_content, range(2, 6)))
        with pytest.raises(Corruption):
            await volume.write(BLOCK + 512, bytes(512), durable=False)  # needs the rest of it
        await volume.write(BLOCK, _content(9), durable=True)
        assert await volume.read(BLOCK, BLOCK) == _content(9)
        await again.stop()

    _run(scenario)


def test_rot_in_a_header_below_what_was_committed_refuses_to_attach() -> None:
    """Cutting the log there would lose flushed data without a word."""

    async def scenario(world: World) -> None:
        await _write(world, 6, flush_at=4)
        data, at, _ = _places(world)[2]
        data[at + 30] ^= 1
        again = _again(world)
        with pytest.raises(Corruption, match="durable"):
            await again.attach("v")
        await again.stop()

    _run(scenario)


def test_unflushed_record_lost_in_the_middle_ends_the_log_there() -> None:
    """Never a newer write without the older ones."""

    async def scenario(world: World) -> None:
        await _write(world, 8, flush_at=2)
        data, at, _ = _places(world)[5]  # block 4
        data[at : at + SECTOR] = bytes(SECTOR)
        again = _again(world)
        volume = (await again.attach("v")).volume
        assert await volume.read(0, 4 * BLOCK) == b"".join(map(_content, range(4)))
        assert not any(await volume.read(4 * BLOCK, 4 * BLOCK))
        await again.stop()

    _run(scenario)


@pytest.mark.parametrize("byte", [0, 4, 8, 30, 60, 200, 508])
def test_damaged_slot_header_of_the_open_span_refuses_to_attach(byte: int) -> None:
    """A chunk in a damaged slot is not "never there"."""

    async def scenario(world: World) -> None:
        await _write(world, 40, flush_at=40)
        chunk = _places(world)[-1][2]
        slot = _slot(world, chunk)
        geometry = world.disk.geometry
        start = geometry.slot_of(slot.address) * geometry.slot_bytes
        world.disk.image.segments[slot.segment][start + byte] ^= 4
        again = _again(world)
        assert again.store.damaged
        assert again.store.usage.quarantined == 1
        with pytest.raises(Corruption):
            await again.attach("v")
        await again.stop()

    _run(scenario)


def test_copy_of_a_slot_in_another_slot_is_never_used() -> None:
    """A misdirected write is quarantined; the volume is whole."""

    async def scenario(world: World) -> None:
        await _write(world, 8, flush_at=8)
        geometry = world.disk.geometry
        slot = _slot(world, _places(world)[-1][2])
        data = world.disk.image.segments[slot.segment]
        at = geometry.slot_of(slot.address) * geometry.slot_bytes
        data[9 * geometry.slot_bytes : 10 * geometry.slot_bytes] = data[
            at : at + geometry.slot_bytes
        ]
        again = _again(world)
        assert len(again.store.damaged) == 1
        volume = (await again.attach("v")).volume
        assert await volume.read(0, 8 * BLOCK) == b"".join(map(_content, range(8)))
        await again.stop()

    _run(scenario)


def test_records_of_an_older_chunk_behind_the_new_ones_are_ignored() -> None:
    """A recycled slot still holds what a deleted chunk wrote there."""

    async def scenario(world: World) -> None:
        attachment = await world.attach("v")
        volume = attachment.volume
        for round_ in range(6):  # the same blocks again: older chunks die and are freed
            for number in range(30):
                await volume.write(number * BLOCK, _content(100 * round_ + number), durable=False)
            await volume.checkpointer.write()
        await volume.write(0, _content(999), durable=False)
        await volume.flush()
        again = _again(world)
        found = (await again.attach("v")).volume
        expected = _content(999) + b"".join(_content(500 + number) for number in range(1, 30))
        assert await found.read(0, 30 * BLOCK) == expected
        await again.stop()

    _run(scenario, punch=False, slots=16)


def test_missing_segment_in_the_middle_refuses_the_disk() -> None:
    """What lay in it cannot be told from what was deleted."""

    async def scenario(world: World) -> None:
        volume = (await world.attach("v")).volume
        for number in range(400):
            await volume.write(number % 100 * BLOCK, _content(number), durable=False)
        await volume.flush()
        assert len(world.disk.image.segments) > 1
        image = world.disk.image.copy()
        del image.segments[0], image.headers[0]
        again = World(random.Random(1), image=image, snapshot=world.metadata.snapshot())
        with pytest.raises(Corruption, match="segment-00000000"):
            again.store.open()
        await again.stop()

    _run(scenario)


def test_flushed_chunk_gone_while_later_ones_are_there_refuses_to_attach() -> None:
    """The log may not end before chunks that say that it went on."""

    async def scenario(world: World) -> None:
        volume = (await world.attach("v")).volume
        for number in range(60):
            await volume.write(number * BLOCK, _content(number), durable=False)
            if number % 10 == 0:
                await volume.flush()
        chunks = sorted({chunk for _, _, chunk in _places(world)})
        assert len(chunks) > 3
        slot = _slot(world, chunks[1])
        at = world.disk.geometry.slot_of(slot.address) * world.disk.geometry.slot_bytes
        world.disk.image.segments[slot.segment][at : at + 2 * SECTOR] = bytes(2 * SECTOR)
        again = _again(world)
        with pytest.raises(Corruption, match="durable"):
            await again.attach("v")
        await again.stop()

    _run(scenario)


def test_guest_data_that_looks_like_records_proves_nothing() -> None:
    """A store inside a volume of another store has records of chunks with the same ids."""

    async def scenario(world: World) -> None:
        await _write(world, 6, flush_at=6)
        slot = _slot(world, _places(world)[-1][2])
        inner = world.disk.read(slot.address, world.disk.geometry.slot_bytes)
        volume = world.attachments[0].volume
        for at in range(0, 20 * 512, 512):  # at every alignment, never flushed
            await volume.write(100 * BLOCK, inner[at : at + 8 * BLOCK], durable=False)
        last = _places(world)
        for data, at, _ in last[-1:]:
            data[at : at + SECTOR] = bytes(SECTOR)  # the tail is torn
        again = _again(world)
        assert await (await again.attach("v")).volume.read(0, 6 * BLOCK) == b"".join(
            map(_content, range(6))
        )
        await again.stop()

    _run(scenario)
