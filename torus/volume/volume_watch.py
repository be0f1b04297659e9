"""Keeps the volumes of this process in step with the metadata.

Decides what a change means for a volume that is attached here: another size, another owner,
deletion.
"""

import asyncio
from collections.abc import Callable

from torus import limits
from torus.errors import Fenced, TorusError, Unavailable
from torus.log import get_logger
from torus.metadata.base import Event
from torus.metadata.loop import AsyncMetadata
from torus.metadata.schema import VOLUMES, Head
from torus.volume.attachment import Attachment

log = get_logger("torus.volumes")


class VolumeWatch:
    """Watches all volumes; acts for those that are attached here."""

    def __init__(
        self, metadata: AsyncMetadata, attachments: Callable[[], list[Attachment]]
    ) -> None:
        self._metadata = metadata
        self._attachments = attachments
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to watch."""
        revision = (await self._metadata.list(VOLUMES)).revision
        self._task = asyncio.ensure_future(self._watch(revision))

    async def stop(self) -> None:
        """End the watch; idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _watch(self, revision: int) -> None:
        while True:
            try:
                async with await self._metadata.watch(VOLUMES, revision) as watch:
                    async for events in watch:
                        for event in events:
                            await self._on_event(event)
                            revision = max(revision, event.revision)
            except Unavailable as exc:
                log.warning("volumes.watch.lost", error=str(exc))
                await asyncio.sleep(limits.WATCH_RETRY_S)
                revision = await self._catch_up(revision)

    async def _catch_up(self, revision: int) -> int:
        """Read everything once, where changes may have been missed."""
        try:
            listing = await self._metadata.list(VOLUMES)
        except Unavailable:
            return revision
        for entry in listing.entries:
            await self._on_event(Event(entry.key, entry.value, entry.revision))
        return listing.revision

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
