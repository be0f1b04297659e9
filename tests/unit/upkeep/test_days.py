"""Bad days of a cluster's disks: many are lost, replaced and back, and every chunk keeps its
copies: as many as there should be, no more, with the content that was written."""

import pytest

from tests.unit.upkeep.town import Town, run

DISKS = [letter * 32 for letter in "0123456789"]


def check_exact(town: Town, *, strangers: bool = True) -> None:
    """Every chunk lies on its owners and nowhere else."""
    town.check_copies()
    assert town.misplaced() == []
    if strangers:
        assert town.strangers() == set()


async def lose(town: Town, *disks: str) -> None:
    """Let disks be gone for good, and out of the ring."""
    town.view.set_down(*disks)
    town.set_ring(disk for disk in town.houses if disk not in disks)
    await town.rounds(20)
    for disk in disks:
        town.houses.pop(disk)


def test_nodes_are_replaced_one_after_the_other() -> None:
    """One is killed and another one added, until none of the first is left; writes go on."""

    async def scenario() -> None:
        town = Town(1, DISKS[:4])
        volumes = [await town.volume(copies) for copies in (2, 3)]
        for old, new in zip(DISKS[:4], DISKS[4:8], strict=True):
            for volume in volumes:
                await town.write(volume, 4)
            town.add(new)
            town.view.set_down(old)
            left = [one.disk_id for one in town.ring.members if one.disk_id != old]
            town.set_ring([*left, new])
            await town.rounds(20)
            town.houses.pop(old)
        check_exact(town)
        assert sorted(town.houses) == DISKS[4:8]
        assert town.ring.version == 5

    run(scenario)


