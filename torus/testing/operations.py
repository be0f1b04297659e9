"""What an operator does with snapshots and clones, on a simulated machine."""

from torus import limits
from torus.cluster.local import LocalChunks
from torus.metadata.keys import SNAPSHOTS
from torus.metadata.schema import Snapshot
from torus.testing.world import OWNER, World
from torus.volume.attachment import Attachment
from torus.volume.reads import Reads
from torus.volume.rollback import roll_back
from torus.volume.snapshot_map import SnapshotMap, open_snapshot

_CACHE_BYTES = 64 * limits.KIB


async def open_map(world: World, snapshot: Snapshot) -> SnapshotMap:
    """Open a snapshot; nothing deletes it meanwhile."""
    return await open_snapshot(world.catalog, LocalChunks(world.store), snapshot, _CACHE_BYTES)


async def read_snapshot(world: World, snapshot: Snapshot) -> bytes:
    """Return all that a snapshot holds."""
    return await Reads(await open_map(world, snapshot)).read(0, snapshot.size_bytes)


async def all_snapshots(world: World) -> list[Snapshot]:
    """Return the snapshots of all volumes, those that are being deleted too."""
    entries = (await world.metadata.list(SNAPSHOTS)).entries
    return [Snapshot.from_bytes(entry.value, entry.key) for entry in entries]


async def go_back(world: World, name: str, snap: str) -> None:
    """Roll a detached volume back."""
    snapshot = (await world.catalog.get_snapshot(name, snap)).snapshot
    found, chunks = await world.catalog.get(name), LocalChunks(world.store)
    await roll_back(found, snapshot, world.catalog, chunks, OWNER, world.clock, world.options)


async def delete_snapshot(
    world: World, name: str, snap: str, attachment: Attachment | None = None
) -> None:
    """Delete a snapshot; its volume's writer, if there is one, frees its space."""
    entry = await world.catalog.delete_snapshot(name, snap)
    if attachment is not None:
        attachment.snapshots_gone([entry.snapshot.number])
        await attachment.reclaim()


async def delete_volume(world: World, name: str) -> None:
    """Delete a volume with its snapshots, also one whose deletion was interrupted."""
    marked = await world.catalog.mark_deleting(name, force=True, with_snapshots=True)
    volume, epoch = marked.spec.volume, marked.head.epoch
    chunks = LocalChunks(world.store)
    await chunks.fence(volume, epoch)
    await chunks.delete(volume, epoch, await chunks.list(volume))
    await world.catalog.forget(marked)
