"""A lost metadata store of a family of volumes: all of it comes back, and can be worked with."""

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.grown import Grown, grow, read_all
from torus import limits
from torus.format.segment import FREED_SLOT
from torus.metadata.keys import SNAPSHOTS, head_key, snapshot_key, spec_key
from torus.metadata.schema import Base, Head, RootRef, Snapshot, VolumeSpec
from torus.testing.family import FamilyRecorder
from torus.testing.operations import delete_snapshot, delete_volume
from torus.testing.world import World

Work = Callable[..., Any]


@pytest.fixture(scope="module")
def family() -> Grown:
    return asyncio.run(grow(random.Random("recovery of a family")))


@pytest.fixture
def directory(family: Grown, directory_of: Work, tmp_path: Path) -> Any:
    return directory_of(tmp_path, family.image, family.metadata)


def lose_metadata(directory: Any) -> None:
    for path in directory.meta_path.parent.glob("meta.sqlite*"):
        path.unlink()


def again(family: Grown, directory: Any) -> World:
    """Return a machine with that disk and the metadata that is there now."""
    world = World(
        random.Random(1), image=family.image.copy(), snapshot=directory.snapshot(), slots=400
    )
    world.store.open()
    return world


def snapshots(directory: Any) -> dict[str, Snapshot]:
    with directory.metadata() as store:
        entries = store.list(SNAPSHOTS).entries
    return {entry.key: Snapshot.from_bytes(entry.value, entry.key) for entry in entries}


def without_replay(found: dict[str, Snapshot]) -> dict[str, Snapshot]:
    """Drop what only an attach of the newest root asks for."""
    plain = {}
    for key, one in found.items():
        assert one.root is not None
        root = RootRef(one.root.sequence, one.root.offset, one.root.size, 0, 0, 0, 0)
        plain[key] = replace(one, root=root)
    return plain


# --- all of it --------------------------------------------------------------------------


@pytest.mark.slow
def test_every_volume_and_snapshot_reads_as_before(family: Grown, directory: Any) -> None:
    """Three snapshots, a clone of a clone, a flattened clone, a rolled back volume."""
    before = snapshots(directory)
    lose_metadata(directory)

    report = directory.recover()

    assert report.ok, report
    assert {one.name for one in report.volumes} == {"a", "b", "c", "f", "r"}
    assert without_replay(snapshots(directory)) == without_replay(before)

    async def read() -> dict[str, bytes]:
        world = again(family, directory)
        found = await read_all(world)
        await world.stop()
        return found

    found = asyncio.run(read())
    assert found.keys() == family.content.keys()
    assert [name for name in found if found[name] != family.content[name]] == []


def test_check_of_what_was_recovered_finds_nothing(directory: Any) -> None:
    """The new metadata agrees with the data, to the last bond."""
    lose_metadata(directory)
    directory.recover()

    report = directory.check()

    assert report.findings == ()
    for volume in report.volumes:
        for one in (volume, *volume.snapshots):
            assert one.mapped_bytes == one.verified_bytes > 0


async def _work_on(world: World) -> dict[str, bytes]:
    """Delete snapshots and a clone, flatten another, collect; return what is left."""
    await delete_volume(world, "f")
    a = await world.attach("a")
    await delete_snapshot(world, "a", "s0", a)
    await delete_snapshot(world, "a", "s2", a)
    assert not (await a.volume.collector.defragment()).problem
    c = await world.attach("c")
    await c.flatten()
    await c.detach()
    await delete_volume(world, "b")
    await delete_snapshot(world, "a", "s1", a)
    assert not (await a.volume.collector.defragment()).problem
    await a.reclaim()
    await a.detach()
    r = await world.attach("r")
    await delete_snapshot(world, "r", "two", r)
    await r.reclaim()
    await r.detach()
    return await read_all(world)


@pytest.mark.slow
def test_what_was_recovered_can_be_deleted_flattened_and_collected(
    family: Grown, directory: Any, directory_of: Work, tmp_path: Path
) -> None:
    """Space comes back, and only what was deleted is gone."""
    lose_metadata(directory)
    directory.recover()
    used = directory.check().chunks

    async def work() -> tuple[dict[str, bytes], Any]:
        world = again(family, directory)
        left = await _work_on(world)
        after = directory_of(tmp_path / "after", world.disk.image, world.metadata.snapshot())
        await world.stop()
        return left, after

    left, after = asyncio.run(work())

    assert left.keys() == {"a", "c", "r", "r@one"}
    assert [name for name in left if left[name] != family.content[name]] == []
    report = after.check()
    assert [one for one in report.findings if one.kind != "stray-chunk"] == []
    assert report.chunks < used


async def _live(rng: random.Random) -> Grown:
    """Do random things with volumes, snapshots and clones; then stop in order."""
    world = World(rng, slots=300)
    world.store.open()
    await world.catalog.init_cluster()
    family = FamilyRecorder(world, limits.MIB)
    await family.begin("v0", 512 * limits.KIB)
    for _ in range(50):
        await family.random_step()
    await family.settle()
    for recorder in family.recorders.values():
        await recorder.detach()
    content = await read_all(world)
    found = Grown(world.disk.image.copy(), world.metadata.snapshot(), content)
    await world.stop()
    return found


