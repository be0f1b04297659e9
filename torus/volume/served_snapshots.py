"""The snapshots that this process has open, by name: exports, and what others compare with.

Decides that each is opened once, however many use it, and that it is known as read from before
its map is opened until the last user has gone: a snapshot with a reader is not deleted.  It does
not linger behind its last user, so that it can be deleted as soon as nobody reads it.
"""

import asyncio
import os
from collections.abc import Callable

from torus import limits
from torus.clock import Clock
from torus.cluster.chunks import Chunks, ChunksOf, chunks_of
from torus.errors import Busy, ShuttingDown, TorusError
from torus.ids import join_snapshot
from torus.log import get_logger
from torus.metadata.keys import reader_key
from torus.metadata.schema import Owner, Reader
from torus.volume.catalog_async import AsyncCatalog
from torus.volume.snapshot_export import SnapshotVolume
from torus.volume.snapshot_map import open_snapshot

log = get_logger("torus.snapshots")

_FIRST_CACHE_BYTES = limits.MIB  # until `use_cache` says how much there is


class _Place:
    """One snapshot: what is open of it, and the lock that serialises opening and closing."""

    __slots__ = ("lock", "reader_key", "served", "users")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.served: SnapshotVolume | None = None
        self.reader_key = ""
        self.users = 0


class ServedSnapshots:
    """Opens snapshots on demand and says in the metadata that they are read."""

    def __init__(
        self,
        catalog: AsyncCatalog,
        chunks: Chunks | ChunksOf,
        owner: Owner,
        clock: Clock,
        on_change: Callable[[], None],
    ) -> None:
        """``on_change`` is called when another number of snapshots is open: to `use_cache`."""
        self._catalog = catalog
        self._chunks_of = chunks_of(chunks)
        self._owner = owner
        self._clock = clock
        self._places: dict[str, _Place] = {}
        self._unremoved: set[str] = set()  # readers that could not be removed yet
        self._on_change = on_change
        self._closing = False

    async def open(self, volume: str, snapshot: str) -> SnapshotVolume:
        """Return the snapshot, opened; every open needs its `close`.

        Raises: NotFound, Busy, Corruption, Unavailable, UnknownVersion, ShuttingDown.
        """
        name = join_snapshot(volume, snapshot)
        if name not in self._places and len(self._places) >= limits.SNAPSHOTS_OPEN_MAX:
            raise Busy(
                f"snapshot {name!r} cannot be opened: {len(self._places)} are open already",
                hint="close some, or serve it from another process",
            )
        place = self._places.setdefault(name, _Place())
        place.users += 1
        try:
            async with place.lock:
                if self._closing:
                    raise ShuttingDown("this process is stopping")
                if place.served is None:
                    place.served = await self._open(place, volume, snapshot)
                    self._on_change()
                return place.served
        except BaseException:
            await self._leave(name, place)
            raise

    async def close(self, served: object) -> None:
        """Give one open back; never fails."""
        for name, place in self._places.items():
            if place.served is served:
                await self._leave(name, place)
                return

    def opened(self) -> list[tuple[SnapshotVolume, int]]:
        """Return what is open now, each with its number of users."""
        return [
            (place.served, place.users)
            for place in self._places.values()
            if place.served is not None
        ]

    def use_cache(self, cache_bytes: int) -> None:
        """Share so much memory between the maps of the open snapshots."""
        opened = self.opened()
        for served, _ in opened:
            served.view.cache_bytes = cache_bytes // len(opened)

    async def stop(self) -> None:
        """Close everything; idempotent.  Nobody may read any more."""
        self._closing = True
        for place in list(self._places.values()):
            async with place.lock:
                await self._shut(place)
        self._places.clear()
        await self._remove_readers()

    async def _open(self, place: _Place, volume: str, snapshot: str) -> SnapshotVolume:
        entry = await self._catalog.get_snapshot(volume, snapshot)
        owner = self._owner
        reader = Reader(
            owner.host, owner.machine_boot_id, owner.pid, owner.pid_start, owner.role,
            self._clock.wall_ns(),
        )  # fmt: skip
        number = os.urandom(16).hex()
        # Known before it is written: what happens when we are cancelled must be taken back too.
        place.reader_key = reader_key(entry.snapshot.volume, entry.snapshot.number, number)
        try:
            await self._catalog.add_reader(entry, reader, number)
            chunks = self._chunks_of(entry.volume.spec)
            try:
                view = await open_snapshot(
                    self._catalog, chunks, entry.snapshot, _FIRST_CACHE_BYTES
                )
            except BaseException:
                await chunks.stop()
                raise
        except BaseException:
            await self._shut(place)
            raise
        log.info("snapshot.opened", snapshot=view.name, number=entry.snapshot.number)
        return SnapshotVolume(view, entry.snapshot)

    async def _leave(self, name: str, place: _Place) -> None:
        place.users -= 1
        async with place.lock:
            if place.users == 0:
                await self._shut(place)
            if place.users == 0 and self._places.get(name) is place:
                del self._places[name]

    async def _shut(self, place: _Place) -> None:
        """Take one apart, so that it may be deleted."""
        served, place.served = place.served, None
        if place.reader_key:
            self._unremoved.add(place.reader_key)
            place.reader_key = ""
            await self._remove_readers()
        if served is not None:
            await served.view.chunks.stop()
            log.info("snapshot.closed", snapshot=served.name)
            self._on_change()

    async def _remove_readers(self) -> None:
        """Say that these are read no longer; what fails is tried again with the next."""
        for key in list(self._unremoved):
            try:
                await self._catalog.remove_reader(key)
            except TorusError as exc:
                log.warning("snapshot.reader_stays", key=key, error=str(exc))
            else:
                self._unremoved.discard(key)
