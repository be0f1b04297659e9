"""One simulated machine: a disk, a metadata store, and what torus builds on them.

`World` opens, crashes and opens again; everything it does depends on its seed only.
"""

import random

from torus import limits
from torus.cluster.local import LocalChunks
from torus.format.identity import DiskIdentity
from torus.format.segment import Geometry
from torus.metadata.schema import Owner
from torus.store.store import Store
from torus.testing.clock import ManualClock
from torus.testing.metadata import SimMetadata, Snapshot
from torus.testing.pool import SimPool
from torus.testing.simdisk import SMALL, DiskImage, Event, SimDisk
from torus.volume.attach import VolumeOptions, attach
from torus.volume.attachment import Attachment
from torus.volume.catalog_async import AsyncCatalog

DISK_ID = "11" * 16
CLUSTER_ID = "22" * 16
OWNER = Owner("sim", "boot", 1, 1, "node", "", 0)


class World:
    """A machine.  Close it, or crash it, before its event loop ends."""

    def __init__(
        self,
        rng: random.Random,
        *,
        geometry: Geometry = SMALL,
        image: DiskImage | None = None,
        snapshot: Snapshot | None = None,
        disk: SimDisk | None = None,
        slots: int = 96,
        punch: bool = True,
        cache_bytes: int = limits.MIB,
        pause_when_full: bool = True,
        trash_grace_s: float = 0.0,
    ) -> None:
        self.history: list[Event] = [] if disk is None else disk.history
        self.rng = rng
        self.start = DiskImage() if image is None else image.copy()
        self.disk = disk or SimDisk(
            geometry, image, self.history, cold=lambda _address: rng.random() < 0.2
        )
        self.metadata = SimMetadata(snapshot, self.history)
        self.clock = ManualClock()
        self.options = VolumeOptions(
            map_cache_bytes=cache_bytes,
            checkpoint_interval_s=1e6,
            delete_delay_s=0.0,
            pause_when_full=pause_when_full,
            gc_rate_bytes=0,
        )
        identity = DiskIdentity(
            DISK_ID, CLUSTER_ID, self.disk.geometry.slot_bytes, self.disk.geometry.segment_slots, 1
        )
        self.store = Store(
            self.disk,
            identity,
            SimPool(self.disk, rng),
            self.clock,
            boot_id=rng.getrandbits(60),
            size_bytes=slots * self.disk.geometry.slot_bytes,
            punch_delay_s=0.0 if punch else None,
            trash_grace_s=trash_grace_s,
        )
        self.catalog = AsyncCatalog(self.metadata, self.clock)  # type: ignore[arg-type]
        self.trash_grace_s = trash_grace_s
        self.attachments: list[Attachment] = []

    async def attach(self, name: str) -> Attachment:
        """Become the writer of a volume, whoever is it now."""
        attachment = await attach(
            await self.catalog.get(name),
            self.catalog,
            LocalChunks(self.store),
            OWNER,
            self.clock,
            self.options,
            takeover=True,
        )
        self.attachments.append(attachment)
        return attachment

    async def resize(self, attachment: Attachment, size_bytes: int) -> None:
        """Resize as an operator does: the specification first, then its owner is told."""
        await self.catalog.resize(attachment.volume.name, size_bytes, shrink=True)
        await attachment.follow_size()

    def mark(self, what: object) -> None:
        """Remember something at this moment of the history."""
        self.history.append(Event("mark", what))

    async def stop(self) -> None:
        """End all tasks at once; nothing is written any more."""
        for attachment in self.attachments:
            attachment.volume.collector.ask_stop()
            await attachment.volume.queue.stop()
            await attachment.volume.checkpointer.stop()
            await attachment.volume.collector.stop()
        self.attachments.clear()
        await self.store.close()
