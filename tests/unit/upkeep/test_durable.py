"""What upkeep counts as a copy is on the disk."""

import pytest

from tests.unit.upkeep.town import Town, run
from torus.redundancy.scheme import Scheme, erasure, replica
from torus.store.content import FIRST
from torus.testing.simdisk import SMALL, PowerLoss

DISKS = [letter * 32 for letter in "abcd"]


@pytest.mark.parametrize("scheme", [replica(3), erasure(2, 2)])
def test_copy_that_was_never_synced_is_durable_when_it_was_compared(scheme: Scheme) -> None:
    """A disk that its span lost may have all in memory, and nobody ever asked it to sync."""

    async def scenario() -> None:
        town = Town(1, DISKS[:3])  # too few for shards
        volume = await town.volume(0, scheme)
        [chunk] = await town.write(volume, 1)
        house = town.houses[town.owners(chunk, volume.copies)[0]]
        assert not any(event.kind == "sync" for event in house.disk.history)

        await town.rounds()

        loss = PowerLoss(SMALL)
        for event in house.disk.history:
            loss.step(event)
        house.restart(loss.certain())
        content = volume.chunks[chunk]
        assert house.content(chunk) == content
        assert len(content) > FIRST

    run(scenario)
