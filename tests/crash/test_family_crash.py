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


@pytest.mark.parametrize("number", range(WORKLOADS))
def test_crash_at_any_moment_keeps_snapshots_and_clones(number: int, seed: int) -> None:
    """Snapshots and clones read as they were made; rollbacks happen or do not; space comes back."""
    options = {
        "punch": number % 2 == 0,
        "cache_bytes": (16 << 10) if number % 4 == 3 else 1 << 20,
        "slots": 400,
    }
    points = asyncio.run(_examine(f"{seed}:family:{number}", 40, **options))
    assert points > 100
