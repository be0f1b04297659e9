"""What is done to a volume's snapshots by the process that attaches it for that.

Decides what is opened and given back around each operation; when one of these is needed, and
when the volume's owner is asked instead, is decided in `torus.daemon.snapshots`.
"""

import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from torus.config import CommonConfig
from torus.daemon.copying import copy_volume
from torus.daemon.reach import Reach, attached, chunks_for, let_go, reach, volume_options
from torus.daemon.reports import CopyReport, Progress
from torus.metadata.schema import Reader, Snapshot
from torus.volume.owner import this_process
from torus.volume.rollback import roll_back
from torus.volume.snapshot_ask import SnapshotEntry
from torus.volume.snapshot_export import SnapshotVolume
from torus.volume.snapshot_map import SnapshotMap, open_snapshot


async def snapshot(config: CommonConfig, name: str, snap: str, uid: str) -> Snapshot:
    """Attach a volume that has no owner, snapshot it, detach it.

    Raises: what attaching and `Attachment.snapshot` raise.
    """
    async with reach(config) as reached:
        async with attached(reached, name, "snapshot", volume_options(config)) as attachment:
            return await attachment.snapshot(snap, reached.clock.wall_ns(), uid)


async def reclaim(config: CommonConfig, name: str) -> int:
    """Free what only deleted snapshots of a detached volume needed; return how many chunks.

    Raises: what attaching and `Attachment.reclaim` raise.
    """
    async with reach(config) as reached:
        async with attached(reached, name, "reclaim", volume_options(config)) as attachment:
            return await attachment.reclaim()


async def flatten(config: CommonConfig, name: str, report: Callable[[int, int], None]) -> None:
    """Make a detached clone independent of its origin.

    Raises: what attaching and `Attachment.flatten` raise.
    """
    async with reach(config) as reached:
        async with attached(reached, name, "flatten", volume_options(config)) as attachment:
            await attachment.flatten(report)


async def restore(config: CommonConfig, name: str, snap: str) -> None:
    """Make a detached volume what it was at a snapshot.

    Raises: what `roll_back` raises.
    """
    options = volume_options(config)
    async with reach(config) as reached:
        await let_go(reached, name)
        entry = await reached.catalog.get_snapshot(name, snap)
        async with read_by(reached, entry, "rollback"):
            found = await reached.catalog.get(name)
            owner = this_process("rollback", "", reached.clock)
            async with chunks_for(reached, found.spec) as chunks:
                await roll_back(
                    found, entry.snapshot, reached.catalog, chunks, owner, reached.clock, options
                )


async def copy(
    config: CommonConfig, name: str, snap: str, target: str, progress: Progress
) -> CopyReport:
    """Copy a snapshot's data into another volume of the same size, which is empty.

    Raises: NotFound, Busy, Corruption, Unavailable, PoolFull and what attaching raises.
    """
    options = volume_options(config)
    async with reach(config) as reached:
        async with opened(reached, name, snap, "copy", options.map_cache_bytes) as view:
            source = SnapshotVolume(view, view.snapshot)
            async with attached(reached, target, "copy", options) as attachment:
                return await copy_volume(source, attachment.volume, progress)


@asynccontextmanager
async def opened(
    reached: Reach, name: str, snap: str, role: str, cache_bytes: int
) -> AsyncIterator[SnapshotMap]:
    """Give a snapshot for reading; it cannot be deleted meanwhile.

    Raises: NotFound, Busy, Corruption, Unavailable.
    """
    entry = await reached.catalog.get_snapshot(name, snap)
    async with read_by(reached, entry, role):
        async with chunks_for(reached, (await reached.catalog.get(name)).spec) as chunks:
            yield await open_snapshot(reached.catalog, chunks, entry.snapshot, cache_bytes)


@asynccontextmanager
async def read_by(reached: Reach, entry: SnapshotEntry, role: str) -> AsyncIterator[None]:
    """Be registered as a reader of a snapshot.

    Raises: Busy when it is being deleted.
    """
    me = this_process(role, "", reached.clock)
    reader = Reader(me.host, me.machine_boot_id, me.pid, me.pid_start, role, me.since_ns)
    key = await reached.catalog.add_reader(entry, reader, secrets.token_hex(16))
    try:
        yield
    finally:
        await reached.catalog.remove_reader(key)
