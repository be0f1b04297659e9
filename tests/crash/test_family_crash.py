"""Power loss and death of the process at every moment of workloads with snapshots and clones."""

import asyncio
import os
import random

import pytest

from torus import limits
from torus.testing.crash import moments
from torus.testing.crash_family import FamilyExaminer
from torus.testing.family import FamilyRecorder
from torus.testing.world import World

pytestmark = [pytest.mark.crash, pytest.mark.slow]

SCALE = float(os.environ.get("TORUS_CRASH_SCALE", "1"))
WORKLOADS = max(1, int(10 * SCALE))
CAPACITY = 256 * limits.KIB


async def _record(rng: random.Random, steps: int, **options: object) -> FamilyRecorder:
    world = World(rng, **options)  # type: ignore[arg-type]
    world.disk.poison = True
    world.store.open()
    await world.catalog.init_cluster()
    family = FamilyRecorder(world, CAPACITY)
    await family.begin("v0", rng.choice((64, 128, 256)) * limits.KIB)
    for _ in range(steps):
        await family.random_step()
        if world.trash_grace_s and rng.random() < 0.2:
            world.clock.advance(int(rng.choice((0.5, 1.0)) * world.trash_grace_s * 1e9))
            world.store.expire_trash()
    await family.settle()
    return family


async def _examine(seed: str, steps: int, **options: object) -> int:
    rng = random.Random(seed)
    family = await _record(rng, steps, **options)
    await family.world.stop()
    examiner = FamilyExaminer(family.histories, rng, options, kept=family.kept)
    for moment in moments(family.world):
        try:
            if moment.number % 2:
                await examiner.killed(moment)
            else:
                await examiner.cut(moment)
        except Exception as exc:
            exc.add_note(
                f"crash seed {seed!r}, before event {moment.number}: {moment.current!s:.60}"
            )
            raise
    return examiner.points


SHORT = ("write", "checkpoint", "collect", "snapshot", "detached", "delete", "clone", "rollback",
         "flatten", "drop")  # fmt: skip
SHARE = max(1, round(4 / SCALE))  # of the moments of three operations, one in so many


async def _do_short(family: FamilyRecorder, kind: str) -> bool:
    """Do one operation in the one way that is the same each time; False when it is none."""
    young = next(reversed(family.recorders))
    recorder, catalog = family.recorders[young], family.world.catalog
    found = await catalog.snapshots(young)
    free = [one.name for one in found if not one.clones]
    if kind == "write":
        await recorder.write(8192, family.rng.randbytes(16384))
    elif kind == "checkpoint":
        await recorder.checkpoint()
    elif kind == "collect":
        await family.collect(young)
    elif kind == "snapshot":
        await family.snapshot(young)
    elif kind == "detached":
        await family.snapshot_detached(young)
    elif kind == "delete" and free:
        await family.delete_snapshot(young, free[0])
    elif kind == "clone" and found:
        await family.clone(young, found[-1].name)
    elif kind == "rollback" and found:
        await family.roll_back(young, found[0].name)
    elif kind == "flatten" and (await catalog.get(young)).head.base is not None:
        await family.flatten(young)
    elif kind == "drop" and young != "v0" and len(free) == len(found):
        await family.delete_clone(young)
    else:
        return False
    return True


async def _examine_short(kinds: tuple[str, ...], seed: str) -> int:
    """Crash a small family at every moment of the last of a few operations.

    The moments of those before it are those of a shorter workload.
    """
    rng = random.Random(seed)  # the same for all: equal beginnings are equal
    world = World(rng, slots=200)
    world.disk.poison = True
    world.store.open()
    await world.catalog.init_cluster()
    family = FamilyRecorder(world, 64 * limits.KIB)
    first = await family.begin("v0", 64 * limits.KIB)
    for length in (65536, 8192):
        await first.write(0, rng.randbytes(length))
        await first.checkpoint()
    await family.snapshot("v0")
    await first.write(4096, rng.randbytes(20480))
    for kind in kinds:
        begin = len(world.history)
        if not await _do_short(family, kind):
            await world.stop()
            return 0
    await world.stop()
    examiner = FamilyExaminer(family.histories, rng, {"slots": 200}, kept=family.kept)
    share = SHARE if len(kinds) == 3 else 1
    for moment in moments(world, begin):
        if (moment.number + sum(map(SHORT.index, kinds))) % share:
            continue
        try:
            if rng.random() < 0.5:
                await examiner.killed(moment)
            else:
                await examiner.cut(moment)
        except Exception as exc:
            exc.add_note(f"workload {kinds}, before event {moment.number}")
            raise
    return examiner.points


@pytest.mark.parametrize("first", [kind for kind in SHORT if kind not in ("flatten", "drop")])
def test_crash_in_every_short_workload_keeps_snapshots_and_clones(first: str, seed: int) -> None:
    """All workloads of up to three operations."""
    points = 0
    for second in ("", *SHORT):
        for third in ("", *SHORT) if second else ("",):
            kinds = tuple(kind for kind in (first, second, third) if kind)
            points += asyncio.run(_examine_short(kinds, f"{seed}:short"))
    assert points > 100


@pytest.mark.parametrize("number", range(WORKLOADS))
def test_crash_at_any_moment_keeps_snapshots_and_clones(number: int, seed: int) -> None:
    """Snapshots and clones read as they were made; rollbacks happen or do not; space comes back."""
    options = {
        "punch": number % 2 == 0,
        "cache_bytes": (16 << 10) if number % 4 == 3 else 1 << 20,
        "trash_grace_s": 30.0 if number % 3 == 1 else 0.0,
        "slots": 400,
    }
    points = asyncio.run(_examine(f"{seed}:family:{number}", 40, **options))
    assert points > 100
