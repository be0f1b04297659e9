"""Upkeep hears of conversions at once, and of heads of volumes in shards a while later."""

import asyncio

from torus.daemon.volume_changes import VolumeChanges
from torus.metadata.loop import AsyncMetadata
from torus.metadata.memory import MemoryMetadata
from torus.volume.catalog import Catalog, Volume


def swap_head(catalog: Catalog, volume: Volume) -> None:
    """Write a head, as a checkpoint does."""
    catalog.publish(volume.spec.volume, volume.head, volume.head_revision)


def test_a_conversion_is_heard_at_once_and_heads_later() -> None:
    """Volumes that are kept in copies, and always were, are no news."""

    async def scenario() -> None:
        store = MemoryMetadata()
        catalog = Catalog(store)
        metadata = AsyncMetadata(store)
        catalog.create("plain", 1 << 20, "replica:2")
        catalog.create("cut", 1 << 20, "erasure:4+2")
        pokes: asyncio.Queue[None] = asyncio.Queue()
        changes = VolumeChanges(metadata, lambda: pokes.put_nowait(None), quiet_s=0.05)
        await changes.start()
        try:
            async with asyncio.timeout(60):
                await pokes.get()  # there is a volume in shards already

                swap_head(catalog, catalog.get("plain"))
                catalog.resize("plain", 2 << 20)
                swap_head(catalog, catalog.get("cut"))
                await pokes.get()
                assert pokes.empty()  # one for the head of the one in shards

                changes._quiet_s = 3600.0  # from now on heads are not heard
                catalog.convert("plain", "replica:3")
                await pokes.get()
                catalog.convert("plain", "erasure:2+1")
                await pokes.get()
        finally:
            await changes.stop()
            await metadata.close()

    asyncio.run(scenario())
