"""Appending to one chunk: what may be written where, and what a repetition means.

Decides the rules of design section 4, "Append": idempotent by (chunk, index), no gap, never
other bytes in a place that was answered.
"""

from typing import TYPE_CHECKING

from torus import limits
from torus._fast.record import RecordBuilder
from torus.errors import Corruption, LocalProtocolError
from torus.format.segment import UNUSED_SLOT
from torus.ids import ChunkId
from torus.store.content import Examined
from torus.store.disk import Bytes

if TYPE_CHECKING:
    from torus.store.store import Store


class Slot:
    """A used slot.  ``end`` is None for a chunk that was there when the disk was opened."""

    counted = True  # as a slot of the disk, unlike a part of one
    room = 0  # bytes that it has; 0: those of a slot
    __slots__ = (
        "address", "chunk", "copy", "end", "examined", "flushed", "next_index", "prepared",
        "segment", "stale",
    )  # fmt: skip

    def __init__(self, chunk: ChunkId, address: int, segment: int, copy: int = 0) -> None:
        self.chunk = chunk
        self.address = address
        self.segment = segment
        self.copy = copy  # as in its header
        self.end: int | None = None
        self.next_index = 0
        self.flushed = False  # a sync has covered it before
        self.prepared = False  # all its blocks are written: a sync changes no metadata
        self.stale = False  # records of this very chunk may stand behind its end
        self.examined: Examined | None = None  # what reading it found, while that holds


def check_room(slot: Slot, offset: int, size: int, slot_bytes: int) -> None:
    """Refuse a range that does not lie in a slot of ``slot_bytes``, or in a cell.

    Raises: LocalProtocolError.
    """
    room = slot.room or slot_bytes
    if offset + size > room:
        raise LocalProtocolError(
            f"{size} bytes at {offset} of chunk {slot.chunk} end behind its {room} bytes"
        )


class Appender:
    """Appends records to one chunk, idempotent by (chunk, index)."""

    __slots__ = ("_chunk", "_fences", "_io", "_slot", "_store")

    def __init__(self, store: "Store", chunk: ChunkId) -> None:
        self._store = store
        self._chunk = chunk
        self._fences = store.fences
        self._io = store.disk.io
        self._slot = store.find(chunk)

    def open(self, *, from_reserve: bool) -> None:
        """Take a slot for the chunk.

        Raises: PoolFull, DiskFailed, Fenced.
        """
        if self._slot is None:
            self._fences.check(self._chunk.volume, self._chunk.epoch)
            self._slot = self._store.create(self._chunk, from_reserve=from_reserve)

    @property
    def is_open(self) -> bool:
        """Tell whether the chunk is here and takes records."""
        return self._slot is not None and self._slot.end is not None

    @property
    def address(self) -> int:
        """Disk address of the chunk's slot."""
        assert self._slot is not None
        return self._slot.address

    def append(self, index: int, offset: int, record: RecordBuilder) -> None:
        """Write a finished record as number ``index`` at ``offset``; in the page cache on return.

        The same record again is no error; one that differs, or leaves a gap, is.

        Raises: Fenced, PoolFull, DiskFailed, LocalProtocolError.
        """
        slot = self._due(index, offset, record.size)
        if slot is None:
            self._check_again(index, offset, record.tobytes())
            return
        try:
            if index == 0:
                self._store.disk.write(slot.address, self._store.slot_header(slot))
            if slot.stale:
                self._write_cut(slot, offset, record.tobytes())
            else:
                self._io.write(slot.address + offset, record)
        except OSError as exc:
            raise self._store.translate(exc, "write a record") from exc
        slot.end = offset + record.size
        slot.next_index = index + 1

    def append_bytes(self, index: int, offset: int, record: Bytes) -> None:
        """Like `append`, for a finished record's bytes, which the caller has verified.

        Raises: as `append`.
        """
        slot = self._due(index, offset, len(record))
        if slot is None:
            self._check_again(index, offset, record)
            return
        try:
            if index == 0:
                self._store.disk.write(slot.address, self._store.slot_header(slot))
            if slot.stale:
                self._write_cut(slot, offset, record)
            else:
                self._io.write_bytes(slot.address + offset, record)
        except OSError as exc:
            raise self._store.translate(exc, "write a record") from exc
        slot.end = offset + len(record)
        slot.next_index = index + 1

    def _write_cut(self, slot: Slot, offset: int, record: Bytes) -> None:
        """Write a record and empty the place of the next one, where an older one may stand."""
        room = self._store.geometry.slot_bytes - offset - len(record)
        self._store.disk.write(slot.address + offset, bytes(record) + UNUSED_SLOT[:room])

    def _due(self, index: int, offset: int, size: int) -> Slot | None:
        """Return the slot when record ``index`` is the next; None when it is not.

        Raises: Fenced, DiskFailed, LocalProtocolError.
        """
        slot, store = self._slot, self._store
        if store.failure is not None:
            raise store.failure
        # First of all: a chunk that its new owner deleted is not open because of that owner.
        self._fences.check(self._chunk.volume, self._chunk.epoch)
        if slot is None or slot.end is None:
            raise LocalProtocolError(f"chunk {self._chunk} is not open for appending")
        if index != slot.next_index:
            return None
        start = slot.end or limits.SLOT_HEADER_BYTES
        if offset != start or offset + size > store.geometry.slot_bytes:
            raise LocalProtocolError(
                f"record of {size} bytes for offset {offset} of chunk {self._chunk}, "
                f"whose end is {start} of {store.geometry.slot_bytes}"
            )
        return slot

    def _check_again(self, index: int, offset: int, record: Bytes) -> None:
        slot = self._slot
        assert slot is not None
        assert slot.end is not None
        if index > slot.next_index:
            raise LocalProtocolError(
                f"record {index} of chunk {self._chunk} leaves a gap: {slot.next_index} is due"
            )
        if offset + len(record) > slot.end:
            raise LocalProtocolError(
                f"record {index} of chunk {self._chunk} was written before with other bytes"
            )
        try:
            found = self._store.disk.read(slot.address + offset, len(record))
        except OSError as exc:
            raise Corruption(f"chunk {self._chunk} cannot be read at {offset}: {exc}") from exc
        if found != record:
            raise LocalProtocolError(
                f"record {index} of chunk {self._chunk} was written before with other bytes"
            )
