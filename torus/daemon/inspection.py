"""`inspect_segment`: what one segment file says of itself, without anything else.

Decides how damaged headers are read as far as they can be; whether the records are those that a
volume's log must have is `torus.daemon.check`'s.

Implements docs/format.md, "Segment files", "Slots" and "Records".
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from torus import limits
from torus._fast.crc import checksum
from torus._fast.record import RecordReader
from torus.daemon.inspection_shelves import inspect_shelf
from torus.daemon.slotwalk import ChunkSeen, walk
from torus.errors import Corruption, PermissionDenied, TorusError, UsageError
from torus.format.record import KIND_NAMES
from torus.format.segment import (
    SEGMENT_MAGIC,
    UNUSED_SLOT,
    SegmentHeader,
    SlotHeader,
    parse_segment_name,
)
from torus.format.shard import shelf_data
from torus.store.damage import chunk_behind

_SLOT_BYTES_MIN = 4 * limits.KIB
_SLOT_BYTES_MAX = 1 * limits.GIB


def inspect_segment(path: Path, *, detail: bool = False) -> dict[str, Any]:
    """Describe a segment file as values that JSON knows.

    ``slots`` has a row for each slot, ``records`` one for each record, ``shards`` one for each
    cell of a shelf, ``findings`` one for each thing that is wrong; with ``detail`` records name
    their extents.  Of a damaged header what can be read is used.

    Raises: Corruption when it is no segment file, UsageError, PermissionDenied.
    """
    inspection = _Inspection(path, detail=detail)
    try:
        with path.open("rb") as file:
            inspection.run(file)
    except IsADirectoryError as exc:
        raise UsageError(f"{path} is a folder", hint="name a segment file in it") from exc
    except PermissionError as exc:
        raise PermissionDenied(f"{path} may not be read", hint="run as its owner") from exc
    return inspection.described


@dataclass
class _Inspection:
    """One look into one file."""

    path: Path
    detail: bool
    described: dict[str, Any] = field(default_factory=dict)

    def run(self, file: BinaryIO) -> None:
        size = self.path.stat().st_size
        self.described |= {"file": str(self.path), "size_bytes": size, "header": {}}
        self.described |= {"slots": [], "records": [], "shards": [], "findings": []}
        header = self._header(file.read(limits.SEGMENT_HEADER_BYTES))
        if header is None:
            return
        expected = limits.SEGMENT_HEADER_BYTES + header.slot_count * header.slot_bytes
        if size < expected:
            self._find("header", f"the file has {size} bytes, its slots need {expected}")
        for number in range(header.slot_count):
            at = limits.SEGMENT_HEADER_BYTES + number * header.slot_bytes
            if at >= size:
                self._find(
                    f"slot {number}", f"it and the {header.slot_count - number - 1} behind it lie "
                    "beyond the file's end"
                )  # fmt: skip
                break
            file.seek(at)
            self._slot(header, number, file.read(header.slot_bytes))

    def _find(self, where: str, message: str) -> None:
        self.described["findings"].append({"where": where, "message": message})

    # --- the segment's header -----------------------------------------------------------

    def _header(self, data: bytes) -> SegmentHeader | None:
        """Return the header, also when it is damaged; None when nothing can be made of it."""
        where = self.path.name
        try:
            header = SegmentHeader.unpack(data, where)
        except TorusError as exc:
            found = _salvage(data)
            if found is None and data[: len(SEGMENT_MAGIC)] != SEGMENT_MAGIC:
                raise Corruption(
                    f"{self.path} is no segment file: it begins with {data[:8]!r}, expected "
                    f"{SEGMENT_MAGIC!r}",
                    hint="segment files are those named segment-*.seg in a data directory",
                ) from exc
            self._find("header", exc.message)
            if found is None or not _plausible(found):
                return None
            header = found
        named = parse_segment_name(where)
        if named is not None and named != header.segment:
            self._find("header", f"the file is named {where}, written as segment {header.segment}")
        self.described["header"] = {
            "segment": header.segment,
            "disk_id": header.disk_id.hex(),
            "cluster_id": header.cluster_id.hex(),
            "slot_bytes": header.slot_bytes,
            "slot_count": header.slot_count,
        }
        return header

    # --- slots --------------------------------------------------------------------------

    def _slot(self, segment: SegmentHeader, number: int, data: bytes) -> None:
        where = f"slot {number}"
        row: dict[str, Any] = {"slot": number, "state": "used", "chunk": None, "records": 0}
        row |= {"end": 0, "first_lsn": None, "last_lsn": None, "problem": None}
        self.described["slots"].append(row)
        if len(data) < segment.slot_bytes:
            self._find(where, f"only {len(data)} of its {segment.slot_bytes} bytes are there")
        if len(data) < limits.SLOT_HEADER_BYTES:
            row["state"] = "missing"
            return
        try:
            slot = SlotHeader.unpack(data[: limits.SLOT_HEADER_BYTES], where)
            if slot is None:
                slot = self._lost(segment, number, data)
            if slot is None:
                row["state"] = "free"
                return
            slot.check_place(segment.disk_id, segment.segment, number, where)
        except TorusError as exc:
            row["state"], row["problem"] = "damaged", exc.message
            self._find(where, exc.message)
            return
        row["chunk"] = str(slot.chunk)
        if shelf_data(slot.chunk) is not None:
            self._shelf(row, slot, data, segment.slot_bytes)
            return
        rows: list[dict[str, Any]] = []
        seen = walk(data, slot.chunk, 0, lambda reader: rows.append(self._record(number, reader)))
        self.described["records"] += rows
        self._sum_up(row, where, seen)

    def _shelf(self, row: dict[str, Any], slot: SlotHeader, data: bytes, slot_bytes: int) -> None:
        row["state"] = "shelf"
        cells, problems = inspect_shelf(slot, data, slot_bytes)
        self.described["shards"] += cells
        for where, message in problems:
            row["problem"] = row["problem"] or message
            self._find(where, message)

    def _lost(self, segment: SegmentHeader, number: int, data: bytes) -> SlotHeader | None:
        """Return the header that a node would make anew: it is all zeroes before a record."""
        if not data.startswith(UNUSED_SLOT):
            return None
        chunk = chunk_behind(lambda size: data[:size], len(data))
        if chunk is None:
            return None
        return SlotHeader(segment.disk_id, segment.segment, number, chunk)

    def _sum_up(self, row: dict[str, Any], where: str, seen: ChunkSeen) -> None:
        row |= {"records": seen.records, "end": seen.end}
        if seen.records:
            row |= {"first_lsn": seen.first_lsn, "last_lsn": seen.last_lsn}
        problems = [
            f"record {rotten.index} at offset {rotten.offset} is damaged: {rotten.what}"
            for rotten in seen.rotten
        ]
        if seen.problem:
            problems.append(f"the record at offset {seen.end} is damaged: {seen.problem}")
        if seen.beyond:
            problems.append(
                f"{seen.beyond} records from offset {seen.beyond_offset} on cannot be reached "
                f"from the last good one, which ends at {seen.end}"
            )
        row["problem"] = problems[0] if problems else None
        for problem in problems:
            self._find(where, problem)

    def _record(self, slot: int, reader: RecordReader) -> dict[str, Any]:
        extents = reader.extent_list()
        row: dict[str, Any] = {
            "slot": slot,
            "index": reader.index,
            "kind": KIND_NAMES.get(reader.kind, str(reader.kind)),
            "lsn": reader.lsn,
            "committed": reader.committed,
            "offset": reader.offset,
            "header_bytes": reader.header_bytes,
            "payload_bytes": reader.payload_bytes,
            "extents": len(extents),
            "payload_ok": reader.payload_ok,
        }
        if self.detail:
            row["extent_list"] = [
                {"block": block, "count": count, "zero": zero} for block, count, zero in extents
            ]
        return row


def _salvage(data: bytes) -> SegmentHeader | None:
    """Read a header whose checksum, magic or version is wrong; None when too little is there."""
    if len(data) < limits.SEGMENT_HEADER_BYTES:
        return None
    mended = SEGMENT_MAGIC + data[len(SEGMENT_MAGIC) :]
    try:
        return SegmentHeader.unpack(mended, "")
    except TorusError:
        if data[: len(SEGMENT_MAGIC)] != SEGMENT_MAGIC:
            return None
    body = mended[:-4]
    try:
        return SegmentHeader.unpack(body + checksum(body).to_bytes(4, "little"), "")
    except TorusError:
        return None


def _plausible(header: SegmentHeader) -> bool:
    return (
        _SLOT_BYTES_MIN <= header.slot_bytes <= _SLOT_BYTES_MAX
        and header.slot_bytes % limits.RECORD_ALIGN_BYTES == 0
        and 0 < header.slot_count <= limits.SEGMENT_SLOTS
    )
