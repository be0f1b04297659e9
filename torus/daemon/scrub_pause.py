"""Whether the cluster's disks scrub at all: what people decided, kept in the metadata.

Decides that a pause holds for all disks, also those that were not up or not there when it was
given, and that one that cannot be read holds too.  When a disk scrubs without it is its own.

Implements docs/scrub.md, "Telling it".
"""

import os
import pwd
from collections.abc import Callable, Iterable, Sequence

from torus.clock import Clock
from torus.errors import Corruption, UnknownVersion
from torus.log import get_logger
from torus.metadata.base import Delete, Entry, Event, Expect, Listing, Put
from torus.metadata.following import Following
from torus.metadata.keys import SCRUB, SCRUB_PAUSE
from torus.metadata.loop import AsyncMetadata
from torus.metadata.schema import ScrubPause
from torus.volume.owner import this_process

log = get_logger("torus.scrub")


async def set_pause(metadata: AsyncMetadata, clock: Clock) -> None:
    """Let no disk scrub from now on; one that holds already stays as it is.

    Raises: Unavailable, Corruption.
    """
    who = this_process("scrub", "", clock)
    pause = ScrubPause(who.since_ns, f"{_user()}@{who.host}")
    await metadata.commit((Expect(SCRUB_PAUSE, 0),), (Put(SCRUB_PAUSE, pause.to_bytes()),))


async def end_pause(metadata: AsyncMetadata) -> None:
    """Let the disks scrub; idempotent.  Raises: Unavailable, Corruption."""
    await metadata.commit((), (Delete(SCRUB_PAUSE),))


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


class PauseWatch:
    """Tells ``obey`` of the pause that holds, at the start and at each change."""

    def __init__(self, metadata: AsyncMetadata, obey: Callable[[ScrubPause | None], None]) -> None:
        self._metadata = metadata
        self._obey = obey
        self._following = Following(
            metadata, SCRUB, self._on_events, self._on_listing, on_start=self._on_listing
        )

    async def start(self) -> None:
        """Begin with what holds now.  Raises: Unavailable, Corruption."""
        await self._following.start()

    async def stop(self) -> None:
        """End it; idempotent."""
        await self._following.stop()

    async def look(self) -> None:
        """Learn now what holds.  Raises: Unavailable, Corruption."""
        entry = await self._metadata.get(SCRUB_PAUSE)
        self._take([] if entry is None else [entry])

    async def _on_events(self, events: Sequence[Event]) -> None:
        for event in events:
            if event.key == SCRUB_PAUSE:
                self._obey(None if event.value is None else _read(event.value))

    async def _on_listing(self, listing: Listing) -> None:
        self._take(listing.entries)

    def _take(self, entries: Iterable[Entry]) -> None:
        held = [_read(entry.value) for entry in entries if entry.key == SCRUB_PAUSE]
        self._obey(held[0] if held else None)


def _read(value: bytes) -> ScrubPause:
    try:
        return ScrubPause.from_bytes(value, SCRUB_PAUSE)
    except (Corruption, UnknownVersion) as exc:
        log.error("scrub.pause.unreadable", error=str(exc))
        return ScrubPause(0, "somebody")
