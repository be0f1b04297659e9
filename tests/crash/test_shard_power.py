"""The power goes at every step of a life of shards: each is whole or not there; one that was
deleted never comes back; no slot and no cell is lost."""

import asyncio
import os
import random
from dataclasses import dataclass, field

import pytest

from tests.unit.store.test_copies import append, made
from tests.unit.store.test_shards import adds_up, examine, install, shard_of, whole
from tests.unit.store.test_trash import Machine
from torus.errors import PoolFull
from torus.format.segment import FREED_SLOT, SlotHeader
from torus.format.shard import CellHeader, cell_offset, shelf_id
from torus.ids import ChunkId, is_shard, whole_id
from torus.store.content import Presence
from torus.testing.simdisk import SMALL, DiskImage, Event, PowerLoss
from torus.testing.world import DISK_ID

pytestmark = [pytest.mark.crash, pytest.mark.sim]
STEPS = 24
SCALE = float(os.environ.get("TORUS_CRASH_SCALE", "1"))
CUTS = round(40 * SCALE)  # of one life; each is opened, looked at, and lives on
SLOTS = 20
SCHEMES = ((4, 2), (2, 1), (7, 3))
Bytes = bytes | None
Place = tuple[int, int]  # sequence of the chunk, number of the shard


@dataclass(slots=True)
class Life:
    """A machine, and what may be on its disk now: for each shard its bytes, or None."""

    machine: Machine
    rng: random.Random
    may: dict[ChunkId, set[Bytes]] = field(default_factory=dict)

    def note(self, shard: ChunkId, may: set[Bytes]) -> None:
        """Remember what is right from now on."""
        self.may[shard] = may
        self.machine.disk.history.append(Event("mark", (shard, frozenset(may))))

    async def step(self) -> None:
        """Do something, and wait for it."""
        sequence = self.rng.randint(1, 6)
        kind = self.rng.choice(
            ("install", "install", "together", "delete", "drop", "copy", "forge")
        )
        try:
            if kind == "install":
                await self.install(sequence)
            elif kind == "together":
                await asyncio.gather(*(self.install(one) for one in self.rng.sample(range(9), 3)))
            elif kind == "delete":
                await self.take_away(sequence, self.machine.store.slots.parts_of(_chunk(sequence)))
            elif kind == "drop":
                here = [one for one in self.machine.store.chunks() if is_shard(one)]
                if here:
                    await self.take_away(0, [self.rng.choice(here)])
            elif kind == "copy":
                await self.use_a_slot(sequence)
            else:
                self.forge()
        except PoolFull:
            await self.machine.store.delete(6, 2, self.machine.store.chunks_of(6))

    async def install(self, sequence: int) -> None:
        """Put a shard there, which may be there already, or another one in its place."""
        data, parity = SCHEMES[sequence % len(SCHEMES)]
        number, fill = self.rng.randrange(data + parity), self.rng.randrange(3)
        shard, content = shard_of(number, sequence, fill=fill, data=data, parity=parity)
        before = self.may.get(shard, {None})
        self.note(shard, {*before, content})
        await install(self.machine, (shard, content))
        self.note(shard, {content})

    async def take_away(self, sequence: int, parts: list[ChunkId]) -> None:
        """Delete a chunk with all its parts, or drop the one part that is named."""
        for part in filter(is_shard, parts):
            self.note(part, {*self.may[part], None})
        if sequence:
            await self.machine.store.delete(5, 3, [_chunk(sequence)])
        else:
            await self.machine.store.copies.drop(parts)
        for part in filter(is_shard, parts):
            self.note(part, {None})

    async def use_a_slot(self, sequence: int) -> None:
        """Write a whole chunk, whose bytes stay in the slot that a shelf may get next."""
        chunk = ChunkId(6, 2, 0, self.rng.randint(1, 1 << 30))
        append(self.machine, chunk, made(chunk, 1 + sequence % 3))
        if self.rng.random() < 0.7:
            await self.machine.store.sync([chunk])
            await self.machine.store.delete(6, 2, [chunk])

    def forge(self) -> None:
        """Fill the free slots with what a guest might write who knows everything: shelves of
        each kind, full of shards."""
        disk, disk_id = self.machine.disk, bytes.fromhex(DISK_ID)
        for segment, data in disk.image.segments.items():
            for number in range(len(data) // SMALL.slot_bytes):
                address = SMALL.address(segment, number)
                if disk.read(address, len(FREED_SLOT)) != FREED_SLOT:
                    continue
                cut = self.rng.choice(SCHEMES)[0]
                shelf = shelf_id(cut, address // SMALL.slot_bytes)
                disk.write(address + 512, SlotHeader(disk_id, segment, number, shelf).pack())
                for cell in range(cut):
                    shard, content = shard_of(cell, 99, data=cut)
                    header = CellHeader(disk_id, segment, number, cell, cut, shard, 7).pack()
                    offset = cell_offset(cut, cell, SMALL.slot_bytes)
                    disk.write(address + offset, header + content)
            disk.sync(segment)

    async def check(self) -> None:
        """Compare the disk with what may be on it, and learn which of it is."""
        store = self.machine.store
        assert store.damaged == []
        assert adds_up(self.machine)
        for shard, may in self.may.items():
            found = await examine(self.machine, shard)
            right = [
                content
                for content in may
                if (
                    found.state is Presence.ABSENT
                    if content is None
                    else found == whole(shard, content)
                )
            ]
            assert len(right) == 1, (shard, found, len(may))
            self.may[shard] = {right[0]}
        assert {whole_id(one).volume for one in store.chunks()} <= {5, 6}
        assert set(filter(is_shard, store.chunks())) <= self.may.keys()


def _chunk(sequence: int) -> ChunkId:
    return ChunkId(5, 2, 0, sequence)


async def _live(life: Life, steps: int) -> None:
    for _ in range(steps):
        await life.step()
        assert adds_up(life.machine)


async def _cut_and_go_on(
    life: Life,
    start: DiskImage,
    first: dict[ChunkId, set[Bytes]],
    cuts: int,
    deep: int,
    punch: bool,
) -> None:
    """Cut the power at moments of a life; look at what is left and let it live on."""
    history = list(life.machine.disk.history)
    chosen = set(life.rng.sample(range(len(history) + 1), min(cuts, len(history) + 1)))
    power, may = PowerLoss(life.machine.disk.geometry, start.copy()), dict(first)
    for number, event in enumerate([*history, None]):
        if number in chosen:
            image = power.cut(
                life.rng, event if event is not None and event.kind != "mark" else None
            )
            after = Machine(1, image=image.copy(), grace_s=0.0, slots=SLOTS, punch=punch)
            next_life = Life(after, life.rng, {shard: set(some) for shard, some in may.items()})
            await next_life.check()
            known = {shard: set(some) for shard, some in next_life.may.items()}
            await _live(next_life, 5)
            await next_life.check()
            await after.store.close()
            if deep:
                await _cut_and_go_on(next_life, image, known, 3, deep - 1, punch)
        if event is not None:
            power.step(event)
            if event.kind == "mark":
                assert isinstance(event.a, tuple)
                may[event.a[0]] = set(event.a[1])


@pytest.mark.parametrize("punch", [False, True])
def test_power_loss_at_any_step(punch: bool, seed: int) -> None:
    """Of a life with three erasure codes, whole chunks in between, and a second loss after each."""

    async def scenario() -> None:
        rng = random.Random(f"shards {seed} {punch}")
        machine = Machine(1, grace_s=0.0, slots=SLOTS, punch=punch)
        life = Life(machine, rng)
        await _live(life, STEPS)
        await life.check()
        await machine.store.close()
        await _cut_and_go_on(life, DiskImage(), {}, CUTS, 1, punch)

    asyncio.run(scenario())
