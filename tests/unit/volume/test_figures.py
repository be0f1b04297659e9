"""What a volume costs: the figures add up and count what they say."""

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from torus import limits
from torus.testing.workload import Recorder
from torus.testing.world import World
from torus.volume.figures import SpaceFigures, space_figures

SIZE = 512 * limits.KIB


def _run(scenario: Callable[[World, Recorder], Awaitable[None]], seed: int = 5) -> None:
    async def run() -> None:
        world = World(random.Random(seed))
        world.store.open()
        await world.catalog.init_cluster()
        await world.catalog.create("v", SIZE)
        recorder = Recorder(world, "v", SIZE)
        await recorder.attach()
        await scenario(world, recorder)
        await recorder.settle()
        await world.stop()

    asyncio.run(run())


def _figures(world: World, recorder: Recorder) -> SpaceFigures:
    """Return the figures; its chunks take what they say."""
    core = recorder.attachment.volume.core
    figures = space_figures(core)
    taken = len(world.store.chunks_of(core.spec.volume)) * core.chunks.slot_bytes
    counted = figures.live_bytes + figures.dead_bytes + figures.pinned_bytes
    assert counted % core.chunks.slot_bytes == 0
    assert counted >= taken  # chunks that went at a detach are counted until they are judged
    return figures


def test_nothing_written_has_no_amplification() -> None:
    """There is nothing to divide by."""

    async def scenario(world: World, recorder: Recorder) -> None:
        figures = _figures(world, recorder)
        assert (figures.client_bytes, figures.logical_bytes) == (0, 0)
        assert figures.write_amplification is figures.collector_amplification is None

    _run(scenario)


@pytest.mark.parametrize("way", ["write_batch", "write"])
def test_client_bytes_are_those_of_writes_by_every_way(way: str) -> None:
    """Trims write nothing, zeroes that are to be allocated do; the log has headers on top."""

    async def scenario(world: World, recorder: Recorder) -> None:
        data = random.Random(1).randbytes(64 * limits.KIB)
        for at in (0, 64 * limits.KIB, 0):
            if way == "write":
                await recorder.write(at, data)
            else:
                await recorder.write_batch([(at, data)])
        await recorder.zero(0, 8192, trim=True)
        await recorder.zero(8192, 4096, trim=False)
        figures = _figures(world, recorder)
        assert figures.client_bytes == 3 * len(data)
        assert figures.logical_bytes == 2 * len(data) - 12288
        assert 1.0 < (figures.write_amplification or 0) < 1.2
        assert figures.log_bytes == recorder.attachment.volume.core.journal.appended_bytes
        await recorder.zero(0, 8192, trim=False, allocate=True)
        assert _figures(world, recorder).client_bytes == 3 * len(data) + 8192

    _run(scenario)


def test_random_workload_adds_up_at_every_step(seed: int) -> None:
    """Live, dead and pinned bytes are those of the chunks that are there."""

    async def scenario(world: World, recorder: Recorder) -> None:
        for _ in range(120):
            await recorder.random_step()
            await recorder.settle()
            _figures(world, recorder)
        await recorder.checkpoint()
        await recorder.checkpoint()
        figures = _figures(world, recorder)
        chunks = len(world.store.chunks()) * recorder.attachment.volume.core.chunks.slot_bytes
        assert figures.live_bytes + figures.dead_bytes == chunks

    _run(scenario, seed)


def test_what_only_a_snapshot_needs_is_pinned() -> None:
    """Overwritten behind a snapshot, chunks stay until it goes."""

    async def scenario(world: World, recorder: Recorder) -> None:
        rng = random.Random(2)
        for round_ in range(2):
            for at in range(0, SIZE, 64 * limits.KIB):
                await recorder.write(at, rng.randbytes(64 * limits.KIB))
            if round_ == 0:
                assert _figures(world, recorder).pinned_bytes == 0
                await recorder.attachment.snapshot("s", 1)
        await recorder.checkpoint()
        await recorder.checkpoint()
        figures = _figures(world, recorder)
        assert figures.pinned_bytes >= SIZE
        assert figures.snapshots == 1

    _run(scenario)
