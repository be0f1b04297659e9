"""`torus check` of snapshots and clones: healthy ones are fine, and read once."""

import asyncio
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.grown import Grown, grow
from torus import limits
from torus.clock import SystemClock
from torus.daemon.slotwalk import walk
from torus.format.segment import FREED_SLOT
from torus.ids import ChunkId
from torus.metadata.keys import SNAPSHOTS, head_key, name_key, reader_key, snapshot_key, spec_key
from torus.metadata.schema import Base, Head, NameRef, Reader, Snapshot, VolumeSpec
from torus.store.disk import PosixDisk
from torus.testing.crash import moments
from torus.testing.family import FamilyRecorder
from torus.testing.world import World
from torus.volume.owner import this_process

Work = Callable[..., Any]
SLOT = 64 * limits.KIB


@pytest.fixture(scope="module")
def family() -> Grown:
    return asyncio.run(grow(random.Random("check of snapshots")))


@pytest.fixture
def directory(family: Grown, directory_of: Work, tmp_path: Path) -> Any:
    return directory_of(tmp_path, family.image, family.metadata)


def volume_id(directory: Any, name: str) -> int:
    with directory.metadata() as store:
        return NameRef.from_bytes(store.get(name_key(name)).value, "").volume


def head_of(directory: Any, name: str) -> Head:
    with directory.metadata() as store:
        return Head.from_bytes(store.get(head_key(volume_id(directory, name))).value, "")


def put_head(directory: Any, name: str, head: Head) -> None:
    directory.put({head_key(volume_id(directory, name)): head.to_bytes()})


def snapshot_of(directory: Any, full: str) -> Snapshot:
    name, _, snap = full.partition("@")
    with directory.metadata() as store:
        key = snapshot_key(volume_id(directory, name), snap)
        return Snapshot.from_bytes(store.get(key).value, key)


def put_snapshot(directory: Any, full: str, **fields: Any) -> None:
    one = replace(snapshot_of(directory, full), **fields)
    directory.put({snapshot_key(one.volume, one.name): one.to_bytes()})


def slots(directory: Any) -> dict[ChunkId, tuple[Path, int]]:
    found = {}
    for number, path in enumerate(directory.segments()):
        for chunk, at in directory.chunks(number).items():
            found[chunk] = path, at
    return found


def free_slot(directory: Any) -> tuple[Path, int, int, int]:
    """Return (file, its number, slot, offset) of a slot that nothing lies in."""
    for number, path in enumerate(directory.segments()):
        used = set(directory.chunks(number).values())
        size = path.stat().st_size
        for slot in range(16):
            at = limits.SEGMENT_HEADER_BYTES + slot * SLOT
            if at not in used and at + SLOT <= size:
                return path, number, slot, at
    raise AssertionError("no slot is free")


def place_of(directory: Any, content: bytes) -> tuple[Path, int]:
    """Return where a block lies on the disk."""
    for path in directory.segments():
        at = path.read_bytes().find(content)
        if at >= 0:
            return path, at
    raise AssertionError("the block is not on the disk")


def errors(report: Any) -> list[Any]:
    return [finding for finding in report.findings if finding.severity == "error"]


def block_of(family: Grown, name: str, block: int) -> bytes:
    at = block * limits.BLOCK_BYTES
    return family.content[name][at : at + limits.BLOCK_BYTES]


# --- healthy ----------------------------------------------------------------------------


def test_check_of_a_family_finds_nothing_and_verifies_all(directory: Any) -> None:
    """Each block of each map was compared, in itself or where another map names it too."""
    report = directory.check()

    assert report.findings == ()
    assert report.left_over == 0
    rows = {one.name: one for one in report.volumes}
    rows |= {one.name: one for volume in report.volumes for one in volume.snapshots}
    assert set(rows) == {
        "a", "a@s0", "a@s1", "a@s2", "b", "b@t", "c", "f", "f@before", "r", "r@one", "r@two",
    }  # fmt: skip
    for one in rows.values():
        assert one.mapped_bytes == one.verified_bytes > 0, one


async def _live(rng: random.Random, **options: Any) -> World:
    """Do random things with volumes, snapshots and clones; the process then dies."""
    world = World(rng, slots=300, **options)
    world.store.open()
    await world.catalog.init_cluster()
    family = FamilyRecorder(world, limits.MIB)
    await family.begin("v0", 512 * limits.KIB)
    for _ in range(40):
        await family.random_step()
    await family.settle()
    await world.stop()
    return world


