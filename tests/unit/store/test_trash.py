"""Trash: deleted chunks are gone at once, can come back for a while, and never in a used slot."""

import asyncio
import errno
import random
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

from torus import limits
from torus._fast.record import KIND_DATA, RecordBuilder
from torus.cluster.local import LocalChunks
from torus.errors import DiskFailed, Fenced, LocalProtocolError, NotFound, PoolFull
from torus.format.identity import DiskIdentity
from torus.format.segment import FREED_SLOT, SlotHeader
from torus.ids import ChunkId
from torus.store.store import Store
from torus.testing.clock import ManualClock
from torus.testing.faults import FaultyDisk
from torus.testing.pool import SimPool
from torus.testing.simdisk import SMALL, DiskImage, PowerLoss, SimDisk
from torus.testing.world import CLUSTER_ID, DISK_ID

GRACE_S = 30.0
SLOTS = 40


class Machine:
    """A store on a simulated disk."""

    def __init__(
        self,
        seed: int,
        *,
        image: DiskImage | None = None,
        grace_s: float = GRACE_S,
        slots: int = SLOTS,
        punch: bool = False,
    ) -> None:
        self.disk = FaultyDisk.over(SimDisk(image=image))
        self.clock = ManualClock()
        identity = DiskIdentity(DISK_ID, CLUSTER_ID, SMALL.slot_bytes, SMALL.segment_slots, 1)
        self.store = Store(
            self.disk, identity, SimPool(self.disk, random.Random(seed)), self.clock, 1,
            size_bytes=slots * SMALL.slot_bytes, punch_delay_s=0.0 if punch else None,
            trash_grace_s=grace_s,
        )  # fmt: skip
        self.store.open()

    def write(self, chunk: ChunkId, *, from_reserve: bool = False) -> int:
        """Write a record into a new chunk; return its slot's address."""
        appender = self.store.appender(chunk)
        appender.open(from_reserve=from_reserve)
        record = _record(chunk)
        appender.append(0, limits.SLOT_HEADER_BYTES, record)
        return appender.address

    def fill(self) -> list[ChunkId]:
        """Take all slots that ordinary writes may have."""
        chunks = []
        try:
            while True:
                chunk = ChunkId(9, 1, 0, len(chunks) + 1)
                self.write(chunk)
                chunks.append(chunk)
        except PoolFull:
            return chunks

    async def let_time_pass(self, seconds: float) -> None:
        """Move the clock, and let the timers see it."""
        self.clock.advance(int(seconds * 1e9))
        self.store.expire_trash()
        await self.settle()

    async def settle(self) -> None:
        """Wait for what is being emptied."""
        if self.store._trash._emptying:
            await asyncio.wait(self.store._trash._emptying)
        for _ in range(3):
            await asyncio.sleep(0)

    def header(self, address: int) -> bytes:
        """Return the header of a slot."""
        return self.disk.read(address, limits.SLOT_HEADER_BYTES)

    def adds_up(self) -> bool:
        """True when every slot of the limit is counted once."""
        usage = self.store.usage
        parts = usage.used + usage.trash + usage.free + usage.reserve + usage.quarantined
        return parts == usage.limit and usage.used == len(self.store.chunks())


def _record(chunk: ChunkId) -> RecordBuilder:
    record = RecordBuilder(limits.BLOCK_BYTES, 1)
    record.add_data(chunk.sequence, bytes([chunk.sequence % 256]) * limits.BLOCK_BYTES)
    record.finish(KIND_DATA, chunk, 0, chunk.sequence, 0, limits.SLOT_HEADER_BYTES)
    return record


def _chunks(count: int, first: int = 1) -> list[ChunkId]:
    return [ChunkId(1, 1, 0, first + number) for number in range(count)]


def _run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        reported: list[object] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: reported.append(context))
        await scenario()
        assert reported == []

    asyncio.run(run())


