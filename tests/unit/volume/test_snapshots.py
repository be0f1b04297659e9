"""Snapshots, clones and rollback on a simulated machine: what was kept reads the same."""

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from torus import limits
from torus.cluster.local import LocalChunks
from torus.errors import AlreadyExists, Busy
from torus.metadata.schema import Snapshot
from torus.testing.world import OWNER, World
from torus.volume.attachment import Attachment
from torus.volume.reads import Reads
from torus.volume.rollback import roll_back
from torus.volume.snapshot_map import open_snapshot

BLOCK = limits.BLOCK_BYTES
SIZE = 3 * limits.MIB
SEED = 77


def run(scenario: Callable[[World], Awaitable[None]], slots: int = 400) -> None:
    """Run a scenario in a world with one volume "v"."""

    async def body() -> None:
        world = World(random.Random(SEED), slots=slots)
        world.store.open()
        await world.catalog.init_cluster()
        await world.catalog.create("v", SIZE)
        await scenario(world)
        await world.stop()

    asyncio.run(asyncio.wait_for(body(), 120))


async def scribble(
    attachment: Attachment, image: bytearray, rng: random.Random, times: int
) -> None:
    """Change a volume and the image of it at random places."""
    volume = attachment.volume
    for _ in range(times):
        offset = rng.randrange(SIZE // 512) * 512
        length = min(rng.randrange(1, 64) * 512, SIZE - offset)
        if rng.random() < 0.2:
            await volume.trim(offset, length, durable=False)
            image[offset : offset + length] = bytes(length)
        else:
            data = rng.randbytes(length)
            await volume.write(offset, data, durable=False)
            image[offset : offset + length] = data


async def content(world: World, snapshot: Snapshot) -> bytes:
    """Read a snapshot, all of it."""
    view = await open_snapshot(world.catalog, LocalChunks(world.store), snapshot, 64 * limits.KIB)
    return await Reads(view).read(0, snapshot.size_bytes)


async def go_back(world: World, name: str, snapshot: Snapshot) -> None:
    """Roll a detached volume back."""
    found = await world.catalog.get(name)
    chunks = LocalChunks(world.store)
    await roll_back(found, snapshot, world.catalog, chunks, OWNER, world.clock, world.options)


def test_every_snapshot_keeps_its_moment() -> None:
    """Ten generations, checkpoints and freed chunks between them."""

    async def scenario(world: World) -> None:
        rng, image = random.Random(SEED), bytearray(SIZE)
        attachment = await world.attach("v")
        kept: dict[str, bytes] = {}
        for number in range(10):
            await scribble(attachment, image, rng, 40)
            snapshot = await attachment.snapshot(f"s{number}", number)
            assert snapshot.number == number + 1
            kept[snapshot.name] = bytes(image)
            await scribble(attachment, image, rng, 40)
            await attachment.volume.checkpointer.write()
        for snapshot in await world.catalog.snapshots("v"):
            assert await content(world, snapshot) == kept[snapshot.name]
        assert await attachment.volume.read(0, SIZE) == image
        attachment.volume.core.blocks.verify()

    run(scenario)


def test_snapshots_survive_a_restart() -> None:
    async def scenario(world: World) -> None:
        rng, image = random.Random(SEED + 1), bytearray(SIZE)
        attachment = await world.attach("v")
        kept: dict[str, bytes] = {}
        for number in range(6):
            await scribble(attachment, image, rng, 60)
            await attachment.snapshot(f"s{number}", number)
            kept[f"s{number}"] = bytes(image)
            if number % 2:
                await attachment.detach()
            attachment = await world.attach("v")  # a takeover where it was not detached
            assert await attachment.volume.read(0, SIZE) == image
        for snapshot in await world.catalog.snapshots("v"):
            assert await content(world, snapshot) == kept[snapshot.name]

    run(scenario)


def test_a_snapshot_of_what_did_not_change_writes_nothing() -> None:
    async def scenario(world: World) -> None:
        attachment = await world.attach("v")
        first = await attachment.snapshot("a", 1)
        assert first.root is None, "nothing was ever written"
        await attachment.volume.write(0, b"x" * BLOCK, durable=False)
        second = await attachment.snapshot("b", 2)
        appended = attachment.volume.core.journal.appended_bytes
        third = await attachment.snapshot("c", 3)
        assert third.root == second.root is not None
        assert attachment.volume.core.journal.appended_bytes == appended
        with pytest.raises(AlreadyExists):
            await attachment.snapshot("b", 4)
        await attachment.volume.write(BLOCK, b"y" * BLOCK, durable=False)
        with pytest.raises(AlreadyExists):
            await attachment.snapshot("b", 5)
        await attachment.volume.checkpointer.write()
        assert await attachment.volume.read(0, 2 * BLOCK) == b"x" * BLOCK + b"y" * BLOCK
        assert await content(world, first) == bytes(SIZE)

    run(scenario)


def test_deleting_snapshots_gives_their_space_back() -> None:
    """In any order; what is left afterwards is what a volume without snapshots needs."""

    async def scenario(world: World) -> None:
        rng, image = random.Random(SEED + 2), bytearray(SIZE)
        attachment = await world.attach("v")
        await attachment.volume.write(0, rng.randbytes(SIZE), durable=False)
        await attachment.volume.checkpointer.write()
        await attachment.volume.checkpointer.write()
        alone = world.store.usage.used
        kept: dict[str, bytes] = {}
        for number in range(5):
            data = rng.randbytes(SIZE)
            image[:] = data
            await attachment.volume.write(0, data, durable=False)
            await attachment.snapshot(f"s{number}", number)
            kept[f"s{number}"] = bytes(image)
        assert world.store.usage.used > 5 * (SIZE // world.disk.geometry.slot_bytes)
        for name in ("s3", "s0", "s4", "s1", "s2"):
            entry = await world.catalog.delete_snapshot("v", name)
            attachment.snapshots_gone([entry.snapshot.number])
            await attachment.reclaim()
            del kept[name]
            for snapshot in await world.catalog.snapshots("v"):
                assert await content(world, snapshot) == kept[snapshot.name]
        await attachment.volume.write(0, bytes(range(256)) * (SIZE // 256), durable=False)
        for _ in range(2):
            await attachment.volume.checkpointer.write()
        assert world.store.usage.used <= alone + 2
        assert await attachment.volume.read(0, SIZE) == bytes(range(256)) * (SIZE // 256)

    run(scenario)


def test_rollback_forth_and_back() -> None:
    """To an older one, to a newer one, with writes between; all stay readable."""

    async def scenario(world: World) -> None:
        rng, image = random.Random(SEED + 3), bytearray(SIZE)
        kept: dict[str, bytes] = {}
        snapshots: dict[str, Snapshot] = {}
        for number in range(4):
            attachment = await world.attach("v")
            await scribble(attachment, image, rng, 50)
            snapshots[f"s{number}"] = await attachment.snapshot(f"s{number}", number)
            kept[f"s{number}"] = bytes(image)
            await scribble(attachment, image, rng, 30)
            await attachment.detach()
        for name in ("s1", "s3", "s0", "s2", "s2"):
            await go_back(world, "v", snapshots[name])
            image[:] = kept[name]
            attachment = await world.attach("v")
            assert await attachment.volume.read(0, SIZE) == image
            await scribble(attachment, image, rng, 50)
            await attachment.volume.checkpointer.write()
            await scribble(attachment, image, rng, 10)
            assert await attachment.volume.read(0, SIZE) == image
            attachment.volume.core.blocks.verify()
            await attachment.detach()
            for snapshot in await world.catalog.snapshots("v"):
                assert await content(world, snapshot) == kept[snapshot.name], (name, snapshot.name)

    run(scenario)


def test_rollback_gives_the_size_back() -> None:
    async def scenario(world: World) -> None:
        attachment = await world.attach("v")
        await attachment.volume.write(SIZE - BLOCK, b"e" * BLOCK, durable=False)
        before = await attachment.snapshot("before", 1)
        await world.resize(attachment, SIZE // 2)
        small = await attachment.snapshot("small", 2)
        await world.resize(attachment, SIZE)
        assert await attachment.volume.read(SIZE - BLOCK, BLOCK) == bytes(BLOCK)
        await attachment.detach()
        await go_back(world, "v", small)
        assert (await world.catalog.get("v")).spec.size_bytes == SIZE // 2
        await go_back(world, "v", before)
        attachment = await world.attach("v")
        assert attachment.volume.size_bytes == SIZE
        assert await attachment.volume.read(SIZE - BLOCK, BLOCK) == b"e" * BLOCK

    run(scenario)


def test_rollback_to_a_size_that_the_root_does_not_have() -> None:
    """A volume that shrinks keeps its larger map, and a last block that was not a whole one."""

    async def scenario(world: World) -> None:
        attachment = await world.attach("v")
        data = world.rng.randbytes(SIZE // 4)
        await attachment.volume.write(0, data, durable=False)
        await world.resize(attachment, SIZE - 512)
        await attachment.volume.write(SIZE - BLOCK, data[:512], durable=False)
        await world.resize(attachment, SIZE // 2)
        small = await attachment.snapshot("small", 1)
        await world.resize(attachment, SIZE)
        await attachment.volume.write(SIZE // 2, data, durable=False)
        await attachment.detach()
        await go_back(world, "v", small)
        attachment = await world.attach("v")
        assert attachment.volume.size_bytes == SIZE // 2
        assert await attachment.volume.read(0, SIZE // 2) == data + bytes(SIZE // 4)
        await world.resize(attachment, SIZE)
        assert await attachment.volume.read(SIZE // 2, SIZE // 2) == bytes(SIZE // 2)
        attachment.volume.core.blocks.verify()

    run(scenario)


def test_clones_of_clones_read_and_write_apart() -> None:
    """Three generations; each is written, none changes another."""

    async def scenario(world: World) -> None:
        rng = random.Random(SEED + 4)
        images = {"v": bytearray(SIZE)}
        attachment = await world.attach("v")
        await scribble(attachment, images["v"], rng, 80)
        parent = "v"
        for name in ("c1", "c2", "c3"):
            snapshot = await attachment.snapshot(f"for-{name}", 1)
            at_snapshot = bytes(images[parent])
            await scribble(attachment, images[parent], rng, 40)
            await world.catalog.clone(parent, snapshot.name, name, 2)
            images[name] = bytearray(at_snapshot)
            attachment = await world.attach(name)
            assert await attachment.volume.read(0, SIZE) == at_snapshot
            await scribble(attachment, images[name], rng, 40)
            await attachment.volume.checkpointer.write()
            attachment.volume.core.blocks.verify()
            parent = name
        for name, image in images.items():
            attachment = await world.attach(name)
            assert await attachment.volume.read(0, SIZE) == image, name
            await scribble(attachment, image, rng, 40)
            await attachment.detach()
        for name, image in images.items():
            attachment = await world.attach(name)
            assert await attachment.volume.read(0, SIZE) == image, name

    run(scenario, slots=1000)


def test_a_clone_of_what_was_never_written() -> None:
    async def scenario(world: World) -> None:
        snapshot = await world.catalog.snapshot_detached("v", "s", 1, "u")
        assert snapshot is not None
        await world.catalog.clone("v", "s", "c", 2)
        attachment = await world.attach("c")
        await attachment.volume.write(BLOCK, b"c" * BLOCK, durable=False)
        again = await attachment.snapshot("s", 3)
        assert (await content(world, again))[: 3 * BLOCK] == bytes(BLOCK) + b"c" * BLOCK + bytes(
            BLOCK
        )
        await world.catalog.clone("c", "s", "d", 4)
        attachment = await world.attach("d")
        assert await attachment.volume.read(BLOCK, BLOCK) == b"c" * BLOCK

    run(scenario)


def test_a_flattened_clone_stands_alone() -> None:
    """Its origin's snapshot can go, then its origin; a snapshot made before keeps the base."""

    async def scenario(world: World) -> None:
        rng, image = random.Random(SEED + 5), bytearray(SIZE)
        attachment = await world.attach("v")
        await scribble(attachment, image, rng, 80)
        await attachment.snapshot("s", 1)
        await world.catalog.clone("v", "s", "c", 2)
        clone = await world.attach("c")
        await scribble(clone, image, rng, 10)
        before = await clone.snapshot("before", 3)
        kept = bytes(image)
        await scribble(clone, image, rng, 10)
        seen: list[tuple[int, int]] = []
        moved = await clone.flatten(lambda done, total: seen.append((done, total)))
        assert 0 < moved < SIZE
        assert seen[-1] == (SIZE, SIZE)
        clone.volume.core.blocks.verify()
        assert await clone.volume.read(0, SIZE) == image
        with pytest.raises(Busy):
            await world.catalog.delete_snapshot("v", "s")
        assert await content(world, before) == kept
        await world.catalog.delete_snapshot("c", "before")
        clone.snapshots_gone([before.number])
        await clone.reclaim()
        entry = await world.catalog.delete_snapshot("v", "s")
        attachment.snapshots_gone([entry.snapshot.number])
        await attachment.volume.trim(0, SIZE, durable=False)
        await attachment.volume.checkpointer.write()
        await attachment.volume.checkpointer.write()
        assert await clone.flatten() == 0
        await clone.detach()
        clone = await world.attach("c")
        assert await clone.volume.read(0, SIZE) == image
        await scribble(clone, image, rng, 40)
        assert await clone.volume.read(0, SIZE) == image

    run(scenario)


def test_clients_write_while_a_clone_is_flattened() -> None:
    """What they write wins, wherever it meets the copying."""

    async def scenario(world: World) -> None:
        rng, image = random.Random(SEED + 6), bytearray(SIZE)
        attachment = await world.attach("v")
        await attachment.volume.write(0, rng.randbytes(SIZE), durable=False)
        image[:] = await attachment.volume.read(0, SIZE)
        await attachment.snapshot("s", 1)
        await world.catalog.clone("v", "s", "c", 2)
        clone = await world.attach("c")
        flattening = asyncio.ensure_future(clone.flatten())
        while not flattening.done():
            await scribble(clone, image, rng, 1)
        await flattening
        assert await clone.volume.read(0, SIZE) == image
        clone.volume.core.blocks.verify()

    run(scenario)
