"""Power loss and death of the process at every moment of recorded workloads."""

import asyncio
import os
import random

import pytest

from torus import limits
from torus.testing.crash import Examiner, moments
from torus.testing.workload import Recorder
from torus.testing.world import World

pytestmark = [pytest.mark.crash, pytest.mark.slow]

SCALE = float(os.environ.get("TORUS_CRASH_SCALE", "1"))
WORKLOADS = max(1, int(26 * SCALE))
CUTS = 2  # images with lost power at each moment


async def _record(
    rng: random.Random, steps: int, volumes: int, **options: object
) -> tuple[World, list[Recorder]]:
    world = World(rng, **options)  # type: ignore[arg-type]
    world.store.open()
    await world.catalog.init_cluster()
    recorders = []
    for number in range(volumes):
        size = rng.choice((256, 512, 1024)) * limits.KIB
        await world.catalog.create(f"v{number}", size)
        recorders.append(Recorder(world, f"v{number}", limits.MIB))
        await recorders[-1].attach()
    for _ in range(steps):
        await rng.choice(recorders).random_step()
        if world.trash_grace_s and rng.random() < 0.2:
            world.clock.advance(int(rng.choice((0.5, 1.0)) * world.trash_grace_s * 1e9))
            world.store.expire_trash()
    for recorder in recorders:
        await recorder.settle()
    return world, recorders


async def _examine(seed: str, steps: int, volumes: int, **options: object) -> int:
    rng = random.Random(seed)
    world, recorders = await _record(rng, steps, volumes, **options)
    await world.stop()
    histories = {recorder.name: recorder.history for recorder in recorders}
    examiner = Examiner(histories, rng, options)
    for moment in moments(world):
        try:
            await examiner.killed(moment)
            for _ in range(CUTS):
                await examiner.cut(moment)
        except Exception as exc:
            exc.add_note(
                f"crash seed {seed!r}, before event {moment.number}: {moment.current!s:.60}"
            )
            raise
    return examiner.points


async def _examine_short(kinds: tuple[str, ...], seed: str) -> int:
    """Crash a fresh volume of 16 blocks at every moment of the last of a few operations.

    The moments of those before it are those of a shorter workload.
    """
    rng = random.Random(seed)  # the same for all: equal beginnings are equal
    world = World(rng)
    world.store.open()
    await world.catalog.init_cluster()
    await world.catalog.create("v", 64 * limits.KIB)
    recorder = Recorder(world, "v", 64 * limits.KIB)
    await recorder.attach()
    for kind in kinds:
        first = len(world.history)
        await getattr(recorder, kind)()
    await recorder.settle()
    await world.stop()
    examiner = Examiner({"v": recorder.history}, rng)
    for moment in moments(world, first):
        try:
            await examiner.killed(moment)
            await examiner.cut(moment)
        except Exception as exc:
            exc.add_note(f"workload {kinds}, before event {moment.number}")
            raise
    return examiner.points


SHORT = ("do_write", "do_unaligned", "do_durable", "do_trim", "do_later", "do_checkpoint")


@pytest.mark.parametrize("first", SHORT)
def test_crash_in_every_short_workload_keeps_what_was_promised(first: str, seed: int) -> None:
    """All workloads of up to three operations, all their moments."""
    points = 0
    for second in ("", *SHORT):
        for third in ("", *SHORT) if second else ("",):
            kinds = tuple(f"_{kind}" for kind in (first, second, third) if kind)
            points += asyncio.run(_examine_short(kinds, str(seed)))
    assert points > 200


@pytest.mark.parametrize("number", range(WORKLOADS))
def test_crash_at_any_moment_keeps_what_was_promised(number: int, seed: int) -> None:
    """Flushed writes survive power loss, answered ones a kill; the image is a prefix."""
    volumes = 1 + number % 3
    options = {
        "punch": number % 2 == 0,
        "cache_bytes": (64 << 10) if number % 4 == 3 else 1 << 20,
        "trash_grace_s": 30.0 if number % 3 != 2 else 0.0,
        "slots": 40 if number % 5 == 1 else 96,
    }
    points = asyncio.run(_examine(f"{seed}:{number}", 45, volumes, **options))
    assert points > 100
