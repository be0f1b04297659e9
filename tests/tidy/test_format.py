"""docs/format.md gives the bytes that the code writes."""

import re
import struct
from pathlib import Path

import pytest

from torus import limits
from torus._fast.record import EXTENT_BYTES, HEADER_FIXED_BYTES
from torus.daemon import (
    check,
    check_log,
    check_map,
    check_shards,
    check_snapshots,
    stopped,
    stopped_shelves,
)
from torus.format import record, root, segment, shard
from torus.format.identity import DiskIdentity
from torus.ids import CHUNK_ID_SIZE
from torus.store.fences import FENCE_BYTES

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/format.md").read_text()
TYPES = {"B": "u8", "H": "u16", "I": "u32", "Q": "u64", "s": "bytes"}


def _table(heading: str) -> list[tuple[int, int, str]]:
    """Return (offset, size, type) of the rows of the first table under a heading."""
    section = re.split(rf"^#+ {re.escape(heading)}$", PAGE, flags=re.MULTILINE)[1]
    section = re.split(r"^#+ ", section, flags=re.MULTILINE)[0]
    rows = re.findall(r"^\| (\d+) \| (\d+) \| ([\w ]*) ?\|", section, re.MULTILINE)
    return [(int(offset), int(size), kind.strip()) for offset, size, kind in rows]


def _fields(layout: struct.Struct) -> list[tuple[int, int, str]]:
    """Return (offset, size, type) of the fields of a packed struct."""
    found, at = [], 0
    for count, code in re.findall(r"(\d*)([BHIQs])", layout.format):
        size = struct.calcsize(f"<{count}{code}")
        found.append((at, size, TYPES[code]))
        at += size
    assert at == layout.size
    return found


@pytest.mark.parametrize(
    ("heading", "size"),
    [
        ("Segment header", limits.SEGMENT_HEADER_BYTES),
        ("Slot header", limits.SLOT_HEADER_BYTES),
        ("Chunk id", CHUNK_ID_SIZE),
        ("Fences", FENCE_BYTES),
        ("Record header", HEADER_FIXED_BYTES),
        ("Extent", EXTENT_BYTES),
        ("Root payload", root.FIXED.size),
        ("Cell header", shard.PLACE_BYTES),
        ("Shard descriptor", shard.DESCRIPTOR_BYTES),
    ],
)
def test_tables_have_no_gaps_and_the_size_of_the_code(heading: str, size: int) -> None:
    """Each field begins where the one before ends."""
    rows = _table(heading)
    ends = [offset + length for offset, length, _ in rows]

    assert [offset for offset, _, _ in rows] == [0, *ends[:-1]]
    assert ends[-1] == size


@pytest.mark.parametrize(
    ("heading", "layout"),
    [
        ("Record header", record.HEADER),
        ("Extent", record.EXTENT),
        ("Root payload", root.FIXED),
    ],
)
def test_tables_are_the_structs_of_the_code(heading: str, layout: struct.Struct) -> None:
    """Offset, size and type of every field."""
    assert _table(heading) == _fields(layout)


@pytest.mark.parametrize(
    ("heading", "layout"),
    [
        ("Segment header", segment._SEGMENT),
        ("Slot header", segment._SLOT),
        ("Cell header", shard._CELL),
    ],
)
def test_headers_begin_with_the_structs_of_the_code(heading: str, layout: struct.Struct) -> None:
    """The fields before the padding; a chunk id is bytes to struct."""
    fields = _fields(layout)
    rows = [
        (at, size, "bytes" if kind == "chunk id" else kind) for at, size, kind in _table(heading)
    ]
    if fields[-1][2] == "bytes" and rows[len(fields) - 1][1] != fields[-1][1]:
        pytest.fail("the last field has another size")

    assert rows[: len(fields)] == fields


def test_identity_fields_are_those_of_the_code() -> None:
    """Every field of disk.json is described."""
    section = PAGE.split("## Disk identity")[1].split("## Segment files")[0]
    named = set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE))

    assert named == {*DiskIdentity.__dataclass_fields__, "format", "checksum"}


def test_kinds_of_records_are_those_of_the_code() -> None:
    """Number and name."""
    section = PAGE.split("### Kinds")[1].split("###")[0]
    rows = re.findall(r"^\| (\d) \| (\w+) \|", section, re.MULTILINE)

    assert {int(number): name for number, name in rows} == record.KIND_NAMES


def test_findings_are_those_of_the_code() -> None:
    """Every kind that the check knows is in the page, under its severity."""
    source = "".join(
        Path(module.__file__ or "").read_text()
        for module in (
            check,
            check_log,
            check_map,
            check_shards,
            check_snapshots,
            stopped,
            stopped_shelves,
        )
    )
    section = PAGE.split("## Checking")[1].split("## ")[0]
    for severity in ("error", "warning"):
        [row] = re.findall(rf"^\| {severity} \| (.*) \|$", section, re.MULTILINE)
        used = set(re.findall(rf"\.{severity}\(\s*\"([a-z-]+)\"", source))
        if severity == "error":
            used |= set(re.findall(r"self\._report\(\s*\"([a-z-]+)\"", source))
            used |= set(re.findall(r'kind = "([a-z-]+)" if .* else', source))
            used |= set(re.findall(r'else "([a-z]+-metadata)"', source))

        assert set(re.findall(r"`([a-z-]+)`", row)) == used, severity
