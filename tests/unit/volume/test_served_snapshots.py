"""Snapshots as exports: what they read, who counts as their reader, and what is refused."""

import asyncio
import random

import pytest

from tests.unit.volume.serving import BLOCK, Serving, run_serving
from torus import limits
from torus.cluster.local import LocalChunks
from torus.errors import (
    Busy,
    Corruption,
    NotFound,
    PermissionDenied,
    ShuttingDown,
    Unavailable,
    UsageError,
)
from torus.testing.faults import FaultyDisk


def test_a_snapshot_reads_as_it_was(rng: random.Random) -> None:
    """Overwriting, trimming and resizing its volume does not reach it."""

    async def scenario(serving: Serving) -> None:
        volume = await serving.volume()
        await volume.write(0, b"a" * 3 * BLOCK, durable=False)
        await serving.snapshot("first")
        await volume.write(BLOCK, b"b" * BLOCK, durable=False)
        await volume.trim(2 * BLOCK, BLOCK, durable=False)
        await serving.snapshot("second")
        await serving.catalog.resize("one", 128 * BLOCK)
        await serving.attachment().resize(128 * BLOCK)
        first, second = await serving.open("one@first"), await serving.open("one@second")

        assert (first.name, first.size_bytes, first.read_only) == ("one@first", 64 * BLOCK, True)
        assert first.description == "snapshot 1, made 1970-01-01T00:00:00+00:00"
        assert await first.read(512, 3 * BLOCK) == b"a" * (3 * BLOCK - 512) + bytes(512)
        assert await second.read(0, 3 * BLOCK) == b"a" * BLOCK + b"b" * BLOCK + bytes(BLOCK)
        assert await second.read_sparse(0, 64 * BLOCK) == [
            (2 * BLOCK, b"a" * BLOCK + b"b" * BLOCK),
            (62 * BLOCK, None),
        ]
        assert await first.block_status(0, 64 * BLOCK, 9) == [(3 * BLOCK, 0), (61 * BLOCK, 3)]
        await first.cache(0, 64 * BLOCK)

    run_serving(rng, scenario)


def test_a_snapshot_cannot_be_changed(rng: random.Random) -> None:
    """Each kind of write is refused; a flush has nothing to do."""

    async def scenario(serving: Serving) -> None:
        await serving.volume()
        await serving.snapshot("a")
        export = await serving.open("one@a")
        assert export.flush_soon().done()
        for call in (
            export.write(0, bytes(512), durable=False),
            export.trim(0, 512, durable=False),
            export.write_zeroes(0, 512, durable=True, allocate=True),
        ):
            with pytest.raises(PermissionDenied, match="'one@a' cannot be written"):
                await call

    run_serving(rng, scenario)


def test_one_reader_stands_for_all_users_of_a_process(rng: random.Random) -> None:
    """It is there from the first open to the last close; only then is a deletion possible."""

    async def scenario(serving: Serving) -> None:
        await serving.volume()
        await serving.snapshot("a")
        opened = await asyncio.gather(*(serving.open("one@a") for _ in range(5)))
        assert all(export is opened[0] for export in opened)
        assert serving.volumes.snapshots.opened() == [(opened[0], 5)]
        for export in opened:
            assert await serving.readers() == 1
            with pytest.raises(Busy):
                await serving.catalog.delete_snapshot("one", "a")
            await serving.volumes.close(export)
        assert await serving.readers() == 0
        assert serving.volumes.snapshots.opened() == []
        await serving.volumes.close(opened[0])  # once too often: nothing happens
        again = await serving.open("one@a")
        assert again is not opened[0]
        await serving.volumes.close(again)
        await serving.catalog.delete_snapshot("one", "a")
        with pytest.raises(NotFound):
            await serving.open("one@a")

    run_serving(rng, scenario)


