"""Dead chunks on a simulated machine: who frees them when nobody was there to do it."""

import asyncio
import random

from torus import limits
from torus.testing.crash import check_space
from torus.testing.world import World

SIZE = limits.MIB


def test_writer_that_attaches_later_frees_what_a_deleted_snapshot_pinned() -> None:
    """The command that deleted it died before it could have the space reclaimed."""

    async def body() -> None:
        world = World(random.Random(5), slots=200)
        world.store.open()
        await world.catalog.init_cluster()
        await world.catalog.create("v", SIZE)
        attachment = await world.attach("v")
        await attachment.volume.write(0, world.rng.randbytes(SIZE), durable=False)
        await attachment.snapshot("s", 1)
        await attachment.volume.write(0, world.rng.randbytes(SIZE), durable=False)
        for _ in range(2):
            await attachment.volume.checkpointer.write()
        full = world.store.usage.used
        await attachment.detach()
        await world.catalog.delete_snapshot("v", "s")
        world.attachments.clear()
        attachment = await world.attach("v")
        await attachment.volume.checkpointer.write()
        await attachment.volume.checkpointer.delete_due(at_once=True)
        assert world.store.usage.used <= full - SIZE // world.disk.geometry.slot_bytes
        check_space(world)
        await world.stop()

    asyncio.run(asyncio.wait_for(body(), 60))
