"""Sizes that change while nobody, or nobody who knows, has the volume."""

import asyncio
import random

import pytest

from torus import limits
from torus.testing.world import World

SIZE = limits.MIB


@pytest.mark.parametrize("attached", [False, True])
@pytest.mark.parametrize("smaller", [SIZE // 2, SIZE // 2 - 512])
def test_what_a_shrink_cut_off_stays_gone(attached: bool, smaller: int) -> None:
    """Also when the volume grew again before its writer could know; once, and not twice."""

    async def scenario() -> None:
        world = World(random.Random(8))
        world.store.open()
        await world.catalog.init_cluster()
        await world.catalog.create("v", SIZE)
        attachment = await world.attach("v")
        await attachment.volume.write(0, b"x" * SIZE, durable=True)
        if not attached:
            await attachment.detach()
        await world.catalog.resize("v", smaller, shrink=True)
        await world.catalog.resize("v", smaller + limits.BLOCK_BYTES, shrink=True)
        await world.catalog.resize("v", SIZE)
        if attached:
            await attachment.follow_size()
        else:
            attachment = await world.attach("v")
        rest = SIZE - smaller
        assert attachment.volume.size_bytes == SIZE
        assert await attachment.volume.read(0, smaller) == b"x" * smaller
        assert await attachment.volume.read(smaller, rest) == bytes(rest)
        await attachment.volume.write(smaller, b"y" * rest, durable=True)
        await attachment.follow_size()
        attachment = await world.attach("v")
        assert await attachment.volume.read(smaller, rest) == b"y" * rest
        await world.stop()

    asyncio.run(asyncio.wait_for(scenario(), 60))
