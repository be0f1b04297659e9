"""Frozen bytes of everything on a disk but map pages, version 1.

Never regenerated: a new format gets new ones beside these, which stay readable.
"""

import pytest

from torus import limits
from torus._fast.record import KIND_DATA, RecordBuilder, RecordReader
from torus.errors import Corruption, UnknownVersion
from torus.format.identity import DiskIdentity
from torus.format.record import MAGIC, RecordHeader, bad_blocks
from torus.format.root import RootPayload
from torus.format.segment import FREED_SLOT, SegmentHeader, SlotHeader
from torus.ids import ChunkId
from torus.store.fences import Fences, parse_fences

IDENTITY = b"""{
 "checksum": "bb5d8e1c",
 "cluster_id": "fedcba9876543210fedcba9876543210",
 "created_ns": 1700000000000000000,
 "disk_id": "0123456789abcdef0123456789abcdef",
 "format": 1,
 "segment_slots": 64,
 "size_bytes": 21474836480,
 "slot_bytes": 4194304
}
"""
SEGMENT = (
    bytes.fromhex(
        "544f525553534547 0100 0000 2a000000"  # TORUSSEG, version 1, segment 42
        "000102030405060708090a0b0c0d0e0f"  # disk
        "101112131415161718191a1b1c1d1e1f"  # cluster
        "00004000 40000000 0000000000000000"  # 64 slots of 4 MiB
    )
    + bytes(4096 - 64 - 4)
    + bytes.fromhex("63bdfa06")
)
SLOT = (
    bytes.fromhex(
        "54534c54 0100 0000"  # TSLT, version 1
        "000102030405060708090a0b0c0d0e0f 2a000000 03000000"  # disk, segment 42, slot 3
        "0807060504030201 14131211 2221 34333231"  # volume, epoch, tag, sequence
    )
    + bytes(512 - 50 - 4)
    + bytes.fromhex("4a482d9d")
)
FENCE = bytes.fromhex("0807060504030201 14131211 515e455d")  # volume, epoch, CRC
RECORD = (
    bytes.fromhex(
        "54524543 0100 0100"  # TREC, version 1, data
        "0807060504030201 14131211 34333231 2221"  # volume, epoch, sequence, tag
        "0000 09000000 4847464544434241 5857565554535251"  # flags, index, lsn, committed
        "00060000 00020000 00200000 0200 0000 00000000"  # at 1536, 512 + 8192 bytes, 2 extents
        "ad6d8012"
        "0500000000000000 02000000 00000000"  # blocks 5 and 6: data
        "e803000000000000 07000000 01000000"  # blocks 1000 to 1006: zeroes
        "93413794 98757625"
    )
    + bytes(400)
    + b"\xab" * 4096
    + b"\xcd" * 4096
)
ROOT = (
    bytes.fromhex(
        "54524f4f 0100 0000 03000000 03000000 04000000"  # TROO, version 1, three lengths
        "6867666564636261 74737271 00100000 21000000"  # lsn, replay sequence, offset, index
        "05000000"  # length of the snapshots
    )
    + b"RRR{s}{hh}[{n}]"
    + bytes(512 - 59)
)

DISK_ID, CLUSTER_ID = bytes(range(16)), bytes(range(16, 32))
CHUNK = ChunkId(0x0102030405060708, 0x11121314, 0x2122, 0x31323334)
LSN, COMMITTED = 0x4142434445464748, 0x5152535455565758


def test_identity() -> None:
    """The one file that people read, with a checksum over its other fields."""
    identity = DiskIdentity(
        "0123456789abcdef" * 2, "fedcba9876543210" * 2, 4 << 20, 64, 1700000000000000000, 20 << 30
    )

    assert identity.to_bytes() == IDENTITY
    assert DiskIdentity.from_bytes(IDENTITY, "") == identity


def test_segment_header() -> None:
    """The first 4 KiB of a segment file."""
    header = SegmentHeader(DISK_ID, CLUSTER_ID, 42, 4 << 20, 64)

    assert header.pack() == SEGMENT
    assert SegmentHeader.unpack(SEGMENT, "") == header


def test_slot_header() -> None:
    """The first sector of a used slot."""
    header = SlotHeader(DISK_ID, 42, 3, CHUNK)

    assert header.pack() == SLOT
    assert SlotHeader.unpack(SLOT, "") == header
    assert CHUNK.pack() == SLOT[32:50]


def test_freed_slot() -> None:
    """The first sector of a slot whose chunk was deleted."""
    assert bytes.fromhex("544652450100") + bytes(502) + bytes.fromhex("ff09df30") == FREED_SLOT
    assert SlotHeader.unpack(FREED_SLOT, "") is None


def test_fence() -> None:
    """One entry of the fences file."""

    class Disk:
        written = b""

        def append_file(self, name: str, data: bytes) -> None:
            self.written += data

    disk = Disk()
    Fences(disk).advance(CHUNK.volume, CHUNK.epoch)  # type: ignore[arg-type]

    assert disk.written == FENCE
    assert parse_fences(FENCE) == ({CHUNK.volume: CHUNK.epoch}, False)


def test_record_is_written() -> None:
    """Header, extents, a CRC for each block, header CRC, payload."""
    builder = RecordBuilder(limits.MIB, 8)
    builder.add_data(5, b"\xab" * 4096 + b"\xcd" * 4096)
    builder.add_zero(1000, 7)
    builder.finish(KIND_DATA, CHUNK, 9, LSN, COMMITTED, 1536)

    assert builder.tobytes() == RECORD


def test_record_is_read() -> None:
    """By the log's reader, and field by field by the tools."""
    reader = RecordReader(RECORD, CHUNK, 1536, 9)
    found = RecordHeader.unpack(RECORD)

    assert reader.advance()
    assert reader.payload_ok
    assert (reader.lsn, reader.committed, reader.kind) == (LSN, COMMITTED, KIND_DATA)
    assert reader.extent_list() == [(5, 2, False), (1000, 7, True)]
    assert found.magic == MAGIC
    assert found.chunk == CHUNK
    assert (found.index, found.lsn, found.committed) == (9, LSN, COMMITTED)
    assert (found.offset, found.header_bytes, found.payload_bytes) == (1536, 512, 8192)
    assert (found.extent_count, found.header_crc) == (2, 0x12806DAD)
    assert bad_blocks(RECORD) == []
    assert bad_blocks(RECORD[:-1] + b"\xcc") == [6]
    assert bad_blocks(RECORD[:512] + b"\xaa" + RECORD[513:]) == [5]


def test_root_payload() -> None:
    """A checkpoint's root with the copies of specification and head."""
    payload = RootPayload(
        b"RRR", b"{s}", b"{hh}", 0x6162636465666768, 0x71727374, 0x1000, 0x21, b"[{n}]"
    )

    assert payload.pack() == ROOT
    assert RootPayload.unpack(ROOT, "") == payload
    assert RootPayload.unpack(RootPayload(b"", b"{s}", b"{hh}").pack(), "").lsn == 0


def test_root_payload_of_another_version_is_refused() -> None:
    """Unknown is not damaged."""
    with pytest.raises(UnknownVersion):
        RootPayload.unpack(ROOT[:4] + b"\x02" + ROOT[5:], "")
    for bad in (ROOT[:43], b"XXXX" + ROOT[4:], ROOT[:9] + b"\xff" + ROOT[10:]):
        with pytest.raises(Corruption):
            RootPayload.unpack(bad, "")
