"""One volume that this process owns: what may be done with it beside reading and writing.

Decides how a size that the operator set is applied, and the order of the end: drain, checkpoint,
flush, release.
"""

import secrets
from collections.abc import Collection
from dataclasses import replace

from torus import limits
from torus.errors import DiskFailed, Fenced, PoolFull
from torus.log import get_logger
from torus.metadata.schema import Head, Snapshot
from torus.volume.catalog_async import AsyncCatalog
from torus.volume.pins import Pins
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
            await volume.queue.drain()
            await volume.checkpointer.stop()
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


class Attachment:
    """A volume that this process owns, until `detach` or until it is fenced."""

    def __init__(self, volume: Volume, holder: Holder) -> None:
        self.volume = volume
        self._holder = holder

    @property
    def epoch(self) -> int:
        """The epoch under which this process writes."""
        return self.volume.core.epoch

    async def resize(self, size_bytes: int) -> None:
        """Use a size that the operator set in the metadata; a shrink unmaps what is cut off.

        Raises: the volume's failure, Corruption, Unavailable.
        """
        core = self.volume.core
        old = core.spec.size_bytes
        if size_bytes == old:
            return
        if size_bytes < old:
            edge = -(-size_bytes // limits.BLOCK_BYTES) * limits.BLOCK_BYTES
            core.spec = replace(core.spec, size_bytes=size_bytes)
            if size_bytes < min(edge, old):
                await self.volume.trim(size_bytes, min(edge, old) - size_bytes, durable=False)
            if edge < old:
                await self.volume.trim(edge, old - edge, durable=False)
            # A later growth is durable at once: what was cut off must not come back then.
            await self.volume.flush()
        else:
            blocks = -(-size_bytes // limits.BLOCK_BYTES)
            if blocks > core.blocks.size_blocks:
                core.blocks.resize(blocks)
            core.spec = replace(core.spec, size_bytes=size_bytes)
        log.info("volume.resized", volume=core.spec.name, old=old, new=size_bytes)

    async def snapshot(self, name: str, now_ns: int, uid: str = "") -> Snapshot:
        """Make a snapshot of this moment; clients go on meanwhile.

        ``uid`` names the content, where it is known elsewhere already.

        Raises: AlreadyExists, PoolFull, the volume's failure, Unavailable.
        """
        core = self.volume.core
        core.check()
        wanted = Snapshot(core.spec.volume, 0, name, uid or secrets.token_hex(16), now_ns, 0, None)
        try:
            return await self.volume.checkpointer.snapshot(wanted)
        except (Fenced, DiskFailed) as exc:
            core.fail(exc)
            raise

    def snapshots_gone(self, numbers: Collection[int]) -> None:
        """Learn that snapshots were deleted.  Nothing else can be news to their volume's
        writer, which alone makes them."""
        core = self.volume.core
        core.pins = Pins(one for one in core.pins if one.number not in numbers)

    async def reclaim(self) -> int:
        """Free what only deleted snapshots needed; return how many chunks went.

        Raises: the volume's failure, PoolFull, Unavailable.
        """
        core, checkpointer = self.volume.core, self.volume.checkpointer
        core.check()
        await checkpointer.reclaim()
        return await checkpointer.delete_due(at_once=True)

    async def detach(self) -> None:
        """Make everything durable, checkpoint, and give the volume back; idempotent.

        A volume that was lost is only taken apart.

        Raises: Fenced, PoolFull, DiskFailed, Unavailable.
        """
        await self._holder.detach(self.volume)
