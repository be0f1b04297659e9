"""Chunks that were deleted after the last checkpoint are not counted by the next attach."""

import asyncio
import random

from torus import limits
from torus.testing.world import World

SIZE = 2 * limits.MIB


def test_deleted_chunks_are_not_counted_again() -> None:
    async def scenario() -> None:
        world = World(random.Random(3), slots=400)
        world.store.open()
        await world.catalog.init_cluster()
        await world.catalog.create("v", SIZE)
        attachment = await world.attach("v")
        for fill in (b"1", b"2"):
            await attachment.volume.write(0, fill * SIZE, durable=False)
            await attachment.volume.checkpointer.write()
        await attachment.detach()
        there = {chunk.sequence for chunk in world.store.chunks()}

        attachment = await world.attach("v")

        counted = attachment.volume.core.blocks.usage.counts()
        assert set(counted) == there
        assert await attachment.volume.read(0, SIZE) == b"2" * SIZE
        attachment.volume.core.blocks.verify()
        await world.stop()

    asyncio.run(asyncio.wait_for(scenario(), 60))
