"""Map leaves that come and go while records are made: a cache smaller than what is in use."""

import asyncio
import random

import pytest

from torus import limits
from torus.format.segment import Geometry
from torus.testing.world import World

LEAF_BYTES = limits.LEAF_ENTRIES * limits.BLOCK_BYTES
LEAVES = 12


@pytest.mark.parametrize("number", range(4))
def test_reads_do_not_evict_what_a_record_needs(number: int) -> None:
    """Many writes make one record while reads load and drop other leaves."""

    async def scenario() -> None:
        rng = random.Random(number)
        world = World(rng, geometry=Geometry(256 * limits.KIB, 16), slots=400, cache_bytes=1)
        world.store.open()
        await world.catalog.init_cluster()
        await world.catalog.create("v", LEAVES * LEAF_BYTES)
        attachment = await world.attach("v")
        expected = {}
        for round_ in range(4):
            volume = attachment.volume
            writes = []
            for leaf in range(LEAVES):
                offset = leaf * LEAF_BYTES + round_ * limits.BLOCK_BYTES
                expected[offset] = rng.randbytes(limits.BLOCK_BYTES)
                writes.append(volume.write(offset, expected[offset], durable=False))

            async def read(volume=volume) -> None:  # type: ignore[no-untyped-def]
                for _ in range(20):
                    await volume.read(
                        rng.randrange(LEAVES) * LEAF_BYTES + 2 * LEAF_BYTES // 3, 4096
                    )

            await asyncio.gather(read(), *writes, read(), read())
            await volume.checkpointer.write()
            await attachment.detach()
            attachment = await world.attach("v")
        for offset, data in expected.items():
            assert await attachment.volume.read(offset, len(data)) == data
        await world.stop()

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_request_larger_than_the_cache_is_written() -> None:
    """Each record needs the leaves of its own part only."""

    async def scenario() -> None:
        rng = random.Random(1)
        world = World(rng, geometry=Geometry(256 * limits.KIB, 16), slots=600, cache_bytes=1)
        world.store.open()
        await world.catalog.init_cluster()
        await world.catalog.create("v", LEAVES * LEAF_BYTES)
        volume = (await world.attach("v")).volume
        for leaf in range(LEAVES):
            await volume.write(leaf * LEAF_BYTES, rng.randbytes(4096), durable=False)
        await volume.checkpointer.write()
        data = rng.randbytes(3 * LEAF_BYTES)
        await volume.write(LEAF_BYTES // 2 + 512, data, durable=False)
        await volume.checkpointer.write()
        await volume.trim(0, 2 * LEAF_BYTES, durable=False)
        found = await volume.read(0, 4 * LEAF_BYTES)
        wanted = bytes(2 * LEAF_BYTES) + data[2 * LEAF_BYTES - LEAF_BYTES // 2 - 512 :]
        assert found[: len(wanted)] == wanted
        await world.stop()

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_read_beside_overwrites_is_no_damage() -> None:
    """A large slow read of blocks that change all the time returns old or new, never an error."""

    async def scenario() -> None:
        rng = random.Random(2)
        world = World(rng, slots=200)
        world.store.open()
        await world.catalog.init_cluster()
        await world.catalog.create("v", limits.MIB)
        volume = (await world.attach("v")).volume
        await volume.write(0, bytes([255]) * limits.MIB, durable=False)
        done = False

        async def overwrite() -> None:
            number = 0
            while not done:
                number = (number + 1) % 250
                await volume.write(rng.randrange(256) * 4096, bytes([number]) * 4096, durable=False)

        task = asyncio.ensure_future(overwrite())
        for _ in range(60):
            data = await volume.read(0, limits.MIB)
            assert all(
                data[at : at + 4096] == data[at : at + 1] * 4096 for at in range(0, len(data), 4096)
            )
        done = True
        await task
        await world.stop()

    asyncio.run(asyncio.wait_for(scenario(), 60))
