"""Frozen bytes of a backup stream, version 1, and the tables that describe them.

Never regenerated: a new format gets new ones beside these, which stay readable.
"""

import io
import re
import struct
from pathlib import Path

import pytest

from torus import limits
from torus.format import diffstream
from torus.format.diffstream import Decoder, Encoder, Frame, SnapshotName, StreamHeader, Trailer

PAGE = (Path(__file__).parents[2] / "docs/diffstream.md").read_text()
TYPES = {"H": "u16", "I": "u32", "Q": "u64", "s": "bytes"}

HEADER = (
    bytes.fromhex("544f525553444946 0100 0000 fa000000")  # TORUSDIF, version 1, 250 bytes
    + b'{"cluster":"fedcba9876543210fedcba9876543210","created_ns":1700000000000000000,'
    b'"from":{"name":"monday","uid":"01010101010101010101010101010101"},'
    b'"size_bytes":1073741824,'
    b'"to":{"name":"tuesday","uid":"02020202020202020202020202020202"},"volume":"disk"}'
    + bytes.fromhex("612ccc7f")
)
DATA = bytes.fromhex(
    "0100 0000 00020000 0046230100000000 0002000000000000 c7067e0c"  # 512 bytes at 0x1234600
)
ZERO = bytes.fromhex("0200 0000 00000000 0000000200000000 0000010000000000 642f1304")
END = bytes.fromhex(
    "0300 0000 18000000 0000004000000000 0000000000000000 78cc0595"
    "0200000000000000 0002000000000000 0000010000000000"  # 2 frames, 512 data, 65536 zero
)
STREAM = HEADER + DATA + b"\xab" * 512 + ZERO + END

SAYS = StreamHeader(
    "disk", "fedcba9876543210" * 2, 1 << 30, 1_700_000_000_000_000_000,
    SnapshotName("monday", "01" * 16), SnapshotName("tuesday", "02" * 16),
)  # fmt: skip


def test_the_frozen_stream_is_written() -> None:
    """Byte for byte."""
    encoder = Encoder(SAYS)

    assert encoder.begin() == HEADER
    assert encoder.frame(0x1234600, 512, b"\xab" * 512) == DATA
    assert encoder.frame(0x2000000, 0x10000, None) == ZERO
    assert encoder.end() == END


def test_the_frozen_stream_is_read() -> None:
    """By this torus and every later one."""
    assert list(diffstream.items(Decoder("stream"), io.BytesIO(STREAM).read)) == [
        SAYS,
        Frame(0x1234600, 512, b"\xab" * 512),
        Frame(0x2000000, 0x10000, None),
        Trailer(2, 512, 0x10000),
    ]


def _rows(heading: str) -> list[tuple[int, int, str]]:
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (\w+) \|", section, re.MULTILINE)
    return [(int(offset), int(size), kind) for offset, size, kind in rows]


@pytest.mark.parametrize(
    ("heading", "layout"),
    [
        ("Stream header", diffstream.PREAMBLE),
        ("Stream frame", diffstream.FRAME),
        ("Stream trailer", diffstream.TRAILER),
    ],
)
def test_tables_are_the_structs_of_the_code(heading: str, layout: struct.Struct) -> None:
    """Offset, size and type of every field."""
    found, at = [], 0
    for count, code in re.findall(r"(\d*)([HIQs])", layout.format):
        size = struct.calcsize(f"<{count}{code}")
        found.append((at, size, TYPES[code]))
        at += size

    assert _rows(heading) == found
    assert at == layout.size


def test_bounds_are_those_of_the_code() -> None:
    """The numbers in the page."""
    assert f"1 to {limits.BACKUP_HEADER_BYTES_MAX} |" in PAGE
    assert f"| 512 to {limits.BACKUP_FRAME_BYTES_MAX} |" in PAGE
