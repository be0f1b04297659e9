"""What the collector reads, while others read as well."""

import asyncio
import random

from torus import limits
from torus.testing.world import World
from torus.volume.leaves import LEAF_BLOCKS

BLOCK = limits.BLOCK_BYTES
LEAVES = 3


def test_leaf_that_is_dropped_while_others_come_is_brought_back() -> None:
    """A reader beside the collector makes room in a small cache at any moment."""

    async def body() -> None:
        world = World(random.Random(11), slots=200)
        world.store.open()
        await world.catalog.init_cluster()
        await world.catalog.create("v", LEAVES * LEAF_BLOCKS * BLOCK)
        attachment = await world.attach("v")
        volume, core = attachment.volume, attachment.volume.core
        data = world.rng.randbytes(8 * BLOCK)
        for _ in range(3):
            for leaf in range(LEAVES):
                await volume.write(leaf * LEAF_BLOCKS * BLOCK, data, durable=False)
        await volume.checkpointer.write()
        load, dropped = core.load, []

        async def load_and_drop(block: int, count: int) -> None:
            await load(block, count)
            if not dropped:
                dropped.append(block)
                core.blocks.evict(0)

        collecting = asyncio.ensure_future(volume.collector.defragment())
        core.blocks.evict(0)
        await load(0, 1)
        core.load = load_and_drop  # type: ignore[method-assign]
        done = await collecting
        assert dropped
        assert not done.problem
        assert done.victims
        for leaf in range(LEAVES):
            assert await volume.read(leaf * LEAF_BLOCKS * BLOCK, len(data)) == data
        await world.stop()

    asyncio.run(asyncio.wait_for(body(), 60))
