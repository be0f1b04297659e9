"""Rounds of several disks: copies come back, move, and go, and none is lost on the way."""

from torus.ids import ChunkId

from tests.unit.upkeep.town import Town, run

DISKS = [letter * 32 for letter in "abcd"]


def test_lost_disk_copies_come_back_and_nothing_else_moves() -> None:
    """After a disk is lost and put out, every chunk has its copies again."""

    async def scenario() -> None:
        town = Town(1, DISKS)
        volume = await town.volume(2)
        await town.write(volume, 40)
        assert town.misplaced() == []
        assert await town.rounds() == 0
        lost = DISKS[0]
        mine = [chunk for chunk in volume.chunks if lost in town.holders(chunk)]
        town.view.set_down(lost)
        town.set_ring(DISKS[1:])
        await town.rounds()
        del town.houses[lost]
        assert town.misplaced() == []
        pulled = sum(house.upkeep.progress.pulled_chunks for house in town.houses.values())
        assert pulled == len(mine) > 0
        assert all(house.upkeep.settled() for house in town.houses.values())

    run(scenario)
