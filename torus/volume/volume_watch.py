"""Keeps the volumes of this process in step with the metadata.

Decides what a change means for a volume that is attached here: another size, another owner,
deletion.
"""

from collections.abc import Callable, Sequence

from torus.errors import Fenced, TorusError
from torus.log import get_logger
from torus.metadata.base import Event, Listing
from torus.metadata.following import Following
from torus.metadata.keys import VOLUMES
from torus.metadata.loop import AsyncMetadata
from torus.metadata.schema import Head
from torus.volume.attachment import Attachment

log = get_logger("torus.volumes")


class VolumeWatch:
    """Follows all volumes; acts for those that are attached here."""

    def __init__(
        self, metadata: AsyncMetadata, attachments: Callable[[], list[Attachment]]
    ) -> None:
        self._attachments = attachments
        self._following = Following(metadata, VOLUMES, self._on_events, self._on_gap)
        self.start = self._following.start
        self.stop = self._following.stop

    async def _on_events(self, events: Sequence[Event]) -> None:
        for event in events:
            await self._on_event(event)

    async def _on_gap(self, listing: Listing) -> None:
        for entry in listing.entries:
            await self._on_event(Event(entry.key, entry.value, entry.revision))

    async def _on_event(self, event: Event) -> None:
        if event.value is None:
            return
        attachment = self._find(event.key)
        if attachment is None:
            return
        try:
            if event.key.endswith("/spec"):
                await attachment.follow_size()  # what the event says may be old already
            elif event.key.endswith("/head"):
                _on_head(attachment, Head.from_bytes(event.value, event.key))
        except TorusError as exc:
            log.error("volume.event.failed", volume=attachment.volume.name, error=str(exc))

    def _find(self, key: str) -> Attachment | None:
        for attachment in self._attachments():
            if key.startswith(f"{VOLUMES}{attachment.volume.core.spec.volume:016x}/"):
                return attachment
        return None


def _on_head(attachment: Attachment, head: Head) -> None:
    if head.epoch > attachment.epoch:
        owner = head.owner
        who = "it is being deleted" if owner is None else (
            f"{owner.role} pid {owner.pid} on {owner.host} took it over"
        )  # fmt: skip
        attachment.volume.core.fail(
            Fenced(
                f"volume {attachment.volume.name!r} is lost: epoch {head.epoch} replaced "
                f"{attachment.epoch}, {who}"
            )
        )
