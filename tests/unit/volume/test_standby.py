"""Volumes that are offered before they are attached."""

import asyncio
import dataclasses
import random

import pytest

from tests.unit.volume.serving import BLOCK, Serving, run_serving
from torus import limits
from torus.errors import Busy, Fenced, TorusError
from torus.nbd.contexts import BASE_ALLOCATION, CHANGED_SINCE
from torus.testing.world import OWNER
from torus.volume.attached import AttachedVolumes
from torus.volume.standby import StandbyVolume
from torus.volume.volume import Volume

OTHER = dataclasses.replace(OWNER, pid=2)


class Standing:
    """A process where volume 'one' stands by; another one owns it."""

    def __init__(self, serving: Serving) -> None:
        self.source = serving.volumes
        self.target = serving.process(OTHER, names=["one"], standby=True)
        self.target.standbys.take = self.take
        self.target.standbys.look = self.look
        self.takes = self.looks = 0
        self.refusal: TorusError | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def take(self, name: str) -> Volume:
        self.takes += 1
        await self.gate.wait()
        if self.refusal is not None:
            raise self.refusal
        await self.source.take_away(name, Busy("it moves"), 5)
        return await self.target.adopt(name)

    async def look(self, name: str, offset: int, length: int) -> bytes | None:
        self.looks += 1
        async with self.source.using(name) as attachment:
            return None if attachment is None else await attachment.volume.read(offset, length)

    async def open(self) -> StandbyVolume:
        opened = await self.target.open("one")
        assert isinstance(opened, StandbyVolume)
        return opened


async def standing_over(serving: Serving, data: bytes = b"a" * BLOCK) -> Standing:
    """Make a volume, write it, and have a process stand by."""
    volume = await serving.volume()
    if data:
        await volume.write(0, data, durable=False)
    standing = Standing(serving)
    await standing.target.start()
    return standing


def users(volumes: AttachedVolumes) -> list[int]:
    """Return how many use each attached volume."""
    return [count for _, count in volumes.attachments()]


def test_standing_by_takes_nothing(rng: random.Random) -> None:
    """Opening, its size, flushes and hints are answered; small reads go through the owner."""

    async def scenario(serving: Serving) -> None:
        standing = await standing_over(serving)
        export = await standing.open()
        assert (export.name, export.size_bytes, export.read_only) == ("one", 64 * BLOCK, False)
        assert export.flush_soon().done()
        await export.cache(0, BLOCK)
        for _ in range(limits.STANDBY_LOOKS_MAX // 2):
            assert await export.read(0, BLOCK) == b"a" * BLOCK
            assert await export.read_sparse(0, BLOCK) == [(BLOCK, b"a" * BLOCK)]
        assert (standing.looks, standing.takes) == (limits.STANDBY_LOOKS_MAX, 0)
        assert users(standing.source) == [1]
        assert await export.read(0, BLOCK) == b"a" * BLOCK  # one look too many
        assert (standing.looks, standing.takes) == (limits.STANDBY_LOOKS_MAX, 1)
        assert users(standing.source) == []
        await standing.target.close(export)

    run_serving(rng, scenario)


@pytest.mark.parametrize("request_", ["read", "write", "trim", "zero", "status", "sparse"])
def test_first_request_takes_the_volume(rng: random.Random, request_: str) -> None:
    """All that come meanwhile wait for the same attempt, and are served."""

    async def ask(export: StandbyVolume) -> object:
        if request_ == "read":
            return await export.read(0, 32 * BLOCK)
        if request_ == "sparse":
            return await export.read_sparse(0, 32 * BLOCK)
        if request_ == "write":
            return await export.write(0, b"b" * BLOCK, durable=True)
        if request_ == "trim":
            return await export.trim(0, BLOCK, durable=False)
        if request_ == "zero":
            return await export.write_zeroes(0, BLOCK, durable=False, allocate=False)
        return await export.block_status(0, BLOCK, 1)

    async def scenario(serving: Serving) -> None:
        standing = await standing_over(serving)
        first, second = await standing.open(), await standing.open()
        assert first is second
        await asyncio.gather(*(ask(first) for _ in range(5)))
        assert standing.takes == 1
        assert users(standing.source) == []
        volume = first.volume
        assert volume is not None
        assert first.read_now == volume.read_now  # the fast path is its own
        assert first.write_now == volume.write_now
        wanted = {"write": b"b", "trim": b"\0", "zero": b"\0"}.get(request_, b"a")
        assert await first.read(0, BLOCK) == wanted * BLOCK
        direct = await standing.target.open("one")
        assert direct is volume
        assert users(standing.target) == [2]
        for export in (first, second, direct):
            await standing.target.close(export)
        assert users(standing.target) == [0]

    run_serving(rng, scenario)


def test_failed_attempt_is_told_and_repeated(rng: random.Random) -> None:
    """By every request that waited; the next one tries again."""

    async def scenario(serving: Serving) -> None:
        standing = await standing_over(serving)
        export = await standing.open()
        standing.refusal = Busy("not now")
        requests = [export.write(0, b"b" * BLOCK, durable=False) for _ in range(3)]
        results = await asyncio.gather(*requests, return_exceptions=True)
        assert results == [standing.refusal] * 3
        assert standing.takes == 1
        standing.refusal = None
        await export.write(0, b"c" * BLOCK, durable=False)
        assert standing.takes == 2
        assert await export.read(0, BLOCK) == b"c" * BLOCK
        await standing.target.close(export)

    run_serving(rng, scenario)


def test_client_that_leaves_before_the_volume_comes(rng: random.Random) -> None:
    """The volume stays, with no user."""

    async def scenario(serving: Serving) -> None:
        standing = await standing_over(serving)
        export = await standing.open()
        standing.gate.clear()
        request = asyncio.ensure_future(export.write(0, b"b" * BLOCK, durable=False))
        while not standing.takes:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0)
        request.cancel()
        await asyncio.wait([request])
        await standing.target.close(export)
        standing.gate.set()
        while users(standing.target) != [0]:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0)
        assert isinstance(await standing.target.open("one"), Volume)

    run_serving(rng, scenario)


