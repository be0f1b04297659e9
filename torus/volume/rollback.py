"""Rollback: a volume becomes again what it was when a snapshot was made.

Nothing is copied: the snapshot's map becomes the volume's, in a new epoch, by one checkpoint.
Until that is published the volume is what it was.  Later snapshots stay; what was written since
the newest of them is garbage afterwards.
"""

from dataclasses import replace

from torus.clock import Clock
from torus.cluster.chunks import Chunks
from torus.errors import TorusError
from torus.log import get_logger
from torus.metadata.schema import Head, Owner, Snapshot
from torus.volume.attach import VolumeOptions, assemble, give_back, take
from torus.volume.attachment import Attachment
from torus.volume.catalog_ask import Volume as Found
from torus.volume.catalog_async import AsyncCatalog
from torus.volume.family import Family
from torus.volume.snapshot_map import open_snapshot

log = get_logger("torus.rollback")


async def roll_back(
    found: Found,
    snapshot: Snapshot,
    catalog: AsyncCatalog,
    chunks: Chunks,
    owner: Owner,
    clock: Clock,
    options: VolumeOptions,
) -> None:
    """Make a detached volume what it was in ``snapshot``, its size too.

    The caller is registered as a reader of the snapshot.

    Raises: Busy, NotFound, Fenced, Corruption, Unavailable, PoolFull, DiskFailed.
    """
    taken = await take(found, catalog, chunks, owner, options)
    holder = taken.holder
    try:
        cache_bytes = options.map_cache_bytes
        view = await open_snapshot(catalog, chunks, snapshot, cache_bytes, fit=False)
        view.blocks.adopt_usage(taken.recovered.blocks, taken.head.newest_snapshot)
        await view.fit()
    except TorusError:
        await give_back(catalog, taken.held)
        raise
    spec = replace(taken.held.spec, size_bytes=snapshot.size_bytes)
    family = Family(taken.spans, view.family.ancestors)
    volume = assemble(taken, spec, family, view.blocks, chunks, options, clock)

    async def publish(head: Head) -> None:
        await holder.publish_rollback(head, snapshot.size_bytes)

    attachment = Attachment(volume, holder)
    try:
        await volume.checkpointer.write_and_publish(
            lambda head: replace(head, base=snapshot.base), publish
        )
    except TorusError as exc:
        volume.core.fail(exc)
        await attachment.detach()
        await give_back(catalog, taken.held)
        raise
    await attachment.detach()
    log.info("volume.rolled_back", volume=spec.name, snapshot=snapshot.name)
