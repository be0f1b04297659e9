"""A process that serves one simulated machine's volumes and snapshots."""

import asyncio
import random
from collections.abc import Awaitable, Callable

from torus import limits
from torus.cluster.local import LocalChunks
from torus.metadata.keys import READERS
from torus.metadata.loop import AsyncMetadata
from torus.metadata.memory import MemoryMetadata
from torus.metadata.schema import Owner, Snapshot
from torus.testing.faults import FaultyDisk
from torus.testing.world import OWNER, World
from torus.volume.attach import VolumeOptions
from torus.volume.attached import AttachedVolumes
from torus.volume.attachment import Attachment
from torus.volume.catalog_async import AsyncCatalog
from torus.volume.snapshot_export import SnapshotVolume
from torus.volume.volume import Volume

BLOCK = limits.BLOCK_BYTES
LEAF = limits.LEAF_ENTRIES


class Serving:
    """One store and one metadata store, with processes over both."""

    def __init__(self, world: World, cache_bytes: int) -> None:
        self.world = world
        self.store = MemoryMetadata()
        self.metadata = AsyncMetadata(self.store)
        self.catalog = AsyncCatalog(self.metadata, world.clock, alive=lambda _owner: True)
        self.options = VolumeOptions(map_cache_bytes=cache_bytes, checkpoint_interval_s=1e6)
        self.processes: list[AttachedVolumes] = []
        self.volumes = self.process()

    def process(self, owner: Owner = OWNER, **options: object) -> AttachedVolumes:
        """Make a process that serves volumes."""
        chunks = LocalChunks(self.world.store)
        made = AttachedVolumes(
            self.metadata, self.catalog, chunks, owner, self.world.clock, self.options,
            linger_s=1e6, **options,  # type: ignore[arg-type]
        )  # fmt: skip
        self.processes.append(made)
        return made

    async def volume(self, name: str = "one", blocks: int = 64) -> Volume:
        """Make and open a volume."""
        await self.catalog.create(name, blocks * BLOCK)
        opened = await self.volumes.open(name)
        assert isinstance(opened, Volume)
        return opened

    def attachment(self, name: str = "one") -> Attachment:
        """Return the open volume's attachment."""
        return next(a for a, _ in self.volumes.attachments() if a.volume.name == name)

    async def snapshot(self, snap: str, name: str = "one") -> Snapshot:
        """Make a snapshot of an open volume."""
        return await self.attachment(name).snapshot(snap, 1)

    async def open(self, name: str) -> SnapshotVolume:
        """Open a snapshot."""
        opened = await self.volumes.open(name)
        assert isinstance(opened, SnapshotVolume)
        return opened

    async def readers(self) -> int:
        """Return how many readers of snapshots the metadata know."""
        return len((await self.metadata.list(READERS)).entries)


def run_serving(
    rng: random.Random,
    scenario: Callable[[Serving], Awaitable[None]],
    *,
    cache_bytes: int = 8 * limits.MIB,
    slots: int = 96,
) -> None:
    """Run a scenario; at its end nothing may be left open, registered or running."""
    reported: list[object] = []

    async def guarded() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: reported.append(context))
        world = World(rng, slots=slots)
        world = World(rng, disk=FaultyDisk.over(world.disk), slots=slots)
        serving = Serving(world, cache_bytes)
        await serving.volumes.start()
        await asyncio.wait_for(scenario(serving), 60)
        for process in serving.processes:
            await process.stop()
            await process.stop()
            assert process.attachments() == []
            assert process.snapshots.opened() == []
        assert await serving.readers() == 0
        await serving.metadata.close()
        await world.store.close()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(guarded())
    assert reported == []
