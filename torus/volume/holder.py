"""The head of an attached volume in the metadata store, as its holder swaps it.

Decides that one change of it follows the other (a checkpoint, the end of a span, a flattening),
that one whose outcome is unknown is repeated until it is known, and the order of the end: drain,
checkpoint, flush, release.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from torus import limits
from torus.errors import PoolFull, Unavailable
from torus.log import get_logger
from torus.metadata.schema import Head, Snapshot, VolumeSpec
from torus.volume.catalog_async import AsyncCatalog

if TYPE_CHECKING:
    from torus.volume.volume import Volume

log = get_logger("torus.attach")

_PAUSE_FIRST_S = 0.1
_PAUSE_MAX_S = 5.0
Publish = Callable[[Head], Awaitable[None]]


class Holder:
    """The head of one attached volume in the metadata store, and its revision."""

    def __init__(self, catalog: AsyncCatalog, volume: int, head: Head, revision: int) -> None:
        self._catalog = catalog
        self._volume = volume
        self.head = head
        self._revision = revision
        self._lock = asyncio.Lock()  # held while one change is made: never while the log waits
        self._stopping = False
        self._detached = False
        self.waiting = ""  # for people: which change is not told yet

    async def swap(
        self,
        make: Callable[[Head], Head],
        publish: Publish | None = None,
        *,
        patient: bool = True,
    ) -> Head:
        """Swap the head for what ``make`` makes of it; when ``patient``, repeat it until its
        outcome is known.

        ``publish`` does more in the same commit, and may be repeated; None: the head alone.

        Returns: the head.
        Raises: Fenced; what else ``publish`` raises; Unavailable when the volume is closed
            meanwhile.
        """
        # A cancelled caller leaves the swap under way: half of one would cost the volume.
        swapping = asyncio.ensure_future(self._swap(make, publish or self.publish, patient))
        swapping.add_done_callback(_consume)
        return await asyncio.shield(swapping)

    async def _swap(self, make: Callable[[Head], Head], publish: Publish, patient: bool) -> Head:
        async with self._lock:
            head = make(self.head)
            pause_s = _PAUSE_FIRST_S
            while True:
                try:
                    await publish(head)
                    break
                except Unavailable as exc:
                    # The same head again does no harm if it was written already.
                    if self._stopping or not patient:
                        raise
                    self.waiting = f"its head cannot be published: {exc.message}"
                    log.warning("volume.head_not_published", volume=self._volume, error=str(exc))
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _PAUSE_MAX_S)
            self.waiting = ""
            self.head = head
            return head

    async def publish(self, head: Head) -> None:
        """Swap the head, in `swap`.

        Raises: Fenced, Unavailable.
        """
        self._revision = await self._catalog.publish(self._volume, head, self._revision)

    async def publish_snapshot(self, head: Head, snapshot: Snapshot) -> None:
        """Swap the head, in `swap`, together with the snapshot that it makes.

        Raises: Fenced, AlreadyExists, Unavailable.
        """
        self._revision = await self._catalog.publish_snapshot(
            self._volume, head, self._revision, snapshot
        )

    async def size(self) -> VolumeSpec:
        """Return the specification as it is now.  Raises: NotFound, Unavailable."""
        return (await self._catalog.get_by_id(self._volume)).spec

    async def snapshot_numbers(self) -> set[int]:
        """Return the numbers of the volume's snapshots.  Raises: Unavailable."""
        return {one.number for one in await self._catalog.snapshots_of(self._volume)}

    async def settle_cut(self, cut_bytes: int) -> VolumeSpec:
        """Forget a cut that is done; return the specification.

        Raises: Fenced, Unavailable.
        """
        async with self._lock:
            return await self._catalog.settle_cut(self._volume, self._revision, cut_bytes)

    async def finish_flatten(self, head: Head) -> None:
        """Write the head of a clone that needs its base no more, in `swap`.

        Raises: Fenced, Unavailable.
        """
        self._revision = await self._catalog.finish_flatten(self._volume, head, self._revision)

    async def publish_rollback(self, head: Head, size_bytes: int) -> None:
        """Swap the head for that of a snapshot, and the volume's size with it, in `swap`.

        Raises: Fenced, Busy, Unavailable.
        """
        self._revision = await self._catalog.publish_rollback(
            self._volume, head, self._revision, size_bytes
        )

    async def detach(self, volume: "Volume") -> None:
        """Make everything durable, checkpoint, release; see `Attachment.detach`."""
        if self._detached:
            return
        self._detached = True
        core = volume.core
        patience = asyncio.get_running_loop().call_later(
            limits.DETACH_WAIT_S, self._stop_waiting, volume
        )
        try:
            volume.collector.ask_stop()
            await volume.queue.drain()
            await volume.resealer.stop()
            self._stopping = True
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
            patience.cancel()
            self._stop_waiting(volume)
            await volume.resealer.stop()
            await volume.checkpointer.stop()
            await volume.queue.stop()
            await volume.collector.stop()
            await core.chunks.stop()
        if core.failure is None:
            log.info("volume.detached", volume=core.spec.name, epoch=core.epoch)

    def _stop_waiting(self, volume: "Volume") -> None:
        """Let what waits for the metadata or for disks end with that error."""
        self._stopping = True
        volume.core.chunks.stop_waiting()

    async def _last_checkpoint(self, volume: "Volume") -> None:
        try:
            await volume.checkpointer.write()
        except PoolFull as exc:  # the log has everything: the next attach replays it
            log.warning("volume.no_last_checkpoint", volume=volume.name, error=str(exc))

    async def _release(self, volume: "Volume") -> None:
        core = volume.core
        unused = core.journal.unused_chunk
        if unused is not None:
            await core.chunks.delete(core.spec.volume, core.epoch, [unused])
        async with self._lock:
            core.spans = core.spans.close(*core.journal.closing)
            head = replace(
                self.head, spans=core.spans.to_tuple(), mapped_blocks=core.blocks.mapped_blocks
            )
            await self._catalog.release(self._volume, head, self._revision)


def _consume(swapping: asyncio.Future[Head]) -> None:
    if not swapping.cancelled():
        swapping.exception()