def test_deleted_chunk_is_gone_at_once_and_its_slot_untouched_for_the_grace_period() -> None:
    """Nobody finds it; its bytes stay; then its header says that the slot is free."""

    async def scenario() -> None:
        machine = Machine(1)
        store, [chunk, other] = machine.store, _chunks(2)
        address = machine.write(chunk)
        machine.write(other)
        before = machine.disk.read(address, SMALL.slot_bytes)
        assert await store.delete(1, 1, [chunk]) == 1
        assert await store.delete(1, 1, [chunk]) == 0
        assert store.find(chunk) is None
        assert store.chunks_of(1) == store.chunks() == [other]
        assert store.trash == [chunk]
        assert (store.usage.used, store.usage.trash, machine.adds_up()) == (1, 1, True)
        await machine.let_time_pass(GRACE_S - 0.1)
        assert machine.disk.read(address, SMALL.slot_bytes) == before
        await machine.let_time_pass(0.1)
        assert machine.header(address) == FREED_SLOT
        assert (store.trash, store.usage.trash, machine.adds_up()) == ([], 0, True)
        await store.close()

    _run(scenario)


def test_deleting_asks_the_fence_and_the_owner_also_with_a_grace_period() -> None:
    """An older epoch deletes nothing, and nobody another volume's chunks."""

    async def scenario() -> None:
        machine = Machine(1)
        [chunk] = _chunks(1)
        machine.write(chunk)
        machine.store.fences.advance(1, 2)
        with pytest.raises(Fenced):
            await machine.store.delete(1, 1, [chunk])
        with pytest.raises(LocalProtocolError):
            await machine.store.delete(2, 1, [chunk])
        assert machine.store.chunks() == [chunk]
        await machine.store.close()

    _run(scenario)


def test_restored_chunk_is_there_as_before() -> None:
    """Until the grace period is over; then it is not found."""

    async def scenario() -> None:
        machine = Machine(2)
        store, [chunk] = machine.store, _chunks(1)
        address = machine.write(chunk)
        before = machine.disk.read(address, SMALL.slot_bytes)
        await store.delete(1, 1, [chunk])
        await store.restore(chunk)
        assert store.chunks_of(1) == [chunk]
        assert machine.disk.read(address, SMALL.slot_bytes) == before
        await machine.let_time_pass(2 * GRACE_S)
        assert (store.chunks(), machine.adds_up()) == ([chunk], True)
        await store.delete(1, 1, [chunk])
        await machine.let_time_pass(GRACE_S)
        with pytest.raises(NotFound):
            await store.restore(chunk)
        await store.close()

    _run(scenario)


def test_id_of_a_deleted_chunk_is_refused() -> None:
    """Two slots would have the same header."""

    async def scenario() -> None:
        machine = Machine(3)
        [chunk] = _chunks(1)
        machine.write(chunk)
        await machine.store.delete(1, 1, [chunk])
        with pytest.raises(LocalProtocolError, match="was deleted"):
            machine.write(chunk)
        await machine.store.close()

    _run(scenario)


def test_after_a_restart_trash_is_plain_chunks_again() -> None:
    """The disk does not know that they were deleted."""

    async def scenario() -> None:
        machine = Machine(4)
        chunks = _chunks(5)
        for chunk in chunks:
            machine.write(chunk)
        await machine.store.delete(1, 1, chunks[:3])
        await machine.store.close()
        again = Machine(4, image=machine.disk.image)
        assert sorted(again.store.chunks()) == chunks
        assert (again.store.usage.trash, again.store.damaged) == (0, [])
        await again.store.close()

    _run(scenario)


