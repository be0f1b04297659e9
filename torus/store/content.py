"""What a chunk's bytes hold, record by record; and the answers made of it.  Pure."""

from enum import IntEnum
from typing import NamedTuple

from torus import limits
from torus._fast.crc import checksum
from torus._fast.record import RecordReader
from torus.ids import ChunkId

FIRST = limits.SLOT_HEADER_BYTES  # offset of a chunk's first record
Bytes = bytes | bytearray | memoryview


class Presence(IntEnum):
    """Whether a disk has a chunk."""

    ABSENT = 0  # positively not here
    PRESENT = 1
    UNKNOWN = 2  # it may be in a slot that cannot be read


class Examined(NamedTuple):
    """One chunk of a disk: offsets in bytes of its slot."""

    chunk: ChunkId
    state: Presence
    end: int  # of its valid records; 0 where it is not PRESENT
    records: int
    crc: int  # CRC-32C of the bytes from the first record to ``end``


class Reopened(NamedTuple):
    """Where appending to a chunk goes on."""

    boot_id: int
    next_index: int
    end: int  # offset in the slot
    lsn: int  # of the last record; 0 when there is none


class Content(NamedTuple):
    """The valid records at the beginning of a chunk."""

    end: int  # offset in the slot
    records: int
    lsn: int  # of the last one; 0 when there is none
    crc: int  # CRC-32C of their bytes
    problem: str  # why the bytes at ``end`` are not the next one


def walk(data: Bytes, chunk: ChunkId) -> Content:
    """Return what ``data``, the bytes of ``chunk`` from its first record on, holds.

    A record whose payload is damaged is the end, like one whose header is.
    """
    view = memoryview(data)
    reader = RecordReader(view, chunk, FIRST, 0)
    end, records, lsn, crc = FIRST, 0, 0, 0
    problem = ""
    while not problem:
        if not reader.advance():
            problem = reader.problem or "no record"
        elif not reader.payload_ok:
            problem = "payload checksum is wrong"
        else:
            crc = checksum(view[end - FIRST : reader.end - FIRST], crc)
            end, lsn = reader.end, reader.lsn
            records += 1
    return Content(end, records, lsn, crc, problem)
