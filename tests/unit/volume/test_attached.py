"""The volumes of a process: attached by their first client, let go a while after the last."""

import asyncio
import dataclasses
import errno
import random
from collections.abc import Awaitable, Callable

import pytest

from torus import limits
from torus.cluster.local import LocalChunks
from torus.errors import (
    Busy,
    DiskFailed,
    Fenced,
    NotFound,
    ShuttingDown,
    TorusError,
    Unavailable,
    UsageError,
)
from torus.metadata.base import Put
from torus.metadata.keys import VOLUMES
from torus.metadata.loop import AsyncMetadata
from torus.metadata.memory import MemoryMetadata
from torus.metadata.schema import Owner
from torus.testing.faults import FaultyDisk
from torus.testing.world import OWNER, World
from torus.volume.attach import VolumeOptions
from torus.volume.attached import AttachedVolumes
from torus.volume.catalog_async import AsyncCatalog
from torus.volume.volume import Volume

BLOCK = limits.BLOCK_BYTES
CACHE = 8 * limits.MIB
STRANGER = dataclasses.replace(OWNER, pid=2, host="elsewhere")


class Machine:
    """One store, one metadata store, and any number of processes over both."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.metadata = AsyncMetadata(MemoryMetadata())
        self.alive: bool | None = True
        self.catalog = self.catalog_of(self.metadata)
        self.lost: list[tuple[str, TorusError]] = []
        self.processes: list[AttachedVolumes] = []

    def catalog_of(self, metadata: AsyncMetadata) -> AsyncCatalog:
        return AsyncCatalog(metadata, self.world.clock, alive=lambda _owner: self.alive)

    async def process(
        self, owner: Owner = OWNER, *, linger_s: float = 1e6, **options: object
    ) -> AttachedVolumes:
        """Start a process that serves volumes."""
        volumes = AttachedVolumes(
            self.metadata, self.catalog, LocalChunks(self.world.store), owner, self.world.clock,
            VolumeOptions(map_cache_bytes=CACHE, checkpoint_interval_s=1e6),
            linger_s=linger_s, **options,  # type: ignore[arg-type]
        )  # fmt: skip
        volumes.on_lost = lambda volume, why: self.lost.append((volume.name, why))
        await volumes.start()
        self.processes.append(volumes)
        return volumes

    async def owner(self, name: str) -> Owner | None:
        return (await self.catalog.get(name)).head.owner


async def until(condition: Callable[[], bool]) -> None:
    """Let the event loop turn until it is so."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - threads answer, nothing is signalled
            await asyncio.sleep(0)


@pytest.fixture
def run(rng: random.Random) -> Callable[..., None]:
    """Run a scenario on a machine with the volumes 'one' and 'two'; nothing may be left."""

    def run_scenario(scenario: Callable[[Machine], Awaitable[None]]) -> None:
        reported: list[object] = []

        async def guarded() -> None:
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _, context: reported.append(context))
            world = World(rng)
            world = World(rng, disk=FaultyDisk.over(world.disk))
            machine = Machine(world)
            for name in ("one", "two"):
                await machine.catalog.create(name, 64 * BLOCK)
            await asyncio.wait_for(scenario(machine), 30)
            for process in machine.processes:
                await process.stop()
                await process.stop()
                assert process.attachments() == []
            await machine.metadata.close()
            await world.store.close()
            assert asyncio.all_tasks() == {asyncio.current_task()}

        asyncio.run(guarded())
        assert reported == []

    return run_scenario


# --- opening and closing ----------------------------------------------------------------


def test_the_first_open_attaches_and_later_ones_share(run: Callable[..., None]) -> None:
    """One writer for all clients; it stays until the last has gone."""

    async def scenario(machine: Machine) -> None:
        volumes = await machine.process(linger_s=0)
        opened = await asyncio.gather(*(volumes.open("one") for _ in range(5)))
        assert all(volume is opened[0] for volume in opened)
        assert [users for _, users in volumes.attachments()] == [5]
        assert (await machine.catalog.get("one")).head.epoch == 1
        for volume in opened[1:]:
            await volumes.close(volume)
        await opened[0].write(0, b"x" * BLOCK, durable=False)
        assert [users for _, users in volumes.attachments()] == [1]
        await volumes.close(opened[0])
        await until(lambda: volumes.past.records > 0)  # counted when the detach is done

        assert volumes.attachments() == []
        assert await machine.owner("one") is None

    run(scenario)


