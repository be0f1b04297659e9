"""The append side of a volume's log: where the next record goes.

Decides chunk, index, offset and lsn of each record, and what a flush must make durable.  One
record at a time: the caller finishes one append before it starts the next.  Knows nothing of
the map.  Where the log has copies that can be lost, nothing is answered between a loss and the
`seal` of the span (torus.volume.reseal).  Implements docs/format.md, "The log".
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from torus import limits
from torus._fast.record import KIND_HEAD, RecordBuilder
from torus.cluster.answers import ready
from torus.cluster.chunks import Chunks, ChunkWriter
from torus.cluster.replicated_writes import CopiesLost
from torus.errors import PoolFull
from torus.format.root import RootPayload
from torus.ids import ChunkId

# Below this much room a chunk counts as full: a header and one block.
_ROOM_MIN = limits.RECORD_ALIGN_BYTES + limits.BLOCK_BYTES


@dataclass(frozen=True, slots=True)
class Position:
    """A place between two records of a log."""

    sequence: int
    offset: int
    index: int
    lsn: int  # of the record before it


class Log:
    """The open end of one volume's log under one epoch."""

    def __init__(self, chunks: Chunks, volume: int, epoch: int, start: Position) -> None:
        """``start.sequence`` is the last chunk of earlier epochs: the first of this one
        follows it."""
        self._chunks = chunks
        self._volume = volume
        self._epoch = epoch
        self._tag = 0
        self._writer: ChunkWriter | None = None
        self._chunk = ChunkId(volume, epoch, 0, start.sequence)
        self._offset = chunks.chunk_bytes
        self._index = 0
        self._salt = 0
        self._previous_end = 0  # of the chunk before, behind its last record
        self._dirty: dict[ChunkId, int] = {}
        # Who holds it changes the log's end: an append, or a seal.
        self.turn = asyncio.Lock()
        # Closes the span after a loss, called in turn; None: nothing can be lost.
        self.seal: Callable[[], Awaitable[None]] | None = None
        self.first_sequence = start.sequence + 1
        self.lsn = start.lsn
        self.committed = start.lsn
        # Makes the payload of the span's first record; set by the owner.
        self.head_payload: Callable[[], bytes] | None = None
        self.placed = (0, 0)  # sequence and offset of the last record
        self.on_chunk: Callable[[int], None] = lambda _sequence: None  # called for each new one
        self.reserved = False  # the open chunk is one of the reserve: not for new data
        self.records = 0
        self.appended_bytes = 0
        self.sync_begun_bytes = 0  # of appended_bytes, what the newest sync covers

    @property
    def position(self) -> Position:
        """Return where the next record goes; in a new chunk when none is open."""
        if self._writer is None:
            offset, index = limits.SLOT_HEADER_BYTES, 0
            return Position(self._chunk.sequence + 1, offset, index, self.lsn)
        return Position(self._chunk.sequence, self._offset, self._index, self.lsn)

    @property
    def closing(self) -> tuple[int | None, int | None]:
        """Return the span's newest chunk that has a record, and the offset behind its last one;
        (None, None) before the first record."""
        if self._index:
            return self._chunk.sequence, self._offset
        previous = self._chunk.sequence - (self._writer is not None)
        if previous < self.first_sequence:
            return None, None
        return previous, self._previous_end

    @property
    def unused_chunk(self) -> ChunkId | None:
        """Return the chunk that was opened and got no record: its first one found no space."""
        return self._chunk if self._writer is not None and not self._index else None

    @property
    def room(self) -> int:
        """Return the bytes left in the open chunk; 0 when the next one must be opened."""
        if self.head_payload is not None:
            return 0  # nothing goes before the head record
        left = self._chunks.chunk_bytes - self._offset
        return left if left >= _ROOM_MIN else 0

    @property
    def chunk(self) -> ChunkId:
        """Return the newest chunk."""
        return self._chunk

    @property
    def immediate(self) -> bool:
        """Tell whether `append_now` appends: the open chunk takes no waiting, nobody is at it."""
        writer = self._writer
        return writer is not None and writer.immediate and not self.turn.locked()

    def next_chunk_now(self, *, from_reserve: bool) -> bool:
        """Open the next chunk without waiting; False when that takes waiting.

        Raises: Fenced, PoolFull, DiskFailed.
        """
        if self.turn.locked():
            return False
        if not self._use_again(reserved=from_reserve):
            chunk = self._chunk._replace(sequence=self._chunk.sequence + 1)
            writer = self._chunks.open_now(chunk, from_reserve=from_reserve)
            if writer is None:
                return False
            self._use(chunk, writer, reserved=from_reserve)
        if self.head_payload is not None:
            if not self.immediate:
                return False
            self.append_now(self._head_record(), KIND_HEAD)
            self.head_payload = None
        return True

    async def next_chunk(self, *, from_reserve: bool) -> None:
        """Open the next chunk.

        Raises: Fenced, PoolFull, DiskFailed, Unavailable.
        """
        async with self.turn:
            await self._next_chunk(from_reserve=from_reserve)

    async def _next_chunk(self, *, from_reserve: bool) -> None:
        while True:
            try:
                await self._open_next(from_reserve=from_reserve)
            except CopiesLost:
                if self.seal is None:
                    raise
                await self.seal()
                continue
            if self.head_payload is None:
                return
            record, self.head_payload = self._head_record(), None
            self._finish(record, KIND_HEAD)
            await self._append(record)
            if self._writer is not None:
                return
            # The head record was the last of its span: the new one has its own.

    async def _open_next(self, *, from_reserve: bool) -> None:
        if not self._use_again(reserved=from_reserve):
            chunk = self._chunk._replace(sequence=self._chunk.sequence + 1)
            writer = await self._chunks.open(chunk, from_reserve=from_reserve)
            self._use(chunk, writer, reserved=from_reserve)

    def append_now(self, record: RecordBuilder, kind: int) -> bool:
        """Append ``record`` without waiting, where the log is `immediate`; False when that takes
        waiting.

        Raises: Fenced, PoolFull, DiskFailed.
        """
        writer = self._writer
        assert writer is not None
        self._finish(record, kind)
        if not writer.append_now(self._index, self._offset, record):
            return False
        self._advance(record)
        return True

    async def append(self, record: RecordBuilder, kind: int) -> None:
        """Append ``record``; `placed` says where it is.

        Raises: Fenced, PoolFull, DiskFailed, Unavailable.
        """
        async with self.turn:
            # A seal may have closed the chunk that the record was made for.
            while self._writer is None or not self._finish(record, kind):
                try:
                    await self._next_chunk(from_reserve=False)
                except PoolFull:
                    await self._next_chunk(from_reserve=True)
            await self._append(record)

    async def _append(self, record: RecordBuilder) -> None:
        """Append a finished record to the open chunk; when a copy was lost on the way, seal
        before returning."""
        writer = self._writer
        assert writer is not None
        await writer.append(self._index, self._offset, record)
        self._advance(record)
        if self.seal is not None and self._chunks.lost:
            await self.seal()

    async def sync(self) -> None:
        """Make every record appended before the call durable.

        Raises: DiskFailed, Unavailable, Corruption, Fenced.
        """
        lsn, dirty = self._begin_sync()
        if dirty:
            await self._chunks.sync(dirty)
            if self.seal is not None and self._chunks.lost:
                async with self.turn:
                    if self._chunks.lost:
                        await self.seal()
            self._synced(lsn, dirty)

    async def secure(self) -> bool:
        """Make everything durable, in turn; tell whether another span is needed.

        Raises: Fenced, Unavailable.
        """
        lsn, dirty = self._begin_sync()
        if not self._chunks.lost:
            await self._chunks.sync(dirty)
        needed = await self._chunks.secure()
        if not needed:  # else it counts once the next span is published: `begin_span`
            self._synced(lsn, dirty)
        return needed

    def begin_span(self, tag: int, head_payload: Callable[[], bytes]) -> None:
        """Go on in a new span, with the next chunk, in turn; all before is durable and published.

        The first record will be a head record.
        """
        last, _ = self.closing
        sequence = self.first_sequence - 1 if last is None else last
        self._tag = tag
        self._chunk = ChunkId(self._volume, self._epoch, tag, sequence)
        self._writer, self.reserved = None, False
        self._offset, self._index = self._chunks.chunk_bytes, 0
        self._dirty.clear()
        self.committed = self.lsn
        self.first_sequence = sequence + 1
        self.head_payload = head_payload

    def sync_soon(self) -> asyncio.Future[None] | None:
        """Return the future of `sync` where that needs no coroutine, else None.

        Raises: as `sync`; so does the future.
        """
        lsn, dirty = self._begin_sync()
        if not dirty:
            return ready(None)
        future = self._chunks.sync_soon(dirty)
        if future is not None:
            future.add_done_callback(lambda ended: self._ended(ended, lsn, dirty))
        return future

    def _begin_sync(self) -> tuple[int, dict[ChunkId, int]]:
        self.sync_begun_bytes = self.appended_bytes
        return self.lsn, dict(self._dirty)

    def _ended(self, future: asyncio.Future[None], lsn: int, dirty: dict[ChunkId, int]) -> None:
        if not future.cancelled() and future.exception() is None:
            self._synced(lsn, dirty)

    def _synced(self, lsn: int, dirty: dict[ChunkId, int]) -> None:
        for chunk, last in dirty.items():
            if self._dirty.get(chunk) == last:
                del self._dirty[chunk]
        self.committed = max(self.committed, lsn)

    def _use(self, chunk: ChunkId, writer: ChunkWriter, *, reserved: bool) -> None:
        if self._index:
            self._previous_end = self._offset
        self._chunk, self._writer, self.reserved = chunk, writer, reserved
        self._offset, self._index = limits.SLOT_HEADER_BYTES, 0
        self._salt = secrets.randbits(32)
        self.on_chunk(chunk.sequence)

    def _use_again(self, *, reserved: bool) -> bool:
        """Stay in a chunk that is open and has no record, because its first one found no space.

        Going on in another would leave a hole in the log, where recovery would take it to end.
        """
        if self.unused_chunk is None:
            return False
        self.reserved = reserved
        return True

    def _head_record(self) -> RecordBuilder:
        assert self.head_payload is not None
        payload = self.head_payload()
        record = RecordBuilder(len(payload), 1)
        record.set_payload(payload)
        return record

    def _finish(self, record: RecordBuilder, kind: int) -> bool:
        """Finish a record for the place that is due; tell whether it has room there."""
        size = record.finish(
            kind, self._chunk, self._index, self.lsn + 1, self.committed, self._offset, self._salt
        )
        return self._offset + size <= self._chunks.chunk_bytes

    def _advance(self, record: RecordBuilder) -> None:
        size = record.size
        self.placed = self._chunk.sequence, self._offset
        self.lsn += 1
        self._index += 1
        self._offset += size
        self._dirty[self._chunk] = self.lsn
        self.records += 1
        self.appended_bytes += size


def head_payload(spec: bytes, head: bytes, snapshots: bytes = b"") -> bytes:
    """Return the payload of the record that begins a span."""
    return RootPayload(b"", spec, head, snapshots=snapshots).pack()
