"""One node's disk as a store of chunks: open, append, sync, read, delete.

Decides what an I/O error means (a failed write or sync takes the disk out at once), which
epoch may write, and when a slot may be used again.  Memory is O(slots); records are not known
here.  Implements docs/format.md, "Slots" and "Durability".
"""

import asyncio
import errno
import threading
from collections.abc import Iterable, Sequence

from torus import limits
from torus.clock import Clock
from torus.errors import (
    Corruption,
    DiskFailed,
    LocalProtocolError,
    PoolFull,
    TorusError,
)
from torus.format.identity import DiskIdentity
from torus.format.segment import FREE_SLOT, SegmentHeader, SlotHeader, parse_segment_name
from torus.ids import ChunkId
from torus.log import get_logger
from torus.store.appender import Appender, Slot
from torus.store.cooling import Cooling
from torus.store.damage import check_complete, chunks_in
from torus.store.disk import Disk
from torus.store.fences import Fences
from torus.store.groupcommit import GroupCommit
from torus.store.pool import Pool
from torus.store.space import Space, Usage

log = get_logger("torus.store")


class Store:
    """The chunks of one disk.  Used from one event loop; blocking work goes to ``pool``."""

    def __init__(
        self,
        disk: Disk,
        identity: DiskIdentity,
        pool: Pool,
        clock: Clock,
        boot_id: int,
        *,
        size_bytes: int,
        punch_delay_s: float | None = 0.0,
    ) -> None:
        """``boot_id`` names this opening of the disk: a writer that sees another one knows
        that unflushed data may be gone.  A slot that stays free for ``punch_delay_s`` is given
        back to the file system; None: never."""
        self.disk = disk
        self.identity = identity
        self.boot_id = boot_id
        self.geometry = identity.geometry
        self.fences = Fences(disk)
        self.failure: DiskFailed | None = None
        self._pool = pool
        self._space = Space(size_bytes // self.geometry.slot_bytes, self.geometry.slot_bytes)
        self._cooling = Cooling(self._space, disk, pool, clock, punch_delay_s, self._punch_failed)
        self._slots: dict[ChunkId, Slot] = {}
        self._segments: set[int] = set()
        self._growing: asyncio.Future[int] | None = None
        self._making = threading.Lock()
        self._newest_slots = 0
        self._newest = -1  # segment whose file exists
        self._disk_id = bytes.fromhex(identity.disk_id)
        self._cluster_id = bytes.fromhex(identity.cluster_id)
        self.commits = GroupCommit(self._start_sync, self._sync_ended, clock)
        self.damaged: list[str] = []
        self._unreadable: set[ChunkId] = set()  # they may lie in damaged slots
        self.space_freed = asyncio.Event()

    # --- opening ------------------------------------------------------------------------

    def open(self) -> None:
        """Read the fences, every segment's header and every slot's header.

        Damaged slots are quarantined, listed in ``damaged`` and never taken for free.

        Raises: Corruption, ForeignData, UnknownVersion, OSError.
        """
        self.fences.load()
        for name in self.disk.names():
            segment = parse_segment_name(name)
            if segment is not None:
                self._open_segment(segment, name)
        check_complete(self._segments, self.identity.disk_id)

    def _open_segment(self, segment: int, name: str) -> None:
        size = self.disk.open_segment(segment)
        header = SegmentHeader.unpack(self.disk.read_header(segment), name)
        header.check_place(
            self._disk_id, self._cluster_id, segment, self.geometry.slot_bytes, size, name
        )
        self._segments.add(segment)
        self._newest = max(self._newest, segment)
        for number in range(header.slot_count):
            address = self.geometry.address(segment, number)
            where = f"{name} slot {number}"
            try:
                slot = SlotHeader.unpack(self.disk.read(address, limits.SLOT_HEADER_BYTES), where)
                if slot is None:
                    self._space.add_free(address)
                    continue
                slot.check_place(self._disk_id, segment, number, where)
                if slot.chunk in self._slots:
                    raise Corruption(f"{where}: chunk {slot.chunk} lies in two slots")
            except Corruption as exc:
                self.damaged.append(exc.message)
                self._space.quarantine()
                self._unreadable |= chunks_in(self.disk.read(address, header.slot_bytes))
                log.error("store.slot.damaged", slot=where, reason=exc.message)
                continue
            self._space.add_used()
            self._slots[slot.chunk] = Slot(slot.chunk, address, segment)

    # --- appending ----------------------------------------------------------------------

    def appender(self, chunk: ChunkId) -> Appender:
        """Return the door through which records get into ``chunk``."""
        return Appender(self, chunk)

    def create(self, chunk: ChunkId, *, from_reserve: bool) -> Slot:
        """Give ``chunk`` a slot; its header is written with its first record.

        Raises: PoolFull, DiskFailed.
        """
        self.check_disk()
        while (taken := self._space.take(from_reserve=from_reserve)) is None:
            self._grow_now()
        address, warm = taken
        slot = Slot(chunk, address, self.geometry.segment_of(address))
        slot.end = 0
        slot.prepared = warm
        try:
            if not warm:
                self.disk.allocate(address, self.geometry.slot_bytes)
        except OSError as exc:
            self._space.release(address)
            raise self.translate(exc, "allocate a slot") from exc
        self._slots[chunk] = slot
        self._grow_ahead()
        return slot

    def slot_header(self, slot: Slot) -> bytes:
        """Return the header that says which chunk lies in ``slot``."""
        number = self.geometry.slot_of(slot.address)
        return SlotHeader(self._disk_id, slot.segment, number, slot.chunk).pack()

    def find(self, chunk: ChunkId) -> Slot | None:
        """Return the slot of ``chunk``; None when this disk never had it or deleted it.

        Raises: DiskFailed: a failed disk cannot say "not here"; Corruption when it may lie in
            a slot that is damaged.
        """
        slot = self._slots.get(chunk)
        if slot is None:
            self.check_disk()
            if chunk in self._unreadable:
                raise Corruption(f"chunk {chunk} lies in a damaged slot", hint="run 'torus check'")
        return slot

    # --- growing ------------------------------------------------------------------------

    def _next_segment(self) -> tuple[int, int] | None:
        missing = self._space.limit - self._space.known
        if missing <= 0:
            return None
        segment = max(self._segments, default=-1) + 1
        return segment, min(missing, self.geometry.segment_slots)

    def _make_segment(self, segment: int, slots: int) -> int:
        """Make a segment's file, once: the pool and a caller in need may both ask for it.

        Where the file system has no space for ``slots`` it gets fewer.  Returns: how many.
        """
        slot_bytes = self.geometry.slot_bytes
        with self._making:
            while segment > self._newest:
                header = SegmentHeader(self._disk_id, self._cluster_id, segment, slot_bytes, slots)
                try:
                    self.disk.make_segment(segment, header.pack(), slots * slot_bytes)
                    self._newest, self._newest_slots = segment, slots
                except OSError as exc:
                    if exc.errno not in (errno.ENOSPC, errno.EDQUOT) or slots == 1:
                        raise
                    slots //= 2
            return self._newest_slots

    def _add_segment(self, segment: int, slots: int) -> None:
        self._segments.add(segment)
        for number in range(slots):
            self._space.add_free(self.geometry.address(segment, number))
        log.info("store.segment.made", segment=segment, slots=slots)

    def _grow_now(self) -> None:
        """Make the next segment while the caller waits: the pool had no time to do it ahead."""
        place = self._next_segment()
        if place is None:
            raise PoolFull(f"all {self._space.limit} slots are in use or quarantined")
        try:
            slots = self._make_segment(*place)
        except OSError as exc:
            raise self.translate(exc, f"preallocate segment {place[0]}") from exc
        self._add_segment(place[0], slots)

    def _grow_ahead(self) -> None:
        """Start making the next segment in the pool when few free slots are left."""
        if self._space.ready >= limits.SPARE_SLOTS_MIN or self._growing is not None:
            return
        place = self._next_segment()
        if place is None:
            return
        self._growing = self._pool.submit(self._make_segment, *place)

        def done(future: asyncio.Future[int]) -> None:
            self._growing = None
            error = future.exception()
            if error is None:
                if place[0] not in self._segments:
                    self._add_segment(place[0], future.result())
            elif isinstance(error, OSError):
                log.warning("store.segment.not_made", segment=place[0], error=str(error))
            else:
                raise error

        self._growing.add_done_callback(done)

    # --- durability ---------------------------------------------------------------------

    async def sync(self, chunks: Iterable[ChunkId]) -> None:
        """Make everything appended so far to ``chunks`` durable.

        Raises: DiskFailed; Corruption when a chunk is not here.
        """
        await self.sync_segments(self._due(chunks))

    def sync_soon(self, chunks: Iterable[ChunkId]) -> asyncio.Future[None] | None:
        """Return the future of `sync`, without a coroutine for it; None when it takes one.

        Raises: as `sync`; so does the future.
        """
        segments = self._due(chunks)
        return self.commits.request(segments.pop()) if len(segments) == 1 else None

    def _due(self, chunks: Iterable[ChunkId]) -> set[int]:
        """Return the segments that a sync of ``chunks`` has to cover."""
        self.check_disk()
        segments = set()
        for chunk in chunks:
            slot = self._slots.get(chunk)
            if slot is None:
                raise Corruption(f"chunk {chunk} is not on disk {self.identity.disk_id}")
            if slot.flushed and not slot.prepared and slot.end is not None:
                self._prepare(slot)
            slot.flushed = True
            segments.add(slot.segment)
        return segments

    async def sync_segments(self, segments: Iterable[int]) -> None:
        """Make everything written so far to ``segments`` durable.

        Raises: DiskFailed.
        """
        waits = [self.commits.request(segment) for segment in segments]
        if len(waits) == 1:
            await waits[0]
        elif waits:
            await asyncio.gather(*waits)
        self.check_disk()

    def _prepare(self, slot: Slot) -> None:
        """Write zeroes over the rest of a slot, once, before its second flush.

        Then later flushes in this slot change no file-system metadata: the extents are
        written already.  A slot that fills with at most one flush never pays for it.
        """
        assert slot.end is not None
        slot.prepared = True
        rest = self.geometry.slot_bytes - slot.end
        if rest > 0:
            try:
                self.disk.write(slot.address + slot.end, bytes(rest))
            except OSError as exc:
                raise self.translate(exc, "prepare a slot") from exc

    def _sync_ended(self, exc: OSError | None) -> TorusError | None:
        """A success behind a failure means nothing: the kernel forgets what it did not write."""
        return self.failure if exc is None else self._fail(exc, "sync")

    def _start_sync(self, segment: int) -> asyncio.Future[None]:
        future = self.disk.sync_soon(segment)
        return self._pool.submit(self.disk.sync, segment) if future is None else future

    # --- reading ------------------------------------------------------------------------

    async def read(self, reads: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return the bytes of each (disk address, size), through the pool.

        Raises: Corruption when the disk cannot read them.
        """
        try:
            return await self._pool.submit(self._read_all, tuple(reads))
        except OSError as exc:
            raise Corruption(f"disk {self.identity.disk_id} cannot read: {exc}") from exc

    def _read_all(self, reads: Sequence[tuple[int, int]]) -> list[bytes]:
        return [self.disk.read(address, size) for address, size in reads]

    # --- deleting -----------------------------------------------------------------------

    async def delete(self, volume: int, epoch: int, chunks: Iterable[ChunkId]) -> int:
        """Free the slots of ``chunks``; those not here are passed over.

        Order: header zeroed, synced, then punched, then free: a chunk that was deleted can
        not come back under a slot in use.  Returns: slots freed.

        Raises: Fenced, DiskFailed.
        """
        self.check_disk()
        self.fences.check(volume, epoch)
        slots = []
        for chunk in chunks:
            if chunk.volume != volume:
                raise LocalProtocolError(f"chunk {chunk} is not of volume {volume}")
            slot = self._slots.pop(chunk, None)
            if slot is not None:
                slots.append(slot)
        try:
            await self._pool.submit(self._wipe_headers, slots)
            await self.sync_segments({slot.segment for slot in slots})
        except (OSError, PoolFull) as exc:
            # Deleting may be tried again, also where a header is wiped already.
            self._slots.update((slot.chunk, slot) for slot in slots)
            if isinstance(exc, PoolFull):
                raise
            raise self.translate(exc, "delete chunks") from exc
        if slots:
            self._cooling.add([slot.address for slot in slots])
            self.space_freed.set()
        return len(slots)

    def _wipe_headers(self, slots: Sequence[Slot]) -> None:
        for slot in slots:
            self.disk.write(slot.address, FREE_SLOT)

    def chunks_of(self, volume: int) -> list[ChunkId]:
        """Return the chunks of a volume that are here."""
        return [chunk for chunk in self._slots if chunk.volume == volume]

    def chunks(self) -> list[ChunkId]:
        """Return all chunks that are here."""
        return list(self._slots)

    # --- state --------------------------------------------------------------------------

    @property
    def usage(self) -> Usage:
        """Return the counts of slots."""
        return self._space.usage

    def check_disk(self) -> None:
        """Refuse work on a failed disk.

        Raises: DiskFailed.
        """
        if self.failure is not None:
            raise self.failure

    def translate(self, exc: OSError, doing: str) -> TorusError:
        """Return what an OSError of a write means; anything but "no space" fails the disk."""
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            return PoolFull(
                f"the file system under disk {self.identity.disk_id} has no space to {doing}",
                hint="free space on the host, or start the node with a smaller --size",
            )
        return self._fail(exc, doing)

    def _fail(self, exc: OSError, doing: str) -> DiskFailed:
        if self.failure is None:
            self.failure = DiskFailed(
                f"disk {self.identity.disk_id} failed to {doing}: {exc}; it takes no more data",
                hint="replace the disk; see docs/operations.md, 'A disk fails'",
            )
            log.error("store.disk.failed", disk=self.identity.disk_id, doing=doing, error=str(exc))
        return self.failure

    def _punch_failed(self, exc: OSError) -> None:
        self.translate(exc, "punch a slot")

    async def close(self) -> None:
        """Wait for what is under way and close the disk; idempotent."""
        if self._growing is not None:
            await asyncio.wait([self._growing])
        await self._cooling.close(punch=self.failure is None)
        self.disk.close()
