"""One node's disk as a store of chunks: open, append, sync, read, delete.

Decides what an I/O error means (a failed write or sync takes the disk out at once), which
epoch may write, and when a slot may be used again.  Memory is O(slots); records are not known
here.  Implements docs/format.md, "Slots" and "Durability".
"""

import asyncio
import errno
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from torus.clock import Clock
from torus.errors import (
    Corruption,
    DiskFailed,
    LocalProtocolError,
    PoolFull,
    TorusError,
)
from torus.format.identity import DiskIdentity
from torus.format.segment import SlotHeader, parse_segment_name
from torus.ids import ChunkId, is_shard
from torus.log import get_logger
from torus.store.appender import Appender, Slot
from torus.store.cooling import Cooling
from torus.store.copies import Copies
from torus.store.damage import check_complete
from torus.store.deleting import Deleting, make_available
from torus.store.disk import Bytes, Disk, write_parts
from torus.store.fences import Fences
from torus.store.groupcommit import GroupCommit
from torus.store.growing import Growing
from torus.store.opening import Opening
from torus.store.pool import Pool
from torus.store.shelves import Cell, Shelves
from torus.store.space import Space, Usage
from torus.store.table import SlotTable
from torus.store.trash import Trash

log = get_logger("torus.store")
Result = TypeVar("Result")


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
        trash_grace_s: float = 0.0,
    ) -> None:
        """``boot_id`` names this opening of the disk: a writer that sees another one knows
        that unflushed data may be gone.  A slot that stays free for ``punch_delay_s`` is given
        back to the file system; None: never.  A deleted chunk is kept for ``trash_grace_s``;
        with 0 its slot is free when `delete` returns."""
        self.disk = disk
        self.identity = identity
        self.boot_id = boot_id
        self.geometry = identity.geometry
        self.fences = Fences(disk)
        self.failure: DiskFailed | None = None
        self._pool = pool
        self._space = Space(size_bytes // self.geometry.slot_bytes, self.geometry.slot_bytes)
        self._cooling = Cooling(self._space, disk, pool, clock, punch_delay_s, self._punch_failed)
        self._growing = Growing(self._space, disk, identity, pool, self.translate)
        self.slots = SlotTable()  # for `torus.store` alone
        self._disk_id = bytes.fromhex(identity.disk_id)
        self.commits = GroupCommit(self._start_sync, self._sync_ended, clock)
        self._trash = Trash(
            self._space, disk, pool, self.commits, clock, trash_grace_s, self._freed, self.translate
        )
        self.damaged: list[str] = []
        self._unreadable: set[ChunkId] = set()  # they may lie in damaged slots
        self.blind = False  # anything may have: "not here" is not certain
        self.space_freed = asyncio.Event()
        self.shelves = Shelves(self)
        self._deleting = Deleting(self, self._trash)
        self.copies = Copies(self)

    # --- opening ------------------------------------------------------------------------

    def open(self) -> None:
        """Read the fences, every segment's header and every slot's header.

        Damaged slots are quarantined, listed in ``damaged`` and never taken for free.

        Raises: Corruption, ForeignData, UnknownVersion, OSError.
        """
        self.fences.load()
        opening = Opening(self.disk, self.identity, self._space, self.slots)
        for name in self.disk.names():
            segment = parse_segment_name(name)
            if segment is not None:
                opening.segment(segment, name)
                self._growing.found(segment)
        self.shelves.found(opening.finish())
        self.damaged, self._unreadable = opening.damaged, opening.unreadable
        self.blind = opening.blind
        check_complete(self._growing.segments, self.identity.disk_id)

    # --- appending ----------------------------------------------------------------------

    def appender(self, chunk: ChunkId) -> Appender:
        """Return the door through which records get into ``chunk``."""
        return Appender(self, chunk)

    def create(self, chunk: ChunkId, *, from_reserve: bool) -> Slot:
        """Give ``chunk`` a slot; its header is written with its first record.

        Raises: PoolFull (see `make_room`), DiskFailed, LocalProtocolError for one that was
            deleted and whose header may still be there, and for a shard.
        """
        self.check_disk()
        if is_shard(chunk):
            raise LocalProtocolError(f"shard {chunk} is installed, not appended to")
        if chunk in self._trash:
            raise LocalProtocolError(f"chunk {chunk} was deleted; its id is never used again")
        slot = self.take(chunk, from_reserve=from_reserve)
        slot.end = 0
        self.slots.add(slot)
        self._trash.relieve()
        return slot

    def take(self, chunk: ChunkId, *, from_reserve: bool, copy: int = 0) -> Slot:
        """Take a slot for ``chunk`` that nobody is told of yet.

        Raises: PoolFull, DiskFailed.
        """
        while (taken := self._space.take(from_reserve=from_reserve)) is None:
            self._growing.now()
        address, warm = taken
        slot = Slot(chunk, address, self.geometry.segment_of(address), copy)
        slot.prepared = warm
        try:
            if not warm:
                self.disk.allocate(address, self.geometry.slot_bytes)
        except OSError as exc:
            self._space.release(address)
            raise self.translate(exc, "allocate a slot") from exc
        self._growing.ahead()
        return slot

    async def take_waiting(self, chunk: ChunkId, copy: int = 0) -> Slot:
        """Do what `take` does, and empty the trash where that takes it.

        Raises: PoolFull, DiskFailed.
        """
        while True:
            try:
                return self.take(chunk, from_reserve=False, copy=copy)
            except PoolFull:
                if not await self.make_room():
                    raise

    def grow_ahead(self) -> None:
        """Begin to make a segment when few free slots are left, so that nobody waits for it."""
        self._growing.ahead()

    @property
    def has_trash(self) -> bool:
        """True when a `create` that found no slot may find one after `make_room`."""
        return self._trash.holds_any

    async def make_room(self) -> bool:
        """Empty some of the trash for a `create` that raised PoolFull; False: nothing to be had."""
        return await self._trash.make_room()

    def slot_header(self, slot: Slot) -> bytes:
        """Return the header that says which chunk lies in ``slot``, or which shard in a cell."""
        if isinstance(slot, Cell):
            return slot.header(self._disk_id, self.geometry)
        number = self.geometry.slot_of(slot.address)
        return SlotHeader(self._disk_id, slot.segment, number, slot.chunk, slot.copy).pack()

    def find(self, chunk: ChunkId) -> Slot | None:
        """Return the slot of ``chunk``; None when this disk never had it or deleted it.

        Raises: DiskFailed: a failed disk cannot say "not here"; Corruption when it may lie in
            a slot that is damaged.
        """
        slot = self.slots.get(chunk)
        if slot is None:
            self.check_disk()
            if chunk in self._unreadable:
                raise Corruption(f"chunk {chunk} lies in a damaged slot", hint="run 'torus check'")
        return slot

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
            slot = self.slots.get(chunk)
            if slot is None:
                raise Corruption(f"chunk {ChunkId(*chunk)} is not on disk {self.identity.disk_id}")
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

    async def write_soon(self, slot: Slot, parts: Sequence[tuple[int, Bytes]]) -> None:
        """Write each (offset, bytes) into a slot that nobody else uses; in the page cache then.

        Raises: PoolFull, DiskFailed.
        """
        try:
            await self.in_pool(write_parts, self.disk, slot.address, parts)
        except OSError as exc:
            raise self.translate(exc, "write a copy") from exc

    async def write_durably(self, slot: Slot, parts: Sequence[tuple[int, Bytes]]) -> None:
        """Do what `write_soon` does, and wait until it is on the disk.

        Raises: PoolFull, DiskFailed.
        """
        await self.write_soon(slot, parts)
        await self.sync_segments({slot.segment})

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
        slot.stale = False

    def _sync_ended(self, exc: OSError | None) -> TorusError | None:
        """A success behind a failure means nothing: the kernel forgets what it did not write."""
        return self.failure if exc is None else self._fail(exc, "sync")

    def _start_sync(self, segment: int) -> asyncio.Future[None]:
        future = self.disk.sync_soon(segment)
        return self._pool.submit(self.disk.sync, segment) if future is None else future

    def in_pool(self, call: Callable[..., Result], *arguments: object) -> asyncio.Future[Result]:
        """Start a call that blocks; the future gets its OSError as it is."""
        return self._pool.submit(call, *arguments)

    # --- reading ------------------------------------------------------------------------

    async def read(self, reads: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return the bytes of each (disk address, size), through the pool.

        Raises: Corruption when the disk cannot read them.
        """
        try:
            return await self._pool.submit(self.disk.read_many, tuple(reads))
        except OSError as exc:
            raise Corruption(f"disk {self.identity.disk_id} cannot read: {exc}") from exc

    # --- deleting -----------------------------------------------------------------------

    async def delete(self, volume: int, epoch: int, chunks: Iterable[ChunkId]) -> int:
        """Delete ``chunks``, whole copies and shards; those not here are passed over.  They are
        gone at once; without a grace period their slots are free on return, else they are in the
        trash.  The id of a shard stands for that shard alone.

        A slot that is free has a durable header that says so: a chunk that was deleted can not
        come back under a slot in use.  Returns: chunks deleted.

        Raises: Fenced, DiskFailed; PoolFull when nothing could be written: try again.
        """
        return await self._deleting.delete(volume, epoch, chunks)

    async def discard(self, parts: Iterable[ChunkId]) -> int:
        """Do what `delete` does, for whoever may: the parts here are not wanted any more.

        Each id stands for itself: a chunk's shards stay when its whole copy goes.

        Returns: how many were here.
        Raises: DiskFailed, PoolFull.
        """
        return await self._deleting.discard(parts)

    async def give_back(self, slot: Slot) -> bool:
        """Free a slot that is not, or not any more, the one of its chunk; what fails is logged,
        and the slot is judged when the disk is opened again.  Returns: whether it is free."""
        return await self._deleting.give_back(slot)

    def in_trash(self, chunk: ChunkId) -> bool:
        """True while a deleted chunk's header may still be on the disk."""
        return chunk in self._trash

    async def restore(self, chunk: ChunkId) -> None:
        """Take a deleted chunk back from the trash; durable on return.

        Raises: NotFound when it is not there, or not any more; DiskFailed.
        """
        await self._deleting.restore(chunk)

    @property
    def trash(self) -> list[ChunkId]:
        """Return the deleted chunks that can be taken back, oldest first."""
        return self._trash.chunks

    def expire_trash(self) -> None:
        """Begin to free what was in the trash long enough; it also happens by itself."""
        self._trash.expire()

    async def _freed(self, slots: Sequence[Slot]) -> None:
        await make_available(slots, self._cooling, self.shelves)
        self.space_freed.set()

    def chunks_of(self, volume: int) -> list[ChunkId]:
        """Return the chunks of a volume that are here: ids of whole copies and of shards."""
        return self.slots.of(volume)

    def chunks(self) -> list[ChunkId]:
        """Return all chunks that are here: ids of whole copies and of shards."""
        return list(self.slots)

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
        await self.copies.close()
        await self._growing.close()
        await self._trash.close()
        await self._cooling.close(punch=self.failure is None)
        self.disk.close()