@pytest.mark.slow
@pytest.mark.parametrize("grace_s", [0.0, 1e9])
def test_check_of_crashed_families_finds_no_damage(
    directory_of: Work, tmp_path: Path, seed: int, grace_s: float
) -> None:
    """At whatever moment it stops, nothing that somebody reads is gone, or may be freed."""
    images = snapshots = 0
    for number in range(3):
        rng = random.Random(f"{seed}:family:{number}")
        world = asyncio.run(_live(rng, trash_grace_s=grace_s))
        for moment in moments(world):
            if rng.randrange(12):
                continue
            for image in (
                moment.disk.killed(moment.current, rng),
                moment.disk.cut(rng, moment.current),
            ):
                images += 1
                path = tmp_path / str(images)
                report = directory_of(path, image, moment.snapshot).check()
                assert report.ok, f"family {number} before event {moment.number}: {report.findings}"
                snapshots += sum(len(one.snapshots) for one in report.volumes)
                shutil.rmtree(path)

    assert images > 30
    assert snapshots > 30


def test_check_reads_what_maps_share_once(directory: Any, monkeypatch: Any) -> None:
    """A block in the head, three snapshots and two clones is one read."""
    places: list[int] = []
    read = PosixDisk.read

    def noted(disk: PosixDisk, address: int, size: int) -> bytes:
        data = read(disk, address, size)
        if size % limits.BLOCK_BYTES == 0 and size < SLOT:
            places.extend(address + at for at in range(0, size, limits.BLOCK_BYTES))
        return data

    monkeypatch.setattr(PosixDisk, "read", noted)
    report = directory.check()

    mapped = sum(
        one.mapped_bytes + sum(snapshot.mapped_bytes for snapshot in one.snapshots)
        for one in report.volumes
    )
    assert len(places) == len(set(places))
    assert 0 < len(places) * limits.BLOCK_BYTES < mapped / 2


# --- damage -----------------------------------------------------------------------------


def test_a_rotten_block_that_only_a_snapshot_reads_is_named(family: Grown, directory: Any) -> None:
    """The snapshot, the range of bytes, the place on the disk, and what to do."""
    path, at = place_of(directory, block_of(family, "r@two", 1025))
    directory.flip(path, at + 100)
    directory.flip(path, at + 4096)

    [finding] = [one for one in errors(directory.check()) if one.kind != "bad-record"]

    assert finding.kind == "bad-block"
    assert finding.where == f"{path.name} at byte {at}, snapshot 'r@two'"
    assert "byte 0x401000 to 0x402fff" in finding.message
    assert "torus volume snapshot delete r@two" in finding.message


def test_a_rotten_block_is_named_for_every_map_that_reads_it(family: Grown, directory: Any) -> None:
    """What is shared is read once when it is whole; damage concerns everybody."""
    block = block_of(family, "a@s0", 3072)
    path, at = place_of(directory, block)
    reading = {name for name in family.content if block_of(family, name, 3072) == block}
    assert {"a", "a@s1", "a@s2", "b", "f@before"} < reading
    directory.flip(path, at)

    report = directory.check()

    named = {one.name for one in report.volumes if one.findings}
    named |= {one.name for volume in report.volumes for one in volume.snapshots if one.findings}
    assert named == reading - {"f"}, "f was flattened: it has a copy of its own"
    assert {finding.kind for finding in errors(report)} == {"bad-record", "bad-block"}


def test_a_lost_chunk_that_only_a_snapshot_needs_is_named(family: Grown, directory: Any) -> None:
    """Its slot is free, as if it had been collected."""
    path, at = place_of(directory, block_of(family, "r@two", 1024))
    chunk, (_, slot) = next(
        (c, p) for c, p in slots(directory).items() if p[0] == path and p[1] < at < p[1] + SLOT
    )
    directory.write(path, slot, FREED_SLOT)

    [finding] = errors(directory.check())

    assert (finding.kind, finding.where) == ("missing-chunk", f"snapshot 'r@two' chunk {chunk}")
    assert "the first at bytes 0x4000 to 0xefff" in finding.message


