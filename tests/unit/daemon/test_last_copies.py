"""What others have of the chunks of a disk that is lost: counted before it is forgotten."""

import dataclasses
from collections.abc import Iterable

import pytest

from tests.unit.upkeep.town import Street, Town, run, slot_of
from tests.unit.upkeep.town import Volume as TownVolume
from torus.daemon.last_copies import Count, Elsewhere
from torus.metadata.schema import Head, Span, VolumeSpec
from torus.redundancy.scheme import erasure
from torus.upkeep.placement import Placement
from torus.volume.catalog_ask import Volume

DISKS = [letter * 32 for letter in "abcd"]
LOST = DISKS[0]


async def counted(town: Town, volume: TownVolume, lost: Iterable[str] = (LOST,)) -> Elsewhere:
    """Count what the disks that are up have of what ``lost`` ones may have."""
    found, away = Elsewhere(), set(lost)
    rings = {version: town.view.ring_at(version) for version in range(1, town.ring.version + 1)}
    asker = next(disk for disk, house in town.houses.items() if house.up and disk not in away)
    street = Street(town, asker)
    peers = {
        disk: await street.get(disk)
        for disk, house in town.houses.items()
        if house.up and disk not in away
    }
    placement = Placement(rings, town.ring.version, slot_of)
    spec = VolumeSpec(volume.number, f"v{volume.number}", 1 << 30, str(volume.scheme), 0)
    head = Head(volume.epoch, None, tuple(volume.spans), None)
    count = Count(placement, peers, away, found)  # type: ignore[arg-type]
    await count.volume(Volume(spec, head, 1, 1))
    return found


def test_nothing_is_last_once_the_copies_are_made_again() -> None:
    """Few before the repair, none after it: then the disk may be forgotten."""

    async def scenario() -> None:
        town = Town(1, DISKS)
        volume = await town.volume(2)
        await town.write(volume, 40)
        mine = [chunk for chunk in volume.chunks if LOST in town.holders(chunk)]
        town.view.set_down(LOST)
        before = await counted(town, volume)
        assert (before.chunks, before.few, before.last) == (len(mine), len(mine), 0)
        town.set_ring(DISKS[1:])
        await town.rounds()
        after = await counted(town, volume)
        assert (after.chunks, after.few, after.last, after.volumes) == (len(mine), 0, 0, [])

    run(scenario)


def test_shards_are_counted_together() -> None:
    """Chunks lie in shards: few are there while one is lost, and all are again after that."""

    async def scenario() -> None:
        town = Town(3, [letter * 32 for letter in "0123456"])
        volume = await town.volume(0, erasure(4, 2))
        await town.write(volume, 12)
        await town.rounds(20)
        lost = "0" * 32
        mine = [c for c in volume.chunks if lost in town.shards(c, volume.scheme)]
        town.view.set_down(lost)
        before = await counted(town, volume, [lost])
        assert (before.few, before.last) == (len(mine), 0)
        for gone in ("1" * 32, "2" * 32):
            town.view.set_down(gone)
        worst = await counted(town, volume, [lost])
        assert worst.last > 0, "three are more than it bears"
        for back in ("1" * 32, "2" * 32):
            town.houses[back].restart()
        town.set_ring(disk for disk in town.houses if disk != lost)
        await town.rounds(20)
        after = await counted(town, volume, [lost])
        assert (after.few, after.last, after.volumes) == (0, 0, [])

    run(scenario)


@pytest.mark.parametrize("open_span", [False, True])
def test_only_copy_is_the_last(open_span: bool) -> None:
    """A volume of one copy: what lay on the lost disk is nowhere else."""

    async def scenario() -> None:
        town = Town(2, DISKS)
        volume = await town.volume(1)
        await town.write(volume, 30)
        mine = [chunk for chunk in volume.chunks if LOST in town.holders(chunk)]
        if open_span:
            volume.spans = [Span(1, 0, 1, None, None, 1, ())]
        town.view.set_down(LOST)
        town.set_ring(DISKS[1:])
        found = await counted(town, volume)
        assert found.volumes == ["v1"]
        assert found.last >= len(mine) > 0 if not open_span else found.last > 0

    run(scenario)


def test_deleted_chunk_is_no_last_copy() -> None:
    """Nobody has it, and a disk that had it says with certainty that it is gone."""

    async def scenario() -> None:
        town = Town(3, DISKS)
        volume = await town.volume(3)
        chunks = await town.write(volume, 40)
        volume.epoch += 1
        await town.write(volume, 2)
        town.view.set_down(LOST)
        await town.delete(chunks[:10])
        assert (await counted(town, volume)).last == 0
        # as if the next writer had heard of the lost one only
        others = tuple(disk for disk in DISKS if disk != LOST)
        volume.spans[1] = dataclasses.replace(volume.spans[1], excluded=others)
        assert (await counted(town, volume)).last > 0

    run(scenario)


def test_short_copy_of_a_replica_that_failed_does_not_count() -> None:
    """The survivor of a span is lost before the replica that failed caught up."""

    async def scenario() -> None:
        town = Town(4, DISKS[:2])
        volume = await town.volume(2)
        short = DISKS[1]
        await town.write(
            volume, 3, missed=lambda disk, at: 1 if disk == short and at == 2 else None
        )
        await town.write(volume, 1, excluded=[short])
        town.view.set_down(LOST)
        found = await counted(town, volume)
        assert found.last >= 2, "the short one, and the one that only the lost disk was given"
        town.houses[LOST].restart()
        town.add(DISKS[2])
        town.set_ring(DISKS[1:3])
        await town.rounds()
        town.view.set_down(LOST)
        assert (await counted(town, volume)).last == 0

    run(scenario)


def test_two_lost_disks_have_the_last_copies_of_what_both_had() -> None:
    """One is to be forgotten, the other is down as well: it does not count."""

    async def scenario() -> None:
        town = Town(5, DISKS)
        volume = await town.volume(2)
        await town.write(volume, 40)
        both = [chunk for chunk in volume.chunks if town.holders(chunk) == sorted(DISKS[:2])]
        town.view.set_down(LOST)
        town.view.set_down(DISKS[1])
        assert (await counted(town, volume)).last == len(both) > 0

    run(scenario)
