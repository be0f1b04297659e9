"""What metadata contexts say of blocks, against a model that remembers every block."""

import random
from collections.abc import Sequence
from itertools import pairwise

import pytest

from tests.unit.volume.serving import BLOCK, LEAF, Serving, run_serving
from torus.errors import Busy, NotFound
from torus.nbd.contexts import ALLOCATION_DEPTH, BASE_ALLOCATION, CHANGED_SINCE
from torus.volume import contexts
from torus.volume.served_contexts import Context
from torus.volume.snapshot_export import SnapshotVolume
from torus.volume.volume import Volume

Export = Volume | SnapshotVolume


async def states(
    context: Context, length: int, offset: int = 0, limit: int = 1024, step: int | None = None
) -> list[int]:
    """Return the flags of every 512 bytes of a range, asked for as clients do."""
    found: list[int] = []
    at, end = offset, offset + length
    while at < end:
        asked = min(end - at, step or end)
        extents = await context.extents(at, asked, limit)
        assert 0 < len(extents) <= limit
        covered = sum(size for size, _ in extents)
        assert 0 < covered <= asked
        assert all(size > 0 and size % 512 == 0 for size, _ in extents)
        assert all(a[1] != b[1] for a, b in pairwise(extents))
        for size, flags in extents:
            found += [flags] * (size // 512)
        at += covered
    return found


def sectors(blocks: Sequence[int]) -> list[int]:
    return [flags for flags in blocks for _ in range(BLOCK // 512)]


async def open_context(serving: Serving, export: Export, name: str) -> Context:
    (context,) = await serving.volumes.open_contexts(export, [name])
    return context


def test_which_contexts_there_are(rng: random.Random) -> None:
    """A volume compares with all of its snapshots, a snapshot with those before it."""

    async def scenario(serving: Serving) -> None:
        await serving.volume()
        always = [BASE_ALLOCATION, ALLOCATION_DEPTH]
        assert list(await serving.volumes.contexts("one")) == always
        for name in ("b", "a", "c"):
            await serving.snapshot(name)
        since = [CHANGED_SINCE + name for name in ("b", "a", "c")]
        assert list(await serving.volumes.contexts("one")) == always + since
        assert list(await serving.volumes.contexts("one@c")) == always + since[:2]
        assert list(await serving.volumes.contexts("one@b")) == always
        for queries, expected in (
            (["base:allocation", "qemu:"], always),
            (["torus:"], always + since),
            (["x:y", CHANGED_SINCE + "b"], always + since),
        ):
            assert list(await serving.volumes.contexts("one", queries)) == expected
        await serving.catalog.begin_snapshot_deletion("one", "a")
        assert list(await serving.volumes.contexts("one@c")) == always + since[:1]
        for name in ("two", "one@d", "two@a"):
            for queries in ([], ["base:allocation"]):
                with pytest.raises(NotFound):
                    await serving.volumes.contexts(name, queries)
        only = serving.process(names=["one@c"])
        assert len(await only.contexts("one@c")) == 3
        with pytest.raises(NotFound, match="not served here"):
            await only.contexts("one")

    run_serving(rng, scenario)


def test_contexts_keep_their_snapshots(rng: random.Random) -> None:
    """Each is a user of the snapshot that it compares with; all or none are opened."""

    async def scenario(serving: Serving) -> None:
        volume = await serving.volume()
        for name in ("a", "b"):
            await serving.snapshot(name)
        names = [CHANGED_SINCE + "b", BASE_ALLOCATION, ALLOCATION_DEPTH, CHANGED_SINCE + "a"]
        opened = await serving.volumes.open_contexts(volume, names)
        assert await serving.readers() == 2
        with pytest.raises(Busy):
            await serving.catalog.delete_snapshot("one", "a")
        for wrong in (CHANGED_SINCE + "c", "base:other", "x:y"):
            with pytest.raises(NotFound):
                await serving.volumes.open_contexts(volume, [*names, wrong])
        assert await serving.readers() == 2
        await serving.volumes.close_contexts(opened)
        assert await serving.readers() == 0
        await serving.catalog.delete_snapshot("one", "a")

    run_serving(rng, scenario)


@pytest.mark.parametrize("cache_bytes", [40_000, 1 << 23])
def test_changes_and_depths_are_those_of_a_model(rng: random.Random, cache_bytes: int) -> None:
    """Random writes and trims between snapshots, with room for all leaves or for none."""
    size = 5 * LEAF + 77
    model = [0] * size  # the number of the last change of each block; 0: unmapped

    async def change(serving: Serving, volume: Volume, number: int) -> None:
        for _ in range(rng.randrange(1, 30)):
            first = rng.randrange(size)
            count = min(rng.choice((1, 2, 30, 300)), size - first)
            if rng.random() < 0.6:
                await volume.write(first * BLOCK, bytes([number]) * count * BLOCK, durable=False)
                model[first : first + count] = [number] * count
            else:
                await volume.trim(first * BLOCK, count * BLOCK, durable=False)
                model[first : first + count] = [0] * count

    async def check(
        serving: Serving, export: Export, now: list[int], was: dict[str, list[int]]
    ) -> None:
        depth = await open_context(serving, export, ALLOCATION_DEPTH)
        expected = sectors([int(number > 0) for number in now])
        assert await states(depth, size * BLOCK) == expected
        for name, before in was.items():
            changed = await open_context(serving, export, CHANGED_SINCE + name)
            expected = sectors([int(a != b) for a, b in zip(before, now, strict=True)])
            limit = rng.choice((1, 2, 1024))
            step = rng.choice((None, 512, 300 * BLOCK)) if limit > 1 else None
            length = 20 * BLOCK if step == 512 else size * BLOCK
            offset = rng.randrange(0, size * 8 - length // 512 + 1) * 512
            found = await states(changed, length, offset, limit, step)
            assert found == expected[offset // 512 : (offset + length) // 512]
            assert await states(changed, size * BLOCK) == expected
            await serving.volumes.close_contexts([changed])

    async def scenario(serving: Serving) -> None:
        volume = await serving.volume(blocks=size)
        was: dict[str, list[int]] = {}
        for number in range(1, 8):
            # a number is written once to a place and never again: equal numbers, equal places
            await change(serving, volume, number)
            await check(serving, volume, model, was)
            if rng.random() < 0.7:
                await serving.snapshot(f"s{number}")
                await check(serving, volume, model, {**was, f"s{number}": list(model)})
                export = await serving.open(f"one@s{number}")
                await check(serving, export, list(model), was)
                await serving.volumes.close(export)
                was[f"s{number}"] = list(model)
        assert len(was) > 2

    run_serving(rng, scenario, cache_bytes=cache_bytes, slots=4000)


def test_a_volume_that_grew_or_shrank(rng: random.Random) -> None:
    """What lies beyond the smaller one's end has changed if there is data, and only then."""

    async def scenario(serving: Serving) -> None:
        volume = await serving.volume(blocks=LEAF + 8)
        await volume.write(LEAF * BLOCK, b"x" * 8 * BLOCK, durable=False)
        await serving.snapshot("small")
        for blocks in (3 * LEAF, LEAF + 4):
            await serving.catalog.resize("one", blocks * BLOCK, shrink=True)
            await serving.attachment().resize(blocks * BLOCK)
            changed = await open_context(serving, volume, CHANGED_SINCE + "small")
            assert set(await states(changed, blocks * BLOCK)) == {0}
            if blocks == 3 * LEAF:
                await volume.write((LEAF + 100) * BLOCK, b"y" * BLOCK, durable=False)
                await volume.write((2 * LEAF + 1) * BLOCK, b"y" * BLOCK, durable=False)
                # behind the older end, in a leaf that the older map has but not in memory
                assert await states(changed, BLOCK, (LEAF + 100) * BLOCK) == sectors([1])
                expected = [int(n in (LEAF + 100, 2 * LEAF + 1)) for n in range(blocks)]
                assert await states(changed, blocks * BLOCK) == sectors(expected)
            await serving.volumes.close_contexts([changed])
        await serving.snapshot("smaller")
        await serving.catalog.resize("one", (LEAF + 8) * BLOCK)
        await serving.attachment().resize((LEAF + 8) * BLOCK)
        changed = await open_context(serving, volume, CHANGED_SINCE + "small")
        expected = [int(n >= LEAF + 4) for n in range(LEAF + 8)]

        assert await states(changed, (LEAF + 8) * BLOCK) == sectors(expected)

    run_serving(rng, scenario)


def test_one_request_looks_at_so_much(rng: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    """It brings in few leaves and looks into few, and ends early rather than at nothing."""
    monkeypatch.setattr(contexts, "_LOADS_MAX", 3)
    monkeypatch.setattr(contexts, "_LEAVES_MAX", 2)

    async def scenario(serving: Serving) -> None:
        size = 12 * LEAF
        volume = await serving.volume(blocks=size)
        await serving.snapshot("empty")
        for leaf in range(12):
            await volume.write((leaf * LEAF + leaf) * BLOCK, b"x" * BLOCK, durable=False)
        await serving.snapshot("full")
        export = await serving.open("one@full")
        full = await serving.open("one@empty")
        depth = await open_context(serving, export, ALLOCATION_DEPTH)
        changed = await open_context(serving, export, CHANGED_SINCE + "empty")
        expected = [int(block % LEAF == block // LEAF) for block in range(size)]
        first = sum(n for n, _ in await depth.extents(0, size * BLOCK, 1024))
        assert first == 3 * LEAF * BLOCK
        first = sum(n for n, _ in await changed.extents(0, size * BLOCK, 1024))
        assert first == 2 * LEAF * BLOCK
        assert await states(depth, size * BLOCK) == sectors(expected)
        assert await states(changed, size * BLOCK) == sectors(expected)
        await serving.volumes.close(full)

    run_serving(rng, scenario)


def test_depth_counts_the_logs_of_a_family(rng: random.Random) -> None:
    """1 for what a clone wrote, 2 for what it inherits, 3 for what its origin inherited."""

    async def scenario(serving: Serving) -> None:
        volume = await serving.volume()
        await volume.write(0, b"a" * 3 * BLOCK, durable=False)
        await serving.snapshot("s")
        await serving.catalog.clone("one", "s", "two", 1)
        two = await serving.volumes.open("two")
        await two.write(BLOCK, b"b" * 2 * BLOCK, durable=False)
        await serving.snapshot("s", "two")
        await serving.catalog.clone("two", "s", "three", 1)
        three = await serving.volumes.open("three")
        await three.write(2 * BLOCK, b"c" * 2 * BLOCK, durable=False)
        snapshot = await serving.open("two@s")
        for export, expected in (
            (volume, [1, 1, 1, 0, 0]),
            (two, [2, 1, 1, 0, 0]),
            (snapshot, [2, 1, 1, 0, 0]),
            (three, [3, 2, 1, 1, 0]),
        ):
            assert isinstance(export, Export)
            depth = await open_context(serving, export, ALLOCATION_DEPTH)
            assert await states(depth, 5 * BLOCK) == sectors(expected)

    run_serving(rng, scenario)
