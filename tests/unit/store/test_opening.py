"""Opening a disk: whose it is, what is damaged, what is refused."""

import asyncio
import random
import threading

import pytest

from torus import limits
from torus.errors import Corruption, DiskFailed, ForeignData, TorusError, UnknownVersion
from torus.format.identity import DiskIdentity
from torus.format.segment import FREED_SLOT, UNUSED_SLOT, SegmentHeader
from torus.ids import ChunkId
from torus.store.pool import ThreadPool
from torus.store.store import Store
from torus.testing.clock import ManualClock
from torus.testing.faults import FaultyDisk
from torus.testing.simdisk import SMALL, DiskImage, PowerLoss, SimDisk
from torus.testing.world import CLUSTER_ID, DISK_ID, World

SIZE = 256 * limits.KIB


def _made() -> World:
    """Return a machine whose disk holds one volume."""
    world = World(random.Random(3))

    async def make() -> None:
        world.store.open()
        await world.catalog.init_cluster()
        await world.catalog.create("v", SIZE)
        attachment = await world.attach("v")
        await attachment.volume.write(0, random.Random(1).randbytes(SIZE), durable=True)
        await attachment.detach()
        await world.stop()

    asyncio.run(make())
    return world


def _open(image: DiskImage) -> World:
    async def open_() -> World:
        world = World(random.Random(4), image=image)
        world.store.open()
        return world

    return asyncio.run(open_())


def _header(**changes: object) -> bytes:
    fields = {
        "disk_id": bytes.fromhex(DISK_ID), "cluster_id": bytes.fromhex(CLUSTER_ID), "segment": 0,
        "slot_bytes": SMALL.slot_bytes, "slot_count": SMALL.segment_slots,
    }  # fmt: skip
    return SegmentHeader(**{**fields, **changes}).pack()  # type: ignore[arg-type]


@pytest.mark.slow
def test_flipped_bit_anywhere_in_a_segment_header_is_refused() -> None:
    """Every byte counts."""
    image = _made().disk.image
    good = image.headers[0]
    for byte in range(limits.SEGMENT_HEADER_BYTES):
        bad = bytearray(good)
        bad[byte] ^= 0x10
        image.headers[0] = bytes(bad)
        with pytest.raises((Corruption, UnknownVersion)):
            _open(image.copy() if byte % 512 == 0 else image)
    image.headers[0] = good
    _open(image)


@pytest.mark.slow
def test_flipped_bit_anywhere_in_a_slot_header_quarantines_the_slot() -> None:
    """The slot is neither used nor free."""
    image = _made().disk.image
    used = _open(image).store.usage.used
    for byte in range(limits.SLOT_HEADER_BYTES):
        image.segments[0][byte] ^= 0x10
        store = _open(image).store
        assert (store.usage.used, store.usage.quarantined) == (used - 1, 1), byte
        image.segments[0][byte] ^= 0x10


def test_slot_header_that_rotted_to_zeroes_is_made_anew_from_its_chunk() -> None:
    """It looks like a slot that was never used, but the first record says whose it is."""
    image = _made().disk.image
    before = _open(image).store
    image.segments[0][: limits.SLOT_HEADER_BYTES] = UNUSED_SLOT
    store = _open(image).store
    assert (sorted(store.chunks()), store.usage) == (sorted(before.chunks()), before.usage)
    assert not store.damaged
    assert image.segments[0][: limits.SLOT_HEADER_BYTES] != UNUSED_SLOT


