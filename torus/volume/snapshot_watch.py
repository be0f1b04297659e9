"""Keeps the writers of this process in step with the deletion of their volumes' snapshots.

Anybody may delete a snapshot; what it alone needed is freed by the volume's writer.
"""

from collections.abc import Callable, Sequence

from torus.errors import TorusError
from torus.log import get_logger
from torus.metadata.base import Event, Listing
from torus.metadata.following import Following
from torus.metadata.keys import SNAPSHOTS, snapshots_prefix
from torus.metadata.loop import AsyncMetadata
from torus.volume.attachment import Attachment
from torus.volume.catalog_async import AsyncCatalog

log = get_logger("torus.snapshots")


class SnapshotWatch:
    """Follows the snapshots of all volumes; acts for volumes that are attached here."""

    def __init__(
        self,
        metadata: AsyncMetadata,
        catalog: AsyncCatalog,
        attachments: Callable[[], list[Attachment]],
    ) -> None:
        self._catalog = catalog
        self._attachments = attachments
        self._following = Following(metadata, SNAPSHOTS, self._on_events, self._on_gap)
        self.start = self._following.start
        self.stop = self._following.stop

    async def _on_events(self, events: Sequence[Event]) -> None:
        gone = [event.key for event in events if event.value is None]
        for attachment in self._attachments():
            prefix = snapshots_prefix(attachment.volume.core.spec.volume)
            if any(key.startswith(prefix) for key in gone):
                await self._catch_up(attachment)

    async def _on_gap(self, _listing: Listing) -> None:
        for attachment in self._attachments():
            await self._catch_up(attachment)

    async def _catch_up(self, attachment: Attachment) -> None:
        """Free what deleted snapshots held; an error leaves it to a later reclaim."""
        try:
            await attachment.reclaim()
        except TorusError as exc:
            log.warning("snapshots.not_reclaimed", volume=attachment.volume.name, error=str(exc))