def test_a_rotten_page_of_a_snapshots_map_is_named(directory: Any) -> None:
    """Its root, and a leaf: the rest of the snapshot is verified all the same."""
    root = snapshot_of(directory, "r@two").root
    assert root is not None
    number = volume_id(directory, "r")
    where = {chunk.sequence: p for chunk, p in slots(directory).items() if chunk.volume == number}
    path, at = where[root.sequence]
    directory.flip(path, at + root.offset + root.size - 600)
    found = errors(directory.check())
    directory.flip(path, at + root.offset + root.size - 600)

    assert ("bad-snapshot", "snapshot 'r@two'") in {(one.kind, one.where) for one in found}

    data = path.read_bytes()[at : at + SLOT]
    chunk = next(c for c, p in slots(directory).items() if p == (path, at))
    pages: list[int] = []

    def visit(reader: Any) -> None:
        if reader.offset < root.offset and reader.kind == 2:
            pages.append(reader.offset)

    walk(data, chunk, 0, visit)
    directory.flip(path, at + pages[-1] + 512 + 20)
    kinds = {(one.kind, one.where) for one in errors(directory.check())}
    assert kinds & {
        ("bad-map-page", "snapshot 'r@two' map page 1"),
        ("bad-map-page", "snapshot 'r@two' map page 0"),
        ("bad-snapshot", "snapshot 'r@two'"),
    }


# --- what is kept -----------------------------------------------------------------------


def test_check_finds_a_dead_chunk_that_no_snapshot_would_keep(directory: Any) -> None:
    """An era before the snapshot that reads the chunk means that its writer may free it."""
    put_head(directory, "r", replace(head_of(directory, "r"), newest_snapshot=9))
    put_snapshot(directory, "r@two", number=9)

    found = [one for one in errors(directory.check()) if one.kind == "unkept-chunk"]

    assert found
    assert all("snapshot 'r@two' chunk" in one.where for one in found)
    assert "dead since snapshot number 2" in found[0].message


def test_check_finds_roots_out_of_order(directory: Any) -> None:
    """What is kept is decided by numbers and places that rise together."""
    one, two = snapshot_of(directory, "r@one"), snapshot_of(directory, "r@two")
    put_snapshot(directory, "r@one", root=two.root)
    put_snapshot(directory, "r@two", root=one.root)

    kinds = {(one.kind, one.where) for one in errors(directory.check())}

    assert ("bad-snapshot", "snapshot 'r@one'") in kinds


def test_chunks_that_were_dropped_are_counted_and_are_no_finding(
    work: Work, tmp_path: Path
) -> None:
    """A kill brings chunks back from the trash, in front of the log or within it."""
    past = work(2, steps=120, end="detached", trash_grace_s=1e9)

    report = past.leave(tmp_path).check()

    assert report.findings == ()
    trash = past.world.store.usage.trash
    assert trash > 5
    assert trash <= report.left_over <= trash + 2, "the last checkpoint of each may leave one more"


async def _dropped_before_a_snapshot() -> World:
    """Chunks that went while there was no snapshot, all still in the trash."""
    world = World(random.Random(3), trash_grace_s=1e9)
    world.store.open()
    await world.catalog.init_cluster()
    await world.catalog.create("v", limits.MIB)
    v = await world.attach("v")
    # This stays, so that the others go from the middle of a span.
    await v.volume.write(512 * limits.KIB, world.rng.randbytes(4096), durable=True)
    for _ in range(5):
        await v.volume.write(0, world.rng.randbytes(150 * limits.KIB), durable=True)
        await v.volume.checkpointer.write()
    await v.snapshot("s", 5)
    await v.detach()
    await world.stop()
    return world


def test_chunks_that_went_before_a_snapshot_are_not_its_own(
    directory_of: Work, tmp_path: Path
) -> None:
    """Nothing dates the death of what is back from the trash; no snapshot can need it."""
    world = asyncio.run(_dropped_before_a_snapshot())
    directory = directory_of(tmp_path, world.disk.image, world.metadata.snapshot())

    report = directory.check()

    assert report.findings == ()
    # What the last checkpoint only found dead is dated by the next one, and kept until then.
    assert 4 <= report.left_over <= world.store.usage.trash


# --- the metadata -----------------------------------------------------------------------


def test_check_finds_a_clone_that_its_origin_does_not_know(directory: Any) -> None:
    """Such a snapshot could be deleted under its clone."""
    put_snapshot(directory, "a@s1", clones=())

    [finding] = errors(directory.check())

    assert finding.where == "snapshot 'a@s1'"
    assert f"does not name volume id {volume_id(directory, 'b')}" in finding.message


