"""The header of a record, read apart: for tools that look at bytes which may be damaged.

The log itself writes and reads records with `torus._fast.record`; this module checks nothing
and accepts every 72 bytes.  Implements docs/format.md, "Record header".
"""

import struct
from dataclasses import dataclass

from torus import limits
from torus._fast.crc import checksum
from torus._fast.record import (
    EXTENT_BYTES,
    HEADER_FIXED_BYTES,
    KIND_DATA,
    KIND_HEAD,
    KIND_PAGES,
    KIND_ROOT,
)
from torus.ids import ChunkId

HEADER = struct.Struct("<4sHHQIIHHIQQIIIHHII")
EXTENT = struct.Struct("<QII")
MAGIC = b"TREC"
DATA_EXTENT = 0
KIND_NAMES = {KIND_DATA: "data", KIND_PAGES: "pages", KIND_ROOT: "root", KIND_HEAD: "head"}

assert HEADER.size == HEADER_FIXED_BYTES
assert EXTENT.size == EXTENT_BYTES


@dataclass(frozen=True, slots=True)
class RecordHeader:
    """The fixed part of a record's header, as it stands there."""

    magic: bytes
    version: int
    kind: int
    volume: int
    epoch: int
    sequence: int
    tag: int
    flags: int
    index: int
    lsn: int
    committed: int
    offset: int
    header_bytes: int
    payload_bytes: int
    extent_count: int
    reserved: int
    salt: int
    header_crc: int

    @classmethod
    def unpack(cls, data: bytes | memoryview, at: int = 0) -> "RecordHeader":
        """Read the 72 bytes at ``at``, whatever they are."""
        return cls(*HEADER.unpack_from(data, at))

    @property
    def chunk(self) -> ChunkId:
        """The chunk that the record says it belongs to."""
        return ChunkId(self.volume, self.epoch, self.tag, self.sequence)


def bad_blocks(data: bytes | memoryview, at: int = 0) -> list[int]:
    """Return the addresses, in blocks, of what is damaged in the payload of the record at ``at``.

    The record's header must be whole.  Records without extents have no addresses: [].
    """
    header = RecordHeader.unpack(data, at)
    extents = [
        EXTENT.unpack_from(data, at + HEADER.size + number * EXTENT.size)
        for number in range(header.extent_count)
    ]
    crc_at = at + HEADER.size + header.extent_count * EXTENT.size
    payload_at = at + header.header_bytes
    bad: list[int] = []
    for first, count, kind in extents:
        if kind != DATA_EXTENT:
            continue
        for block in range(first, first + count):
            stored = int.from_bytes(data[crc_at : crc_at + 4], "little")
            if checksum(data[payload_at : payload_at + limits.BLOCK_BYTES]) != stored:
                bad.append(block)
            crc_at += 4
            payload_at += limits.BLOCK_BYTES
    return bad
