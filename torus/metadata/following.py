"""Following all changes under a prefix, for as long as a process runs.

Decides what happens when changes may have been missed: everything is listed once, and the
watch begins anew behind it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from torus import limits
from torus.errors import Corruption, ShuttingDown, TorusError, Unavailable
from torus.log import get_logger
from torus.metadata.base import Event, Listing
from torus.metadata.loop import AsyncMetadata

log = get_logger("torus.following")


class Following:
    """Calls back for the changes under one prefix, in order."""

    def __init__(
        self,
        metadata: AsyncMetadata,
        prefix: str,
        on_events: Callable[[Sequence[Event]], Awaitable[None]],
        on_gap: Callable[[Listing], Awaitable[None]],
        *,
        on_start: Callable[[Listing], Awaitable[None]] | None = None,
        on_away: Callable[[TorusError | None], None] | None = None,
    ) -> None:
        """``on_events`` gets the changes of one or more commits, ``on_gap`` all that there is
        where changes may have been missed, ``on_start`` all that there is at the start;
        ``on_away`` is told when the store cannot be followed and, with None, when it can be
        again.  None of them raises."""
        self._metadata = metadata
        self._prefix = prefix
        self._on_events = on_events
        self._on_gap = on_gap
        self._on_start = on_start
        self._on_away = on_away
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin with what there is now.  Raises: Unavailable, Corruption."""
        listing = await self._metadata.list(self._prefix)
        if self._on_start is not None:
            await self._on_start(listing)
        revision = listing.revision
        self._task = asyncio.ensure_future(self._follow(revision))

    async def stop(self) -> None:
        """End it; idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _follow(self, revision: int) -> None:
        while True:
            try:
                async with await self._metadata.watch(self._prefix, revision) as watch:
                    async for events in watch:
                        await self._on_events(events)
                        revision = max(revision, *(event.revision for event in events))
            except Unavailable as exc:
                log.warning("metadata.watch.lost", prefix=self._prefix, error=str(exc))
                if self._on_away is not None:
                    self._on_away(exc)
                await asyncio.sleep(limits.WATCH_RETRY_S)
                revision = await self._start_over(revision)
            except ShuttingDown:
                return
            except Corruption as exc:  # for good: the store refuses everything from now on
                log.error("metadata.watch.ended", prefix=self._prefix, error=str(exc))
                return

    async def _start_over(self, revision: int) -> int:
        try:
            listing = await self._metadata.list(self._prefix)
        except (Unavailable, ShuttingDown, Corruption):
            return revision  # the watch says it once more
        await self._on_gap(listing)
        if self._on_away is not None:
            self._on_away(None)
        return listing.revision
