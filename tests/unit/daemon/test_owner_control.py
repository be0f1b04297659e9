"""What a process that owns volumes answers to others of its machine."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from torus import limits
from torus.cluster.local import LocalChunks
from torus.daemon.owner_control import OwnerControl, snapshot_from
from torus.errors import Busy, NotFound, TorusError, UsageError
from torus.metadata.loop import AsyncMetadata
from torus.metadata.memory import MemoryMetadata
from torus.testing.world import OWNER, World
from torus.volume.attach import VolumeOptions
from torus.volume.attached import AttachedVolumes
from torus.volume.catalog_async import AsyncCatalog

BLOCK = limits.BLOCK_BYTES
WAIT = {"wait_s": 2.0}


class Process:
    """A process with volumes and its control, without sockets."""

    def __init__(self, rng: random.Random, linger_s: float | None) -> None:
        self.world = World(rng)
        self.metadata = AsyncMetadata(MemoryMetadata())
        self.catalog = AsyncCatalog(self.metadata, self.world.clock, alive=lambda _who: True)
        self.volumes = AttachedVolumes(
            self.metadata, self.catalog, LocalChunks(self.world.store), OWNER, self.world.clock,
            VolumeOptions(
                map_cache_bytes=8 * limits.MIB, checkpoint_interval_s=1e6, gc_rate_bytes=0
            ),
            linger_s=linger_s,
        )  # fmt: skip
        self.lost: list[tuple[str, TorusError]] = []
        self.volumes.on_lost = lambda volume, why: self.lost.append((volume.name, why))
        self.control = OwnerControl(
            self.volumes, self.catalog, self.world.clock, lambda: {"pid": 1}
        )

    async def ask(self, task: str, volume: str = "disk", **arguments: Any) -> dict[str, Any]:
        """Start a task and return its end."""
        question = {"ask": "start", "task": task, "volume": volume, **WAIT, **arguments}
        return await self.control.answer(question)

    async def result(self, task: str, volume: str = "disk", **arguments: Any) -> dict[str, Any]:
        """Return the result of a task that must be done."""
        state = await self.ask(task, volume, **arguments)
        assert state["state"] == "done", state
        found: dict[str, Any] = state["result"]
        return found

    async def close(self) -> None:
        await self.control.stop()
        await self.volumes.stop()
        await self.metadata.close()
        await self.world.store.close()


Scenario = Callable[[Process], Awaitable[None]]
Run = Callable[..., None]


@pytest.fixture
def run(rng: random.Random) -> Run:
    """Run a scenario with a volume 'disk' of 64 blocks; nothing may be left."""

    def run_scenario(scenario: Scenario, *, linger_s: float | None = 1e6) -> None:
        async def guarded() -> None:
            process = Process(rng, linger_s)
            await process.catalog.create("disk", 64 * BLOCK)
            await process.volumes.start()
            async with asyncio.timeout(30):
                await scenario(process)
                await process.close()
            assert asyncio.all_tasks() == {asyncio.current_task()}

        asyncio.run(guarded())

    return run_scenario


def test_attached_volume_is_snapshotted(run: Run) -> None:
    """The answer is what the catalog has; clients go on."""

    async def scenario(process: Process) -> None:
        volume = await process.volumes.open("disk")
        await volume.write(0, b"a" * BLOCK, durable=False)
        answer = await process.result("snapshot", name="one", uid="ab" * 16)
        made = snapshot_from(answer["snapshot"])
        assert answer["attached"]
        assert (made.name, made.number, made.uid, made.mapped_blocks) == ("one", 1, "ab" * 16, 1)
        assert await process.catalog.snapshots("disk") == [made]
        state = await process.ask("snapshot", name="one")
        assert state["error"]["code"] == "exists"
        state = await process.ask("snapshot", name="../x")
        assert state["error"]["code"] == "usage"
        await volume.write(0, b"b" * BLOCK, durable=True)

    run(scenario)


def test_volume_that_is_not_here_is_said_to_be(run: Run) -> None:
    """Nothing is done, and nothing is attached for it."""

    async def scenario(process: Process) -> None:
        for task in ("snapshot", "reclaim", "flatten", "gc"):
            assert await process.result(task, name="x") == {"attached": False}
        assert await process.result("release") == {"released": False}
        assert await process.result("release", "nope", force=True) == {"released": False}
        assert process.volumes.attachments() == []

    run(scenario)


def test_space_of_deleted_snapshots_is_reclaimed(run: Run) -> None:
    """The owner learns of the deletion by the question, and frees what nobody needs."""

    async def scenario(process: Process) -> None:
        await process.volumes._snapshot_watch.stop()  # which would be faster, now and then
        volume = await process.volumes.open("disk")
        for byte in (b"a", b"b"):
            await volume.write(0, byte * 64 * BLOCK, durable=False)
            await process.result("snapshot", name=byte.decode())
        [(attachment, _)] = process.volumes.attachments()
        await attachment.volume.checkpointer.write()
        before = len(process.world.store.chunks())
        await process.catalog.delete_snapshot("disk", "a")
        await process.catalog.delete_snapshot("disk", "b")
        await process.result("reclaim")
        assert len(process.world.store.chunks()) < before
        assert await volume.read(0, BLOCK) == b"b" * BLOCK

    run(scenario)


def test_garbage_is_collected(run: Run) -> None:
    """A dry run tells, the real one does; both in the same words."""

    async def scenario(process: Process) -> None:
        volume = await process.volumes.open("disk")
        for turn in range(40):
            for block in range(turn % 2, 64, 2):
                await volume.write(block * BLOCK, bytes([turn]) * BLOCK, durable=False)
        planned = (await process.result("gc", dry_run=True))["outcome"]
        done = (await process.result("gc", target=0.9))["outcome"]
        assert planned.keys() == done.keys()
        assert done["utilisation_after"] >= done["utilisation_before"]
        assert done["problem"] == ""
        assert await volume.read(0, BLOCK) == bytes([38]) * BLOCK
        for target in (0, 2, "x", True):
            assert (await process.ask("gc", target=target))["error"]["code"] == "usage"

    run(scenario)


def test_volume_without_clients_is_released(run: Run) -> None:
    """One with clients is not, unless by force, which cuts them off and holds it a while."""

    async def scenario(process: Process) -> None:
        volume = await process.volumes.open("disk")
        assert await process.result("release") == {"released": False}
        await volume.write(0, b"a" * BLOCK, durable=False)
        forced = await process.result("release", force=True, hold_s=9, reason="it is moved")
        assert forced == {"released": True}
        [(name, why)] = process.lost
        assert name == "disk"
        assert "it is moved" in why.message
        assert (await process.catalog.get("disk")).head.owner is None
        with pytest.raises(Busy, match="taken away"):
            await process.volumes.open("disk")
        await process.control.answer({"ask": "resume", "volume": "disk"})
        again = await process.volumes.open("disk")
        assert await again.read(0, BLOCK) == b"a" * BLOCK
        await process.result("release", force=True, hold_s=9)
        process.world.clock.advance(int(9e9))
        await process.volumes.close(await process.volumes.open("disk"))
        answer = await process.control.answer({"ask": "release", "volume": "disk"})
        assert answer == {"released": True}

    run(scenario)


def test_gateway_keeps_its_volumes(run: Run) -> None:
    """Without clients it keeps them, and gives them up by force only."""

    async def scenario(process: Process) -> None:
        await process.volumes.close(await process.volumes.open("disk"))
        assert await process.result("release") == {"released": False}
        assert [users for _, users in process.volumes.attachments()] == [0]
        assert await process.result("release", force=True) == {"released": True}

    run(scenario, linger_s=None)


def test_volume_stays_while_it_is_worked_on(run: Run) -> None:
    """A task is a user: neither the last client's end nor a release detaches the volume."""

    async def scenario(process: Process) -> None:
        volume = await process.volumes.open("disk")
        async with process.volumes.using("disk") as attachment:
            assert attachment is not None
            await process.volumes.close(volume)
            assert await process.result("release") == {"released": False}
        assert await process.result("release") == {"released": True}
        async with process.volumes.using("disk") as attachment:
            assert attachment is None

    run(scenario)


