"""A disk that fails at the n-th call of a kind, for every n: nothing that was promised is lost."""

import asyncio
import errno
import random

import pytest

from torus import limits
from torus.errors import DiskFailed, PoolFull, TorusError
from torus.testing.crash import Examiner, moments
from torus.testing.faults import FaultyDisk
from torus.testing.simdisk import SimDisk
from torus.testing.workload import Recorder
from torus.testing.world import World

pytestmark = [pytest.mark.crash, pytest.mark.sim]
STEPS = 30


async def _run(seed: str, kind: str, at: int, error: int, part: float, count: int = 1) -> bool:
    """Run a workload with one planned failure; return whether it came."""
    rng = random.Random(seed)
    disk = FaultyDisk.over(SimDisk())
    world = World(rng, disk=disk, slots=24, pause_when_full=False)
    world.store.open()
    await world.catalog.init_cluster()
    await world.catalog.create("v", 512 * limits.KIB)
    recorder = Recorder(world, "v", limits.MIB)
    disk.fail(kind, at, error, part=part, count=count)
    try:
        await recorder.attach()
        for _ in range(STEPS):
            try:
                await recorder.random_step()
            except PoolFull:
                assert error == errno.ENOSPC
                if not recorder.attached:
                    break
                await recorder.amend()
            if world.store.failure is not None:
                break
        await recorder.settle()
    except PoolFull:
        assert error == errno.ENOSPC
    except TorusError:
        if not disk.failures:
            raise
    if world.store.failure is not None:
        await _check_out(world, recorder)
    await recorder.abandon()
    await world.stop()
    disk.kind = ""
    examiner = Examiner({"v": recorder.history}, rng, {"slots": 24}, deep_every=2)
    *_, last = moments(world)
    await examiner.killed(last)
    for _ in range(4):
        await examiner.cut(last)
    return bool(disk.failures)


async def _check_out(world: World, recorder: Recorder) -> None:
    """A failed disk takes nothing more, and never says that a chunk is not there."""
    writes = sum(event.kind in ("write", "append") for event in world.history)
    if recorder.attached:
        volume = recorder.attachment.volume
        with pytest.raises(TorusError):
            await volume.write(0, bytes(4096), durable=False)
        for flush in (volume.flush, volume.flush_soon):
            try:
                await flush()
            except TorusError:
                continue
            recorder.flushed()  # allowed only if there was nothing to flush
    with pytest.raises(DiskFailed):
        await world.store.sync([])
    with pytest.raises(DiskFailed):
        world.store.check_disk()
    assert writes == sum(event.kind in ("write", "append") for event in world.history)


@pytest.mark.parametrize("part", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize(
    "kind", ["write", "sync", "make_segment", "append_file", "allocate", "punch"]
)
def test_nth_call_fails_keeps_every_promise(kind: str, error: int, part: float, seed: int) -> None:
    """EIO takes the disk out at once; ENOSPC is an answer; what was flushed is there."""
    if part and (kind not in ("write", "append_file") or (part == 1.0 and error == errno.ENOSPC)):
        return  # only writes arrive in part; one without space never arrives whole
    for round_ in range(2):
        for at in range(1, 400):
            try:
                came = asyncio.run(_run(f"{seed}:{round_}", kind, at, error, part))
            except BaseException as exc:
                exc.add_note(f"seed '{seed}:{round_}', {kind} number {at}, part {part}")
                raise
            if not came:
                break


@pytest.mark.parametrize("kind", ["write", "sync"])
def test_disk_stays_broken_keeps_every_promise(kind: str, seed: int) -> None:
    """From some call on everything fails."""
    for at in range(1, 60, 3):
        asyncio.run(_run(f"{seed}:dead", kind, at, errno.EIO, 0.0, count=1 << 30))
