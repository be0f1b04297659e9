"""Segment files and their slots: names, headers, geometry.

Decides how a segment file is laid out and what makes a header valid; reads and writes
nothing.  Implements docs/format.md, "Segment files" and "Slots".
"""

import re
import struct
from dataclasses import dataclass

from torus import limits
from torus._fast.crc import checksum
from torus.errors import Corruption, ForeignData, UnknownVersion
from torus.ids import CHUNK_ID_SIZE, ChunkId

SEGMENT_MAGIC = b"TORUSSEG"
SLOT_MAGIC = b"TSLT"
FREED_MAGIC = b"TFRE"
VERSION = 1
_SEGMENT = struct.Struct("<8sHHI16s16sIIQ")
_SLOT = struct.Struct("<4sHH16sII18s")
_CRC = struct.Struct("<I")
_NAME = re.compile(r"segment-([0-9a-f]{8})\.seg")


@dataclass(frozen=True, slots=True)
class Geometry:
    """How a disk is cut up; fixed when the disk is made."""

    slot_bytes: int = limits.SLOT_BYTES
    segment_slots: int = limits.SEGMENT_SLOTS

    @property
    def segment_bytes(self) -> int:
        """Bytes of all slots of a segment, without its header."""
        return self.slot_bytes * self.segment_slots

    def address(self, segment: int, slot: int) -> int:
        """Return the disk address of a slot; addresses count slot bytes only."""
        return segment * self.segment_bytes + slot * self.slot_bytes

    def segment_of(self, address: int) -> int:
        """Return the segment that holds ``address``."""
        return address // self.segment_bytes

    def slot_of(self, address: int) -> int:
        """Return the slot, within its segment, that holds ``address``."""
        return address % self.segment_bytes // self.slot_bytes


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """The first 4 KiB of a segment file: whose it is and how it is cut up."""

    disk_id: bytes  # 16 bytes
    cluster_id: bytes  # 16 bytes
    segment: int
    slot_bytes: int
    slot_count: int

    def pack(self) -> bytes:
        """Return the header, ``SEGMENT_HEADER_BYTES`` long."""
        body = _SEGMENT.pack(
            SEGMENT_MAGIC, VERSION, 0, self.segment, self.disk_id, self.cluster_id,
            self.slot_bytes, self.slot_count, 0,
        )  # fmt: skip
        body += bytes(limits.SEGMENT_HEADER_BYTES - _CRC.size - len(body))
        return body + _CRC.pack(checksum(body))

    @classmethod
    def unpack(cls, data: bytes, where: str) -> "SegmentHeader":
        """Read a header; ``where`` names the file in errors.

        Raises: Corruption, UnknownVersion.
        """
        if len(data) < limits.SEGMENT_HEADER_BYTES:
            raise Corruption(
                f"{where}: segment file has {len(data)} bytes, its header alone has "
                f"{limits.SEGMENT_HEADER_BYTES}"
            )
        body, (crc,) = data[: -_CRC.size], _CRC.unpack(data[-_CRC.size :])
        magic, version, _, segment, disk_id, cluster_id, slot_bytes, slot_count, _ = (
            _SEGMENT.unpack_from(data)
        )
        if magic != SEGMENT_MAGIC:
            raise Corruption(f"{where}: not a torus segment (magic {magic!r})")
        found = checksum(body)
        if found != crc:
            raise Corruption(
                f"{where}: segment header is damaged (checksum {crc:08x} stored, {found:08x} found)"
            )
        if version != VERSION:
            raise UnknownVersion(
                f"{where}: segment format {version}, this torus knows {VERSION}",
                hint="use the torus release that wrote it, or a newer one",
            )
        return cls(disk_id, cluster_id, segment, slot_bytes, slot_count)

    def check_place(
        self,
        disk_id: bytes,
        cluster_id: bytes,
        segment: int,
        slot_bytes: int,
        file_bytes: int,
        where: str,
    ) -> None:
        """Refuse a file that is another disk's, in another's place, or too short.

        Raises: ForeignData, Corruption.
        """
        if self.disk_id != disk_id or self.cluster_id != cluster_id:
            raise ForeignData(
                f"{where} belongs to disk {self.disk_id.hex()}, this directory is disk "
                f"{disk_id.hex()}",
                hint="move the file back to where it came from",
            )
        if self.segment != segment or self.slot_bytes != slot_bytes:
            raise ForeignData(
                f"{where} was written as segment {self.segment} with slots of "
                f"{self.slot_bytes} bytes"
            )
        expected = limits.SEGMENT_HEADER_BYTES + self.slot_count * self.slot_bytes
        if file_bytes < expected:
            raise Corruption(
                f"{where} has {file_bytes} bytes, its {self.slot_count} slots need {expected}",
                hint="the file was truncated: restore it, or run 'torus check' to see what is lost",
            )


