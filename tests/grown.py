"""A family of volumes on a simulated machine, and what each of them and each snapshot holds."""

import random
from dataclasses import dataclass, field

from torus import limits
from torus.metadata.keys import SNAPSHOTS
from torus.metadata.schema import Snapshot
from torus.testing.operations import go_back, open_map
from torus.testing.simdisk import DiskImage
from torus.testing.world import World
from torus.volume.attachment import Attachment
from torus.volume.reads import Reads

SIZE = 16 * limits.MIB  # four map leaves


@dataclass(repr=False)  # megabytes, which a failed test would print
class Grown:
    """What stopped; ``content`` by volume name and by VOLUME@SNAPSHOT."""

    image: DiskImage
    metadata: tuple[int, dict[str, object]]
    content: dict[str, bytes] = field(default_factory=dict)


async def write(attachment: Attachment, rng: random.Random, leaf: int, size: int) -> None:
    """Write random bytes at the beginning of a leaf."""
    at = leaf * limits.LEAF_ENTRIES * limits.BLOCK_BYTES
    await attachment.volume.write(at, rng.randbytes(size), durable=True)


async def grow(rng: random.Random) -> Grown:
    """Make volumes a (three snapshots), b (clone), c (clone of the clone), f (a clone with a
    snapshot, flattened) and r (rolled back, then written)."""
    world = World(rng, slots=400)
    world.store.open()
    await world.catalog.init_cluster()
    await world.catalog.create("a", SIZE)
    a = await world.attach("a")
    for number in range(3):
        for leaf in range(4 - number):
            await write(a, rng, leaf, 60 * limits.KIB - 16 * limits.KIB * number)
        await a.snapshot(f"s{number}", number + 5)
    await write(a, rng, 0, 24 * limits.KIB)
    await a.detach()
    await world.catalog.clone("a", "s1", "b", 20)
    b = await world.attach("b")
    await write(b, rng, 1, 32 * limits.KIB)
    await b.snapshot("t", 21)
    await write(b, rng, 2, 20 * limits.KIB)
    await b.detach()
    await world.catalog.clone("b", "t", "c", 22)
    c = await world.attach("c")
    await write(c, rng, 3, 20 * limits.KIB)
    await c.detach()
    await _grow_flattened(world, rng)
    await _grow_rolled_back(world, rng)
    content = await read_all(world)
    found = Grown(world.disk.image.copy(), world.metadata.snapshot(), content)
    await world.stop()
    return found


async def _grow_flattened(world: World, rng: random.Random) -> None:
    await world.catalog.clone("a", "s0", "f", 23)
    f = await world.attach("f")
    await write(f, rng, 0, 8 * limits.KIB)
    await f.snapshot("before", 24)
    await f.flatten()
    await write(f, rng, 2, 8 * limits.KIB)
    await f.detach()


async def _grow_rolled_back(world: World, rng: random.Random) -> None:
    await world.catalog.create("r", SIZE)
    r = await world.attach("r")
    await write(r, rng, 0, 100 * limits.KIB)
    await r.snapshot("one", 30)
    await write(r, rng, 0, 60 * limits.KIB)
    await write(r, rng, 1, 60 * limits.KIB)
    await r.snapshot("two", 31)
    await r.detach()
    await go_back(world, "r", "one")
    r = await world.attach("r")
    await write(r, rng, 2, 30 * limits.KIB)
    await r.detach()


async def read_all(world: World) -> dict[str, bytes]:
    """Return the content of every volume and snapshot, through their maps."""
    found = {}
    for volume in await world.catalog.list():
        name = volume.spec.name
        attachment = await world.attach(name)
        found[name] = await attachment.volume.read(0, volume.spec.size_bytes)
        attachment.volume.core.blocks.verify()
        await attachment.detach()
    for entry in (await world.metadata.list(SNAPSHOTS)).entries:
        snapshot = Snapshot.from_bytes(entry.value, entry.key)
        volume = await world.catalog.get_by_id(snapshot.volume)
        view = await open_map(world, snapshot)
        content = await Reads(view).read(0, snapshot.size_bytes)
        found[f"{volume.spec.name}@{snapshot.name}"] = content
    return found
