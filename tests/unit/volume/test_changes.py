"""What changed between two maps: exactly the blocks that were written or trimmed between them."""

import asyncio
import random
from dataclasses import dataclass, field

import pytest

from torus.cluster.local import LocalChunks
from torus.format.segment import Geometry
from torus.limits import BLOCK_BYTES as BLOCK
from torus.limits import KIB, MIB
from torus.metadata.schema import Snapshot
from torus.testing.world import World
from torus.volume.attachment import Attachment
from torus.volume.changes import Change, changes
from torus.volume.snapshot_map import SnapshotMap, open_snapshot
from torus.volume.view import View

pytestmark = pytest.mark.sim


@dataclass
class Scene:
    """A volume, and for each snapshot which write each block had last."""

    world: World
    attachment: Attachment
    size: int
    writes: int = 0
    now: dict[int, int] = field(default_factory=dict)
    kept: list[tuple[Snapshot, dict[int, int], int]] = field(default_factory=list)

    async def write(self, block: int, count: int) -> None:
        self.writes += 1
        data = self.world.rng.randbytes(count * BLOCK)
        await self.attachment.volume.write(block * BLOCK, data, durable=False)
        self.now |= dict.fromkeys(range(block, block + count), self.writes)

    async def trim(self, block: int, count: int) -> None:
        await self.attachment.volume.trim(block * BLOCK, count * BLOCK, durable=False)
        for number in range(block, block + count):
            self.now.pop(number, None)

    async def resize(self, blocks: int) -> None:
        await self.world.resize(self.attachment, blocks * BLOCK)
        self.size = blocks
        self.now = {block: write for block, write in self.now.items() if block < blocks}

    async def step(self) -> None:
        rng = self.world.rng
        near = rng.choice((0, 1020, 2044, self.size - 9))
        block = min(max(near + rng.randrange(-3, 8), 0), self.size - 1)
        count = min(rng.choice((1, 1, 2, 9)), self.size - block)
        if rng.random() < 0.3:
            await self.trim(block, count)
        else:
            await self.write(block, count)

    async def snapshot(self) -> None:
        made = await self.attachment.snapshot(f"s{len(self.kept)}", 7)
        self.kept.append((made, dict(self.now), self.size))

    async def open(self, number: int) -> SnapshotMap:
        chunks = LocalChunks(self.world.store)
        snapshot = self.kept[number][0]
        return await open_snapshot(self.world.catalog, chunks, snapshot, 64 * KIB)

    def expected(self, was: dict[int, int], now: dict[int, int], size: int) -> list[Change]:
        found: list[Change] = []
        for block in range(size):
            if was.get(block) == now.get(block):
                continue
            last, mapped = found[-1] if found else None, block in now
            if last and last.offset + last.length == block * BLOCK and last.mapped == mapped:
                found[-1] = Change(last.offset, last.length + BLOCK, mapped)
            else:
                found.append(Change(block * BLOCK, BLOCK, mapped))
        return found


async def listed(base: View | None, view: View, size_bytes: int, start: int = 0) -> list[Change]:
    return [change async for change in changes(base, view, size_bytes, start)]


