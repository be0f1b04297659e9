"""Space comes back exactly, whatever the order in which snapshots, clones and volumes go."""

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable

import pytest

from torus import limits
from torus.errors import Busy, NotFound
from torus.testing.operations import delete_snapshot, delete_volume
from torus.testing.world import World
from torus.volume.attachment import Attachment

SIZE = limits.MIB
SEED = 41


def run(scenario: Callable[[World], Awaitable[None]]) -> None:
    """Run a scenario in a world with one volume "v"."""

    async def body() -> None:
        world = World(random.Random(SEED), slots=600)
        world.store.open()
        await world.catalog.init_cluster()
        await world.catalog.create("v", SIZE)
        await scenario(world)
        await world.stop()

    asyncio.run(asyncio.wait_for(body(), 120))


async def settle(attachment: Attachment) -> None:
    """Bring a volume to the same log whatever came before: all new, nothing else."""
    await attachment.volume.write(0, b"s" * SIZE, durable=False)
    for _ in range(3):
        await attachment.volume.checkpointer.write()
    await attachment.reclaim()


@pytest.mark.parametrize("order", list(itertools.permutations(("a", "b", "c"))))
def test_any_order_of_deletion_gives_the_same_space_back(order: tuple[str, ...]) -> None:
    async def scenario(world: World) -> None:
        rng = random.Random(SEED)
        attachment = await world.attach("v")
        await settle(attachment)
        alone = world.store.usage.used
        for name in ("a", "b", "c"):
            await attachment.volume.write(0, rng.randbytes(SIZE), durable=False)
            await attachment.snapshot(name, 1)
        assert world.store.usage.used >= 3 * (SIZE // world.disk.geometry.slot_bytes)
        for name in order:
            before = world.store.usage.used
            await delete_snapshot(world, "v", name, attachment)
            assert world.store.usage.used <= before
            with pytest.raises(NotFound):
                await world.catalog.delete_snapshot("v", name)
        await settle(attachment)
        assert world.store.usage.used <= alone + 2, "the chunks of one checkpoint more or less"

    run(scenario)


def test_clone_then_snapshot_then_volume_leaves_nothing() -> None:
    """Nothing is left on the disk; each step before its turn is refused."""

    async def scenario(world: World) -> None:
        rng = random.Random(SEED)
        attachment = await world.attach("v")
        await attachment.volume.write(0, rng.randbytes(SIZE), durable=False)
        await attachment.snapshot("s", 1)
        await world.catalog.clone("v", "s", "c", 2)
        clone = await world.attach("c")
        await clone.volume.write(0, rng.randbytes(SIZE // 2), durable=False)
        with pytest.raises(Busy):
            await world.catalog.delete_snapshot("v", "s")
        with pytest.raises(Busy):
            await world.catalog.mark_deleting("v", force=True, with_snapshots=True)
        await clone.detach()
        await delete_volume(world, "c")
        await delete_snapshot(world, "v", "s", attachment)
        await attachment.detach()
        await delete_volume(world, "v")
        assert world.store.chunks() == []
        with pytest.raises(NotFound):
            await world.catalog.get("v")

    run(scenario)


def test_what_is_discarded_leaves_no_data() -> None:
    """A volume that is trimmed from end to end keeps the chunks of its checkpoint."""

    async def scenario(world: World) -> None:
        rng = random.Random(SEED)
        attachment = await world.attach("v")
        for _ in range(3):
            await attachment.volume.write(0, rng.randbytes(SIZE), durable=False)
        await attachment.volume.trim(0, SIZE, durable=True)
        for _ in range(3):
            await attachment.volume.checkpointer.write()
        assert attachment.volume.core.blocks.mapped_blocks == 0
        assert world.store.usage.used <= 3
        assert await attachment.volume.read(0, SIZE) == bytes(SIZE)

    run(scenario)


def test_the_listing_is_the_same_after_a_restart() -> None:
    """Numbers, roots, sizes and clones; and a name that was freed gets a new number."""

    async def scenario(world: World) -> None:
        attachment = await world.attach("v")
        for name in ("a", "b", "c"):
            await attachment.volume.write(0, name.encode() * 4096, durable=False)
            await attachment.snapshot(name, 1)
        await world.catalog.clone("v", "b", "child", 2)
        before = await world.catalog.snapshots("v")
        await attachment.detach()
        tree = await world.catalog.tree()
        attachment = await world.attach("v")
        assert await world.catalog.snapshots("v") == before
        await attachment.detach()
        assert await world.catalog.tree() == tree
        attachment = await world.attach("v")
        await delete_snapshot(world, "v", "c", attachment)
        again = await attachment.snapshot("c", 3)
        assert again.number == 4
        assert again.uid not in {one.uid for one in before}

    run(scenario)