def test_every_process_is_a_reader_of_its_own(rng: random.Random) -> None:
    """One that never attaches the volume can serve its snapshots."""

    async def scenario(serving: Serving) -> None:
        volume = await serving.volume()
        await volume.write(0, b"a" * BLOCK, durable=False)
        await serving.snapshot("a")
        other = serving.process(names=["one@a"])
        mine, theirs = await serving.open("one@a"), await other.open("one@a")
        assert await theirs.read(0, BLOCK) == b"a" * BLOCK
        assert await serving.readers() == 2
        assert other.attachments() == []
        await serving.volumes.close(mine)
        assert await serving.readers() == 1

    run_serving(rng, scenario)


def test_what_cannot_be_opened_leaves_nothing(rng: random.Random) -> None:
    """Names that are made up, snapshots that are being deleted, maps that are damaged."""

    async def scenario(serving: Serving) -> None:
        volume = await serving.volume()
        await volume.write(0, b"a" * BLOCK, durable=False)
        await serving.snapshot("a")
        for name, kind in (
            ("one@made-up", NotFound),
            ("other@a", NotFound),
            ("one@", UsageError),
            ("@a", UsageError),
            ("one@a@b", UsageError),
        ):
            with pytest.raises(kind):
                await serving.open(name)
        entry = await serving.catalog.begin_snapshot_deletion("one", "a")
        with pytest.raises(Busy, match="being deleted"):
            await serving.open("one@a")
        await serving.catalog.abort_snapshot_deletion(entry)
        disk = serving.world.disk
        assert isinstance(disk, FaultyDisk)
        disk.fail("read", 1, 5, count=10**6)
        with pytest.raises((Corruption, Unavailable)):
            await serving.open("one@a")

        assert serving.volumes.snapshots._places == {}
        assert await serving.readers() == 0

    run_serving(rng, scenario)


@pytest.mark.parametrize("steps", range(12))
def test_an_open_that_is_cancelled_leaves_nothing(rng: random.Random, steps: int) -> None:
    """Whatever it was waiting for; others who wait for the same snapshot get it."""

    async def scenario(serving: Serving) -> None:
        await serving.volume()
        await serving.snapshot("a")
        opening = asyncio.ensure_future(serving.open("one@a"))
        for _ in range(steps):
            await asyncio.sleep(0)
        waiting = asyncio.ensure_future(serving.open("one@a"))
        await asyncio.sleep(0)
        opening.cancel()
        await asyncio.wait([opening])
        export = await waiting
        assert await serving.readers() == 1
        if not opening.cancelled():
            await serving.volumes.close(export)
        await serving.volumes.close(export)

        assert await serving.readers() == 0
        assert serving.volumes.snapshots._places == {}

    run_serving(rng, scenario)


