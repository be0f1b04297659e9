"""After a failed fdatasync nothing is ever acknowledged, whatever the next one says."""

import asyncio
import random

import pytest

from torus import limits
from torus.errors import DiskFailed
from torus.testing.faults import FaultyDisk
from torus.testing.simdisk import SimDisk
from torus.testing.world import World


@pytest.mark.parametrize("soon", [False, True])
@pytest.mark.parametrize("delay", range(6))
def test_flush_behind_a_failing_one_fails_too(soon: bool, delay: int) -> None:
    """The kernel forgets pages that it could not write: the next sync says that all is well."""

    async def scenario() -> None:
        disk = FaultyDisk.over(SimDisk())
        world = World(random.Random(delay), disk=disk)
        world.store.open()
        await world.catalog.init_cluster()
        await world.catalog.create("v", limits.MIB)
        volume = (await world.attach("v")).volume
        await volume.write(0, bytes(4096), durable=True)
        disk.fail("sync", 1)
        await volume.write(0, random.Random(1).randbytes(4096), durable=False)
        flush = volume.flush_soon if soon else volume.flush
        first = asyncio.ensure_future(flush())
        for _ in range(delay):
            await asyncio.sleep(0)
        outcomes = await asyncio.gather(first, flush(), flush(), return_exceptions=True)
        assert disk.failures == 1
        assert [type(outcome) for outcome in outcomes] == [DiskFailed] * 3
        with pytest.raises(DiskFailed):
            await volume.write(4096, bytes(4096), durable=False)
        await world.stop()

    asyncio.run(scenario())
