"""A volume moves between two processes of one simulated machine."""

import asyncio
import dataclasses
import random
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from torus import limits
from torus.cluster.local import LocalChunks
from torus.daemon import handover
from torus.daemon.handover import Mover
from torus.daemon.owner_control import OwnerControl
from torus.errors import Busy, Fenced, TorusError, Unavailable, UsageError
from torus.gateway.export import Export
from torus.metadata.loop import AsyncMetadata
from torus.metadata.memory import MemoryMetadata
from torus.metadata.schema import Owner
from torus.testing.world import OWNER, World
from torus.volume.attach import VolumeOptions
from torus.volume.attached import AttachedVolumes
from torus.volume.catalog_ask import Volume as Found
from torus.volume.catalog_async import AsyncCatalog

BLOCK = limits.BLOCK_BYTES


class Place:
    """One process: volumes, mover, control socket."""

    def __init__(self, rig: "Rig", number: int) -> None:
        self.owner = dataclasses.replace(
            OWNER, pid=number, control=str(rig.folder / f"{number}.ctl")
        )
        self.volumes = AttachedVolumes(
            rig.metadata, rig.catalog, LocalChunks(rig.world.store), self.owner, rig.world.clock,
            VolumeOptions(map_cache_bytes=8 * limits.MIB, checkpoint_interval_s=1e6),
            linger_s=None,
        )  # fmt: skip
        self.drained: list[str] = []
        self.draining = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()
        self.mover = Mover(self.volumes, rig.catalog, rig.world.clock, self.owner, self.drain)
        self.control = OwnerControl(
            self.volumes, rig.catalog, rig.world.clock, dict, mover=self.mover
        )

    async def drain(self, export: Export, seconds: float) -> int:
        """Stand in for the NBD server."""
        assert seconds == limits.MOVE_DRAIN_S
        self.drained.append(export.name)
        self.draining.set()
        await self.gate.wait()
        return 1

    async def take(self, *, force: bool = False) -> dict[str, object]:
        """Take the volume."""
        return await self.mover.take("disk", lambda _done, _total: None, force=force)


class Rig:
    """Two processes over one store."""

    def __init__(self, rng: random.Random, folder: Path) -> None:
        self.folder = folder
        self.world = World(rng)
        self.metadata = AsyncMetadata(MemoryMetadata())
        self.catalog = AsyncCatalog(self.metadata, self.world.clock, alive=lambda _owner: True)
        self.a, self.b = Place(self, 1), Place(self, 2)

    async def owner(self) -> Owner | None:
        """Return who has the volume."""
        return (await self.catalog.get("disk")).head.owner


Scenario = Callable[[Rig], Awaitable[None]]


@pytest.fixture
def run(
    rng: random.Random, socket_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Scenario], None]:
    """Run a scenario with a volume 'disk' of 64 blocks; nothing may be left."""

    def living(found: Found) -> Owner | None:
        return found.head.owner

    monkeypatch.setattr(handover, "living_owner", living)

    def run_scenario(scenario: Scenario) -> None:
        async def guarded() -> None:
            rig = Rig(rng, socket_folder)
            await rig.catalog.create("disk", 64 * BLOCK)
            async with asyncio.timeout(30), AsyncExitStack() as stack:
                for place in (rig.a, rig.b):
                    await place.volumes.start()
                    stack.push_async_callback(place.volumes.stop)
                    await place.control.serve(place.owner.control, stack)
                await scenario(rig)
            await rig.metadata.close()
            await rig.world.store.close()
            assert asyncio.all_tasks() == {asyncio.current_task()}

        asyncio.run(guarded())

    return run_scenario


def test_volume_moves(run: Callable[[Scenario], None]) -> None:
    """Unflushed writes are there; the former owner does not take it by itself."""

    async def scenario(rig: Rig) -> None:
        volume = await rig.a.volumes.open("disk")
        await volume.write(0, b"a" * BLOCK, durable=False)
        answer = await rig.b.take()
        assert (answer["moved"], answer["clients"], answer["forced"]) == (True, 1, False)
        assert "pid 1" in str(answer["from"])
        assert rig.a.drained == ["disk"]
        assert rig.a.volumes.attachments() == []
        taken = await rig.b.volumes.open("disk")
        assert await taken.read(0, BLOCK) == b"a" * BLOCK
        assert (await rig.b.take())["moved"] is False
        with pytest.raises(Busy, match="taken away"):
            await rig.a.volumes.open("disk")
        rig.world.clock.advance(int(limits.MOVE_HOLD_S * 1e9))
        with pytest.raises(Busy, match="attached by"):
            await rig.a.volumes.open("disk")
        assert (await rig.a.take())["moved"]  # at once: it was asked to
        assert rig.b.drained == ["disk"]

    run(scenario)


