"""A full pool: writes wait or are refused, what frees space goes on, nothing is lost."""

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from torus import limits
from torus.errors import PoolFull, ShuttingDown
from torus.testing.crash import check_space
from torus.testing.world import World
from torus.volume.attachment import Attachment

BLOCK = limits.BLOCK_BYTES
SLOTS = 20
SIZE = 2 * limits.MIB  # more than 20 slots of 64 KiB hold


def _run(scenario: Callable[[World, Attachment], Awaitable[None]], **options: object) -> None:
    async def run() -> None:
        world = World(random.Random(5), slots=SLOTS, **options)  # type: ignore[arg-type]
        world.store.open()
        await world.catalog.init_cluster()
        await world.catalog.create("v", SIZE)
        await scenario(world, await world.attach("v"))
        await world.stop()

    asyncio.run(asyncio.wait_for(run(), 60))


def _content(number: int) -> bytes:
    return random.Random(number).randbytes(BLOCK)


async def _fill(attachment: Attachment) -> int:
    """Write blocks until the pool is full; return how many fit."""
    for number in range(SIZE // BLOCK):
        try:
            await attachment.volume.write(number * BLOCK, _content(number), durable=False)
        except PoolFull:
            return number
    raise AssertionError("the pool did not get full")


def test_refusing_volume_answers_and_goes_on_when_space_is_freed() -> None:
    """ENOSPC is an answer, not the end; reads, flushes, trims and checkpoints work."""

    async def scenario(world: World, attachment: Attachment) -> None:
        volume = attachment.volume
        count = await _fill(attachment)
        assert count > 100
        for _ in range(3):
            with pytest.raises(PoolFull):
                await volume.write(count * BLOCK, _content(count), durable=False)
        await volume.flush()
        assert await volume.read(0, count * BLOCK) == b"".join(map(_content, range(count)))
        await volume.trim(0, 100 * BLOCK, durable=True)
        for _ in range(3):
            await volume.checkpointer.write()
        for number in range(60):
            await volume.write(number * BLOCK, _content(1000 + number), durable=False)
        expected = b"".join(map(_content, range(1000, 1060))) + bytes(40 * BLOCK)
        expected += b"".join(map(_content, range(100, count)))
        assert await volume.read(0, count * BLOCK) == expected
        check_space(world)

    _run(scenario, pause_when_full=False)


def test_full_volume_detaches_and_attaches() -> None:
    """The last checkpoint takes from the reserve, or is left out."""

    async def scenario(world: World, attachment: Attachment) -> None:
        for _ in range(4):
            count = await _fill(attachment)
            await attachment.detach()
            attachment = await world.attach("v")
            found = await attachment.volume.read(0, count * BLOCK)
            assert found == b"".join(map(_content, range(count)))

    _run(scenario, pause_when_full=False)


def test_paused_writes_resume_in_order_when_space_is_freed() -> None:
    """They wait, reads and trims pass them, then all are done."""

    async def scenario(world: World, attachment: Attachment) -> None:
        volume = attachment.volume
        number = 0
        tasks = []
        while not volume.queue.blocked:
            data = _content(number)
            tasks.append(asyncio.ensure_future(volume.write(number * BLOCK, data, durable=False)))
            number += 1
            for _ in range(12):
                await asyncio.sleep(0)
        waiting = [task for task in tasks if not task.done()]
        assert waiting
        assert await volume.read(0, BLOCK) == _content(0)
        await volume.flush()
        await volume.trim(0, 60 * BLOCK, durable=False)
        await volume.checkpointer.write()
        await asyncio.wait_for(asyncio.gather(*tasks), 20)
        expected = bytes(60 * BLOCK) + b"".join(map(_content, range(60, number)))
        assert await volume.read(0, number * BLOCK) == expected

    _run(scenario)


def test_paused_writes_are_refused_when_the_volume_closes() -> None:
    """Nobody waits for ever."""

    async def scenario(world: World, attachment: Attachment) -> None:
        volume = attachment.volume
        tasks = []
        number = 0
        while not volume.queue.blocked:
            write = volume.write(number * BLOCK, _content(number), durable=False)
            tasks.append(asyncio.ensure_future(write))
            number += 1
            for _ in range(12):
                await asyncio.sleep(0)
        await attachment.detach()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        refused = [outcome for outcome in outcomes if outcome is not None]
        assert refused
        assert all(isinstance(outcome, PoolFull | ShuttingDown) for outcome in refused)
        with pytest.raises(ShuttingDown):
            await volume.write(0, bytes(BLOCK), durable=False)

    _run(scenario)


def test_overwriting_a_full_volume_for_ever_works() -> None:
    """Old data becomes garbage, checkpoints free it: the same blocks again and again."""

    async def scenario(world: World, attachment: Attachment) -> None:
        volume = attachment.volume
        for round_ in range(30):
            for number in range(64):
                data = _content(round_ * 64 + number)
                await volume.write(number * BLOCK, data, durable=False)
        expected = b"".join(_content(29 * 64 + number) for number in range(64))
        assert await volume.read(0, 64 * BLOCK) == expected
        check_space(world)

    _run(scenario)