def test_a_client_that_comes_back_finds_the_volume_attached(run: Callable[..., None]) -> None:
    """It lingers; `release` ends that, but not under a client."""

    async def scenario(machine: Machine) -> None:
        volumes = await machine.process()
        first = await volumes.open("one")
        assert not await volumes.release("one")
        await volumes.close(first)
        assert await volumes.open("one") is first
        await volumes.close(first)
        assert await machine.owner("one") is not None
        assert await volumes.release("one")
        assert not await volumes.release("one")
        assert not await volumes.release("never opened")
        assert await machine.owner("one") is None
        await volumes.close(first)  # of an attachment that is gone: nothing happens
        again = await volumes.open("one")
        assert again is not first
        assert [users for _, users in volumes.attachments()] == [1]

    run(scenario)


def test_what_was_written_is_there_after_reattaching(run: Callable[..., None]) -> None:
    """By the same process and by another one."""

    async def scenario(machine: Machine) -> None:
        volumes = await machine.process()
        volume = await volumes.open("one")
        await volume.write(3 * BLOCK, b"kept" * 1024, durable=False)
        await volumes.stop()
        with pytest.raises(ShuttingDown):
            await volumes.open("one")
        other = await machine.process(STRANGER)

        assert await (await other.open("one")).read(3 * BLOCK, BLOCK) == b"kept" * 1024

    run(scenario)


@pytest.mark.parametrize("names", [None, ["two"], ["two", "missing"]])
def test_which_volumes_are_offered(names: list[str] | None, run: Callable[..., None]) -> None:
    """All, or those that were named and are there; what is being deleted is not."""

    async def scenario(machine: Machine) -> None:
        volumes = await machine.process(names=names, read_only=True)
        assert list(await volumes.names()) == (["one", "two"] if names is None else ["two"])
        assert (await volumes.open("two")).read_only
        if names is not None:
            with pytest.raises(NotFound, match="'one' is not served here"):
                await volumes.open("one")
        await machine.catalog.mark_deleting("one")

        assert list(await volumes.names()) == ["two"]

    run(scenario)


def test_names_that_clients_make_up_are_forgotten(run: Callable[..., None]) -> None:
    """Each is refused, and costs no memory afterwards."""

    async def scenario(machine: Machine) -> None:
        volumes = await machine.process()
        for number in range(50):
            with pytest.raises((NotFound, UsageError)):
                await volumes.open(f"made-up-{number}")

        assert len(volumes._places) == 0

    run(scenario)


def test_a_volume_of_another_process_is_refused(run: Callable[..., None]) -> None:
    """While that lives or may live; nothing of it is touched, and it can be tried again."""

    async def scenario(machine: Machine) -> None:
        mine, other = await machine.process(), await machine.process(STRANGER)
        volume = await other.open("one")
        for machine.alive in (True, None):
            with pytest.raises(Busy):
                await mine.open("one")
        assert mine.attachments() == []
        await volume.write(0, b"x" * BLOCK, durable=True)
        await other.close(volume)
        await other.release("one")

        assert await (await mine.open("one")).read(0, BLOCK) == b"x" * BLOCK

    run(scenario)


# --- what the metadata says -------------------------------------------------------------


def test_a_takeover_ends_the_old_owner(run: Callable[..., None]) -> None:
    """It is told by name, its clients are sent away once, and it writes nothing any more."""

    async def scenario(machine: Machine) -> None:
        mine, other = await machine.process(), await machine.process(STRANGER)
        old = await mine.open("one")
        await old.write(0, b"a" * BLOCK, durable=True)
        machine.alive = False
        new = await other.open("one")
        await until(lambda: machine.lost != [])
        [(name, why)] = machine.lost
        assert (name, type(why)) == ("one", Fenced)
        assert "epoch 2 replaced 1, node pid 2 on elsewhere took it over" in why.message
        assert mine.problems() == [f"volume 'one': {why.message}"]
        for call in (old.read(0, 512), old.write(0, bytes(512), durable=False), old.flush()):
            with pytest.raises(Fenced):
                await call
        await new.write(0, b"b" * BLOCK, durable=True)
        await mine.close(old)
        await mine.stop()

        assert await machine.owner("one") is not None, "the old one gave away what is not its own"
        assert await new.read(0, BLOCK) == b"b" * BLOCK

    run(scenario)


def test_a_lost_volume_is_opened_anew(run: Callable[..., None]) -> None:
    """A failed attachment is taken apart by the next open; its late clients disturb nobody."""

    async def scenario(machine: Machine) -> None:
        volumes = await machine.process()
        failed = await volumes.open("one")
        await failed.write(0, b"a" * BLOCK, durable=True)
        failed.core.fail(Unavailable("planned"))
        await until(lambda: machine.lost != [])
        fresh = await volumes.open("one")
        assert fresh is not failed
        assert await fresh.read(0, BLOCK) == b"a" * BLOCK
        assert [users for _, users in volumes.attachments()] == [1]
        await volumes.close(failed)

        assert [users for _, users in volumes.attachments()] == [1]
        assert volumes.problems() == []

    run(scenario)


