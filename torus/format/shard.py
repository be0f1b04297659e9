"""Shards on a disk: shelves, cells, and what describes a shard.

Decides how a slot is cut into cells, and what makes a cell's header and a shard's descriptor
valid; reads and writes nothing.  What the shards of a chunk contain is the codec's.  Implements
docs/format.md, "Shards".
"""

import struct
from dataclasses import dataclass

from torus import limits
from torus._fast.crc import block_checksums, checksum
from torus.errors import Corruption, ForeignData, LocalProtocolError, UnknownVersion
from torus.format.segment import FREED_SLOT, UNUSED_SLOT
from torus.ids import PARTS_MAX, VOLUME_ID_BITS, ChunkId, shard_id

CELL_MAGIC = b"TCEL"
SHARD_MAGIC = b"TSHD"
VERSION = 1
SHELF_HEADER_BYTES = limits.SHELF_HEADER_BYTES  # before the first cell
PLACE_BYTES = limits.SLOT_HEADER_BYTES  # a cell's header: its place and its shard
DESCRIPTOR_BYTES = 3584
PAYLOAD_OFFSET = PLACE_BYTES + DESCRIPTOR_BYTES  # in a cell
COLUMN_BYTES = limits.BLOCK_BYTES  # what one checksum of a shard's table covers
COLUMNS_MAX = 512
_SHELF = 0xFF  # top byte of a shelf's volume
_CELL = struct.Struct("<4sHH16sIIII18s")
_DESCRIPTOR = struct.Struct("<4sHBBB3x18sIII")
_TABLE_OFFSET = 64
_CRC = struct.Struct("<I")

assert PARTS_MAX == limits.ERASURE_DATA_MAX + limits.ERASURE_PARITY_MAX
assert PARTS_MAX < _SHELF
assert PAYLOAD_OFFSET == limits.CELL_HEADER_BYTES
assert _DESCRIPTOR.size <= _TABLE_OFFSET
assert _TABLE_OFFSET + _CRC.size * (COLUMNS_MAX + 1) <= DESCRIPTOR_BYTES


# --- how a slot is cut -------------------------------------------------------------------


def cell_bytes(data: int, slot_bytes: int = limits.SLOT_BYTES) -> int:
    """Return the size of each of the ``data`` cells of a shelf: a multiple of a column."""
    return (slot_bytes - SHELF_HEADER_BYTES) // data // COLUMN_BYTES * COLUMN_BYTES


def cell_offset(data: int, cell: int, slot_bytes: int = limits.SLOT_BYTES) -> int:
    """Return where in its slot a cell begins."""
    return SHELF_HEADER_BYTES + cell * cell_bytes(data, slot_bytes)


def payload_bytes(data: int, slot_bytes: int = limits.SLOT_BYTES) -> int:
    """Return the size of a shard of a chunk that is cut into ``data`` of them."""
    return min(cell_bytes(data, slot_bytes) - PAYLOAD_OFFSET, COLUMNS_MAX * COLUMN_BYTES)


def content_max(data: int, slot_bytes: int = limits.SLOT_BYTES) -> int:
    """Return how many bytes of records a chunk may have to fit into ``data`` shards."""
    return data * payload_bytes(data, slot_bytes)