async def scene(rng: random.Random, size_bytes: int = 12 * MIB) -> Scene:
    world = World(rng, geometry=Geometry(256 * KIB, 16), slots=400)
    world.store.open()
    await world.catalog.create("vol", size_bytes)
    return Scene(world, await world.attach("vol"), size_bytes // BLOCK)


def test_changes_are_what_was_written(rng: random.Random) -> None:
    """Between every two of a dozen snapshots, both ways, with resizes, and from nothing."""

    async def run() -> None:
        one = await scene(rng)
        for number in range(12):
            for _ in range(rng.choice((0, 1, 5, 40))):
                await one.step()
            if number % 4 == 2:
                await one.resize(rng.choice((1024, 1500, 2048, 3072)))
            await one.snapshot()
        compared = 0
        for number, (_, now, size) in enumerate(one.kept):
            view = await one.open(number)
            assert await listed(None, view, size * BLOCK) == one.expected({}, now, size)
            for other, (_, was, _) in enumerate(one.kept):
                base = await one.open(other)
                found = await listed(base, view, size * BLOCK)
                assert found == one.expected(was, now, size)
                compared += len(found)
        assert compared > 100
        await one.world.stop()

    asyncio.run(run())


def test_a_snapshot_and_the_volume_that_is_written(rng: random.Random) -> None:
    """Leaves in memory, changed or not, are compared as well as stored ones."""

    async def run() -> None:
        one = await scene(rng)
        for _ in range(60):
            await one.step()
        await one.snapshot()
        core = one.attachment.volume.core
        base = await one.open(0)
        assert await listed(base, core, one.size * BLOCK) == []
        for _ in range(30):
            await one.step()
            found = await listed(base, core, one.size * BLOCK)
            assert found == one.expected(one.kept[0][1], one.now, one.size)
        await one.world.stop()

    asyncio.run(run())


def test_from_the_middle(rng: random.Random) -> None:
    """What goes on where another run stopped, also within a range."""

    async def run() -> None:
        one = await scene(rng)
        await one.write(3, 10)
        await one.write(1500, 30)
        await one.snapshot()
        view = await one.open(0)
        size = one.size * BLOCK
        assert await listed(None, view, size, 5 * BLOCK + 512) == [
            Change(5 * BLOCK + 512, 8 * BLOCK - 512, True), Change(1500 * BLOCK, 30 * BLOCK, True)
        ]  # fmt: skip
        assert await listed(None, view, size, 13 * BLOCK) == [
            Change(1500 * BLOCK, 30 * BLOCK, True)
        ]
        assert await listed(None, view, size, size) == []
        await one.world.stop()

    asyncio.run(run())


def test_a_size_that_ends_within_a_block(rng: random.Random) -> None:
    """Nothing is named beyond the volume's end."""

    async def run() -> None:
        one = await scene(rng, 4 * BLOCK + 512)
        await one.attachment.volume.write(4 * BLOCK, b"x" * 512, durable=False)
        await one.snapshot()
        view = await one.open(0)
        assert await listed(None, view, 4 * BLOCK + 512) == [Change(4 * BLOCK, 512, True)]
        await one.world.stop()

    asyncio.run(run())


def test_shared_leaves_are_not_read(rng: random.Random) -> None:
    """A comparison costs what changed, not what there is."""

    async def run() -> None:
        one = await scene(rng)
        for leaf in range(3):
            await one.write(leaf * 1024, 5)
        await one.snapshot()
        await one.write(1024 + 7, 1)
        await one.snapshot()
        base, view = await one.open(0), await one.open(1)
        loaded: list[int] = []
        for side in (base, view):
            load = side.load

            async def note(block: int, count: int, load: object = load) -> None:
                loaded.append(block // 1024)
                await load(block, count)  # type: ignore[operator]

            side.load = note  # type: ignore[method-assign]
        assert len(await listed(base, view, one.size * BLOCK)) == 1
        assert loaded == [1, 1]
        await one.world.stop()

    asyncio.run(run())


def test_a_clone_and_its_origin(rng: random.Random) -> None:
    """Inherited blocks are the same in both; two clones share what neither has changed."""

    async def run() -> None:
        one = await scene(rng)
        for _ in range(80):
            await one.step()
        await one.snapshot()
        origin = one.kept[0]
        clones = []
        for name in ("left", "right"):
            await one.world.catalog.clone("vol", "s0", name, 7)
            clone = Scene(one.world, await one.world.attach(name), one.size, 1000 * len(name))
            clone.now = dict(origin[1])
            for _ in range(15):
                await clone.step()
            await clone.snapshot()
            clones.append(clone)
        base, size = await one.open(0), one.size
        left, right = [await clone.open(0) for clone in clones]
        for was, now, before, after in (
            (base, left, origin[1], clones[0].now),
            (left, base, clones[0].now, origin[1]),
            (left, right, clones[0].now, clones[1].now),
        ):
            found = await listed(was, now, size * BLOCK)
            assert found == one.expected(before, after, size)
            assert 0 < sum(change.length for change in found) < len(origin[1]) * BLOCK * 2
        await one.world.stop()

    asyncio.run(run())