def test_a_failed_volume_does_not_linger(run: Callable[..., None]) -> None:
    """Its last client lets it go at once."""

    async def scenario(machine: Machine) -> None:
        volumes = await machine.process()
        failed = await volumes.open("one")
        failed.core.fail(Unavailable("planned"))
        await volumes.close(failed)

        await until(lambda: volumes.attachments() == [])

    run(scenario)


def test_clients_of_a_failed_disk_are_not_sent_away(run: Callable[..., None]) -> None:
    """They may still read; to connect again would give them nothing."""

    async def scenario(machine: Machine) -> None:
        volumes = await machine.process()
        volume = await volumes.open("one")
        await volume.write(0, b"a" * BLOCK, durable=True)
        disk = machine.world.disk
        assert isinstance(disk, FaultyDisk)
        disk.fail("sync", 1, errno.EIO, count=10**6)
        await volume.write(0, b"b" * BLOCK, durable=False)
        with pytest.raises(DiskFailed):
            await volume.flush()
        for _ in range(10):
            await asyncio.sleep(0)

        assert machine.lost == []
        assert await volume.read(BLOCK, BLOCK) == bytes(BLOCK)
        assert "volume 'one'" in volumes.problems()[0]

    run(scenario)


@pytest.mark.parametrize("blocks", [128, 16])
def test_a_resize_reaches_an_attached_volume(blocks: int, run: Callable[..., None]) -> None:
    """Larger or smaller, without a client in between."""

    async def scenario(machine: Machine) -> None:
        volumes = await machine.process()
        volume, other = await volumes.open("one"), await volumes.open("two")
        await volume.write(20 * BLOCK, b"x" * BLOCK, durable=False)
        await machine.catalog.resize("one", blocks * BLOCK, shrink=True)
        await until(lambda: volume.size_bytes == blocks * BLOCK)
        assert other.size_bytes == 64 * BLOCK
        if blocks > 64:
            await volume.write((blocks - 1) * BLOCK, b"y" * BLOCK, durable=True)
            assert await volume.read(20 * BLOCK, BLOCK) == b"x" * BLOCK
        else:
            await machine.catalog.resize("one", 64 * BLOCK)
            await until(lambda: volume.size_bytes == 64 * BLOCK)
            assert await volume.read(20 * BLOCK, BLOCK) == bytes(BLOCK)

    run(scenario)


def test_a_deletion_by_force_ends_an_attached_volume(run: Callable[..., None]) -> None:
    """Its clients are told why, and it cannot be opened again."""

    async def scenario(machine: Machine) -> None:
        volumes = await machine.process()
        volume = await volumes.open("one")
        with pytest.raises(Busy):
            await machine.catalog.mark_deleting("one")
        deleted = await machine.catalog.mark_deleting("one", force=True)
        await until(lambda: machine.lost != [])
        assert "it is being deleted" in machine.lost[0][1].message
        with pytest.raises((NotFound, Busy)):
            await volumes.open("one")
        assert volumes.attachments() == []
        await volumes.close(volume)
        await machine.catalog.forget(deleted)
        with pytest.raises(NotFound):
            await volumes.open("one")

    run(scenario)


class LosesTrack(MemoryMetadata):
    """A metadata store whose watches lose track when told to, and which is away meanwhile."""

    lose = False
    away = False
    watches = 0

    def watch(self, prefix: str, after_revision: int):  # type: ignore[no-untyped-def]
        self.watches += 1
        watch = super().watch(prefix, after_revision)
        inner = watch.next

        def following(timeout_s: float | None = None):  # type: ignore[no-untyped-def]
            found = inner(timeout_s)
            if self.lose:
                self.lose, self.away = False, True
                raise Unavailable("planned: changes may have been missed")
            return found

        watch.next = following  # type: ignore[method-assign]
        return watch

    def list(self, prefix: str):  # type: ignore[no-untyped-def]
        if self.away and prefix == VOLUMES:
            self.away = False
            raise Unavailable("planned: away")
        return super().list(prefix)


async def losing_track(machine: Machine) -> tuple[LosesTrack, AttachedVolumes]:
    """Give the machine a store whose watches can be lost, with volume "one" in it."""
    store = LosesTrack(machine.world.clock)
    await machine.metadata.close()
    machine.metadata = AsyncMetadata(store)
    machine.catalog = machine.catalog_of(machine.metadata)
    await machine.catalog.create("one", 64 * BLOCK)
    return store, await machine.process()