def test_what_cannot_be_meant_is_refused(run: Run) -> None:
    """Unknown questions and tasks, and questions that lack something."""

    async def scenario(process: Process) -> None:
        answer = process.control.answer
        assert await answer({"ask": "status"}) == {"pid": 1}
        for question in ({"ask": "nonsense"}, {"ask": "start", "task": "x", "volume": "disk"}, {}):
            with pytest.raises(NotFound, match="does not know"):
                await answer(question)
        for question in (
            {"ask": "start", "task": "gc"},
            {"ask": "release", "volume": 7},
            {"ask": "task", "id": "one"},
            {"ask": "cancel"},
            {"ask": "start", "task": "gc", "volume": "disk", "wait_s": "long"},
            {"ask": "start", "task": "gc", "volume": "disk", "wait_s": -1},
        ):
            with pytest.raises(UsageError):
                await answer(question)
        with pytest.raises(NotFound, match="no task 99"):
            await answer({"ask": "task", "id": 99})
        number = (await process.ask("gc"))["id"]
        assert (await answer({"ask": "cancel", "id": number}))["state"] == "done"

    run(scenario)


def test_detached_volume_is_attached_for_a_task(run: Run) -> None:
    """Where that is asked for; clients may come and stay, and without them it is let go."""

    async def scenario(process: Process) -> None:
        answer = await process.result("snapshot", name="one", attach=True)
        assert snapshot_from(answer["snapshot"]).name == "one"
        assert [users for _, users in process.volumes.attachments()] == [0]
        assert await process.result("release") == {"released": True}
        state = await process.ask("snapshot", "nope", name="one", attach=True)
        assert state["error"]["code"] == "not-found"

    run(scenario)
