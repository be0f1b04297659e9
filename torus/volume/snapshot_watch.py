"""Keeps the writers of this process in step with the deletion of their volumes' snapshots.

Anybody may delete a snapshot; what it alone needed is freed by the volume's writer.
"""

import asyncio
from collections.abc import Callable

from torus import limits
from torus.errors import TorusError, Unavailable
from torus.log import get_logger
from torus.metadata.loop import AsyncMetadata
from torus.metadata.schema import SNAPSHOTS
from torus.volume.attachment import Attachment
from torus.volume.catalog_async import AsyncCatalog

log = get_logger("torus.snapshots")


class SnapshotWatch:
    """Watches the snapshots of all volumes; acts for those that are attached here."""

    def __init__(
        self,
        metadata: AsyncMetadata,
        catalog: AsyncCatalog,
        attachments: Callable[[], list[Attachment]],
    ) -> None:
        self._metadata = metadata
        self._catalog = catalog
        self._attachments = attachments
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to watch."""
        revision = (await self._metadata.list(SNAPSHOTS)).revision
        self._task = asyncio.ensure_future(self._watch(revision))

    async def stop(self) -> None:
        """End the watch; idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _watch(self, revision: int) -> None:
        while True:
            try:
                async with await self._metadata.watch(SNAPSHOTS, revision) as watch:
                    async for events in watch:
                        keys = [event.key for event in events if event.value is None]
                        for attachment in self._attachments():
                            volume = f"{SNAPSHOTS}{attachment.volume.core.spec.volume:016x}/"
                            if any(key.startswith(volume) for key in keys):
                                await self._catch_up(attachment)
                        revision = max(revision, *(event.revision for event in events))
            except Unavailable as exc:
                log.warning("snapshots.watch.lost", error=str(exc))
                await asyncio.sleep(limits.WATCH_RETRY_S)
                revision = await self._start_over(revision)

    async def _start_over(self, revision: int) -> int:
        """Read everything once, where changes may have been missed."""
        try:
            revision = (await self._metadata.list(SNAPSHOTS)).revision
        except Unavailable:
            return revision
        for attachment in self._attachments():
            await self._catch_up(attachment)
        return revision

    async def _catch_up(self, attachment: Attachment) -> None:
        """Free what deleted snapshots held; an error leaves it to a later reclaim."""
        core = attachment.volume.core
        known = {snapshot.number for snapshot in core.pins}
        try:
            # Asked after `known` was taken: what is missing was deleted, not just not yet made.
            listed = {one.number for one in await self._catalog.snapshots(core.name)}
            if gone := known - listed:
                attachment.snapshots_gone(gone)
                count = await attachment.reclaim()
                log.info("snapshots.gone", volume=core.name, snapshots=len(gone), chunks=count)
        except TorusError as exc:
            log.warning("snapshots.not_reclaimed", volume=core.name, error=str(exc))
