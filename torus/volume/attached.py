"""The volumes that this process has attached, by name: what the NBD server offers.

Decides when a volume is attached (at its first client) and detached (a while after its last),
how the map's memory is shared between volumes, and what a change in the metadata means for a
volume that is attached: another size, another owner, deletion.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from torus import limits
from torus.clock import Clock
from torus.cluster.chunks import Chunks
from torus.errors import Busy, DiskFailed, Fenced, ShuttingDown, TorusError, Unavailable
from torus.ids import split_snapshot
from torus.log import get_logger
from torus.metadata.base import Event
from torus.metadata.loop import AsyncMetadata
from torus.metadata.schema import VOLUMES, Head, Owner
from torus.volume.attach import VolumeOptions, attach
from torus.volume.attachment import Attachment
from torus.volume.catalog_async import AsyncCatalog
from torus.volume.offer import Offer
from torus.volume.owner import same_process
from torus.volume.served_contexts import Context, ServedContexts
from torus.volume.served_snapshots import ServedSnapshots
from torus.volume.snapshot_export import SnapshotVolume
from torus.volume.snapshot_watch import SnapshotWatch
from torus.volume.volume import Volume

log = get_logger("torus.volumes")


class _Place:
    """One name: its attachment, its users, and the lock that serialises changes of both."""

    __slots__ = ("attachment", "held_until_ns", "lingering", "lock", "users")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.attachment: Attachment | None = None
        self.users = 0
        self.held_until_ns = 0
        self.lingering: asyncio.Task[None] | None = None


@dataclass(slots=True)
class Past:
    """What volumes that are detached by now had counted."""

    records: int = 0
    log_bytes: int = 0
    client_bytes: int = 0
    collected_bytes: int = 0
    checkpoints: int = 0


class AttachedVolumes:
    """Attaches volumes on demand and keeps them in step with the metadata."""

    def __init__(
        self,
        metadata: AsyncMetadata,
        catalog: AsyncCatalog,
        chunks: Chunks,
        owner: Owner,
        clock: Clock,
        options: VolumeOptions,
        *,
        names: Sequence[str] | None = None,
        read_only: bool = False,
        linger_s: float | None = limits.DETACH_LINGER_S,
    ) -> None:
        """With ``names``, no other volumes are offered.  ``linger_s``: how long a volume
        without clients stays attached, for those who come back at once; None: as long as this
        process runs, unless it is taken away."""
        self._metadata = metadata
        self._catalog = catalog
        self._chunks = chunks
        self._owner = owner
        self._clock = clock
        self._options = options
        self._offer = Offer(metadata, catalog, names)
        self._read_only = read_only
        self._linger_s = linger_s
        self._places: dict[str, _Place] = {}
        self.snapshots = ServedSnapshots(catalog, chunks, owner, clock, self._share_cache)
        self._contexts = ServedContexts(catalog, self.snapshots)
        self.past = Past()
        self.on_lost: Callable[[Volume, TorusError], None] | None = None
        self._closing = False
        self._watcher: asyncio.Task[None] | None = None
        self._snapshot_watch = SnapshotWatch(
            metadata, catalog, lambda: [attachment for attachment, _ in self.attachments()]
        )

    async def start(self) -> None:
        """Begin to watch the metadata.

        ``on_lost(volume, why)`` is called for each volume that this process can no longer serve
        but may be able to open anew: its clients should connect again.  A volume on a failed
        disk is not one of them: it can still be read.
        """
        revision = (await self._metadata.list(VOLUMES)).revision
        self._watcher = asyncio.ensure_future(self._watch(revision))
        await self._snapshot_watch.start()

    # --- what the NBD server asks -------------------------------------------------------

    async def names(self) -> Sequence[str]:
        """Return the names that may be opened: volumes, each followed by its snapshots."""
        return await self._offer.names()

    async def default(self) -> str:
        """Return the name that the empty name means.  Raises: NotFound, Unavailable."""
        return await self._offer.default()

    async def contexts(self, name: str, queries: Sequence[str] = ()) -> Sequence[str]:
        """Return the names of the metadata contexts that an export has and that are asked for.

        Raises: NotFound, UsageError, Unavailable.
        """
        self._offer.check(name)
        return await self._contexts.names(name, queries)

    async def open_contexts(self, export: object, names: Sequence[str]) -> Sequence[Context]:
        """Return these contexts of an open export, all or none.

        Raises: NotFound, Busy, Corruption, Unavailable.
        """
        return await self._contexts.open(export, names)

    async def close_contexts(self, contexts: Sequence[object]) -> None:
        """Give contexts back; never fails."""
        await self._contexts.close(contexts)

    async def open(self, name: str) -> Volume | SnapshotVolume:
        """Return the volume, attached, or the snapshot; every open needs its `close`.

        Raises: NotFound, Busy, Fenced, Corruption, Unavailable, DiskFailed, ShuttingDown.
        """
        self._offer.check(name)
        if "@" in name:
            return await self.snapshots.open(*split_snapshot(name))
        return await self._open_volume(name)

    async def _open_volume(self, name: str) -> Volume:
        if name not in self._places:
            await self._catalog.get(name)  # names that clients make up must not fill the memory
        place = self._places.setdefault(name, _Place())
        async with place.lock:
            if self._closing:
                raise ShuttingDown("this process is stopping")
            if self._clock.monotonic_ns() < place.held_until_ns:
                raise Busy(
                    f"volume {name!r} was taken away for another process", hint="try again later"
                )
            if place.attachment is not None and place.attachment.volume.core.failure is not None:
                await self._detach(place)
            if place.attachment is None:
                place.attachment = await self._attach(name)
                self._share_cache()
            place.users += 1
            return place.attachment.volume

    async def close(self, export: object) -> None:
        """Give one open back; the last one lets the volume go after a while."""
        if isinstance(export, SnapshotVolume):
            await self.snapshots.close(export)
            return
        for place in self._places.values():
            if place.attachment is not None and place.attachment.volume is export:
                break
        else:
            return  # it was lost and taken apart since
        place.users -= 1
        if place.users == 0 and not self._closing and place.lingering is None:
            lost = place.attachment.volume.core.failure is not None
            linger_s = 0 if lost else self._linger_s
            if linger_s is None:
                return
            place.lingering = asyncio.ensure_future(self._linger(place, linger_s))

    async def _attach(self, name: str) -> Attachment:
        found = await self._catalog.get(name)
        # Our own earlier attachment, lost to an error, does not stand in its own way.
        takeover = same_process(found.head.owner, self._owner)
        owner = replace(self._owner, since_ns=self._clock.wall_ns())
        attachment = await attach(
            found, self._catalog, self._chunks, owner, self._clock, self._options,
            takeover=takeover,
        )  # fmt: skip
        volume = attachment.volume
        volume.read_only = self._read_only
        volume.core.on_failure = lambda error: self._on_failure(volume, error)
        return attachment

    def _on_failure(self, volume: Volume, error: TorusError) -> None:
        # Later: whoever found the failure is in the middle of something.
        if self.on_lost is not None and not isinstance(error, DiskFailed):
            asyncio.get_running_loop().call_soon(self.on_lost, volume, error)

    @asynccontextmanager
    async def using(self, name: str) -> AsyncIterator[Attachment | None]:
        """Give a volume that is attached already, and keep it so meanwhile; None if it is not."""
        place = self._places.get(name)
        attachment = None
        if place is not None:
            async with place.lock:
                attachment = place.attachment
                place.users += attachment is not None
        try:
            yield attachment
        finally:
            if attachment is not None:
                await self.close(attachment.volume)

    async def take_away(self, name: str, why: TorusError, hold_s: float) -> bool:
        """Detach a volume now, whoever uses it, and do not attach it anew for ``hold_s``.

        Its clients are cut off with ``why``.  Tells whether it was attached.
        """
        place = self._places.get(name)
        if place is None:
            return False
        place.held_until_ns = self._clock.monotonic_ns() + int(hold_s * 1e9)
        async with place.lock:
            if place.attachment is None:
                return False
            if self.on_lost is not None:
                self.on_lost(place.attachment.volume, why)
            await self._detach(place)
            return True

    def resume(self, name: str) -> None:
        """Let a volume that was taken away be attached again."""
        if name in self._places:
            self._places[name].held_until_ns = 0

    async def release(self, name: str) -> bool:
        """Detach a volume now if nobody uses it; tell whether that was so."""
        place = self._places.get(name)
        if place is None or self._linger_s is None:
            return False
        async with place.lock:
            if place.users or place.attachment is None:
                return False
            await self._detach(place)
            return True

    async def _linger(self, place: _Place, seconds: float) -> None:
        await asyncio.sleep(seconds)
        async with place.lock:
            place.lingering = None
            if place.users == 0:
                await self._detach(place)

    async def _detach(self, place: _Place) -> None:
        attachment, place.attachment, place.users = place.attachment, None, 0
        if attachment is None:
            return
        try:
            await attachment.detach()
        except TorusError as exc:
            log.error("volume.detach.failed", volume=attachment.volume.name, error=str(exc))
        self.past.records += attachment.volume.core.journal.records
        self.past.log_bytes += attachment.volume.core.journal.appended_bytes
        self.past.client_bytes += attachment.volume.core.client_bytes
        self.past.collected_bytes += attachment.volume.core.collected_bytes
        self.past.checkpoints += attachment.volume.checkpointer.count
        self._share_cache()

    def _share_cache(self) -> None:
        """Give the maps of snapshots a quarter, when there are any, and volumes the rest."""
        whole = self._options.map_cache_bytes
        quarter = whole // 4 if self.snapshots.opened() else 0
        self.snapshots.use_cache(quarter)
        attachments = [p.attachment for p in self._places.values() if p.attachment is not None]
        for attachment in attachments:
            attachment.volume.core.cache_bytes = (whole - quarter) // len(attachments)

    # --- the metadata -------------------------------------------------------------------

    async def _watch(self, revision: int) -> None:
        while not self._closing:
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
                self._on_head(attachment, Head.from_bytes(event.value, event.key))
        except TorusError as exc:
            log.error("volume.event.failed", volume=attachment.volume.name, error=str(exc))

    def _find(self, key: str) -> Attachment | None:
        for place in self._places.values():
            if place.attachment is not None:
                volume = place.attachment.volume.core.spec.volume
                if key.startswith(f"{VOLUMES}{volume:016x}/"):
                    return place.attachment
        return None

    def _on_head(self, attachment: Attachment, head: Head) -> None:
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

    # --- state and end ------------------------------------------------------------------

    def attachments(self) -> list[tuple[Attachment, int]]:
        """Return what is attached now, each with its number of users."""
        return [
            (place.attachment, place.users)
            for place in self._places.values()
            if place.attachment is not None
        ]

    def problems(self) -> list[str]:
        """Return a sentence for each attached volume that is not well."""
        found = []
        for attachment, _ in self.attachments():
            core, queue = attachment.volume.core, attachment.volume.queue
            if core.failure is not None:
                found.append(f"volume {core.spec.name!r}: {core.failure.message}")
            elif queue.blocked:
                found.append(f"volume {core.spec.name!r}: {queue.blocked} writes wait for space")
        return found

    def stop_waiting(self) -> None:
        """Refuse writes that wait for space, now and from now on: the process is to end."""
        for attachment, _ in self.attachments():
            attachment.volume.queue.stop_waiting()

    async def stop(self) -> None:
        """Detach everything; idempotent.  The NBD server must have let go of its exports."""
        self._closing = True
        await self._snapshot_watch.stop()
        tasks = [place.lingering for place in self._places.values() if place.lingering]
        tasks += [self._watcher] if self._watcher else []
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self.snapshots.stop()
        for place in self._places.values():
            async with place.lock:
                await self._detach(place)
