"""The volumes that this process has attached, by name: what the NBD server offers.

Decides when a volume is attached (at its first client) and detached (a while after its last),
how the map's memory is shared between volumes, and how one is handed over to another process.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

from torus import limits
from torus.clock import Clock
from torus.cluster.chunks import Chunks, ChunksOf, chunks_of
from torus.errors import Busy, DiskFailed, Fenced, ShuttingDown, TorusError
from torus.ids import split_snapshot
from torus.log import get_logger
from torus.metadata.loop import AsyncMetadata
from torus.metadata.schema import Owner
from torus.volume.attach import VolumeOptions, attach
from torus.volume.attachment import Attachment
from torus.volume.catalog_async import AsyncCatalog
from torus.volume.offer import Offer
from torus.volume.owner import same_process
from torus.volume.past import Past
from torus.volume.served_contexts import Context, ServedContexts
from torus.volume.served_snapshots import ServedSnapshots
from torus.volume.snapshot_export import SnapshotVolume
from torus.volume.snapshot_watch import SnapshotWatch
from torus.volume.standby import Standbys, StandbyVolume
from torus.volume.successor import successor
from torus.volume.volume import Volume
from torus.volume.volume_watch import VolumeWatch

log = get_logger("torus.volumes")
Drain = Callable[[Volume | StandbyVolume], Awaitable[object]]


class _Place:
    """One name: its attachment, its users, and the lock that serialises changes of both."""

    __slots__ = ("attachment", "held_until_ns", "lingering", "lock", "users")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.attachment: Attachment | None = None
        self.users = 0
        self.held_until_ns = 0
        self.lingering: asyncio.Task[None] | None = None


class AttachedVolumes:
    """Attaches volumes on demand and keeps them in step with the metadata."""

    def __init__(
        self,
        metadata: AsyncMetadata,
        catalog: AsyncCatalog,
        chunks: Chunks | ChunksOf,
        owner: Owner,
        clock: Clock,
        options: VolumeOptions,
        *,
        names: Sequence[str] | None = None,
        read_only: bool = False,
        linger_s: float | None = limits.DETACH_LINGER_S,
        standby: bool = False,
    ) -> None:
        """``chunks``: those of all volumes, or what returns those of one.

        With ``names``, no other volumes are offered; with ``standby`` those are not attached
        before a client's first request (`torus.volume.standby`).  ``linger_s``: how long a volume
        without clients stays attached, for those who come back at once; None: as long as this
        process runs, unless it is taken away."""
        self._catalog = catalog
        self._chunks_of = chunks_of(chunks)
        self._owner = owner
        self._clock = clock
        self._options = options
        self._offer = Offer(metadata, catalog, names)
        self._read_only = read_only
        self._linger_s = linger_s
        self._places: dict[str, _Place] = {}
        self.snapshots = ServedSnapshots(catalog, chunks, owner, clock, self._share_cache)
        self._contexts = ServedContexts(catalog, self.snapshots)
        waiting = [name for name in names or () if standby and "@" not in name]
        self.standbys = Standbys(waiting, self.close, read_only=read_only)
        self.past = Past()
        self._losing: set[asyncio.Task[None]] = set()
        self.on_lost: Callable[[Volume | StandbyVolume, TorusError], None] | None = None
        self.let_go: Callable[[str], Awaitable[object]] | None = None
        """Asks who has a volume to give it up, if nobody there uses it; may be set."""
        self._closing = False
        self._watch = VolumeWatch(metadata, self._attached)
        self._snapshot_watch = SnapshotWatch(metadata, catalog, self._attached)

    async def start(self) -> None:
        """Begin to watch the metadata.

        ``on_lost(volume, why)`` is called for each volume that this process can no longer serve
        but may be able to open anew: its clients should connect again.  A volume on a failed
        disk is not one of them: it can still be read.
        """
        await self._watch.start()
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

    async def open(self, name: str) -> Volume | StandbyVolume | SnapshotVolume:
        """Return the volume, attached, or the snapshot; every open needs its `close`.

        Raises: NotFound, Busy, Fenced, Corruption, Unavailable, DiskFailed, ShuttingDown.
        """
        self._offer.check(name)
        if "@" in name:
            return await self.snapshots.open(*split_snapshot(name))
        if name in self.standbys:
            size_bytes = (await self._catalog.get(name)).spec.size_bytes
            if name in self.standbys:
                return self.standbys.open(name, size_bytes)
        return await self._open_volume(name)

    async def _open_volume(self, name: str, *, force: bool = False) -> Volume:
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
                place.attachment = await self._attach(name, force=force)
                self.standbys.attached(name)
                self._share_cache()
            place.users += 1
            return place.attachment.volume

    async def close(self, export: object) -> None:
        """Give one open back; the last one lets the volume go after a while."""
        if isinstance(export, SnapshotVolume):
            await self.snapshots.close(export)
            return
        if isinstance(export, StandbyVolume) and (export := self.standbys.close(export)) is None:
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

    async def _attach(self, name: str, *, force: bool) -> Attachment:
        found = await self._catalog.get(name)
        owned = found.head.owner is not None and not same_process(found.head.owner, self._owner)
        if owned and not force and self.let_go is not None:
            await self.let_go(name)
            found = await self._catalog.get(name)
        # Our own earlier attachment, lost to an error, does not stand in its own way.
        takeover = force or same_process(found.head.owner, self._owner)
        owner = replace(self._owner, since_ns=self._clock.wall_ns())
        attachment = await attach(
            found, self._catalog, self._chunks_of(found.spec), owner, self._clock, self._options,
            takeover=takeover,
        )  # fmt: skip
        volume = attachment.volume
        volume.read_only = self._read_only
        volume.core.on_failure = lambda error: self._on_failure(volume, error)
        return attachment

    def _on_failure(self, volume: Volume, error: TorusError) -> None:
        # Later: whoever found the failure is in the middle of something.
        if isinstance(error, Fenced):
            task = asyncio.ensure_future(self._lose_to_another(volume, error))
            self._losing.add(task)
            task.add_done_callback(self._losing.discard)
        elif not isinstance(error, DiskFailed):
            asyncio.get_running_loop().call_soon(self._lose, volume, error)

    async def _lose_to_another(self, volume: Volume, why: Fenced) -> None:
        """Cut the clients off, and say who has the volume now."""
        self._lose(volume, why)
        number = volume.core.spec.volume
        owner = await successor(self._catalog, number, lambda: self._closing)
        log.warning("volume.taken_over", volume=volume.name, epoch=volume.core.epoch, owner=owner)

    def _lose(self, volume: Volume, why: TorusError) -> None:
        for export in self._exports_of(volume):
            if self.on_lost is not None:
                self.on_lost(export, why)

    def _exports_of(self, volume: Volume) -> list[Volume | StandbyVolume]:
        return [volume, *self.standbys.over(volume)]

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
            self._lose(place.attachment.volume, why)
            await self._detach(place)
            return True

    async def hand_over(self, name: str, drain: Drain, hold_s: float) -> bool:
        """Detach a volume for another process, and do not attach it anew for ``hold_s``.

        ``drain`` ends the connections of an export, with everything answered that is in flight.
        Tells whether it was attached.

        Raises: why it could not be given back in order; it may be attached anew at once then.
        """
        place = self._places.get(name)
        if place is None:
            return False
        async with place.lock:
            attachment = place.attachment
            if attachment is None:
                return False
            place.held_until_ns = self._clock.monotonic_ns() + int(hold_s * 1e9)
            for export in self._exports_of(attachment.volume):
                await drain(export)
            error = await self._detach(place) or attachment.volume.core.failure
            if error is not None:
                place.held_until_ns = 0
                raise error
            return True

    async def adopt(self, name: str, *, force: bool = False) -> Volume:
        """Attach a volume that moved here, and offer it from now on; needs its `close`.

        ``force``: whoever has it now.

        Raises: as `open`.
        """
        self.resume(name)
        volume = await self._open_volume(name, force=force)
        self._offer.add(name)
        return volume

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

    async def _detach(self, place: _Place) -> TorusError | None:
        """Detach what is attached; return what went wrong, which is logged, too."""
        attachment, place.attachment, place.users = place.attachment, None, 0
        if attachment is None:
            return None
        error = None
        try:
            await attachment.detach()
        except TorusError as exc:
            error = exc
            log.error("volume.detach.failed", volume=attachment.volume.name, error=str(exc))
        self.past.add(attachment.volume)
        self._share_cache()
        return error

    def _share_cache(self) -> None:
        """Give the maps of snapshots a quarter, when there are any, and volumes the rest."""
        whole = self._options.map_cache_bytes
        quarter = whole // 4 if self.snapshots.opened() else 0
        self.snapshots.use_cache(quarter)
        attachments = [p.attachment for p in self._places.values() if p.attachment is not None]
        for attachment in attachments:
            attachment.volume.core.cache_bytes = (whole - quarter) // len(attachments)

    # --- state and end ------------------------------------------------------------------

    def attachments(self) -> list[tuple[Attachment, int]]:
        """Return what is attached now, each with its number of users."""
        return [
            (place.attachment, place.users)
            for place in self._places.values()
            if place.attachment is not None
        ]

    def _attached(self) -> list[Attachment]:
        return [attachment for attachment, _ in self.attachments()]

    def problems(self) -> list[str]:
        """Return a sentence for each attached volume that is not well."""
        found = []
        for attachment, _ in self.attachments():
            core, queue = attachment.volume.core, attachment.volume.queue
            waiting = core.chunks.waiting or attachment.holder.waiting
            if core.failure is not None:
                found.append(f"volume {core.spec.name!r}: {core.failure.message}")
            elif waiting:
                found.append(f"volume {core.spec.name!r} waits: {waiting}")
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
        await self._watch.stop()
        await self._snapshot_watch.stop()
        await self.standbys.stop()
        tasks = [place.lingering for place in self._places.values() if place.lingering]
        for task in tasks:
            task.cancel()
        if tasks or self._losing:
            await asyncio.wait([*tasks, *self._losing])
        await self.snapshots.stop()
        for place in self._places.values():
            async with place.lock:
                await self._detach(place)
