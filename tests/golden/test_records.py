"""Frozen bytes of records, version 1, one of each shape.  Never regenerated.

The bytes are put together here from the tables of docs/format.md, "Records"; a data record with
both kinds of extents is in test_disk.py.
"""

import struct

import google_crc32c
import pytest

from torus import limits
from torus._fast.record import (
    KIND_DATA,
    KIND_HEAD,
    KIND_PAGES,
    KIND_ROOT,
    RecordBuilder,
    RecordReader,
    find_header,
)

CHUNK = (0x0102030405060708, 0x11121314, 0x2122, 0x31323334)  # volume, epoch, tag, sequence
PLACE = (CHUNK, 9, 0x4142434445464748, 0x5152535455565758, 1536)  # index, lsn, committed, offset

FIXED = (
    "0807060504030201 14131211 34333231 2221 0000 09000000 4847464544434241 5857565554535251"
    "00060000"
)
DATA = (
    bytes.fromhex(
        "54524543 0100 0100" + FIXED +  # TREC, version 1, data
        "00020000 00100000 0100 0000 00000000 055844aa"  # 512 + 4096 bytes, an extent
        "0500000000000000 01000000 00000000"  # block 5
        "93413794"  # of its bytes
    )
    + bytes(420)
    + b"\xab" * 4096
)  # fmt: skip
ZERO = (
    bytes.fromhex(
        "54524543 0100 0100" + FIXED +
        "00020000 00000000 0100 0000 00000000 bc3c36b1"  # 512 bytes, no payload
        "e803000000000000 07000000 01000000"  # blocks 1000 to 1006
    )
    + bytes(424)
)  # fmt: skip
PAGES = (
    bytes.fromhex(
        "54524543 0100 0200" + FIXED +
        "00020000 00120000 0000 0000 00000000 a4fa0ae9"  # 512 + 4608 bytes, no extent
        "98757625 8b397e9f"  # of 4096 bytes, and of the 512 behind them
    )
    + bytes(432)
    + b"\xcd" * 4096 + b"\xef" * 512
)  # fmt: skip


def of_data(builder: RecordBuilder) -> None:
    builder.add_data(5, b"\xab" * 4096)


def of_zeroes(builder: RecordBuilder) -> None:
    builder.add_zero(1000, 7)


def of_pages(builder: RecordBuilder) -> None:
    builder.set_payload(b"\xcd" * 4096 + b"\xef" * 512)


SHAPES = [
    pytest.param(KIND_DATA, of_data, DATA, [(5, 1, False)], id="data"),
    pytest.param(KIND_DATA, of_zeroes, ZERO, [(1000, 7, True)], id="zeroes"),
    pytest.param(KIND_PAGES, of_pages, PAGES, [], id="pages"),
]


@pytest.mark.parametrize(("kind", "fill", "frozen", "extents"), SHAPES)
def test_the_frozen_bytes_are_written_and_read(
    kind: int, fill: object, frozen: bytes, extents: list[tuple[int, int, bool]]
) -> None:
    """Both ways."""
    builder = RecordBuilder(limits.MIB, 8)
    fill(builder)  # type: ignore[operator]
    size = builder.finish(kind, *PLACE)
    reader = RecordReader(frozen, CHUNK, 1536, 9)

    assert builder.tobytes() == frozen
    assert size == len(frozen)
    assert reader.advance()
    assert reader.payload_ok
    assert (reader.kind, reader.index, reader.lsn) == (kind, 9, 0x4142434445464748)
    assert (reader.committed, reader.offset) == (0x5152535455565758, 1536)
    assert (reader.header_bytes, reader.payload()) == (512, frozen[512:])
    assert reader.extent_list() == extents
    assert find_header(frozen, 0) == (0, (*CHUNK, 0x4142434445464748, 0x5152535455565758))


@pytest.mark.parametrize(("kind", "fill", "frozen", "extents"), SHAPES)
def test_checksums_are_what_another_library_computes(
    kind: int, fill: object, frozen: bytes, extents: list[tuple[int, int, bool]]
) -> None:
    """So that other programs can read records by the description alone."""
    header, payload = frozen[:512], frozen[512:]
    stored = struct.unpack_from("<I", header, 68)[0]
    crcs_at = 72 + 16 * len(extents)
    blocks = [payload[at : at + 4096] for at in range(0, len(payload), 4096)]

    assert google_crc32c.value(header[:68] + bytes(4) + header[72:]) == stored
    assert list(struct.unpack_from(f"<{len(blocks)}I", header, crcs_at)) == [
        google_crc32c.value(block) for block in blocks
    ]


def test_the_salt_stands_before_the_checksum() -> None:
    """The chunk's random number, 0 in the records above."""
    salted = ZERO[:64] + bytes.fromhex("64636261 f079e9c3") + ZERO[72:]
    builder = RecordBuilder(limits.MIB, 8)
    of_zeroes(builder)
    builder.finish(KIND_DATA, *PLACE, 0x61626364)
    reader = RecordReader(salted, CHUNK, 1536, 9)

    assert builder.tobytes() == salted
    assert reader.advance()
    assert reader.salt == 0x61626364


def test_kinds_are_frozen() -> None:
    """Numbers that stand on disks."""
    assert (KIND_DATA, KIND_PAGES, KIND_ROOT, KIND_HEAD) == (1, 2, 3, 4)
