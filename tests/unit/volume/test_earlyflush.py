"""The flush that nobody asked for."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace

from torus import limits
from torus.testing.world import World
from torus.volume.volume import Volume

BLOCK = random.Random(5).randbytes(limits.BLOCK_BYTES)


def _run(after_s: float | None, scenario: Callable[[Volume], Awaitable[None]]) -> None:
    async def with_volume() -> None:
        world = World(random.Random(5))
        world.store.open()
        world.options = replace(world.options, early_flush_s=after_s)
        await world.catalog.init_cluster()
        await world.catalog.create("v", limits.MIB)
        await scenario((await world.attach("v")).volume)
        await world.stop()

    asyncio.run(with_volume())


async def _flushed(volume: Volume) -> None:
    """Return once all that was appended is being flushed."""
    journal = volume.core.journal
    async with asyncio.timeout(30):
        while journal.sync_begun_bytes < journal.appended_bytes:  # noqa: ASYNC110
            await asyncio.sleep(0)


def test_what_was_written_a_while_ago_is_flushed() -> None:
    """Also when nothing is written any more, and again for what is written afterwards."""

    async def scenario(volume: Volume) -> None:
        for _ in range(3):
            await volume.write(0, BLOCK, durable=False)
            journal = volume.core.journal
            assert journal.sync_begun_bytes < journal.appended_bytes
            await _flushed(volume)

    _run(0.01, scenario)


def test_what_is_flushed_already_is_not_flushed_again() -> None:
    """A client's flush came first: the timer only watches what came since."""

    async def scenario(volume: Volume) -> None:
        early = volume.early_flush
        await volume.write(0, BLOCK, durable=False)
        assert early._timer is not None
        await volume.flush()
        early._timer.cancel()
        early._on_timer()
        assert early._timer is None
        assert early._task is None
        await volume.write(0, BLOCK, durable=False)
        assert early._timer is not None

    _run(3600.0, scenario)


def test_closed_volume_has_no_timer() -> None:
    """Nothing is flushed that another owner may have by then."""

    async def scenario(volume: Volume) -> None:
        await volume.write(0, BLOCK, durable=False)
        await volume.early_flush.stop()
        assert volume.early_flush._timer is None
        volume.early_flush.consider()
        assert volume.early_flush._timer is None

    _run(3600.0, scenario)


def test_without_a_time_only_the_amount_counts() -> None:
    """As simulations want it: their clock is not the loop's."""

    async def scenario(volume: Volume) -> None:
        await volume.write(0, BLOCK, durable=False)
        assert volume.early_flush._timer is None

    _run(None, scenario)
