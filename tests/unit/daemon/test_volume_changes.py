"""Upkeep hears of conversions at once, and of heads of volumes in shards a while later."""

import asyncio
import random

from tests.unit.cluster.replicas import let_pass
from torus import limits
from torus.daemon.volume_changes import VolumeChanges
from torus.metadata.base import Event
from torus.metadata.keys import head_key, spec_key
from torus.metadata.loop import AsyncMetadata
from torus.metadata.memory import MemoryMetadata
from torus.metadata.schema import VolumeSpec
from torus.testing.simloop import SimLoop
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
        changes = VolumeChanges(metadata, lambda: pokes.put_nowait(None), lambda: 0.0, 0.05)
        await changes.start()
        try:
            async with asyncio.timeout(60):
                await pokes.get()  # there is a volume in shards already

                swap_head(catalog, catalog.get("plain"))
                catalog.resize("plain", 2 << 20)
                swap_head(catalog, catalog.get("cut"))
                await pokes.get()
                assert pokes.empty()  # one for the head of the one in shards

                changes._news_s = 3600.0  # from now on heads are not heard
                catalog.convert("plain", "replica:3")
                await pokes.get()
                catalog.convert("plain", "erasure:2+1")
                await pokes.get()
        finally:
            await changes.stop()
            await metadata.close()

    asyncio.run(scenario())


def test_a_checkpoint_is_heard_soon_and_many_as_often_as_disks_can_look() -> None:
    """In virtual time: the first two seconds after it is published, when what it found dead is
    deleted; those that come while the disks rest, together when they have rested."""
    loop = SimLoop(random.Random(1))
    heard: list[float] = []

    async def scenario() -> None:
        changes = VolumeChanges(
            AsyncMetadata(MemoryMetadata()), lambda: heard.append(loop.time()), lambda: 10.0
        )
        spec = VolumeSpec(1, "cut", 1 << 20, "erasure:4+2", 0)
        await changes._on_events([Event(spec_key(1), spec.to_bytes(), 1)])
        heard.clear()
        for _ in range(40):  # every half a second, from now on
            await changes._on_events([Event(head_key(1), b"head", 2)])
            await let_pass(0.5)
        await let_pass(30)
        await changes.stop()

    try:
        began = loop.time()
        loop.run_until_complete(loop.outside.run(scenario()))
        assert loop.errors == []
    finally:
        loop.close()
    after = [round(one - began) for one in heard]
    assert after == [limits.UPKEEP_NEWS_S, 12, 22]