def stored_bytes(
    content_bytes: int, data: int, number: int, slot_bytes: int = limits.SLOT_BYTES
) -> int:
    """Return how long the payload of a shard is without the columns of zeroes that fill it up.

    Parity shards are as long as the first data shard: from there on all others are zero, too.
    """
    each = payload_bytes(data, slot_bytes)
    before = number * each if number < data else 0
    left = min(max(content_bytes - before, 0), each)
    return -(-left // COLUMN_BYTES) * COLUMN_BYTES


def shelf_id(data: int, index: int) -> ChunkId:
    """Return what the slot header of a shelf names: its ``index`` among the disk's slots."""
    return ChunkId(_SHELF << VOLUME_ID_BITS | data, 0, 0, index)


def shelf_data(chunk: ChunkId) -> int | None:
    """Return in how many cells a slot is cut whose header names ``chunk``; None: it is no shelf."""
    if chunk.volume >> VOLUME_ID_BITS != _SHELF:
        return None
    return chunk.volume & (1 << VOLUME_ID_BITS) - 1


# --- what stands in a cell ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CellHeader:
    """The first sector of a used cell: which shard lies in it."""

    disk_id: bytes
    segment: int
    slot: int
    cell: int
    data: int  # cells of the shelf
    shard: ChunkId
    copy: int = 0  # one more with each shard that replaced another on this disk

    def pack(self) -> bytes:
        """Return the header, ``PLACE_BYTES`` long."""
        body = _CELL.pack(
            CELL_MAGIC, VERSION, self.copy, self.disk_id, self.segment, self.slot, self.cell,
            self.data, self.shard.pack(),
        )  # fmt: skip
        body += bytes(PLACE_BYTES - _CRC.size - len(body))
        return body + _CRC.pack(checksum(body))

    @classmethod
    def unpack(cls, data: bytes, where: str) -> "CellHeader | None":
        """Read a cell's header; None for a cell that is free.

        Raises: Corruption, UnknownVersion.
        """
        if data in (FREED_SLOT, UNUSED_SLOT):
            return None
        body, (crc,) = data[: -_CRC.size], _CRC.unpack(data[-_CRC.size :])
        magic, version, copy, disk_id, segment, slot, cell, cells, shard = _CELL.unpack_from(data)
        if magic != CELL_MAGIC or checksum(body) != crc:
            raise Corruption(f"{where}: cell header is damaged (magic {magic!r})")
        if version != VERSION:
            raise UnknownVersion(f"{where}: cell format {version}, this torus knows {VERSION}")
        return cls(disk_id, segment, slot, cell, cells, ChunkId.unpack(shard), copy)

    def check_place(
        self, disk_id: bytes, segment: int, slot: int, cell: int, data: int, where: str
    ) -> None:
        """Refuse a cell that was written for another disk or another place.

        Raises: ForeignData.
        """
        named = (self.disk_id, self.segment, self.slot, self.cell, self.data)
        if named != (disk_id, segment, slot, cell, data):
            raise ForeignData(
                f"{where}: cell belongs to disk {self.disk_id.hex()} segment {self.segment} slot "
                f"{self.slot} cell {self.cell} of {self.data}, found on disk {disk_id.hex()} "
                f"segment {segment} slot {slot} cell {cell} of {data}"
            )


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What a shard is and what its bytes have to be; stands before its payload."""

    chunk: ChunkId  # the whole one's
    number: int
    data: int  # K
    parity: int  # M
    content_end: int  # of the chunk's records: an offset in the slot of a whole copy
    content_crc: int  # CRC-32C of all records of the chunk
    payload_bytes: int  # that are stored, whole columns; zeroes follow up to a shard's size
    table: bytes  # CRC-32C of each column of the payload

    @property
    def shard(self) -> ChunkId:
        """Return the shard's own id."""
        return shard_id(self.chunk, self.number)

    @property
    def columns(self) -> int:
        """Return how many checksums the table has."""
        return self.payload_bytes // COLUMN_BYTES

    def pack(self) -> bytes:
        """Return the descriptor, ``DESCRIPTOR_BYTES`` long."""
        assert len(self.table) == self.columns * _CRC.size
        body = _DESCRIPTOR.pack(
            SHARD_MAGIC, VERSION, self.data, self.parity, self.number, self.chunk.pack(),
            self.content_end, self.payload_bytes, self.content_crc,
        )  # fmt: skip
        body += bytes(_TABLE_OFFSET - len(body)) + self.table
        body += bytes(DESCRIPTOR_BYTES - _CRC.size - len(body))
        return body + _CRC.pack(checksum(body))

    @classmethod
    def unpack(cls, content: bytes | bytearray | memoryview, where: str) -> "Descriptor":
        """Read what ``content``, a shard as it travels, begins with.

        Raises: Corruption, UnknownVersion.
        """
        if len(content) < DESCRIPTOR_BYTES:
            raise Corruption(
                f"{where}: {len(content)} bytes are no shard: its descriptor alone has "
                f"{DESCRIPTOR_BYTES}"
            )
        head = bytes(memoryview(content)[:DESCRIPTOR_BYTES])
        body, (crc,) = head[: -_CRC.size], _CRC.unpack(head[-_CRC.size :])
        magic, version, data, parity, number, chunk, end, size, content_crc = (
            _DESCRIPTOR.unpack_from(head)
        )
        if magic != SHARD_MAGIC or checksum(body) != crc:
            raise Corruption(f"{where}: the shard's descriptor is damaged (magic {magic!r})")
        if version != VERSION:
            raise UnknownVersion(f"{where}: shard format {version}, this torus knows {VERSION}")
        columns, rest = divmod(size, COLUMN_BYTES)
        sound = (
            limits.ERASURE_DATA_MIN <= data <= limits.ERASURE_DATA_MAX
            and limits.ERASURE_PARITY_MIN <= parity <= limits.ERASURE_PARITY_MAX
            and number < data + parity
            and columns <= COLUMNS_MAX
            and not rest
            and end >= limits.SLOT_HEADER_BYTES
        )
        if not sound:
            raise Corruption(
                f"{where}: shard {number} of {data}+{parity} with {size} bytes cannot be"
            )
        table = head[_TABLE_OFFSET : _TABLE_OFFSET + columns * _CRC.size]
        return cls(ChunkId.unpack(chunk), number, data, parity, end, content_crc, size, table)

    def bad_column(self, payload: bytes | bytearray | memoryview, first: int = 0) -> int | None:
        """Return the first column that is not what the table says; None when all are.

        ``payload`` is whole columns, of which ``first`` is the number of the first.  Columns
        behind what is stored have to be zeroes.
        """
        view = memoryview(payload)
        stored = view[: max(0, self.payload_bytes - first * COLUMN_BYTES)]
        found = block_checksums(stored, COLUMN_BYTES)
        due = self.table[first * _CRC.size : first * _CRC.size + len(found)]
        if found != due:
            for at in range(0, len(found), _CRC.size):
                if found[at : at + _CRC.size] != due[at : at + _CRC.size]:
                    return first + at // _CRC.size
        return self.columns if any(view[len(stored) :]) else None


def describe(
    chunk: ChunkId, number: int, data: int, parity: int, *, content_end: int, content_crc: int,
    payload: bytes | bytearray | memoryview,
) -> Descriptor:  # fmt: skip
    """Return the descriptor of a shard with ``payload``, which zeroes fill up to whole columns, of
    a chunk whose records end at the offset ``content_end`` and have the CRC-32C ``content_crc``."""
    whole = _filled(payload)
    table = block_checksums(whole, COLUMN_BYTES)
    return Descriptor(chunk, number, data, parity, content_end, content_crc, len(whole), table)


def join(descriptor: Descriptor, payload: bytes | bytearray | memoryview) -> bytes:
    """Return a shard as it travels and as it stands in a cell behind its header."""
    return descriptor.pack() + _filled(payload)


def pack_shard(
    chunk: ChunkId, number: int, data: int, parity: int, *, content_end: int, content_crc: int,
    payload: bytes | bytearray | memoryview,
) -> bytes:  # fmt: skip
    """Return a shard as it travels, described as `describe` does; `open_shard` reads it."""
    described = describe(
        chunk, number, data, parity,
        content_end=content_end, content_crc=content_crc, payload=payload,
    )  # fmt: skip
    return join(described, payload)


def _filled(payload: bytes | bytearray | memoryview) -> bytes:
    return bytes(payload) + bytes(-len(payload) % COLUMN_BYTES)


def open_shard(
    content: bytes | bytearray | memoryview, shard: ChunkId, slot_bytes: int = limits.SLOT_BYTES
) -> Descriptor:
    """Verify a whole shard as it travels, each byte of it, and return what describes it.

    Raises: Corruption, UnknownVersion; LocalProtocolError when it can be no shard of that size.
    """
    where = f"shard {shard}"
    found = Descriptor.unpack(content, where)
    if found.shard != shard:
        raise Corruption(f"{where}: the bytes are those of shard {found.shard}")
    size = len(content) - DESCRIPTOR_BYTES
    content_bytes = found.content_end - limits.SLOT_HEADER_BYTES
    if content_bytes > content_max(found.data, slot_bytes):
        raise LocalProtocolError(
            f"{where}: {content_bytes} bytes of records are more than {found.data} shards hold: "
            f"{content_max(found.data, slot_bytes)}"
        )
    least = stored_bytes(content_bytes, found.data, found.number, slot_bytes)
    if size != found.payload_bytes or not least <= size <= payload_bytes(found.data, slot_bytes):
        raise Corruption(
            f"{where}: {size} bytes of payload, {found.payload_bytes} described, at least {least} "
            "expected"
        )
    column = found.bad_column(memoryview(content)[DESCRIPTOR_BYTES:])
    if column is not None:
        raise Corruption(f"{where}: its bytes from {column * COLUMN_BYTES} on are damaged")
    return found
