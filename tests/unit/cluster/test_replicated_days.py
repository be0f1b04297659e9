"""Bad days of a volume with copies, in virtual time: etcd is slow or away for long, nodes go and
come while it is written, clocks jump."""

import asyncio

from tests.unit.cluster.replicas import BLOCK, Replicas, block, let_pass, run
from torus.volume.volume import Volume


async def write(volume: Volume, number: int, *, flush: bool = False) -> None:
    """Write a block, and maybe flush."""
    await volume.write(number * BLOCK, block(number), durable=False)
    if flush:
        await volume.flush()


def test_metadata_away_for_ten_minutes_are_not_missed() -> None:
    """Reads, writes and flushes need none of them while nobody fails."""

    async def scenario(replicas: Replicas) -> None:
        await replicas.create()
        volume = (await replicas.attach()).volume
        await write(volume, 0, flush=True)
        replicas.metadata.fail(1, count=10**9)
        for number in range(1, 200):
            async with asyncio.timeout(0.5):
                await write(volume, number, flush=number % 5 == 0)
            await let_pass(3)
        assert await volume.read(7 * BLOCK, BLOCK) == block(7)
        replicas.metadata.fail(0)
        await write(volume, 200, flush=True)

    run(1, scenario)


def test_metadata_slow_by_a_second_cost_a_loss_that_second() -> None:
    """And nothing where no node is lost."""

    async def scenario(replicas: Replicas) -> None:
        await replicas.create()
        attachment = await replicas.attach()
        volume, commit = attachment.volume, replicas.metadata.commit

        async def slowly(*given, **more):  # type: ignore[no-untyped-def]
            await let_pass(1)
            return await commit(*given, **more)

        replicas.metadata.commit = slowly  # type: ignore[method-assign]
        loop = asyncio.get_running_loop()
        began = loop.time()
        for number in range(50):
            await write(volume, number, flush=True)
        assert loop.time() - began < 0.5
        replicas.owners(volume.core.journal.chunk)[0].kill()
        began = loop.time()
        await write(volume, 50, flush=True)
        assert 1 <= loop.time() - began < 2.5, "500 ms of silence and one commit at most"

    run(2, scenario)


def test_nodes_go_and_come_while_it_is_written() -> None:
    """Two of six at a time, five times over, processes and machines; then another process finds
    all that was flushed."""

    async def scenario(replicas: Replicas) -> None:
        await replicas.create()
        volume = (await replicas.attach()).volume
        number = 0
        for turn in range(5):
            for _ in range(10):
                await write(volume, number % 250, flush=True)
                number += 1
            pair = replicas.rng.sample(sorted(replicas.nodes), 2)
            for name in pair:
                replicas.nodes[name].kill()
            for _ in range(10):
                await write(volume, number % 250, flush=True)
                number += 1
            for name in pair:
                node = replicas.nodes[name]
                if turn % 2:
                    node.lose_power()
                else:
                    node.restart()
                node.up = True
            await let_pass(70)  # until they are tried again
        after = (await replicas.attach(2)).volume
        for one in range(number):
            assert await after.read(one * BLOCK, BLOCK) == block(one), one

    run(3, scenario, nodes="abcdef")


def test_clock_that_jumps_an_hour_is_not_noticed() -> None:
    """The wall clock, both ways."""

    async def scenario(replicas: Replicas) -> None:
        await replicas.create()
        volume = (await replicas.attach()).volume
        for number, hours in enumerate((1, -2, 1)):
            replicas.clock._wall_ns += hours * 3600 * 10**9
            async with asyncio.timeout(0.5):
                await write(volume, number, flush=True)
        second = (await replicas.attach(2)).volume
        for number in range(3):
            assert await second.read(number * BLOCK, BLOCK) == block(number)

    run(4, scenario)
