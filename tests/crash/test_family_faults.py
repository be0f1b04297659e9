"""Errors at the n-th call, for every n, under all that is done with snapshots and clones.

The operation fails with an error of torus or succeeds; whatever it was, nothing is lost that a
volume, a snapshot or a clone needs, and their space comes back when they go.
"""

import asyncio
import errno
import os
import random

import pytest

from torus import limits
from torus.errors import TorusError
from torus.testing.crash import moments
from torus.testing.crash_family import FamilyExaminer, check_snapshots
from torus.testing.family import FamilyRecorder
from torus.testing.faults import FaultyDisk, FaultyMetadata
from torus.testing.simdisk import SimDisk
from torus.testing.workload import Recorder
from torus.testing.world import World
from torus.volume.catalog_async import AsyncCatalog

pytestmark = [pytest.mark.crash, pytest.mark.slow]

SCALE = float(os.environ.get("TORUS_CRASH_SCALE", "1"))
SIZE = 64 * limits.KIB
OPERATIONS = ("snapshot", "detached", "delete", "clone", "drop", "rollback", "flatten", "collect")
FAULTS = (
    ("metadata", 0, 1), ("metadata-late", 0, 1), ("metadata", 0, 4),
    ("write", errno.EIO, 1), ("sync", errno.EIO, 1), ("read", errno.EIO, 1), ("read", errno.EIO, 9),
    ("write", errno.ENOSPC, 1), ("append_file", errno.ENOSPC, 1), ("punch", errno.EIO, 1),
)  # fmt: skip


async def _prepare(rng: random.Random, disk: FaultyDisk) -> tuple[FamilyRecorder, FaultyMetadata]:
    """A volume with two snapshots and changes since, a clone with a snapshot and changes."""
    world = World(rng, disk=disk, slots=200, pause_when_full=False)
    metadata = FaultyMetadata.over(world.metadata, world.history)
    world.metadata = metadata
    world.catalog = AsyncCatalog(metadata, world.clock)  # type: ignore[arg-type]
    world.store.open()
    await world.catalog.init_cluster()
    family = FamilyRecorder(world, SIZE)
    family.strict = False
    first = await family.begin("v0", SIZE)
    for length in (65536, 32768, 8192):
        await first.write(0, rng.randbytes(length))
        await first.checkpoint()
        await family.snapshot("v0")
    clone = await family.clone("v0", "s2")
    await clone.write(4096, rng.randbytes(8192))
    await family.snapshot(clone.name)
    for recorder in (first, clone):
        await recorder.write(12288, rng.randbytes(20480))
    return family, metadata


async def _do(family: FamilyRecorder, operation: str) -> None:
    clone = next(reversed(family.recorders))
    if operation == "snapshot":
        await family.snapshot("v0")
    elif operation == "detached":
        await family.snapshot_detached("v0")
    elif operation == "delete":
        await family.delete_snapshot("v0", "s1")
    elif operation == "clone":
        await family.clone("v0", "s3")
    elif operation == "drop":
        await family.delete_clone(clone)
    elif operation == "rollback":
        await family.roll_back("v0", "s1")
    elif operation == "flatten":
        await family.flatten(clone)
    elif operation == "collect":
        await family.collect("v0")


async def _run(seed: str, operation: str, fault: tuple[str, int, int], at: int) -> bool:
    """Let one call fail; return whether there was that call."""
    rng = random.Random(seed)
    disk = FaultyDisk.over(SimDisk())
    disk.poison = True
    family, metadata = await _prepare(rng, disk)
    kind, error, count = fault
    if kind.startswith("metadata"):
        metadata.fail(at, count=count, late=kind == "metadata-late")
    else:
        disk.fail(kind, at, error, count=count)
    done = True
    try:
        await _do(family, operation)
    except TorusError:
        done = False
    came = bool(disk.failures or metadata.failures)
    assert done or came, f"{operation} failed without a fault"
    disk.kind = ""
    metadata.fail(0)
    for recorder in list(family.recorders.values()):
        if recorder.attached and recorder.attachment.volume.core.failure is None:
            await _go_on(family, recorder)
    await check_snapshots(family.world, family.kept)
    await family.world.stop()
    examiner = FamilyExaminer(family.histories, rng, {"slots": 200}, 2, kept=family.kept)
    *_, last = moments(family.world)
    await examiner.cut(last)
    await examiner.killed(last)
    return came


async def _go_on(family: FamilyRecorder, recorder: Recorder) -> None:
    """What still serves is right, and takes writes and checkpoints."""
    if family.world.store.failure is None:
        history, volume = recorder.history, recorder.attachment.volume
        content = await volume.read(0, volume.size_bytes)
        assert history.find(content, history.answers, len(history), 0) is not None
        if history.answers < len(history):
            await recorder.amend()
        await recorder.write(4096, family.rng.randbytes(8192))
        await recorder.checkpoint()
        await recorder.read(0, recorder.size)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: "-".join(map(str, fault)))
@pytest.mark.parametrize("operation", OPERATIONS)
def test_nth_call_fails_keeps_snapshots_and_clones(
    operation: str, fault: tuple[str, int, int], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call of the operation fails once."""
    monkeypatch.setattr("torus.volume.holder._PAUSE_FIRST_S", 0.0)
    for at in range(1, 300):
        try:
            came = asyncio.run(asyncio.wait_for(_run(f"{seed}", operation, fault, at), 60))
        except BaseException as exc:
            exc.add_note(f"seed '{seed}', {operation}, {fault} number {at}")
            raise
        if not came:
            return
    raise AssertionError("the operation does not end")