def test_full_pool_gives_the_oldest_trash_to_who_waits() -> None:
    """A writer that found no slot gets one without waiting for the grace period."""

    async def scenario() -> None:
        machine = Machine(5)
        chunks = machine.fill()
        store, local = machine.store, LocalChunks(machine.store)
        with pytest.raises(PoolFull):
            local.open_now(ChunkId(1, 1, 0, 1), from_reserve=False)
        await store.delete(9, 1, chunks[:4])
        assert local.open_now(ChunkId(1, 1, 0, 1), from_reserve=False) is None
        for number in range(1, 5):
            await local.open(ChunkId(1, 1, 0, number), from_reserve=False)
        assert store.usage.used == len(chunks)
        with pytest.raises(PoolFull):
            await local.open(ChunkId(1, 1, 0, 5), from_reserve=False)
        await store.close()

    _run(scenario)


def test_oldest_trash_goes_before_writers_have_to_wait() -> None:
    """Some slots stay free while there is trash; the newest of it is kept."""

    async def scenario() -> None:
        machine = Machine(6)
        chunks = machine.fill()
        await machine.store.delete(9, 1, chunks[:10])
        await machine.settle()
        usage = machine.store.usage
        assert usage.free == limits.RESERVE_SLOTS_MIN
        assert machine.store.trash == chunks[10 - usage.trash : 10]
        for number in range(1, 8):
            machine.write(ChunkId(1, 1, 0, number))
            await machine.settle()
            assert machine.adds_up()
        assert machine.store.trash == []
        await machine.store.close()

    _run(scenario)


def test_trash_has_room_for_a_part_of_the_slots_only() -> None:
    """A stream that overwrites gets its slots back while they are warm: few are ever new."""

    async def scenario() -> None:
        machine = Machine(9, slots=400)
        local, taken = LocalChunks(machine.store), set()
        for sequence in range(1, 1001):
            chunk = ChunkId(1, 1, 0, sequence)
            await local.open(chunk, from_reserve=False)
            taken.add(local.place(chunk))
            if sequence > 50:
                await machine.store.delete(1, 1, [chunk._replace(sequence=sequence - 50)])
            await machine.settle()
            assert machine.store.usage.trash <= 40
        assert len(taken) <= 50 + 40 + 2
        assert machine.adds_up()
        await machine.store.close()

    _run(scenario)


def test_reserve_is_there_for_those_who_may_use_it() -> None:
    """Trash does not take it from them."""

    async def scenario() -> None:
        machine = Machine(7)
        chunks = machine.fill()
        await machine.store.delete(9, 1, chunks[:1])
        for number in range(1, 1 + machine.store.usage.reserve):
            machine.write(ChunkId(1, 1, 0, number), from_reserve=True)
        await machine.store.close()

    _run(scenario)


@pytest.mark.parametrize("grace_s", [0.0, GRACE_S])
@pytest.mark.parametrize("kind", ["write", "sync"])
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
def test_nth_call_fails_while_slots_are_freed(grace_s: float, kind: str, error: int) -> None:
    """A slot is free only if its header was wiped and synced; the counts add up."""

    async def scenario(at: int) -> bool:
        machine = Machine(at, grace_s=grace_s)
        store, chunks = machine.store, _chunks(6)
        addresses = {chunk: machine.write(chunk) for chunk in chunks}
        machine.disk.fail(kind, at, error)
        refusal = None
        try:
            await store.delete(1, 1, chunks[:4])
            await machine.let_time_pass(GRACE_S)
        except (PoolFull, DiskFailed) as exc:
            refusal = exc
        full = error == errno.ENOSPC and kind == "write"
        if refusal is not None:
            assert (grace_s, isinstance(refusal, PoolFull)) == (0.0, full)
        await machine.settle()
        came = machine.disk.failures > 0
        assert machine.adds_up()
        if came and (kind == "sync" or error == errno.EIO):
            assert store.failure is not None
        freed = store.usage.limit - store.usage.reserve - store.usage.free - store.usage.used
        assert freed == store.usage.trash == len(store.trash)
        if came and store.failure is None and grace_s:
            for chunk in store.trash:
                await store.restore(chunk)
                assert machine.header(addresses[chunk]) == store.slot_header(store.find(chunk))  # type: ignore[arg-type]
        elif came and store.failure is None:
            assert await store.delete(1, 1, chunks[:4]) == 4
        await store.close()
        return came

    came = []

    async def all_of_them() -> None:
        for at in range(1, 20):
            came.append(await scenario(at))
            if not came[-1]:
                break

    _run(all_of_them)
    assert came[0]
    assert not came[-1]