def test_every_pair_is_replaced_with_writes_and_deletions_between() -> None:
    """Two of six at a time, which with three copies loses nothing."""

    async def scenario() -> None:
        town = Town(2, DISKS[:6])
        volume = await town.volume(3)
        for pair in (0, 2, 4):
            chunks = await town.write(volume, 16)
            await town.rounds(20)
            await town.delete(chunks[:5])
            town.add(DISKS[6 + pair // 2])
            await lose(town, *DISKS[pair : pair + 2])
        check_exact(town)

    run(scenario)


def test_eight_of_ten_die_one_by_one_and_come_back() -> None:
    """There are exactly two copies of each at the end, and what is too much is gone."""

    async def scenario() -> None:
        town = Town(3, DISKS)
        volume = await town.volume(2)
        await town.write(volume, 20)
        for number, disk in enumerate(DISKS[:8], 1):
            town.view.set_down(disk)
            town.set_ring(DISKS[number:])
            await town.rounds(20)
        assert all(len(town.holders(chunk)) >= 2 for chunk in volume.chunks)
        for disk in DISKS[:8]:
            town.houses[disk].restart()
        town.set_ring(DISKS)
        await town.rounds(30)
        check_exact(town)

    run(scenario)


def test_seven_of_ten_lose_power_at_once_and_come_back() -> None:
    """Nothing is moved meanwhile, nothing is missing afterwards."""

    async def scenario() -> None:
        town = Town(4, DISKS)
        volume = await town.volume(2)
        await town.write(volume, 20)
        before = town.state()
        town.view.set_down(*DISKS[:7])
        await town.rounds()
        for disk in DISKS[:7]:
            town.houses[disk].restart()
        await town.rounds()
        assert town.state() == before
        check_exact(town)
        assert town.traffic.read_bytes == 0, "who was only away pulls nothing"

    run(scenario)


@pytest.mark.parametrize("back", [1, 5])
def test_disks_that_missed_writes_come_back_at_once(back: int) -> None:
    """They have old chunks, and lack those that were written meanwhile."""

    async def scenario() -> None:
        town = Town(5, DISKS[:8])
        volume = await town.volume(3)
        await town.write(volume, 20)
        gone = DISKS[:back]
        town.view.set_down(*gone)
        await town.write(volume, 20, excluded=gone)
        for disk in gone:
            town.houses[disk].restart()
        await town.rounds(20)
        check_exact(town)
        pulled = sum(town.houses[disk].upkeep.progress.pulled_chunks for disk in gone)
        assert 0 < pulled <= 20 * len(gone)

    run(scenario)


def test_single_copies_are_there_again_when_their_disk_is() -> None:
    """A volume of one copy: nobody takes what is away for deleted, or for lost."""

    async def scenario() -> None:
        town = Town(6, DISKS[:4])
        volume = await town.volume(1)
        await town.write(volume, 30)
        gone = DISKS[0]
        mine = [chunk for chunk in volume.chunks if gone in town.holders(chunk)]
        assert mine
        town.view.set_down(gone)
        town.set_ring(DISKS[1:4])
        await town.rounds(check=False)
        town.houses[gone].restart()
        await town.rounds(20)
        check_exact(town)
        assert all(town.holders(chunk) != [gone] for chunk in mine), "it is drained now"

    run(scenario)


def test_disk_is_back_after_a_week() -> None:
    """Time alone changes nothing: it pulls what it missed, and what was deleted stays deleted."""

    async def scenario() -> None:
        town = Town(7, DISKS[:4])
        volume = await town.volume(3)
        old = await town.write(volume, 150)
        await town.rounds()
        gone = DISKS[0]
        town.view.set_down(gone)
        new = await town.write(volume, 5, excluded=[gone])
        await town.delete(old[:10])
        town.clock.advance(7 * 86400 * 10**9)
        town.houses[gone].restart()
        await town.rounds(20)
        assert town.misplaced() == []
        assert town.houses[gone].upkeep.progress.pulled_chunks == sum(
            gone in town.owners(chunk, 3) for chunk in new
        )
        assert all(gone in _holding(town, c) for c in town.strangers()), "nobody else copied them"
        assert all(_holding(town, chunk) == [gone] for chunk in town.strangers())

    run(scenario)


def _holding(town: Town, chunk: object) -> list[str]:
    return [disk for disk, house in town.houses.items() if chunk in set(house.store.chunks())]


def test_repair_that_is_interrupted_ten_times_leaves_nothing_behind() -> None:
    """The ring changes during every change: space stays bounded, copies are right at the end."""

    async def scenario() -> None:
        town = Town(8, DISKS[:6])
        volume = await town.volume(2)
        await town.write(volume, 20)
        most = 0
        for number in range(10):
            town.set_ring(DISKS[:5] if number % 2 else DISKS[1:6])
            await town.rounds(1)
            most = max(most, sum(len(set(h.store.chunks())) for h in town.houses.values()))
        town.set_ring(DISKS[:6])
        await town.rounds(30)
        check_exact(town)
        assert most <= 3 * len(volume.chunks) + 20, "no more than a copy on its way for each"

    run(scenario)


def test_wall_clock_that_jumps_an_hour_changes_nothing() -> None:
    """Forth and back, in the middle of a repair."""

    async def scenario() -> None:
        town = Town(9, DISKS[:4])
        volume = await town.volume(2)
        await town.write(volume, 30)
        town.set_ring(DISKS[:3])
        for hours in (1, -2, 1):
            town.clock._wall_ns += hours * 3600 * 10**9
            await town.rounds(1)
        await town.rounds(20)
        check_exact(town)
        assert all(house.upkeep.settled() for house in town.houses.values())

    run(scenario)


def test_full_disks_cost_no_copy() -> None:
    """Two of four are full: what fits nowhere stays where it is, twice."""

    async def scenario() -> None:
        town = Town(10, DISKS[:4], slots=25)
        volume = await town.volume(2)
        await town.write(volume, 30)
        town.set_ring(DISKS[:2])
        await town.rounds(20)
        assert all(len(town.holders(chunk)) >= 2 for chunk in volume.chunks)
        town.set_ring(DISKS[:4])
        await town.rounds(30)
        check_exact(town)

    run(scenario)
