"""The head of an attached volume in the metadata store, as its holder swaps it.

Decides the order of the end: drain, checkpoint, flush, release.
"""

from dataclasses import replace

from torus.errors import PoolFull
from torus.log import get_logger
from torus.metadata.schema import Head, Snapshot, VolumeSpec
from torus.volume.catalog_async import AsyncCatalog
from torus.volume.volume import Volume

log = get_logger("torus.attach")


class Holder:
    """The head of one attached volume in the metadata store, and its revision."""

    def __init__(self, catalog: AsyncCatalog, volume: int, revision: int) -> None:
        self._catalog = catalog
        self._volume = volume
        self._revision = revision
        self._detached = False

    async def publish(self, head: Head, snapshot: Snapshot | None = None) -> None:
        """Swap the head, together with the snapshot that it makes.

        Raises: Fenced, AlreadyExists, Unavailable.
        """
        if snapshot is None:
            self._revision = await self._catalog.publish(self._volume, head, self._revision)
        else:
            self._revision = await self._catalog.publish_snapshot(
                self._volume, head, self._revision, snapshot
            )

    async def size(self) -> VolumeSpec:
        """Return the specification as it is now.  Raises: NotFound, Unavailable."""
        return (await self._catalog.get_by_id(self._volume)).spec

    async def settle_cut(self, cut_bytes: int) -> VolumeSpec:
        """Forget a cut that is done; return the specification.

        Raises: Fenced, Unavailable.
        """
        return await self._catalog.settle_cut(self._volume, self._revision, cut_bytes)

    async def finish_flatten(self, head: Head) -> None:
        """Write the head of a clone that needs its base no more.

        Raises: Fenced, Unavailable.
        """
        self._revision = await self._catalog.finish_flatten(self._volume, head, self._revision)

    async def publish_rollback(self, head: Head, size_bytes: int) -> None:
        """Swap the head for that of a snapshot, and the volume's size with it.

        Raises: Fenced, Busy, Unavailable.
        """
        self._revision = await self._catalog.publish_rollback(
            self._volume, head, self._revision, size_bytes
        )

    async def detach(self, volume: Volume) -> None:
        """Make everything durable, checkpoint, release; see `Attachment.detach`."""
        if self._detached:
            return
        self._detached = True
        core = volume.core
        try:
            volume.collector.ask_stop()
            await volume.queue.drain()
            await volume.checkpointer.stop()
            await volume.collector.stop()
            await volume.early_flush.stop()
            if core.failure is None:
                if core.dirty:
                    await self._last_checkpoint(volume)
                await volume.checkpointer.delete_due(at_once=True)
                await core.journal.sync()
                await self._release(volume)
        finally:
            await volume.checkpointer.stop()
            await volume.queue.stop()
            await volume.collector.stop()
        if core.failure is None:
            log.info("volume.detached", volume=core.spec.name, epoch=core.epoch)

    async def _last_checkpoint(self, volume: Volume) -> None:
        try:
            await volume.checkpointer.write()
        except PoolFull as exc:  # the log has everything: the next attach replays it
            log.warning("volume.no_last_checkpoint", volume=volume.name, error=str(exc))

    async def _release(self, volume: Volume) -> None:
        core, head = volume.core, volume.checkpointer.head
        unused = core.journal.unused_chunk
        if unused is not None:
            await core.chunks.delete(core.spec.volume, core.epoch, [unused])
        core.spans = core.spans.close(*core.journal.closing)
        head = replace(head, spans=core.spans.to_tuple(), mapped_blocks=core.blocks.mapped_blocks)
        await self._catalog.release(self._volume, head, self._revision)