@pytest.mark.parametrize("grace_s", [0.0, GRACE_S])
def test_slot_is_reused_only_when_its_freed_header_is_durable(grace_s: float, seed: int) -> None:
    """Whatever a power cut takes: no chunk that was freed lies in a slot that was given out."""
    rng = random.Random(seed)

    async def scenario() -> None:
        machine = Machine(seed, grace_s=grace_s, slots=24)
        local = LocalChunks(machine.store)
        power, done = PowerLoss(SMALL), 0
        live: list[ChunkId] = []
        for sequence in range(1, 200):
            chunk = ChunkId(1, 1, 0, sequence)
            writer = await local.open(chunk, from_reserve=False)
            address = local.place(chunk)
            assert address is not None
            while done < len(machine.disk.history):
                power.step(machine.disk.history[done])
                done += 1
            _no_chunk_at(power.certain(), address)
            await writer.append(0, limits.SLOT_HEADER_BYTES, _record(chunk))
            live.append(chunk)
            if rng.random() < 0.5:
                await local.sync(rng.sample(live, min(3, len(live))))
            while len(live) > 12:
                gone = live.pop(rng.randrange(len(live)))
                await machine.store.delete(1, 1, [gone])
            if rng.random() < 0.1:
                await machine.let_time_pass(rng.choice((1.0, GRACE_S)))
        await machine.store.close()

    _run(scenario)


def _no_chunk_at(image: DiskImage, address: int) -> None:
    segment, offset = divmod(address, SMALL.segment_bytes)
    data = bytes(image.segments[segment][offset : offset + limits.SLOT_HEADER_BYTES])
    assert SlotHeader.unpack(data, "") is None


def test_overwriting_costs_no_more_calls_than_without_trash() -> None:
    """A steady stream of chunks, each deleted soon after: slots go round, warm, one wipe each."""

    async def calls(grace_s: float) -> Counter[str]:
        machine = Machine(8, grace_s=grace_s, slots=64)
        local = LocalChunks(machine.store)
        counted: Counter[str] = Counter()
        allocate = machine.disk.allocate

        def count_allocate(address: int, size: int) -> None:
            counted["allocate"] += 1
            allocate(address, size)

        machine.disk.allocate = count_allocate  # type: ignore[method-assign]
        wiped = 0
        for sequence in range(1, 1001):
            if sequence == 501:
                counted.clear()
                machine.disk.history.clear()
            await local.open(ChunkId(1, 1, 0, sequence), from_reserve=False)
            if sequence > 20:
                await machine.store.delete(1, 1, [ChunkId(1, 1, 0, sequence - 20)])
            await machine.let_time_pass(1.0)
        wiped = sum(event.b == FREED_SLOT for event in machine.disk.history)
        counted["wipe"] = wiped
        counted["punch"] = sum(event.kind == "punch" for event in machine.disk.history)
        await machine.store.close()
        return counted

    async def scenario() -> None:
        expected = Counter({"wipe": 500})
        assert await calls(0.0) == expected
        assert await calls(10.0) == expected

    _run(scenario)


def test_writer_whose_chunk_its_successor_deleted_is_told_that_it_is_fenced() -> None:
    """Not that the chunk is not open: that would be a fault of its own."""

    async def scenario(machine: Machine) -> None:
        chunk = ChunkId(1, 1, 0, 1)
        machine.write(chunk)
        old = machine.store.appender(chunk)
        machine.store.fences.advance(1, 2)
        await machine.store.delete(1, 2, [chunk])

        with pytest.raises(Fenced):
            old.append(1, 2 * limits.SLOT_HEADER_BYTES, _record(chunk))

    asyncio.run(scenario(Machine(1)))