def test_changes_that_a_watch_missed_are_caught_up(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event is lost with the watch, and the store is away once more: then all is as said."""
    monkeypatch.setattr(limits, "WATCH_RETRY_S", 0)

    async def scenario(machine: Machine) -> None:
        store, volumes = await losing_track(machine)
        volume = await volumes.open("one")
        store.lose = True
        await machine.catalog.resize("one", 128 * BLOCK)
        await until(lambda: volume.size_bytes == 128 * BLOCK)
        assert store.watches >= 2
        assert len(machine.metadata._watches) <= 2, "a watch that failed was not closed"
        await machine.catalog.resize("one", 256 * BLOCK)

        await until(lambda: volume.size_bytes == 256 * BLOCK)

    run(scenario)


@pytest.mark.parametrize("missed", [False, True])
def test_what_a_deleted_snapshot_held_is_freed(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch, missed: bool
) -> None:
    """Whoever deleted it, and whether or not the watch saw it; a newer one keeps its chunks."""
    monkeypatch.setattr(limits, "WATCH_RETRY_S", 0)

    async def scenario(machine: Machine) -> None:
        store, volumes = await losing_track(machine)
        volume = await volumes.open("one")
        [(attachment, _)] = volumes.attachments()
        for name, fill in (("a", b"1"), ("b", b"2"), ("c", b"3")):
            await volume.write(0, fill * 64 * BLOCK, durable=False)
            await attachment.snapshot(name, 1)
        await volume.write(0, b"4" * 64 * BLOCK, durable=False)
        await volume.checkpointer.write()
        await volume.checkpointer.write()
        used = machine.world.store.usage.used
        store.lose = missed
        await machine.catalog.delete_snapshot("one", "b")
        await until(lambda: len(volume.core.pins) == 2)
        await until(lambda: machine.world.store.usage.used < used)
        assert [one.name for one in volume.core.pins] == ["a", "c"]

    run(scenario)


# --- memory and the end -----------------------------------------------------------------


def test_the_map_cache_is_shared(run: Callable[..., None]) -> None:
    """Equally between what is attached now."""

    async def scenario(machine: Machine) -> None:
        volumes = await machine.process()

        def shares() -> list[int]:
            return [held.volume.core.cache_bytes for held, _ in volumes.attachments()]

        one = await volumes.open("one")
        assert shares() == [CACHE]
        await volumes.open("two")
        assert shares() == [CACHE // 2, CACHE // 2]
        await volumes.close(one)
        await volumes.release("one")
        assert shares() == [CACHE]

    run(scenario)


def test_stop_detaches_everything(run: Callable[..., None]) -> None:
    """With clients, lingering or lost; what was written is durable, and nobody owns it."""

    async def scenario(machine: Machine) -> None:
        volumes = await machine.process()
        one, two = await volumes.open("one"), await volumes.open("two")
        await one.write(0, b"1" * BLOCK, durable=False)
        await volumes.close(two)
        await volumes.stop()
        assert volumes.attachments() == []
        for name in ("one", "two"):
            assert await machine.owner(name) is None
        await volumes.close(one)
        other = await machine.process(STRANGER)
        found: Volume = await other.open("one")

        assert await found.read(0, BLOCK) == b"1" * BLOCK

    run(scenario)


def test_a_detach_that_fails_lets_the_others_go(run: Callable[..., None]) -> None:
    """The disk is gone: it is told, and stopping still ends."""

    async def scenario(machine: Machine) -> None:
        volumes = await machine.process()
        for name in ("one", "two"):
            await (await volumes.open(name)).write(0, b"x" * BLOCK, durable=False)
        disk = machine.world.disk
        assert isinstance(disk, FaultyDisk)
        disk.fail("sync", 1, errno.EIO, count=10**6)
        await volumes.stop()

        assert volumes.attachments() == []

    run(scenario)


def test_the_watch_outlives_what_it_cannot_read(run: Callable[..., None]) -> None:
    """A specification of another version is logged; the next one is obeyed."""

    async def scenario(machine: Machine) -> None:
        volumes = await machine.process()
        volume = await volumes.open("one")
        found = await machine.catalog.get("one")
        key = f"{VOLUMES}{found.spec.volume:016x}/spec"
        good = await machine.metadata.get(key)
        assert good is not None
        await machine.metadata.commit([], [Put(key, b"garbage")])
        await machine.metadata.commit([], [Put(key, good.value)])
        await machine.catalog.resize("one", 128 * BLOCK)

        await until(lambda: volume.size_bytes == 128 * BLOCK)

    run(scenario)
