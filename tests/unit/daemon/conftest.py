"""Directories of stopped nodes, made from simulated machines."""

import asyncio
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from torus import limits
from torus.clock import SystemClock
from torus.daemon.offline import check_store, recover
from torus.daemon.reports import CheckReport, RecoverReport
from torus.format.identity import IDENTITY_FILE, DiskIdentity
from torus.format.segment import SlotHeader, segment_name
from torus.ids import ChunkId
from torus.metadata.base import Delete, Put
from torus.metadata.keys import CLUSTER, NAMES, NEXT_VOLUME, READERS, SNAPSHOTS, VOLUMES
from torus.metadata.schema import Cluster
from torus.metadata.sqlite import SqliteMetadata
from torus.testing.crash import Moment, moments
from torus.testing.metadata import Snapshot
from torus.testing.simdisk import DiskImage
from torus.testing.workload import Recorder
from torus.testing.world import CLUSTER_ID, DISK_ID, World

IDENTITY = DiskIdentity(DISK_ID, CLUSTER_ID, 64 * limits.KIB, 16, 1, 96 * 64 * limits.KIB)


@dataclass(frozen=True)
class Directory:
    """What a stopped node left behind."""

    data_dir: Path
    meta_path: Path

    @property
    def meta_url(self) -> str:
        return f"sqlite:{self.meta_path}"

    def segment(self, number: int = 0) -> Path:
        return self.data_dir / segment_name(number)

    def segments(self) -> list[Path]:
        return sorted(self.data_dir.glob("segment-*.seg"))

    def check(self) -> CheckReport:
        return check_store(self.data_dir, self.meta_url, no_progress)

    def recover(self, *, force: bool = False) -> RecoverReport:
        return recover(self.data_dir, self.meta_url, no_progress, force=force)

    def chunks(self, number: int = 0) -> dict[ChunkId, int]:
        """Return where each chunk of a segment begins in its file."""
        data = self.segment(number).read_bytes()
        found = {}
        for slot in range(IDENTITY.segment_slots):
            at = limits.SEGMENT_HEADER_BYTES + slot * IDENTITY.slot_bytes
            header = SlotHeader.unpack(data[at : at + limits.SLOT_HEADER_BYTES], "")
            if header is not None:
                found[header.chunk] = at
        return found

    def write(self, path: Path, offset: int, data: bytes) -> None:
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(data)

    @contextmanager
    def metadata(self) -> Iterator[SqliteMetadata]:
        store = SqliteMetadata(str(self.meta_path), SystemClock(), create=False)
        try:
            yield store
        finally:
            store.close()

    def put(self, values: dict[str, bytes | None]) -> None:
        """Change keys of the metadata; None deletes one."""
        changes = [
            Delete(key) if value is None else Put(key, value) for key, value in values.items()
        ]
        with self.metadata() as store:
            store.commit((), changes)

    def snapshot(self) -> Snapshot:
        """Return all of the metadata for a simulated machine."""
        with self.metadata() as store:
            entries = [store.get(CLUSTER), store.get(NEXT_VOLUME)]
            for prefix in (VOLUMES, NAMES, SNAPSHOTS, READERS):
                entries += store.list(prefix).entries
        return 1000, {entry.key: entry for entry in entries if entry is not None}

    def flip(self, path: Path, offset: int, mask: int = 1) -> None:
        """Change bits of one byte of a file."""
        with path.open("r+b") as file:
            file.seek(offset)
            [byte] = file.read(1)
            file.seek(offset)
            file.write(bytes([byte ^ mask]))


def write_directory(path: Path, image: DiskImage, snapshot: Snapshot | None) -> Directory:
    """Write a simulated disk as files, and its metadata as an SQLite store."""
    data_dir = path / "data"
    data_dir.mkdir(parents=True)
    (data_dir / IDENTITY_FILE).write_bytes(IDENTITY.to_bytes())
    for name, content in image.files.items():
        (data_dir / name).write_bytes(content)
    for number, slots in image.segments.items():
        (data_dir / segment_name(number)).write_bytes(image.headers[number] + slots)
    made = Directory(data_dir, path / "meta.sqlite")
    if snapshot is not None:
        store = SqliteMetadata(str(made.meta_path), SystemClock())
        values = {key: entry.value for key, entry in snapshot[1].items()}
        values[CLUSTER] = Cluster(CLUSTER_ID, 1).to_bytes()
        store.commit((), [Put(key, value) for key, value in values.items()])
        store.close()
    return made


def no_progress(done: int, total: int | None) -> None:
    """Take progress, and check that it makes sense."""
    assert done >= 0
    assert total is None or done <= total


class FixedRecorder(Recorder):
    """A workload that leaves the size alone: the copies in the log may lag behind a resize."""

    async def _do_resize(self) -> None:
        await self.flush()


