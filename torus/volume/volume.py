"""An attached volume: what the NBD gateway calls an export.

Decides which requests take the fast path: those that need no waiting go through compiled code
in the caller's turn of the event loop; everything else becomes a coroutine over the read path
or the write queue.
"""

import asyncio
from collections.abc import Sequence

from torus import limits
from torus._fast.frame import RequestBatch
from torus._fast.record import KIND_DATA, RecordBuilder
from torus._fast.reply import ReplyBuilder
from torus.errors import TorusError
from torus.volume.checkpoint import Checkpointer
from torus.volume.collector import Collector
from torus.volume.core import Core
from torus.volume.earlyflush import EarlyFlush
from torus.volume.items import Item
from torus.volume.reads import Reads
from torus.volume.reseal import Resealer
from torus.volume.writes import WriteQueue

BLOCK = limits.BLOCK_BYTES


class Volume:
    """One volume attached for writing; made by `torus.volume.attach.attach`."""

    def __init__(
        self,
        core: Core,
        reads: Reads,
        queue: WriteQueue,
        checkpointer: Checkpointer,
        early_flush: EarlyFlush,
        collector: Collector,
        resealer: Resealer,
    ) -> None:
        self.core = core
        self.queue = queue
        self.checkpointer = checkpointer
        self.early_flush = early_flush
        self.collector = collector
        self.resealer = resealer
        self.read_only = False
        self.description = ""
        self.reads = reads
        self._path = core.path
        self._record = RecordBuilder(limits.RECORD_PAYLOAD_BYTES_MAX, limits.RECORD_EXTENTS_MAX)

    @property
    def name(self) -> str:
        """The volume's name."""
        return self.core.spec.name

    @property
    def size_bytes(self) -> int:
        """The present size."""
        return self.core.spec.size_bytes

    # --- the fast path ------------------------------------------------------------------

    def read_now(
        self, requests: RequestBatch, first: int, stop: int, replies: ReplyBuilder
    ) -> Sequence[int]:
        """Answer READs that need no waiting; return the indexes of the others."""
        if self._path is None or self.core.failure is not None:
            return range(first, stop)
        return self._path.read_now(requests, first, stop, replies)

    def write_now(self, requests: RequestBatch, first: int, stop: int) -> int:
        """Append WRITEs that need no waiting; return the first that was not taken.

        What fails here fails again, and is told, on the slow path.
        """
        core = self.core
        if self._path is None or core.failure is not None or not self.queue.idle:
            return first
        index, skip = first, 0
        try:
            while index < stop:
                full = core.journal.room == 0 or core.journal.reserved
                if full and not core.journal.next_chunk_now(from_reserve=False):
                    break
                if not core.journal.immediate:
                    break
                reached, skip = self._append_some(requests, index, stop, skip)
                if reached == index and self._record.size == 0:
                    break
                index = reached
        except TorusError:
            return index
        finally:
            self._record.clear()
            self.early_flush.consider()
            self.checkpointer.consider()
            self.collector.consider()
        return index

    def _append_some(
        self, requests: RequestBatch, index: int, stop: int, skip: int
    ) -> tuple[int, int]:
        """Append one record of what fits; a size of 0 afterwards means that nothing did."""
        core, record = self.core, self._record
        assert self._path is not None
        record.clear()
        room = core.journal.room
        index, skip = self._path.take_writes(requests, index, stop, skip, record, room)
        if record.empty:
            return index, skip
        appended = core.journal.append_now(record, KIND_DATA)
        assert appended, "an immediate log appends without waiting"
        core.enter(record)
        core.client_bytes += record.payload_size
        return index, skip

    # --- the slow path ------------------------------------------------------------------

    async def read(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes."""
        return await self.reads.read(offset, length)

    async def read_sparse(self, offset: int, length: int) -> Sequence[tuple[int, bytes | None]]:
        """Return the range as adjacent pieces of (bytes, data or None for zeroes)."""
        return await self.reads.sparse(offset, length)

    async def write(self, offset: int, payload: bytes, *, durable: bool) -> None:
        """Write; with ``durable`` on disk on return."""
        await self._put(Item(KIND_DATA, offset, len(payload), payload), durable=durable)
        self.core.client_bytes += len(payload)

    def read_soon(self, offset: int, length: int) -> asyncio.Future[bytes | None] | None:
        """Return the future of a read of other processes; None: `read`, so does its result."""
        if self.core.failure is not None or offset % BLOCK or length % BLOCK:
            return None
        return self.reads.soon(offset // BLOCK, length // BLOCK)

    def write_soon(self, offset: int, payload: bytes) -> asyncio.Future[None] | None:
        """Return the future of a write; None: `write`."""
        if self.core.failure is not None or not self.queue.open:
            return None
        self.core.client_bytes += len(payload)
        return self.queue.put_soon(Item(KIND_DATA, offset, len(payload), payload))

    async def flush(self) -> None:
        """Return when every write answered before the call is on disk."""
        self.core.check()
        try:
            await self.core.journal.sync()
        except TorusError as exc:
            self.core.fail(exc)
            raise

    def flush_soon(self) -> asyncio.Future[None]:
        """Return the future of `flush`; it is done already when there is nothing to flush."""
        try:
            self.core.check()
            future = self.core.journal.sync_soon()
        except TorusError as exc:
            future = asyncio.get_running_loop().create_future()
            future.set_exception(exc)
        if future is None:
            return asyncio.ensure_future(self.flush())
        future.add_done_callback(self._flushed)
        return future

    def _flushed(self, future: asyncio.Future[None]) -> None:
        if not future.cancelled() and isinstance(error := future.exception(), TorusError):
            self.core.fail(error)

    async def trim(self, offset: int, length: int, *, durable: bool) -> None:
        """Unmap a range; it reads as zeroes afterwards."""
        await self._put(Item(KIND_DATA, offset, length, None), durable=durable)

    async def write_zeroes(
        self, offset: int, length: int, *, durable: bool, allocate: bool
    ) -> None:
        """Make a range read as zeroes; with ``allocate`` by writing them."""
        item = Item(KIND_DATA, offset, length, None, allocate=allocate)
        await self._put(item, durable=durable)
        self.core.client_bytes += length if allocate else 0

    async def cache(self, offset: int, length: int) -> None:
        """Read a range into the page cache."""
        await self.reads.cache(offset, length)

    async def block_status(self, offset: int, length: int, limit: int) -> Sequence[tuple[int, int]]:
        """Return (bytes, base:allocation flags) extents."""
        return await self.reads.status(offset, length, limit)

    async def _put(self, item: Item, *, durable: bool) -> None:
        await self.queue.put(item)
        if durable:
            await self.flush()