def _in_no_log(directory: Any) -> set[str]:
    """Return the snapshots of which the newest root is the root: nobody wrote since."""
    found = set()
    with directory.metadata() as store:
        for entry in store.list(SNAPSHOTS).entries:
            one = Snapshot.from_bytes(entry.value, entry.key)
            head = Head.from_bytes(store.get(head_key(one.volume)).value, "")
            spec = VolumeSpec.from_bytes(store.get(spec_key(one.volume)).value, "")
            if one.root == head.root:
                found.add(f"{spec.name}@{one.name}")
    return found


@pytest.mark.parametrize("number", range(8))
def test_random_families_come_back(
    directory_of: Work, tmp_path: Path, seed: int, number: int
) -> None:
    """All but snapshots that no record lists; a growth that nobody wrote behind is none either."""
    lived = asyncio.run(_live(random.Random(f"{seed}:recover:{number}")))
    directory = directory_of(tmp_path, lived.image, lived.metadata)
    unlisted = _in_no_log(directory)
    lose_metadata(directory)

    directory.recover()

    async def read() -> dict[str, bytes]:
        world = again(lived, directory)
        found = await read_all(world)
        await world.stop()
        return found

    assert directory.check().ok
    found = asyncio.run(read())
    assert lived.content.keys() - found.keys() <= unlisted
    for name in lived.content.keys() & found.keys():
        size = len(lived.content[name])
        assert found[name].ljust(size, b"\0") == lived.content[name], name


# --- what cannot come back --------------------------------------------------------------


async def _made_detached() -> tuple[World, bytes]:
    """A snapshot from the metadata alone, and one more with a clone."""
    world = World(random.Random(5))
    world.store.open()
    await world.catalog.init_cluster()
    await world.catalog.create("v", limits.MIB)
    v = await world.attach("v")
    await v.volume.write(0, world.rng.randbytes(64 * limits.KIB), durable=True)
    content = await v.volume.read(0, limits.MIB)
    await v.detach()
    assert await world.catalog.snapshot_detached("v", "alone", 5, "u1")
    assert await world.catalog.snapshot_detached("v", "cloned", 6, "u2")
    await world.catalog.clone("v", "cloned", "w", 7)
    w = await world.attach("w")
    await w.volume.write(0, content[:4096], durable=True)
    await w.detach()
    await world.stop()
    return world, content


def test_a_snapshot_made_from_the_metadata_alone_is_not_back(
    directory_of: Work, tmp_path: Path
) -> None:
    """It is in no log; one that a clone reads is, under another name.  The report says both."""
    world, content = asyncio.run(_made_detached())
    directory = directory_of(tmp_path, world.disk.image, world.metadata.snapshot())
    lose_metadata(directory)

    report = directory.recover()

    assert report.ok, report
    [found] = snapshots(directory).values()
    assert (found.name, found.number, found.clones) == ("recovered-2", 2, (2,))
    assert "stand in no log" in report.notes[0]
    assert "v@recovered-2" in report.notes[1]
    assert directory.check().findings == ()

    async def read() -> dict[str, bytes]:
        machine = World(
            random.Random(1), image=world.disk.image.copy(), snapshot=directory.snapshot()
        )
        machine.store.open()
        data = await read_all(machine)
        await machine.stop()
        return data

    assert set(asyncio.run(read()).values()) == {content}


def test_a_snapshot_whose_block_is_lost_is_told(family: Grown, directory: Any) -> None:
    """Its map's pages are there, a chunk with blocks is not: it does not come back as whole."""
    content = family.content["r@two"][4 * limits.MIB : 4 * limits.MIB + limits.BLOCK_BYTES]
    for number, path in enumerate(directory.segments()):
        at = path.read_bytes().find(content)
        if at >= 0:
            slot = max(start for start in directory.chunks(number).values() if start < at)
            directory.write(path, slot, FREED_SLOT)
    lose_metadata(directory)

    report = directory.recover()

    outcome = next(one.outcome for one in report.volumes if one.name == "r")
    assert "its snapshot r@two is gone, deleted or lost" in outcome
    assert {"one"} == {one.name for one in snapshots(directory).values() if one.volume == 5}


def test_a_snapshot_with_a_rotten_block_comes_back_with_a_problem(
    family: Grown, directory: Any
) -> None:
    """What else it holds can be read."""
    content = family.content["r@two"][4 * limits.MIB : 4 * limits.MIB + limits.BLOCK_BYTES]
    for path in directory.segments():
        at = path.read_bytes().find(content)
        if at >= 0:
            directory.flip(path, at)
    lose_metadata(directory)

    report = directory.recover()

    outcome = next(one.outcome for one in report.volumes if one.name == "r")
    assert "its snapshot r@two has 1 damaged places" in outcome
    assert len([one for one in snapshots(directory).values() if one.volume == 5]) == 2


def test_bonds_that_do_not_fit_are_mended(directory: Any) -> None:
    """A store that can be read, with a clone that its origin does not know."""
    with directory.metadata() as store:
        entry = next(e for e in store.list(SNAPSHOTS).entries if e.key.endswith("/s1"))
        key = head_key(2)
        assert b'"base"' in store.get(key).value
    one = Snapshot.from_bytes(entry.value, entry.key)
    directory.put({snapshot_key(one.volume, one.name): replace(one, clones=()).to_bytes()})
    assert not directory.check().ok

    directory.recover()

    assert directory.check().findings == ()
    assert snapshots(directory)[entry.key].clones == (2,)
    assert Base(1, 2) == Base(one.volume, one.number)
