"""The append side of a volume's log: where the next record goes.

Decides chunk, index, offset and lsn of each record, and what a flush must make durable.  One
record at a time: the caller finishes one append before it starts the next.  Knows nothing of
the map.  Implements docs/format.md, "The log".
"""

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from torus import limits
from torus._fast.record import KIND_HEAD, RecordBuilder
from torus.cluster.chunks import Chunks, ChunkWriter
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
        self._offset = chunks.slot_bytes
        self._index = 0
        self._salt = 0
        self._dirty: dict[ChunkId, int] = {}
        self.first_sequence = start.sequence + 1
        self.lsn = start.lsn
        self.committed = start.lsn
        # Makes the payload of the span's first record; set by the owner.
        self.head_payload: Callable[[], bytes] | None = None
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
        """Return the newest chunk that has a record and the offset behind its last one.

        (None, None) before the first record; an offset of None means: its last record, where
        that is.
        """
        if self._index:
            return self._chunk.sequence, self._offset
        previous = self._chunk.sequence - (self._writer is not None)
        return (previous, None) if previous >= self.first_sequence else (None, None)

    @property
    def unused_chunk(self) -> ChunkId | None:
        """Return the chunk that was opened and got no record: its first one found no space."""
        return self._chunk if self._writer is not None and not self._index else None

    @property
    def room(self) -> int:
        """Return the bytes left in the open chunk; 0 when the next one must be opened."""
        if self.head_payload is not None:
            return 0  # nothing goes before the head record
        left = self._chunks.slot_bytes - self._offset
        return left if left >= _ROOM_MIN else 0

    @property
    def chunk(self) -> ChunkId:
        """Return the newest chunk."""
        return self._chunk

    def next_chunk_now(self, *, from_reserve: bool) -> bool:
        """Open the next chunk without waiting; False when that takes waiting.

        Raises: Fenced, PoolFull, DiskFailed.
        """
        if not self._use_again(reserved=from_reserve):
            chunk = self._chunk._replace(sequence=self._chunk.sequence + 1)
            writer = self._chunks.open_now(chunk, from_reserve=from_reserve)
            if writer is None:
                return False
            self._use(chunk, writer, reserved=from_reserve)
        if self.head_payload is not None:
            record = self._head_record()
            appended = self.append_now(record, KIND_HEAD)
            assert appended
            self.head_payload = None
        return True

    async def next_chunk(self, *, from_reserve: bool) -> None:
        """Open the next chunk.

        Raises: Fenced, PoolFull, DiskFailed, Unavailable.
        """
        if not self._use_again(reserved=from_reserve):
            chunk = self._chunk._replace(sequence=self._chunk.sequence + 1)
            writer = await self._chunks.open(chunk, from_reserve=from_reserve)
            self._use(chunk, writer, reserved=from_reserve)
        if self.head_payload is not None:
            await self.append(self._head_record(), KIND_HEAD)
            self.head_payload = None

    def append_now(self, record: RecordBuilder, kind: int) -> bool:
        """Append ``record`` without waiting; False when that takes waiting.

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
        """Append ``record``.

        Raises: Fenced, PoolFull, DiskFailed, Unavailable.
        """
        writer = self._writer
        assert writer is not None
        self._finish(record, kind)
        await writer.append(self._index, self._offset, record)
        self._advance(record)

    async def sync(self) -> None:
        """Make every record appended before the call durable.

        Raises: DiskFailed, Unavailable, Corruption.
        """
        lsn, dirty = self._begin_sync()
        if dirty:
            await self._chunks.sync(dirty)
            self._synced(lsn, dirty)

    def sync_soon(self) -> asyncio.Future[None] | None:
        """Return the future of `sync` where that needs no coroutine, else None.

        Raises: as `sync`; so does the future.
        """
        lsn, dirty = self._begin_sync()
        if not dirty:
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            done.set_result(None)
            return done
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

    def _finish(self, record: RecordBuilder, kind: int) -> None:
        record.finish(
            kind, self._chunk, self._index, self.lsn + 1, self.committed, self._offset, self._salt
        )

    def _advance(self, record: RecordBuilder) -> None:
        size = record.size
        self.lsn += 1
        self._index += 1
        self._offset += size
        self._dirty[self._chunk] = self.lsn
        self.records += 1
        self.appended_bytes += size


def head_payload(spec: bytes, head: bytes, snapshots: bytes = b"") -> bytes:
    """Return the payload of the record that begins a span."""
    return RootPayload(b"", spec, head, snapshots=snapshots).pack()