def test_volume_stands_by_once(rng: random.Random) -> None:
    """When it was moved away again, clients that come back do not take it."""

    async def scenario(serving: Serving) -> None:
        standing = await standing_over(serving)
        export = await standing.open()
        await export.write(0, b"b" * BLOCK, durable=False)
        await standing.target.take_away("one", Busy("it moves back"), 5)
        await standing.target.close(export)
        await standing.source.adopt("one")
        with pytest.raises(Busy, match="taken away"):
            await standing.target.open("one")
        serving.world.clock.advance(int(5e9))
        with pytest.raises(Busy, match="attached"):
            await standing.target.open("one")
        assert standing.takes == 1

    run_serving(rng, scenario)


def test_lost_volume_cuts_off_clients_that_stood_by(rng: random.Random) -> None:
    """Their export is another object than the volume."""

    async def scenario(serving: Serving) -> None:
        standing = await standing_over(serving)
        lost: list[object] = []
        standing.target.on_lost = lambda export, _why: lost.append(export)
        export = await standing.open()
        await export.write(0, b"b" * BLOCK, durable=False)
        assert export.volume is not None
        export.volume.core.fail(Fenced("lost"))
        await asyncio.sleep(0)
        assert lost == [export.volume, export]
        await standing.target.close(export)

    run_serving(rng, scenario)


def test_contexts_wait_for_the_volume(rng: random.Random) -> None:
    """They are open before it is attached, and take it when they are asked."""

    async def scenario(serving: Serving) -> None:
        standing = await standing_over(serving)
        await serving.snapshot("s")
        export = await standing.open()
        names = [BASE_ALLOCATION, CHANGED_SINCE + "s"]
        contexts = await standing.target.open_contexts(export, names)
        unused = await standing.target.open_contexts(export, names)
        assert standing.takes == 0
        extents = await asyncio.gather(*(one.extents(0, 2 * BLOCK, 8) for one in contexts))
        assert standing.takes == 1
        assert extents[0][0] == (BLOCK, 0)
        assert all(flags == 0 for _, flags in extents[1])
        for opened in (contexts, unused):
            await standing.target.close_contexts(opened)
        await standing.target.close(export)

    run_serving(rng, scenario)


def test_process_that_stops_ends_an_attempt(rng: random.Random) -> None:
    """Nothing is left running."""

    async def scenario(serving: Serving) -> None:
        standing = await standing_over(serving)
        export = await standing.open()
        standing.gate.clear()
        request = asyncio.ensure_future(export.write(0, b"b" * BLOCK, durable=False))
        while not standing.takes:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0)
        await standing.target.stop()
        await asyncio.wait([request], timeout=5)
        assert request.done()

    run_serving(rng, scenario)