def test_check_finds_clones_that_are_none(directory: Any) -> None:
    """One that does not exist, one that grew from elsewhere."""
    b, c = volume_id(directory, "b"), volume_id(directory, "c")
    put_snapshot(directory, "a@s1", clones=(b, c, 99))

    found = errors(directory.check())

    assert [one.where for one in found] == ["snapshot 'a@s1'"]
    put_snapshot(directory, "a@s1", clones=(b, 99))
    assert "volume id 99 as its clone, which does not exist" in errors(directory.check())[0].message


def test_check_finds_a_clone_without_its_base(directory: Any) -> None:
    """The clone, and the clone of the clone, cannot be read."""
    directory.put({snapshot_key(volume_id(directory, "a"), "s1"): None})

    report = directory.check()

    where = {(one.kind, one.where) for one in errors(report)}
    assert {("bad-metadata", "volume 'b'"), ("bad-metadata", "volume 'c'")} <= where
    assert {("bad-log", "volume 'b'"), ("bad-log", "volume 'c'")} <= where
    assert "snapshot number 2" in next(o.message for o in report.findings if o.kind == "bad-log")


def test_check_of_origins_in_a_circle_ends(directory: Any) -> None:
    """A chain of clones that leads back to itself is a finding."""
    b = volume_id(directory, "b")
    put_snapshot(directory, "b@t", base=Base(b, 1))

    found = errors(directory.check())

    assert any("its chain of origins ends nowhere" in one.message for one in found)


def test_check_finds_a_number_that_cannot_be(directory: Any) -> None:
    """It would be given out again."""
    put_head(directory, "a", replace(head_of(directory, "a"), newest_snapshot=2))

    found = errors(directory.check())

    assert any("'a@s2'" in one.where and "number 3" in one.message for one in found)


def test_check_notes_readers_that_ended(directory: Any) -> None:
    """A live one is no finding, a dead one and one of nothing are warnings."""
    a = volume_id(directory, "a")
    mine = this_process("test", "", SystemClock())
    alive = Reader(mine.host, mine.machine_boot_id, os.getpid(), mine.pid_start, "test", 1)
    dead = replace(alive, pid_start=alive.pid_start + 1)
    directory.put(
        {
            reader_key(a, 1, "u1"): alive.to_bytes(),
            reader_key(a, 2, "u2"): dead.to_bytes(),
            reader_key(a, 7, "u3"): alive.to_bytes(),
        }
    )

    report = directory.check()

    assert report.ok
    assert {(one.kind, one.where) for one in report.findings} == {
        ("dead-reader", reader_key(a, 2, "u2")),
        ("dead-reader", reader_key(a, 7, "u3")),
    }
    assert any("snapshot 'a@s1'" in one.message for one in report.findings)


def test_check_of_deletions_that_were_interrupted(directory: Any) -> None:
    """A snapshot's, and a volume's that has snapshots: what to do is said, nothing is damaged."""
    put_snapshot(directory, "r@one", state="deleting")
    f = volume_id(directory, "f")
    with directory.metadata() as store:
        spec = VolumeSpec.from_bytes(store.get(spec_key(f)).value, "")
    directory.put({spec_key(f): replace(spec, state="deleting").to_bytes()})

    report = directory.check()

    assert report.ok
    found = {one.where: one.message for one in report.findings}
    assert "torus volume snapshot delete r@one" in found["snapshot 'r@one'"]
    assert "that of its 1 snapshots" in found["volume f"]
    assert len(found) == 2


def test_check_of_a_volume_whose_log_is_damaged_still_checks_its_snapshots(
    family: Grown, directory: Any
) -> None:
    """They have roots of their own."""
    head = head_of(directory, "r")
    assert head.root is not None
    put_head(directory, "r", replace(head, root=replace(head.root, offset=head.root.offset + 512)))

    report = directory.check()

    [row] = [one for one in report.volumes if one.name == "r"]
    assert row.findings
    assert [one.verified_bytes for one in row.snapshots] == [
        one.mapped_bytes for one in row.snapshots
    ]


def test_a_snapshots_key_that_is_anothers_is_found(directory: Any) -> None:
    """Keys and values say the same."""
    one = snapshot_of(directory, "a@s0")
    directory.put({snapshot_key(one.volume, "x"): one.to_bytes()})

    assert any(SNAPSHOTS in finding.where for finding in errors(directory.check()))