@dataclass
class Past:
    """A simulated machine after a workload; its processes are gone."""

    world: World
    recorders: list[Recorder]

    def content(self, number: int = 0) -> bytes:
        recorder = self.recorders[number]
        return recorder.history.content

    def leave(self, path: Path) -> Directory:
        """Write what the killed process left."""
        return write_directory(path, self.world.disk.image, self.world.metadata.snapshot())

    def images(self, rng: random.Random, every: int) -> Iterator[tuple[Moment, str, DiskImage]]:
        """Yield images of crashes at some moments, with what each must hold."""
        for moment in moments(self.world):
            if rng.randrange(every) == 0:
                yield moment, "answered", moment.disk.killed(moment.current, rng)
                yield moment, "flushed", moment.disk.cut(rng, moment.current)

    def attach_all(
        self, directory: Directory, image: DiskImage, **options: object
    ) -> dict[str, tuple[bytes, int]]:
        """Attach all volumes that the directory's metadata knows; name to (content, lsn)."""
        return asyncio.run(_attach_all(image.copy(), directory.snapshot(), options))


async def _attach_all(
    image: DiskImage, snapshot: Snapshot, options: dict[str, object]
) -> dict[str, tuple[bytes, int]]:
    world = World(random.Random(1), image=image, snapshot=snapshot, **options)  # type: ignore[arg-type]
    found = {}
    try:
        world.store.open()
        for key in snapshot[1]:
            if key.startswith(NAMES):
                volume = (await world.attach(key.removeprefix(NAMES))).volume
                content = await volume.read(0, volume.size_bytes)
                found[volume.name] = content, volume.core.journal.lsn
                volume.core.blocks.verify()
                await volume.write(0, content[:4096], durable=True)
    finally:
        await world.stop()
    return found


async def _work(
    rng: random.Random,
    steps: int,
    volumes: int,
    finish: Callable[[World, list[Recorder]], object] | None,
    options: dict[str, object],
    *,
    resize: bool = True,
) -> Past:
    world = World(rng, **options)  # type: ignore[arg-type]
    world.store.open()
    await world.catalog.init_cluster()
    recorders = []
    for number in range(volumes):
        await world.catalog.create(f"v{number}", rng.choice((256, 512, 1024)) * limits.KIB)
        recorders.append((Recorder if resize else FixedRecorder)(world, f"v{number}", limits.MIB))
        await recorders[-1].attach()
    for _ in range(steps):
        await rng.choice(recorders).random_step()
    for recorder in recorders:
        await recorder.settle()
    if finish is not None:
        await finish(world, recorders)  # type: ignore[misc]
    await world.stop()
    return Past(world, recorders)


@pytest.fixture
def directory_of() -> Callable[..., Directory]:
    """Write an image as a directory: directory_of(path, image, snapshot or None)."""
    return write_directory


async def flush_all(world: World, recorders: list[Recorder]) -> None:
    """Flush every volume; the process then dies."""
    for recorder in recorders:
        await recorder.flush()


async def detach_all(world: World, recorders: list[Recorder]) -> None:
    """Stop in order."""
    for recorder in recorders:
        await recorder.attachment.detach()


async def fill_all(world: World, recorders: list[Recorder]) -> None:
    """Leave several chunks behind the last checkpoint, flushed one by one."""
    for recorder in recorders:
        await recorder.checkpoint()
        for number in range(8):
            data = world.rng.randbytes(44 * limits.KIB)
            await recorder.write(number * 16 * limits.KIB % 128 * limits.KIB, data)
            await recorder.flush()


async def grow_all(world: World, recorders: list[Recorder]) -> None:
    """Grow every volume behind the last checkpoint, and write at its new end."""
    for recorder in recorders:
        await recorder.checkpoint()
        await recorder.resize(limits.MIB)
        await recorder.write(limits.MIB - 8192, world.rng.randbytes(8192))
        await recorder.flush()


async def checkpoint_twice(world: World, recorders: list[Recorder]) -> None:
    """Leave two checkpoints between which no chunk dies."""
    for recorder in recorders:
        for _ in range(2):
            await recorder.checkpoint()
            await recorder.write(0, world.rng.randbytes(4096), durable=True)


async def reattach_all(world: World, recorders: list[Recorder]) -> None:
    """Leave a second epoch without a checkpoint, whose flushes its own records name."""
    for recorder in recorders:
        await recorder.reattach()
        for _ in range(3):
            await recorder.write(0, world.rng.randbytes(4096), durable=True)


ENDINGS = {
    "reattached": reattach_all,
    "grown": grow_all,
    "checkpointed twice": checkpoint_twice,
    "killed": None,
    "flushed": flush_all,
    "filled": fill_all,
    "detached": detach_all,
}


@pytest.fixture
def work(seed: int) -> Callable[..., Past]:
    """Run a random workload: work(number, steps=, volumes=, end=, resize=, **options of World)."""

    def run(
        number: int = 0,
        *,
        steps: int = 45,
        volumes: int = 2,
        end: str = "killed",
        resize: bool = True,
        **options: object,
    ) -> Past:
        rng = random.Random(f"{seed}:{number}")
        return asyncio.run(_work(rng, steps, volumes, ENDINGS[end], options, resize=resize))

    return run
