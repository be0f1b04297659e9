"""Lives of volumes that are converted and back, drawn from seeds: disks are killed and lose power
in the middle of everything, rings change, and no chunk ever bears fewer losses than it should."""

import asyncio
import os
import random
from dataclasses import replace
from functools import partial

import pytest

from tests.unit.upkeep.test_shards import check_shards
from tests.unit.upkeep.town import House, Town, run
from torus.ids import ChunkId, is_shard, shard_id, whole_id
from torus.redundancy.scheme import erasure, replica
from torus.testing.simdisk import SMALL, DiskImage, PowerLoss
from torus.upkeep.plan import Log
from torus.upkeep.shard_content import make_shard

DISKS = [letter * 32 for letter in "01234567"]
SCHEMES = [replica(1), replica(2), replica(3), erasure(2, 1), erasure(4, 2), erasure(2, 2)]
FOUND = [453]  # a shard's number that the present K+M does not have
SEEDS = [*range(int(os.environ.get("TORUS_UPKEEP_SEEDS", "12"))), *FOUND]
STEPS = 16


class Life:
    """One seed's life."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.town = Town(seed, DISKS[: self.rng.choice([7, 8])], slots=200)
        self.town.slow_net = self.rng.random() < 0.7
        self.images: dict[str, DiskImage] = {}
        self.hurt: set[ChunkId] = set()  # a part of them rotted
        self.said: list[str] = []

    async def begin(self) -> None:
        """Make a volume."""
        self.volume = await self.town.volume(0, self.rng.choice(SCHEMES))
        await self.write()

    @property
    def least(self) -> int:
        """How many disks a chunk has to bear the loss of, and one."""
        volume = self.volume
        return min(one.copies for one in (volume.scheme, *volume.former))

    async def step(self) -> None:
        """Let something happen, and look whether all is there."""
        weights = {
            self.write: 3, self.convert: 2, self.ring: 2, self.rounds: 3, self.kill: 8,
            self.away: 2, self.delete: 1, self.rot: 1,
        }  # fmt: skip
        [what] = self.rng.choices(list(weights), list(weights.values()))
        self.said.append(what.__name__)
        await what()
        self.check()

    def check(self) -> None:
        """No chunk is in more danger than its scheme lets it be."""
        for chunk in self.volume.chunks:
            good, least = self.town.good(chunk), self.least
            if chunk in self.hurt:
                least = min(1, least - 1)
            assert good >= least, f"chunk {chunk} bears {good}, not {least}: {self.said}"

    # --- what happens -------------------------------------------------------------------

    async def write(self) -> None:
        """Write a span, open or closed, and make it durable."""
        volume = self.volume
        if volume.spans and volume.spans[-1].last is None:
            await self.close_span()
        closed = self.rng.random() < 0.6
        records = self.rng.choice([1, 1, 2, 3])
        await self.town.write(volume, self.rng.randint(1, 3), records=records, closed=closed)
        if not closed:
            volume.replay = self.rng.randint(volume.spans[-1].first, volume.next_sequence)
            await self.town.publish(volume)
        for house in self.town.houses.values():
            await house.store.sync([one for one in house.store.chunks() if not is_shard(one)])

    async def close_span(self) -> None:
        """Close the open span where it is."""
        volume = self.volume
        volume.close()
        volume.epoch += self.rng.randint(0, 1)
        await self.town.publish(volume)

    async def convert(self) -> None:
        """Want another redundancy."""
        scheme = self.rng.choice(SCHEMES)
        if scheme != self.volume.scheme:
            self.said.append(str(scheme))
            await self.town.convert(self.volume, scheme)

    async def ring(self) -> None:
        """Have another ring, of all disks but one or two."""
        disks = list(self.town.houses)
        self.town.set_ring(self.rng.sample(disks, len(disks) - self.rng.randint(0, 2)))

    async def rounds(self) -> None:
        """Let everybody do what is to be done."""
        await self.town.rounds(self.rng.randint(1, 6), check=False)

    async def kill(self) -> None:
        """Kill one in the middle of a round of all."""
        houses = [house for house in self.town.houses.values() if house.up]
        tasks = {
            house.disk_id: asyncio.get_running_loop().create_task(house.upkeep.round())
            for house in houses
        }
        victim = self.rng.choice(houses)
        for _ in range(self.rng.choice([5, 20, 60, 200, 600])):
            await asyncio.sleep(0)
        self.check()
        tasks[victim.disk_id].cancel()
        await asyncio.wait([tasks.pop(victim.disk_id)])
        self.restart(victim)
        await asyncio.gather(*tasks.values())

    def restart(self, house: House) -> None:
        """Start a process anew, after a kill or a loss of power."""
        image = None
        if self.rng.random() < 0.5:
            start = self.images.get(house.disk_id)
            loss = PowerLoss(SMALL, None if start is None else start.copy())
            for event in house.disk.history:
                loss.step(event)
            image = loss.cut(self.rng)
        house.restart(image)
        self.images[house.disk_id] = house.disk.image.copy()

    async def away(self) -> None:
        """One disk is away for some rounds."""
        disk = self.rng.choice(list(self.town.houses))
        self.town.view.set_down(disk)
        await self.town.rounds(self.rng.randint(1, 5), check=False)
        self.check()
        self.restart(self.town.houses[disk])

    async def delete(self) -> None:
        """Delete chunks."""
        chunks = list(self.volume.chunks)
        await self.town.delete(self.rng.sample(chunks, len(chunks) // 3))

    async def rot(self) -> None:
        """Flip a byte of a part of a chunk that bears a loss, and let its disk find it."""
        bearing = [
            chunk for chunk in self.volume.chunks
            if chunk not in self.hurt and self.town.good(chunk) > 1
        ]  # fmt: skip
        if not bearing:
            return
        chunk = self.rng.choice(bearing)
        there = [
            (house, one)
            for house in self.town.houses.values()
            for one in house.store.chunks()
            if one[1:] == chunk[1:]
        ]
        house, part = self.rng.choice(there)
        self.hurt.add(chunk)
        house.rot(part, 512 + self.rng.randrange(4000))
        house.upkeep.doubt(part)

    async def end(self) -> None:
        """All are up, nothing happens any more: everything comes to its place."""
        if self.volume.spans[-1].last is None:
            await self.close_span()
        self.town.set_ring(self.town.houses)
        for house in self.town.houses.values():
            house.upkeep._survey.forget()
            house.upkeep._shard_survey.forget()
            for one in house.store.chunks():  # what a restart forgot, a scrub finds
                if whole_id(one) in self.hurt:
                    house.upkeep.doubt(one)
        quiet = 0  # parts that are given up at the same moment wait for each other
        for _ in range(60):
            before = self.town.state()
            await self.town.rounds(1, check=False)
            quiet = quiet + 1 if self.town.state() == before else 0
            if quiet == 5:
                return


def check_end(life: Life) -> None:
    """Everything that lives lies as the scheme says."""
    town, volume = life.town, life.volume
    if volume.scheme.erasure:
        left = [one for house in town.houses.values() for one in house.store.chunks()]
        if {one[1:] for one in left} == {one[1:] for one in volume.chunks}:
            check_shards(town, volume)
        else:  # something that was deleted is left: the next attach counts it
            for chunk in volume.chunks:
                made = [n for some in town.shards(chunk, volume.scheme).values() for n in some]
                assert sorted(made) == list(range(volume.scheme.shards)), f"chunk {chunk}"
    else:
        assert town.misplaced() == []


@pytest.mark.parametrize("seed", SEEDS)
def test_life_of_a_volume(seed: int) -> None:
    """TORUS_UPKEEP_SEEDS tells how many there are."""

    async def scenario() -> None:
        life = Life(seed)
        await life.begin()
        for _ in range(STEPS):
            await life.step()
        await life.end()
        life.check()
        check_end(life)

    run(scenario)


# --- disks that know different redundancies ---------------------------------------------------


class OtherHeads:
    """The metadata as a disk read it a while ago."""

    def __init__(self, logs: tuple[Log, ...]) -> None:
        self._logs = logs

    async def read(self) -> tuple[Log, ...]:
        """Return what it knows."""
        return self._logs


async def _disagree(seed: int, *, marks: bool) -> bool:
    """Every disk goes by one of two redundancies, of which all parts are there; return whether
    the chunk is left."""
    town = Town(seed, DISKS[:6], slots=60)
    town.slow_net = True
    copies, shards = replica(1), erasure(4, 2)
    volume = await town.volume(0, copies)
    [chunk] = await town.write(volume, 1, records=2)
    [old] = await town.heads.read()
    await town.convert(volume, shards)
    [new] = await town.heads.read()
    for house in town.houses.values():
        house.chunks.drop = house.store.copies.drop  # type: ignore[method-assign]
        content = volume.chunks[chunk]
        for number, disk in enumerate(town.owners(chunk, shards.shards)):
            if disk == house.disk_id:
                shard = make_shard(chunk, content, shards, number, SMALL.slot_bytes)
                part = shard_id(chunk, number)
                await house.chunks.install(part, 1, 512 + len(shard), shard)
    both = (replace(old, former=(shards,)), new)
    rng = random.Random(seed)

    async def live(house: House) -> None:
        if not marks:
            house.upkeep._work.giveup.leaving = Forgetful()
        for _ in range(5):
            house.upkeep._heads = OtherHeads((rng.choice(both),))  # type: ignore[assignment]
            for _ in range(rng.randint(0, 8)):
                await asyncio.sleep(0)
            await house.upkeep.round()

    await asyncio.gather(*(live(house) for house in town.houses.values()))
    return town.good(chunk) > 0


class Forgetful(set[ChunkId]):
    """Marks that nobody sees."""

    def update(self, *_: object) -> None:
        """Forget them."""


@pytest.mark.parametrize("marks", [True, False])
def test_disks_that_disagree_about_the_redundancy_lose_nothing(*, marks: bool) -> None:
    """Some give up shards for copies, some copies for shards; without marks that loses both."""
    left = []

    async def scenario(seed: int) -> None:
        left.append(await _disagree(seed, marks=marks))

    for seed in range(25):
        run(partial(scenario, seed))

    assert all(left) == marks