@dataclass(frozen=True, slots=True)
class SlotHeader:
    """The first sector of a used slot: which chunk lies in it."""

    disk_id: bytes
    segment: int
    slot: int
    chunk: ChunkId
    copy: int = 0  # one more with each copy that replaced another on this disk

    def pack(self) -> bytes:
        """Return the header, ``SLOT_HEADER_BYTES`` long."""
        body = _SLOT.pack(
            SLOT_MAGIC, VERSION, self.copy, self.disk_id, self.segment, self.slot,
            self.chunk.pack(),
        )  # fmt: skip
        body += bytes(limits.SLOT_HEADER_BYTES - _CRC.size - len(body))
        return body + _CRC.pack(checksum(body))

    @classmethod
    def unpack(cls, data: bytes, where: str) -> "SlotHeader | None":
        """Read a slot's header; None for a slot that was freed, or was never used.

        Raises: Corruption, UnknownVersion.
        """
        if data in (FREED_SLOT, UNUSED_SLOT):
            return None
        body, (crc,) = data[: -_CRC.size], _CRC.unpack(data[-_CRC.size :])
        magic, version, copy, disk_id, segment, slot, chunk = _SLOT.unpack_from(data)
        if magic != SLOT_MAGIC or checksum(body) != crc:
            raise Corruption(f"{where}: slot header is damaged (magic {magic!r})")
        if version != VERSION:
            raise UnknownVersion(f"{where}: slot format {version}, this torus knows {VERSION}")
        return cls(disk_id, segment, slot, ChunkId.unpack(chunk), copy)

    def check_place(self, disk_id: bytes, segment: int, slot: int, where: str) -> None:
        """Refuse a slot that was written for another disk or another place.

        Raises: ForeignData.
        """
        if (self.disk_id, self.segment, self.slot) != (disk_id, segment, slot):
            raise ForeignData(
                f"{where}: slot belongs to disk {self.disk_id.hex()} segment {self.segment} slot "
                f"{self.slot}, found on disk {disk_id.hex()} segment {segment} slot {slot}"
            )


def _freed_slot() -> bytes:
    body = _SLOT.pack(FREED_MAGIC, VERSION, 0, bytes(16), 0, 0, bytes(CHUNK_ID_SIZE))
    body += bytes(limits.SLOT_HEADER_BYTES - _CRC.size - len(body))
    return body + _CRC.pack(checksum(body))


UNUSED_SLOT = bytes(limits.SLOT_HEADER_BYTES)  # never used, or given back to the file system
FREED_SLOT = _freed_slot()  # a chunk was deleted from it
assert _SLOT.size == 4 + 2 + 2 + 16 + 4 + 4 + CHUNK_ID_SIZE


def segment_name(segment: int) -> str:
    """Return the file name of a segment."""
    return f"segment-{segment:08x}.seg"


def parse_segment_name(name: str) -> int | None:
    """Return the number of a segment from its file name; None for any other file."""
    match = _NAME.fullmatch(name)
    return int(match[1], 16) if match else None
