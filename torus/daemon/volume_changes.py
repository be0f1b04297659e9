"""What of the volumes' metadata is news to upkeep: another redundancy, chunks that became full.

Decides how soon the disks of a node look after such a change: at once for another redundancy;
for a head a moment later, when the writer has deleted what it found dead, and not again before
the disks have rested from looking.  What is to be done is upkeep's.

Implements docs/upkeep.md, "Shards".
"""

import asyncio
from collections.abc import Callable, Sequence

from torus import limits
from torus.errors import TorusError
from torus.log import get_logger
from torus.metadata.base import Entry, Event, Listing
from torus.metadata.following import Following
from torus.metadata.keys import VOLUMES
from torus.metadata.loop import AsyncMetadata
from torus.metadata.schema import VolumeSpec
from torus.redundancy.scheme import parse

log = get_logger("torus.upkeep")

Redundancies = tuple[str, ...]


class VolumeChanges:
    """Calls ``poke`` when volumes that are kept in shards, or were converted, change."""

    def __init__(
        self,
        metadata: AsyncMetadata,
        poke: Callable[[], None],
        rest_s: Callable[[], float],
        news_s: float = limits.UPKEEP_NEWS_S,
    ) -> None:
        """``news_s``: how long after a change of a head; ``rest_s``: between two such looks."""
        self._poke = poke
        self._rest_s = rest_s
        self._news_s = news_s
        self._poked_s: float | None = None  # when, for a head
        self._had: dict[str, Redundancies] = {}  # by the volume's prefix, where it matters
        self._soon: asyncio.TimerHandle | None = None
        self._following = Following(
            metadata, VOLUMES, self._on_events, self._on_listing, on_start=self._on_listing
        )

    def redundancies(self) -> list[str]:
        """Return what each volume that is or was in shards, or was converted, is kept as now."""
        return [now for now, *_ in self._had.values()]

    async def start(self) -> None:
        """Begin.  Raises: Unavailable, Corruption."""
        await self._following.start()

    async def stop(self) -> None:
        """End it; idempotent."""
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        await self._following.stop()

    async def _on_events(self, events: Sequence[Event]) -> None:
        for event in events:
            prefix, _, what = event.key.rpartition("/")
            if event.value is None:
                self._had.pop(prefix, None)
            elif what == "spec":
                if self._learn(prefix, event.key, event.value):
                    self._poke()
            elif what == "head" and prefix in self._had:
                self._poke_soon()

    async def _on_listing(self, listing: Listing) -> None:
        self._had.clear()
        for entry in listing.entries:
            self._on_entry(entry)
        if self._had:
            self._poke_soon()

    def _on_entry(self, entry: Entry) -> None:
        prefix, _, what = entry.key.rpartition("/")
        if what == "spec":
            self._learn(prefix, entry.key, entry.value)

    def _learn(self, prefix: str, key: str, value: bytes) -> bool:
        """Take note of a volume's redundancies; tell whether they are news."""
        try:
            spec = VolumeSpec.from_bytes(value, key)
            now = (spec.redundancy, *spec.former)
            matters = len(now) > 1 or parse(spec.redundancy).erasure
        except TorusError as exc:
            log.warning("upkeep.volume.unreadable", volume=prefix, reason=str(exc))
            return False
        if not matters or self._had.get(prefix) == now:
            return False
        self._had[prefix] = now
        return True

    def _poke_soon(self) -> None:
        if self._soon is None:
            loop = asyncio.get_running_loop()
            due_s = loop.time() + self._news_s
            if self._poked_s is not None:
                due_s = max(due_s, self._poked_s + self._rest_s())
            self._soon = loop.call_at(due_s, self._fire)

    def _fire(self) -> None:
        self._soon = None
        self._poked_s = asyncio.get_running_loop().time()
        self._poke()
