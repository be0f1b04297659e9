"""The checkpoint of a volume whose chunks become shards, when nobody writes to it any more."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace

from torus import limits
from torus.testing.world import World
from torus.volume.quiet import Quiet
from torus.volume.volume import Volume

BLOCK = random.Random(5).randbytes(limits.BLOCK_BYTES)
LEAST = 3 * limits.BLOCK_BYTES
QUIET_S = 0.02


def run(scenario: Callable[[Volume], Awaitable[None]], redundancy: str = "erasure:4+2") -> None:
    """Run a scenario with an attached volume, as if its chunks became shards."""

    async def with_volume() -> None:
        world = World(random.Random(5))
        world.store.open()
        await world.catalog.init_cluster()
        await world.catalog.create("v", limits.MIB)
        volume = (await world.attach("v")).volume
        volume.core.spec = replace(volume.core.spec, redundancy=redundancy)
        await scenario(volume)
        await world.stop()

    asyncio.run(with_volume())


def watch(
    volume: Volume, quiet_s: float = QUIET_S, rest_s: float = 0.0
) -> tuple[Quiet, asyncio.Event]:
    """Return a watch that nobody but the test tells of writes, and what it sets."""
    woken = asyncio.Event()
    return Quiet(volume.core, woken.set, quiet_s, LEAST, rest_s), woken


async def write(volume: Volume, quiet: Quiet, blocks: int) -> None:
    """Write, and say so as a volume does."""
    for number in range(blocks):
        await volume.write(number * limits.BLOCK_BYTES, BLOCK, durable=False)
        quiet.consider()


def test_it_comes_when_enough_was_written_and_nothing_more_is() -> None:
    """Once: the next one needs as much again."""

    async def scenario(volume: Volume) -> None:
        quiet, woken = watch(volume)
        await write(volume, quiet, 3)
        async with asyncio.timeout(30):
            await woken.wait()
        await volume.checkpointer.write()
        quiet.consider()
        assert quiet._timer is None
        quiet.stop()

    run(scenario)


def test_bursts_have_one_between_two_by_the_clock() -> None:
    """However often somebody writes a little and rests: each is a write to the metadata store."""

    async def scenario(volume: Volume) -> None:
        quiet, woken = watch(volume, rest_s=3600.0)
        loop = asyncio.get_running_loop()
        await write(volume, quiet, 3)
        async with asyncio.timeout(30):
            await woken.wait()
        woken.clear()
        await volume.checkpointer.write()
        await write(volume, quiet, 3)
        assert quiet._timer is not None
        assert quiet._timer.when() > loop.time() + 3000.0
        await volume.checkpointer.write()  # by the clock: nothing is left to do
        quiet._timer.cancel()
        quiet._on_timer()
        assert not woken.is_set()
        quiet.stop()

    run(scenario)


def test_a_volume_that_is_written_to_is_not_quiet() -> None:
    """What came since the last look begins the wait anew."""

    async def scenario(volume: Volume) -> None:
        quiet, woken = watch(volume, 3600.0)
        await write(volume, quiet, 3)
        for _ in range(5):
            await write(volume, quiet, 1)
            assert quiet._timer is not None
            quiet._timer.cancel()
            quiet._on_timer()
            assert not woken.is_set()
        assert quiet._timer is not None
        quiet._timer.cancel()
        quiet._on_timer()
        assert woken.is_set()
        quiet.stop()

    run(scenario)


def test_little_is_left_to_the_clock() -> None:
    """There is no full chunk yet."""

    async def scenario(volume: Volume) -> None:
        quiet, _ = watch(volume)
        await write(volume, quiet, 1)
        assert quiet._timer is None

    run(scenario)


def test_copies_wait_for_nothing() -> None:
    """Only shards do."""

    async def scenario(volume: Volume) -> None:
        quiet, _ = watch(volume)
        await write(volume, quiet, 8)
        assert quiet._timer is None

    run(scenario, "replica:3")


def test_a_conversion_is_learned() -> None:
    """While the volume is attached, with what else changes of it."""

    async def with_volume() -> None:
        world = World(random.Random(5))
        world.store.open()
        await world.catalog.init_cluster()
        await world.catalog.create("v", limits.MIB, "replica:3")
        attachment = await world.attach("v")
        quiet, _ = watch(attachment.volume)
        attachment.volume.checkpointer.quiet = quiet
        await write(attachment.volume, quiet, 8)
        before = quiet._timer
        await world.catalog.convert("v", "erasure:2+1")
        await attachment.follow_size()
        quiet.consider()
        assert before is None
        assert quiet._timer is not None
        await world.stop()

    asyncio.run(with_volume())


def test_a_closed_volume_is_not_watched() -> None:
    """Another owner may have it by then."""

    async def scenario(volume: Volume) -> None:
        quiet, woken = watch(volume)
        await write(volume, quiet, 8)
        quiet.stop()
        quiet.stop()
        assert quiet._timer is None
        quiet.consider()
        assert quiet._timer is None
        assert not woken.is_set()

    run(scenario)


def test_the_checkpointer_is_woken() -> None:
    """By the volume's own watch, whatever the interval."""

    async def scenario(volume: Volume) -> None:
        checkpointer = volume.checkpointer
        checkpointer.quiet = Quiet(volume.core, checkpointer._wake.set, QUIET_S, LEAST)
        before = checkpointer.count
        for number in range(4):
            await volume.write(number * limits.BLOCK_BYTES, BLOCK, durable=False)
        checkpointer.consider()
        async with asyncio.timeout(30):
            while checkpointer.count == before:  # noqa: ASYNC110
                await asyncio.sleep(0)
        await checkpointer.stop()
        assert checkpointer.quiet._timer is None

    run(scenario)
