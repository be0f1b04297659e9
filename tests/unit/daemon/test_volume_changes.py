"""Upkeep hears of conversions at once, and of heads of volumes in shards a while later."""

import asyncio

from torus.daemon.volume_changes import VolumeChanges
from torus.metadata.loop import AsyncMetadata
from torus.metadata.memory import MemoryMetadata
from torus.volume.catalog import Catalog, Volume


async def soon(count: list[int], wanted: int) -> None:
    """Wait until it was called so often."""
    async with asyncio.timeout(30):
        while len(count) < wanted:
            await asyncio.sleep(0.01)


def swap_head(catalog: Catalog, volume: Volume) -> None:
    """Write a head, as a checkpoint does."""
    catalog.publish(volume.spec.volume, volume.head, volume.head_revision)


def test_a_conversion_is_heard_at_once_and_heads_later() -> None:
    async def scenario() -> None:
        store = MemoryMetadata()
        catalog = Catalog(store)
        metadata = AsyncMetadata(store)
        catalog.create("plain", 1 << 20, "replica:2")
        catalog.create("cut", 1 << 20, "erasure:4+2")
        poked: list[int] = []
        changes = VolumeChanges(metadata, lambda: poked.append(1), quiet_s=0.05)
        await changes.start()
        try:
            await soon(poked, 1)  # there is a volume in shards already

            swap_head(catalog, catalog.get("plain"))
            catalog.resize("plain", 2 << 20)
            swap_head(catalog, catalog.get("cut"))
            await soon(poked, 2)
            assert len(poked) == 2  # one for the head of the one in shards

            changes._quiet_s = 3600.0  # from now on heads are not heard
            catalog.convert("plain", "replica:3")
            await soon(poked, 3)
            catalog.convert("plain", "erasure:2+1")
            await soon(poked, 4)
        finally:
            await changes.stop()
            await metadata.close()

    asyncio.run(scenario())