@pytest.mark.parametrize("header", [UNUSED_SLOT, FREED_SLOT])
def test_slot_without_a_first_record_or_freed_is_free(header: bytes) -> None:
    """What lies behind a freed slot's header means nothing."""
    image = _made().disk.image
    used = _open(image).store.usage.used
    image.segments[0][: len(header)] = header
    if header == UNUSED_SLOT:
        image.segments[0][len(header) + 8] ^= 1  # no record of any chunk any more
    store = _open(image).store
    assert (store.usage.used, store.usage.quarantined) == (used - 1, 0)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"disk_id": bytes(16)}, ForeignData),
        ({"cluster_id": bytes(16)}, ForeignData),
        ({"segment": 1}, ForeignData),
        ({"slot_bytes": 4096}, ForeignData),
        ({"slot_count": 17}, Corruption),
    ],
)
def test_segment_of_another_place_is_refused(
    changes: dict[str, object], error: type[TorusError]
) -> None:
    """Another disk, cluster, number or geometry, or a file that is too short."""
    image = _made().disk.image
    image.headers[0] = _header(**changes)
    with pytest.raises(error):
        _open(image)


def test_truncated_segment_is_refused() -> None:
    """By one byte or by nearly all."""
    image = _made().disk.image
    for size in (SMALL.segment_bytes - 1, SMALL.slot_bytes, 0):
        image.segments[0] = image.segments[0][:size]
        with pytest.raises(Corruption, match=r"its 16 slots need|header alone"):
            _open(image)


def test_failed_disk_never_says_not_here() -> None:
    """A chunk that cannot be found on it may be there."""

    async def scenario() -> None:
        disk = FaultyDisk.over(SimDisk())
        world = World(random.Random(1), disk=disk)
        world.store.open()
        await world.catalog.init_cluster()
        await world.catalog.create("v", SIZE)
        volume = (await world.attach("v")).volume
        disk.fail("sync", 1)
        with pytest.raises(DiskFailed):
            await volume.write(0, bytes(4096), durable=True)
        with pytest.raises(DiskFailed):
            world.store.find(volume.core.journal.chunk._replace(sequence=77))
        await world.stop()

    asyncio.run(scenario())


def test_deleted_chunk_does_not_come_back_when_the_power_goes() -> None:
    """Its slot is free only when the wiped header is durable."""

    async def scenario() -> None:
        world = World(random.Random(2))
        world.store.open()
        await world.catalog.init_cluster()
        await world.catalog.create("v", SIZE)
        volume = (await world.attach("v")).volume
        await volume.write(0, bytes(4096), durable=True)
        [chunk] = world.store.chunks()
        slot = world.store.find(chunk)
        assert slot is not None
        assert await world.store.delete(chunk.volume, chunk.epoch, [chunk]) == 1
        assert await world.store.delete(chunk.volume, chunk.epoch, [chunk]) == 0
        power = PowerLoss(SMALL)
        for event in world.history:
            power.step(event)
        image = power.certain()
        end = slot.address + limits.SLOT_HEADER_BYTES
        assert image.segments[0][slot.address : end] == FREED_SLOT
        await world.stop()

    asyncio.run(scenario())


class GatedDisk(SimDisk):
    """A disk whose making of segment 1 waits, in a thread, until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.reached, self.gate = threading.Event(), threading.Event()
        self.made: list[int] = []

    def make_segment(self, segment: int, header: bytes, slot_bytes: int) -> None:
        if segment == 1 and threading.current_thread() is not threading.main_thread():
            self.reached.set()
            assert self.gate.wait(10)
        self.made.append(segment)
        super().make_segment(segment, header, slot_bytes)


def test_segment_wanted_now_and_made_ahead_is_made_once() -> None:
    """The second file would replace the first, with the data in it."""

    async def scenario() -> None:
        disk = GatedDisk()
        pool = ThreadPool(1, "test")
        identity = DiskIdentity(DISK_ID, CLUSTER_ID, SMALL.slot_bytes, SMALL.segment_slots, 1)
        store = Store(disk, identity, pool, ManualClock(), 1, size_bytes=40 * SMALL.slot_bytes)
        store.open()
        store.create(ChunkId(1, 1, 0, 1), from_reserve=True)
        assert await asyncio.to_thread(disk.reached.wait, 10)
        threading.Timer(0.05, disk.gate.set).start()
        for sequence in range(2, 25):
            store.create(ChunkId(1, 1, 0, sequence), from_reserve=True)
        await store.close()
        pool.close()
        assert disk.made == sorted(set(disk.made)), disk.made

    asyncio.run(scenario())