def test_large_checkpoint_is_written_before_clients_wait(run: Callable[[Scenario], None]) -> None:
    """When they are cut off, what is dirty is what they wrote since."""

    async def scenario(rig: Rig) -> None:
        volume = await rig.a.volumes.open("disk")
        await volume.write(0, b"a" * 64 * BLOCK, durable=False)
        [(attachment, _)] = rig.a.volumes.attachments()
        rig.a.gate.clear()
        moving = asyncio.ensure_future(rig.b.take())
        await rig.a.draining.wait()
        assert not attachment.volume.core.dirty
        await volume.write(0, b"b" * BLOCK, durable=False)
        rig.a.gate.set()
        assert (await moving)["moved"]
        taken = await rig.b.volumes.open("disk")
        assert await taken.read(0, 2 * BLOCK) == b"b" * BLOCK + b"a" * BLOCK

    run(scenario)


def test_volume_goes_back_when_the_target_cannot_attach(run: Callable[[Scenario], None]) -> None:
    """The message says so."""

    async def scenario(rig: Rig) -> None:
        volume = await rig.a.volumes.open("disk")
        await volume.write(0, b"a" * BLOCK, durable=False)

        async def fail(_name: str, *, force: bool = False) -> None:
            raise Unavailable("no disk today")

        rig.b.volumes.adopt = fail  # type: ignore[assignment, method-assign]
        with pytest.raises(Unavailable, match="no disk today; volume 'disk' is back at node pid 1"):
            await rig.b.take()
        owner = await rig.owner()
        assert owner is not None
        assert owner.pid == 1
        again = await rig.a.volumes.open("disk")
        assert await again.read(0, BLOCK) == b"a" * BLOCK

    run(scenario)


def test_take_waits_for_a_handover_to_somebody_who_died(run: Callable[[Scenario], None]) -> None:
    """Otherwise the volume would be given up right after it was taken back."""

    async def scenario(rig: Rig) -> None:
        volume = await rig.a.volumes.open("disk")
        await volume.write(0, b"a" * BLOCK, durable=False)
        [(attachment, _)] = rig.a.volumes.attachments()
        async with attachment.volume.checkpointer._lock:  # as a long checkpoint does
            leaving = asyncio.ensure_future(rig.a.mover.hand_over("disk", lambda _d, _t: None))
            taking = asyncio.ensure_future(rig.a.take())
            await asyncio.wait([taking], timeout=0.1)
        assert (await leaving)["attached"]
        await taking
        assert [one.volume.name for one, _ in rig.a.volumes.attachments()] == ["disk"]
        assert await (await rig.a.volumes.open("disk")).read(0, BLOCK) == b"a" * BLOCK

    run(scenario)


def test_second_move_at_once_is_refused(run: Callable[[Scenario], None]) -> None:
    """It says that another one is under way."""

    async def scenario(rig: Rig) -> None:
        await rig.a.volumes.open("disk")
        rig.a.gate.clear()
        moving = asyncio.ensure_future(rig.b.take())
        await rig.a.draining.wait()
        with pytest.raises(Busy, match="handover of volume 'disk' is running already"):
            await rig.b.mover.take("disk", lambda _done, _total: None)
        rig.a.gate.set()
        assert (await moving)["moved"]

    run(scenario)


def test_lost_volume_is_not_handed_over(run: Callable[[Scenario], None]) -> None:
    """Its owner may open it anew; force takes it all the same."""

    async def scenario(rig: Rig) -> None:
        await rig.a.volumes.open("disk")
        [(attachment, _)] = rig.a.volumes.attachments()
        attachment.volume.core.fail(Fenced("lost"))
        with pytest.raises(TorusError, match="lost"):
            await rig.b.take()
        answer = await rig.b.take(force=True)
        assert answer["forced"]
        owner = await rig.owner()
        assert owner is not None
        assert owner.pid == 2

    run(scenario)


def test_detached_volume_is_attached(run: Callable[[Scenario], None]) -> None:
    """Nobody is asked; a handover of what is not here says so."""

    async def scenario(rig: Rig) -> None:
        assert await rig.a.mover.hand_over("disk", lambda _d, _t: None) == {"attached": False}
        answer = await rig.b.take()
        assert (answer["moved"], answer["from"], answer["pause_ms"]) == (True, "", 0)

    run(scenario)


def test_a_look_through_the_owner(run: Callable[[Scenario], None]) -> None:
    """Small reads only, of what is attached there."""

    async def scenario(rig: Rig) -> None:
        assert await rig.b.mover.look("disk", 0, BLOCK) is None
        volume = await rig.a.volumes.open("disk")
        await volume.write(BLOCK, b"a" * BLOCK, durable=False)
        assert await rig.b.mover.look("disk", BLOCK - 512, 1024) == bytes(512) + b"a" * 512
        assert await rig.a.mover.look("disk", 0, BLOCK) is None  # it is here
        for offset, length in ((64 * BLOCK, BLOCK), (-1, 1), (0, 0), (0, 1 << 30), ("x", 1)):
            with pytest.raises(UsageError):
                await rig.a.mover.show("disk", offset, length)
        assert await rig.b.mover.look("disk", 64 * BLOCK, BLOCK) is None
        assert await rig.b.mover.show("disk", 0, BLOCK) == {"attached": False}

    run(scenario)