def test_a_reader_that_could_not_be_removed_goes_with_the_next(
    rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The metadata are away when the last client leaves: closing does not fail."""

    async def scenario(serving: Serving) -> None:
        await serving.volume()
        await serving.snapshot("a")
        export = await serving.open("one@a")
        remove = serving.catalog.remove_reader

        async def away(key: str) -> None:
            raise Unavailable("planned")

        monkeypatch.setattr(serving.catalog, "remove_reader", away)
        await serving.volumes.close(export)
        monkeypatch.setattr(serving.catalog, "remove_reader", remove)
        assert await serving.readers() == 1
        await serving.volumes.close(await serving.open("one@a"))

        assert await serving.readers() == 0

    run_serving(rng, scenario)


def test_how_many_may_be_open_is_bounded(
    rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One more is refused, those open go on and share a quarter of the map's memory."""
    monkeypatch.setattr(limits, "SNAPSHOTS_OPEN_MAX", 2)

    async def scenario(serving: Serving) -> None:
        volume = await serving.volume()
        whole = serving.options.map_cache_bytes
        opened = []
        for name in ("a", "b", "c"):
            await serving.snapshot(name)
        assert volume.core.cache_bytes == whole
        for name in ("a", "b"):
            opened.append(await serving.open(f"one@{name}"))
        assert volume.core.cache_bytes == whole * 3 // 4
        assert [export.view.cache_bytes for export in opened] == [whole // 8, whole // 8]
        with pytest.raises(Busy, match="2 are open already"):
            await serving.open("one@c")
        assert await serving.open("one@a") is opened[0]
        await serving.volumes.close(opened[1])
        assert opened[0].view.cache_bytes == whole // 4
        await serving.volumes.close(await serving.open("one@c"))

    run_serving(rng, scenario)


def test_stopping_closes_what_is_open(rng: random.Random) -> None:
    """With users too; later opens are refused."""

    async def scenario(serving: Serving) -> None:
        await serving.volume()
        await serving.snapshot("a")
        export = await serving.open("one@a")
        await serving.volumes.stop()
        assert await serving.readers() == 0
        with pytest.raises(ShuttingDown):
            await serving.open("one@a")
        await serving.volumes.close(export)

    run_serving(rng, scenario)


def test_a_damaged_block_is_an_error_and_its_neighbours_are_not(rng: random.Random) -> None:
    """As for volumes: never wrong data."""

    async def scenario(serving: Serving) -> None:
        volume = await serving.volume()
        await volume.write(0, b"a" * BLOCK + b"b" * BLOCK, durable=True)
        await serving.snapshot("a")
        export = await serving.open("one@a")
        assert await export.read(0, 2 * BLOCK) == b"a" * BLOCK + b"b" * BLOCK
        [(_, _, sequence, offset, base)] = export.view.blocks.runs(0, 2)
        address = LocalChunks(serving.world.store).place(export.view.chunk(sequence, base))
        assert address is not None
        serving.world.disk.write(address + offset * 512, b"x" * 512)
        with pytest.raises(Corruption, match="one@a"):
            await export.read(0, BLOCK)
        assert await export.read(BLOCK, BLOCK) == b"b" * BLOCK

    run_serving(rng, scenario)


def test_clones_and_their_snapshots(rng: random.Random) -> None:
    """A snapshot of a clone reads through to its origin."""

    async def scenario(serving: Serving) -> None:
        volume = await serving.volume()
        await volume.write(0, b"a" * 2 * BLOCK, durable=False)
        await serving.snapshot("base")
        await serving.catalog.clone("one", "base", "two", 1)
        clone = await serving.volumes.open("two")
        await serving.snapshot("clean", "two")
        await clone.write(BLOCK, b"b" * BLOCK, durable=False)
        await serving.snapshot("own", "two")
        clean, own = await serving.open("two@clean"), await serving.open("two@own")

        assert await clean.read(0, 2 * BLOCK) == b"a" * 2 * BLOCK
        assert await own.read(0, 2 * BLOCK) == b"a" * BLOCK + b"b" * BLOCK

    run_serving(rng, scenario)


def test_volumes_and_their_snapshots_are_listed(
    rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each volume with its snapshots behind it, at most so many; the default is a volume."""

    async def scenario(serving: Serving) -> None:
        volumes = serving.volumes
        with pytest.raises(NotFound):
            await volumes.default()
        await serving.volume("one")
        for name in ("b", "a"):
            await serving.snapshot(name)
        assert await volumes.default() == "one"
        await serving.volume("one.more")
        await serving.snapshot("c", "one.more")
        listed = ["one", "one@a", "one@b", "one.more", "one.more@c"]
        assert list(await volumes.names()) == listed
        with pytest.raises(NotFound, match="among 2 exports"):
            await volumes.default()
        for names, default in ((["one@a"], "one@a"), (["one", "one@b"], None), (["one"], "one")):
            some = serving.process(names=names)
            assert list(await some.names()) == names
            for name in set(listed) - set(names):
                with pytest.raises(NotFound, match="is not served here"):
                    await some.open(name)
            if default is None:
                with pytest.raises(NotFound):
                    await some.default()
            else:
                assert await some.default() == default
        monkeypatch.setattr(limits, "NBD_LISTED_SNAPSHOTS_MAX", 2)
        assert list(await volumes.names()) == ["one", "one@a", "one@b", "one.more"]

    run_serving(rng, scenario)
